"""A pretrained classifier as a file of the model zoo, which describes itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from gradaug_det.pretrain.data import PIXEL_MEAN, PIXEL_STD
from gradaug_det.pretrain.recipe import Recipe
from gradaug_det.zoo.backbone import save_backbone
from gradaug_det.zoo.info import DEPTHS, BackboneInfo


def save_pretrained(
    path: str | Path, model: nn.Module, recipe: Recipe, metrics: Mapping[str, float]
) -> Path:
    """Writes the model's weights with what a detector's config must agree with.

    Args:
        path: the ``.safetensors`` file to write.
        model: a torchvision ResNet.
        recipe: how it was trained.
        metrics: what was measured, e.g. ``{"top1": 78.8}``.
    """
    slimmed = recipe.gradaug.num_subnets > 0
    info = BackboneInfo(
        name=recipe.name,
        architecture=recipe.model,
        depth=DEPTHS[recipe.model],
        min_width=recipe.gradaug.min_width if slimmed else 1.0,
        stem="7x7",
        stride_in="3x3",
        channel_order="RGB",
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        recipe=recipe.as_dict() | {"data": vars(recipe.data) | {"root": ""}},
        metrics={name: float(value) for name, value in metrics.items()},
        licence="Apache-2.0",
        source="trained by tools/pretrain.py of gradaug_det",
    )
    return save_backbone(path, model.state_dict(), info)
