"""Small backbones and their descriptions."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from gradaug_det.zoo.backbone import BackboneInfo, save_backbone


def make_info(**changes: Any) -> BackboneInfo:
    fields = {
        "name": "tiny",
        "architecture": "resnet18",
        "depth": 18,
        "min_width": 0.9,
        "stem": "7x7",
        "stride_in": "3x3",
        "channel_order": "RGB",
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
        "recipe": {"epochs": 1, "scales": (1, 0.5)},
        "metrics": {"top1": 12.5},
        "licence": "Apache-2.0",
        "source": "a test",
    }
    return BackboneInfo(**fields | changes)


def make_state(architecture: str = "resnet18", classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return getattr(torchvision.models, architecture)(num_classes=classes).state_dict()


def make_file(path: Path, **changes: Any) -> Path:
    return save_backbone(path, make_state(), make_info(**changes))
