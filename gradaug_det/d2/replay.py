"""Steps of a Detectron2 training as files, and back (see :mod:`gradaug_det.replay`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from gradaug_det.core.dump import from_plain, to_plain
from gradaug_det.d2.batch import Batch
from gradaug_det.d2.config import add_gradaug_config
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.utils.standins import count_unfolded

_MOST_VALUES = 100_000
_KINDS = {
    Instances: (
        lambda instances: (instances.image_size, instances.get_fields()),
        lambda size, fields: Instances(tuple(size), **fields),
    ),
    PolygonMasks: (lambda masks: (masks.polygons,), PolygonMasks),
    **{kind: (lambda wrapper: (wrapper.tensor,), kind) for kind in (Boxes, BitMasks, Keypoints)},
}

RUNS_CONFIG = False
network, training_context = GradAugDetector, EventStorage
encode, decode = partial(to_plain, kinds=_KINDS), partial(from_plain, kinds=_KINDS)


def image_names(batch: Batch) -> list[Any]:
    """Returns what readers find the batch's images by."""
    return [item.get("file_name", item.get("image_id", "?")) for item in batch]


def config_text(cfg: Any) -> str | None:
    """Returns a yaml config as text; None for others."""
    return cfg.dump() if isinstance(cfg, CfgNode) else None


def build(text: str | None, file: str | Path | None) -> nn.Module:
    """Builds the detector of a config, on the CPU.

    Args:
        text: of a yaml config, which may come from anyone; it counts if there is no file.
        file: a yaml config or a LazyConfig, which runs.
    """
    if file is not None and str(file).endswith(".py"):
        return instantiate(LazyConfig.load(str(file)).model)
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
