"""GradAug's classification step as its authors' program takes it: the reference to be as fast as.

Told again, not copied: layers that slice their weights in ``forward`` by a width that is set on
them, one backward a pass, resized inputs by ``F.interpolate``.

Source: GradAug, Algorithm 1; Yu et al., Slimmable Neural Networks, 2019, for the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gradaug_det.core.plan import ChannelGroup
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import slim_plan
from gradaug_det.errors import UnslimmableError


class SlimmableConv2d(nn.Module):
    """A convolution that gives the first channels of its group at ``width``."""

    def __init__(self, layer: nn.Conv2d, group: ChannelGroup) -> None:
        super().__init__()
        self.weight, self.group, self.width = layer.weight, group, 1.0
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[: self.group.at(self.width), : x.shape[1]]
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


class SlimmableBatchNorm2d(nn.Module):
    """Batch statistics at every width; the full width alone records them."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.width = layer.weight, layer.bias, 1.0
        self.momentum, self.eps = layer.momentum, layer.eps
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)

    def forward(self, x: Tensor) -> Tensor:
        kept = x.shape[1]
        full = self.width == 1
        return F.batch_norm(
            x,
            self.running_mean if full else None,
            self.running_var if full else None,
            self.weight[:kept],
            self.bias[:kept],
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )


class SlimmableLinear(nn.Module):
    """A classifier of the first features."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias, self.width = layer.weight, layer.bias, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, : x.shape[1]], self.bias)


_SLIMMABLE = (SlimmableConv2d, SlimmableBatchNorm2d, SlimmableLinear)


def make_slimmable(model: nn.Module) -> nn.Module:
    """Puts slimmable layers in place of a torchvision ResNet's; parameters stay the same objects.

    Raises:
        UnslimmableError: a layer is of none of these kinds (e.g. a grouped convolution).
    """
    plan = slim_plan(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.bias is None:
            group = plan.groups[plan.tensors[f"{name}.weight"][0]]
            new: nn.Module = SlimmableConv2d(layer, group)
        elif isinstance(layer, nn.BatchNorm2d):
            new = SlimmableBatchNorm2d(layer)
        elif isinstance(layer, nn.Linear):
            new = SlimmableLinear(layer)
        elif next(layer.parameters(recurse=False), None) is not None:
            raise UnslimmableError(f"{name} ({type(layer).__name__}) is not a layer of a ResNet")
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, new)
    return model


def set_width(model: nn.Module, width: float) -> None:
    """Sets the width of all slimmable layers, until it is set again."""
    for layer in model.modules():
        if isinstance(layer, _SLIMMABLE):
            layer.width = width


def interpolate(images: Tensor, sub: SubNetwork) -> Tensor:
    """A sub-network's images, without antialiasing."""
    size = sub.transform.output_size(tuple(images.shape[-2:]))
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def authors_passes(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    sub_networks: Sequence[SubNetwork],
    resize: Callable[[Tensor, SubNetwork], Tensor] = interpolate,
) -> None:
    """All passes of a step, forward and backward; leaves the sum of the gradients in ``.grad``.

    Args:
        model: from :func:`make_slimmable`, at full width and in training mode.
        images: (N, 3, H, W).
        labels: (N,) classes.
        resize: makes a sub-network's images.
    """
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    target = logits.detach().softmax(dim=1)
    for sub in sub_networks:
        set_width(model, sub.width)
        output = model(resize(images, sub))
        F.kl_div(output.log_softmax(dim=1), target, reduction="batchmean").backward()
    set_width(model, 1.0)
