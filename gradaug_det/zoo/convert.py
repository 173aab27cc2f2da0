"""Moves backbone weights between frameworks: the same tensors under other names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from gradaug_det.errors import GradAugError

# torchvision's name -> Detectron2's; the order matters.
_TO_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer([1-4])\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn([1-3])\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def torchvision_to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a torchvision ResNet's backbone tensors in Detectron2's ``ResNet``.

    The classifier (``fc``) and ``num_batches_tracked`` have no counterpart and are dropped. The
    tensors themselves are not changed: train with Detectron2's pixel mean, std and channel order.

    Raises:
        GradAugError: the state is not that of a torchvision ResNet.
    """
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        raise GradAugError(
            "the checkpoint is not a torchvision ResNet's: it has no 'conv1.weight' or "
            "'layer1.0.conv1.weight'"
        )
    converted = {}
    for name, tensor in state.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        for pattern, replacement in _TO_DETECTRON2:
            name = re.sub(pattern, replacement, name)
        converted[name] = tensor
    return converted
