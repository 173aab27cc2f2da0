"""Image classification as Algorithm 1 sees it: cross-entropy, then KL to the full network."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from gradaug_det.core.depth import residual_blocks, survival_probabilities
from gradaug_det.core.losses import at_least_float32, class_kl
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.sampling import SubNetwork

Batch = tuple[Tensor, Tensor]


@dataclass
class Classifier:
    """A classifier in training (see :class:`gradaug_det.core.regularizer.Trainable`).

    Args:
        backbone: (N, C, H, W) images -> (N, K) logits.
        subnet_norm: the authors train sub-networks on batch statistics.
        rotations: angles in degrees that a sub-network's batch may be turned by, beside its scale.
        label_smoothing: of the full network's cross-entropy.

    A batch is images and labels: (N,) classes or (N, K) probabilities. Images are (N, C, H, W), the
    same for all passes; or (N, 1 + n, C, H, W), the full network's and one of each sub-network.

    Source: GradAug, equation 3 and Algorithm 1; its study of transformations for rotations. The
        ImageNet models were trained on own views (``MultiCropsTransform`` in the authors' code
        until 2020-12-16), all else on the same ones.
    """

    backbone: nn.Module
    subnet_norm: str = "batch"
    rotations: Sequence[float] = (0.0,)
    label_smoothing: float = 0.0

    @property
    def module(self) -> nn.Module:
        return self.backbone

    slimmed = module

    def full_pass(self, batch: Batch) -> tuple[Losses, Tensor]:
        images, labels = batch
        logits = at_least_float32(self.backbone(view_of(images, 0)))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss_cls": loss}, logits.detach()

    def sub_network_pass(self, batch: Batch, soft_target: Tensor, sub: SubNetwork) -> Losses:
        images = sub.transform.image(view_of(batch[0], 1 + sub.index))
        images = rotate(images, rotation_of(sub, self.rotations))
        return {"loss_kl": class_kl(self.backbone(images), soft_target)}


def view_of(images: Tensor, index: int) -> Tensor:
    """(N, V, C, H, W) -> (N, C, H, W); images without views as they are."""
    return images[:, index] if images.ndim == 5 else images


def rotation_of(sub: SubNetwork, rotations: Sequence[float]) -> float:
    """The angle of a sub-network: like its width, a function of (seed, iteration, index)."""
    return random.Random(f"rotation/{sub.seed}").choice(list(rotations))


def rotate(images: Tensor, angle: float) -> Tensor:
    """Turns (N, C, H, W) images about their middle; whole turns leave them alone."""
    if angle % 360 == 0:
        return images
    return tvf.rotate(images, angle, interpolation=InterpolationMode.BILINEAR)


def add_stochastic_depth(model: nn.Module, last_survival: float) -> None:
    """In training, each image skips residual branches at random; names and weights stay.

    One of the methods that GradAug is compared with.

    Args:
        model: a torchvision ResNet.
        last_survival: probability of keeping the last branch, in [0, 1]; the first is always
            kept, those between linearly. 1 leaves the model as it is.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016, equation 4. Kept branches are
        scaled up in training in place of down at test time.
    """
    if last_survival == 1:
        return
    blocks = residual_blocks(model)
    keeps = survival_probabilities(len(blocks), last_survival)
    for block, keep in zip(blocks, keeps, strict=True):
        # The branch ends with the last norm: bn2 of a basic block, bn3 of a bottleneck.
        norm = block.bn3 if hasattr(block, "bn3") else block.bn2
        norm.register_forward_hook(_make_dropper(1 - keep))


def _make_dropper(probability: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def drop(norm: nn.Module, _args: Any, branch: Tensor) -> Tensor:
        return stochastic_depth(branch, probability, "row", norm.training)

    return drop
