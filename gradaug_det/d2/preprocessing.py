"""Checks a Detectron2 config, yaml or lazy, against the zoo's backbone that it loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

from gradaug_det.d2.zoo import zoo_url
from gradaug_det.errors import ConfigError
from gradaug_det.zoo.preprocessing import Needs, Setting, differing, disagreement

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
    key, text = _weights(cfg)
    url = zoo_url(text)
    if url is None:
        return
    wrong = differing(_settings(cfg, Needs.of(url)))
    if wrong:
        raise disagreement(key, url, wrong, _FIX)


def fix_preprocessing(cfg: CfgNode | DictConfig) -> list[Setting]:
    """Sets the keys that :func:`check_preprocessing` would name.

    Returns:
        What was changed; it is logged, too.

    Raises:
        ConfigError: Detectron2 has no such network.
    """
    url = zoo_url(_weights(cfg)[1])
    if url is None:
        return []
    wrong = differing(_settings(cfg, Needs.of(url)))
    for setting in wrong:
        *parents, last = setting.key.split(".")
        node: Any = cfg
        for parent in parents:
            node = node[parent]
        if setting.wanted is None:
            del node[last]
        else:
            node[last] = setting.wanted
        logger.warning("%s: %s -> %s", setting.key, setting.given, setting.wanted)
    return wrong


def _weights(cfg: CfgNode | DictConfig) -> tuple[str, object]:
    if isinstance(cfg, CfgNode):
        return "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS
    return "train.init_checkpoint", OmegaConf.select(cfg, "train.init_checkpoint")


def _settings(cfg: CfgNode | DictConfig, needs: Needs) -> list[Setting]:
    if needs.deep_stem:
        raise ConfigError(
            _weights(cfg)[0],
            "is a backbone with a deep stem, which Detectron2's ResNet does not have; take another "
            "(`gradaug-det zoo list`), or MMDetection",
        )
    return list((_yaml_settings if isinstance(cfg, CfgNode) else _lazy_settings)(cfg, needs))


def _yaml_settings(cfg: CfgNode, needs: Needs) -> Iterator[Setting]:
    resnets = cfg.MODEL.RESNETS
    yield Setting("INPUT.FORMAT", cfg.INPUT.FORMAT, needs.order)
    yield Setting("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, needs.mean)
    yield Setting("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, needs.std)
    for key, wanted in (
        ("DEPTH", needs.depth),
        ("RES2_OUT_CHANNELS", 64 * needs.expansion),
        ("NUM_GROUPS", needs.groups),
        ("WIDTH_PER_GROUP", needs.group_width),
    ):
        yield Setting(f"MODEL.RESNETS.{key}", resnets[key], wanted)
    if needs.stride_in is not None:
        wanted = needs.stride_in == "1x1"
        yield Setting("MODEL.RESNETS.STRIDE_IN_1X1", resnets.STRIDE_IN_1X1, wanted)


def _lazy_settings(cfg: DictConfig, needs: Needs) -> Iterator[Setting]:
    """The keys of Detectron2's own lazy models; those that a config does not have are its own."""
    for key in (
        "model.input_format",
        "dataloader.train.mapper.image_format",
        "dataloader.test.mapper.image_format",
    ):
        if OmegaConf.select(cfg, key) is not None:
            yield Setting(key, OmegaConf.select(cfg, key), needs.order)
    for name, wanted in (("mean", needs.mean), ("std", needs.std)):
        key = f"model.pixel_{name}"
        yield Setting(key, _plain(OmegaConf.select(cfg, key)), wanted)
    bottom_up = "bottom_up." if OmegaConf.select(cfg, "model.backbone.bottom_up") else ""
    stages = f"model.backbone.{bottom_up}stages"
    if OmegaConf.select(cfg, f"{stages}.depth") is None:
        logger.warning("%s.depth is not in the config: the network is not checked", stages)
        return
    yield Setting(f"{stages}.depth", OmegaConf.select(cfg, f"{stages}.depth"), needs.depth)
    given = OmegaConf.select(cfg, f"{stages}.stride_in_1x1")
    # Basic blocks know no such argument; bottlenecks have it False if it is not given.
    wanted = None if needs.stride_in is None else needs.stride_in == "1x1"
    if given is not None or wanted:
        yield Setting(f"{stages}.stride_in_1x1", given, wanted)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
