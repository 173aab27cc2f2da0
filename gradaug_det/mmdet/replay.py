"""Steps of an MMDetection training as files, and back (see :mod:`gradaug_det.replay`)."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

from gradaug_det.core.dump import from_plain, to_plain
from gradaug_det.mmdet.batch import Batch
from gradaug_det.mmdet.detector import GradAugDetector


def _make_element(kind: type[BaseDataElement], meta: dict, fields: dict) -> BaseDataElement:
    sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in meta.items()}
    element = kind(metainfo=sizes)
    for name, value in fields.items():
        # Plain assignment would compare lengths, and a field may have become text.
        element.set_field(value, name)
    return element


_KINDS = {
    Batch: (tuple, Batch),
    HorizontalBoxes: (lambda boxes: (boxes.tensor,), HorizontalBoxes),
    BitmapMasks: (
        lambda masks: (masks.masks, masks.height, masks.width),
        lambda masks, *size: BitmapMasks(np.asarray(masks), *size),
    ),
    PolygonMasks: (
        lambda masks: (masks.masks, masks.height, masks.width),
        lambda masks, *size: PolygonMasks([list(map(np.asarray, one)) for one in masks], *size),
    ),
    **{
        kind: (
            lambda element: (dict(element.metainfo_items()), dict(element.items())),
            partial(_make_element, kind),
        )
        for kind in (DetDataSample, InstanceData, PixelData)
    },
}

RUNS_CONFIG = True
network, training_context = GradAugDetector, nullcontext
encode, decode = partial(to_plain, kinds=_KINDS), partial(from_plain, kinds=_KINDS)


def image_names(batch: Batch) -> list[Any]:
    """Returns what readers find the batch's images by."""
    return [s.metainfo.get("img_path", s.metainfo.get("img_id", "?")) for s in batch.samples]


def build(text: str | None, file: str | Path | None) -> nn.Module:
    """Builds the detector of a config, on the CPU. Runs the config: the file, else the text."""
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(file) if file else Config.fromstring(text, ".py")
    config.model.pop("init_cfg", None)
    return revert_sync_batchnorm(MODELS.build(config.model))
