"""Steps of an MMDetection training as files, and back."""

from __future__ import annotations

from contextlib import nullcontext
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
from mmengine.structures import InstanceData, PixelData

from gradaug_det.core.dump import Dump, to_plain
from gradaug_det.core.options import GradAugOptions
from gradaug_det.mmdet.batch import Batch
from gradaug_det.mmdet.detector import GradAugDetector

_ELEMENTS = {kind.__name__: kind for kind in (InstanceData, PixelData)}


def encode(batch: Batch) -> dict[str, Any]:
    """A batch as tensors and plain values; what is neither becomes text."""
    return {"inputs": to_plain(batch.inputs), "samples": [_encode(s) for s in batch.samples]}


def decode(content: dict[str, Any]) -> Batch:
    """The batch that :func:`encode` was given."""
    return Batch(content["inputs"], [_decode(s) for s in content["samples"]])


def names(batch: Batch) -> list[Any]:
    """What readers find the batch's images by."""
    return [s.metainfo.get("img_path", s.metainfo.get("img_id", "?")) for s in batch.samples]


def restore(dump: Dump, config: str | Path | None) -> tuple[GradAugDetector, Batch]:
    """The step's network and batch, on the CPU. Runs the config: the file, or the dump's."""
    register_all_modules(init_default_scope=True)
    loaded = Config.fromfile(config) if config else Config.fromstring(dump.config, ".py")
    model = loaded.model
    model.pop("init_cfg", None)
    model = revert_sync_batchnorm(MODELS.build(model))
    model.load_state_dict(dump.weights)
    model.train()
    return GradAugDetector(model, GradAugOptions.from_mapping(dump.options)), decode(dump.batch)


running = nullcontext
"""What MMDetection's models need around them in training: nothing."""


def _encode(sample: DetDataSample) -> dict[str, Any]:
    parts = {
        name: {
            "kind": type(part).__name__,
            "meta": to_plain(part.metainfo),
            "fields": {key: _encode_field(field) for key, field in part.items()},
        }
        for name, part in sample.items()
    }
    return {"meta": to_plain(sample.metainfo), "parts": parts}


def _encode_field(field: Any) -> dict[str, Any]:
    if isinstance(field, HorizontalBoxes):
        return {"kind": "HorizontalBoxes", "value": to_plain(field.tensor)}
    if isinstance(field, (BitmapMasks, PolygonMasks)):
        size = [field.height, field.width]
        return {"kind": type(field).__name__, "value": to_plain(field.masks), "size": size}
    return {"kind": "", "value": to_plain(field)}


def _decode(content: dict[str, Any]) -> DetDataSample:
    meta = {k: tuple(v) if isinstance(v, list) else v for k, v in content["meta"].items()}
    sample = DetDataSample(metainfo=meta)
    for name, part in content["parts"].items():
        element = _ELEMENTS[part["kind"]](metainfo=part["meta"])
        for key, field in part["fields"].items():
            element.set_field(_decode_field(**field), key)
        sample.set_data({name: element})
    return sample


def _decode_field(kind: str, value: Any, size: list[int] | None = None) -> Any:
    if kind == "HorizontalBoxes":
        return HorizontalBoxes(value)
    if kind == "BitmapMasks":
        return BitmapMasks(value.numpy(), *size)
    if kind == "PolygonMasks":
        return PolygonMasks([[np.asarray(p) for p in one] for one in value], *size)
    return value
