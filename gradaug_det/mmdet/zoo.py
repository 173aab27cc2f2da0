"""The zoo in MMEngine: ``init_cfg=dict(type="Pretrained", checkpoint="gradaug://NAME")``."""

from __future__ import annotations

from typing import Any

from mmengine.runner import CheckpointLoader
from torch import Tensor

from gradaug_det.zoo.url import SCHEME, ZooURL, parse_url


def zoo_url(text: object) -> ZooURL | None:
    """The zoo's URL in a config's value; None if it is none. Raises ConfigError if it is wrong."""
    return parse_url(text, "RGB")  # data_preprocessor=dict(bgr_to_rgb=True)


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_gradaug(filename: str, map_location: Any = None) -> dict[str, dict[str, Tensor]]:
    """The zoo's backbone under MMDetection's names, for MMEngine's CheckpointLoader.

    Args:
        filename: ``gradaug://NAME``, with ``?format=BGR`` for a ``data_preprocessor`` without
            ``bgr_to_rgb``.
        map_location: None, a device or its name.
    """
    state = zoo_url(filename).load("mmdet")
    return {"state_dict": {name: tensor.to(map_location) for name, tensor in state.items()}}
