"""Checks a Detectron2 config, yaml or lazy, against the zoo's backbone that it loads."""

from __future__ import annotations

import logging
import operator
from functools import reduce
from typing import Any

from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

from gradaug_det.d2.zoo import zoo_url
from gradaug_det.errors import ConfigError
from gradaug_det.zoo.info import BackboneInfo
from gradaug_det.zoo.preprocessing import Setting, check_settings, fix_settings

logger = logging.getLogger("detectron2.gradaug")
_FIX = "tools/train_net.py --fix-preprocessing"


def check_preprocessing(cfg: CfgNode | DictConfig) -> None:
    """Does nothing unless the config's weights are a ``gradaug://`` URL.

    Args:
        cfg: a yaml config (weights in ``MODEL.WEIGHTS``) or a LazyConfig
            (``train.init_checkpoint``).

    Raises:
        ConfigError: images are prepared, or the ResNet is built, otherwise than the weights need:
            names every such key with both values.
        ZooError: the zoo has no such backbone.
    """
    key, text = _find_weights(cfg)
    if url := zoo_url(text):
        check_settings(key, url, _list_settings(cfg), _FIX)


def fix_preprocessing(cfg: CfgNode | DictConfig) -> list[Setting]:
    """Sets the keys that :func:`check_preprocessing` would name; logs and returns them.

    Raises:
        ConfigError: Detectron2 has no such network.
    """
    return fix_settings(cfg, _list_settings(cfg), logger)


def _find_weights(cfg: CfgNode | DictConfig) -> tuple[str, object]:
    if isinstance(cfg, CfgNode):
        return "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS
    return "train.init_checkpoint", OmegaConf.select(cfg, "train.init_checkpoint")


def _list_settings(cfg: CfgNode | DictConfig) -> list[Setting]:
    key, text = _find_weights(cfg)
    url = zoo_url(text)
    if url is None:
        return []
    info = url.info()
    if info.stem == "deep":
        raise ConfigError(
            key,
            "is a backbone with a deep stem, which Detectron2's ResNet does not have; take another "
            "(`gradaug-det zoo list`), or MMDetection",
        )
    wanted = _yaml_keys(info) if isinstance(cfg, CfgNode) else _lazy_keys(cfg, info)
    return [Setting(key, _read(cfg, key), value) for key, value in wanted.items()]


def _read(cfg: CfgNode | DictConfig, key: str) -> Any:
    """The value of a dotted key; None if a LazyConfig does not have it."""
    if isinstance(cfg, CfgNode):
        return reduce(operator.getitem, key.split("."), cfg)
    value = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _yaml_keys(info: BackboneInfo) -> dict[str, Any]:
    wanted = {
        "INPUT.FORMAT": info.channel_order,
        "MODEL.PIXEL_MEAN": list(info.pixel_mean),
        "MODEL.PIXEL_STD": list(info.pixel_std),
        "MODEL.RESNETS.DEPTH": info.depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 * (4 if info.is_bottleneck else 1),
        "MODEL.RESNETS.NUM_GROUPS": info.groups[0],
        "MODEL.RESNETS.WIDTH_PER_GROUP": info.groups[1],
    }
    if info.is_bottleneck:
        wanted["MODEL.RESNETS.STRIDE_IN_1X1"] = info.stride_in == "1x1"
    return wanted


def _lazy_keys(cfg: DictConfig, info: BackboneInfo) -> dict[str, Any]:
    # The keys of Detectron2's own lazy models; those that a config does not have are its own.
    mappers = [f"dataloader.{split}.mapper.image_format" for split in ("train", "test")]
    formats = [key for key in ("model.input_format", *mappers) if _read(cfg, key) is not None]
    wanted = dict.fromkeys(formats, info.channel_order)
    wanted |= {"model.pixel_mean": list(info.pixel_mean), "model.pixel_std": list(info.pixel_std)}
    bottom_up = "bottom_up." if OmegaConf.select(cfg, "model.backbone.bottom_up") else ""
    stages = f"model.backbone.{bottom_up}stages"
    if _read(cfg, f"{stages}.depth") is None:
        logger.warning("%s.depth is not in the config: the network is not checked", stages)
        return wanted
    wanted[f"{stages}.depth"] = info.depth
    # Basic blocks know no such argument; bottlenecks have it False if it is not given.
    stride_in_1x1 = info.stride_in == "1x1" if info.is_bottleneck else None
    if stride_in_1x1 or _read(cfg, f"{stages}.stride_in_1x1") is not None:
        wanted[f"{stages}.stride_in_1x1"] = stride_in_1x1
    return wanted
