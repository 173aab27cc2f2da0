"""Image classification as Algorithm 1 sees it: cross-entropy, then KL to the full network."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gradaug_det.core.losses import class_kl
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.sampling import SubNetwork

Batch = tuple[Tensor, Tensor]


@dataclass
class Classifier:
    """A classifier in training (see :class:`gradaug_det.core.regularizer.Trainable`).

    Args:
        backbone: (N, C, H, W) images -> (N, K) logits.
        subnet_norm: the authors train sub-networks on batch statistics.
        output: key of the logits if the backbone returns a dict (Detectron2's: ``linear``).

    Source: GradAug, equation 3 and Algorithm 1.
    """

    backbone: nn.Module
    subnet_norm: str = "batch"
    output: str | None = None

    @property
    def module(self) -> nn.Module:
        return self.backbone

    def _logits(self, images: Tensor) -> Tensor:
        output = self.backbone(images)
        return output if self.output is None else output[self.output]

    def full_pass(self, batch: Batch) -> tuple[Losses, Tensor]:
        images, labels = batch
        logits = self._logits(images)
        return {"loss_cls": F.cross_entropy(logits, labels)}, logits.detach()

    def sub_network_pass(self, batch: Batch, soft_target: Tensor, sub: SubNetwork) -> Losses:
        images, _ = batch
        logits = self._logits(sub.transform.image(images))
        return {"loss_kl": class_kl(logits, soft_target)}
