"""Steps of a Detectron2 training as files, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from gradaug_det.core.dump import Dump, to_plain
from gradaug_det.core.options import GradAugOptions
from gradaug_det.d2.batch import Batch
from gradaug_det.d2.config import add_gradaug_config
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.utils.standins import count_unfolded

_MOST_VALUES = 100_000
_FIELDS = {kind.__name__: kind for kind in (Boxes, BitMasks, Keypoints)}


def encode(batch: Batch) -> list[dict[str, Any]]:
    """A batch as tensors and plain values; what is neither becomes text."""
    return [{key: _encode(value) for key, value in item.items()} for item in batch]


def decode(batch: list[dict[str, Any]]) -> Batch:
    """The batch that :func:`encode` was given."""
    return [{key: _decode(value) for key, value in item.items()} for item in batch]


def names(batch: Batch) -> list[Any]:
    """What readers find the batch's images by."""
    return [item.get("file_name", item.get("image_id", "?")) for item in batch]


def restore(dump: Dump, config: str | Path | None) -> tuple[GradAugDetector, Batch]:
    """The step's network and batch, on the CPU."""
    if config is not None and str(config).endswith(".py"):
        model = instantiate(LazyConfig.load(str(config)).model)
    else:
        model = _model(dump.config, config)
    model.load_state_dict(dump.weights)
    model.train()
    return GradAugDetector(model, GradAugOptions.from_mapping(dump.options)), decode(dump.batch)


@contextmanager
def running() -> Iterator[None]:
    """What Detectron2's models need around them in training."""
    with EventStorage():
        yield


def config_text(cfg: Any) -> str | None:
    """A yaml config as text; None for others."""
    return cfg.dump() if isinstance(cfg, CfgNode) else None


def _model(text: str | None, file: str | Path | None) -> Any:
    cfg = get_cfg()
    add_gradaug_config(cfg)
    if file is not None:
        cfg.merge_from_file(str(file), allow_unsafe=False)
    else:
        content = yaml.safe_load(text)
        if count_unfolded(content) > _MOST_VALUES:  # CfgNode would copy each of them
            raise ValueError("its config's aliases unfold to more than a config holds")
        cfg.merge_from_other_cfg(CfgNode(content))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def _encode(value: Any) -> Any:
    if not isinstance(value, Instances):
        return to_plain(value)
    fields = {name: _encode_field(field) for name, field in value.get_fields().items()}
    return {"image_size": list(value.image_size), "fields": fields}


def _encode_field(field: Any) -> Any:
    if isinstance(field, PolygonMasks):
        return {"kind": "PolygonMasks", "value": [[p.tolist() for p in one] for one in field]}
    if type(field).__name__ in _FIELDS:
        return {"kind": type(field).__name__, "value": to_plain(field.tensor)}
    return {"kind": "", "value": to_plain(field)}


def _decode(value: Any) -> Any:
    if not isinstance(value, dict) or set(value) != {"image_size", "fields"}:
        return value
    instances = Instances(tuple(value["image_size"]))
    for name, field in value["fields"].items():
        instances.set(name, _decode_field(**field))
    return instances


def _decode_field(kind: str, value: Any) -> Any:
    if kind == "PolygonMasks":
        return PolygonMasks([[np.asarray(p, dtype=np.float64) for p in one] for one in value])
    return _FIELDS[kind](value) if kind else value
