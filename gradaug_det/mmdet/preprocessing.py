"""Checks an MMDetection config against the zoo's backbone that it loads."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.zoo import zoo_url
from gradaug_det.zoo.preprocessing import Needs, Setting, differing, disagreement
from gradaug_det.zoo.url import ZooURL

_FIX = "gradaug_det.mmdet.train.build_runner(..., fix_preprocessing=True)"
_KEY = "model.backbone.init_cfg.checkpoint"
# Types that differ in what the weights decide; a user's own are left alone.
_RESNET = re.compile(r"((?:mmdet\.)?(?:Slimmable)?)(ResNet|ResNetV1d|ResNeXt|ResNeSt)")


def check_preprocessing(config: Config) -> None:
    """Does nothing unless the backbone's ``init_cfg`` loads a ``gradaug://`` URL.

    Raises:
        ConfigError: images are prepared, or the ResNet is built, otherwise than the weights need:
            names every such key with both values. Or a backbone is given as a whole detector.
        ZooError: the zoo has no such backbone.
    """
    url = _backbone_url(config)
    wrong = differing(list(_settings(config.model, Needs.of(url)))) if url else []
    if wrong:
        raise disagreement(_KEY, url, wrong, _FIX)


def fix_preprocessing(config: Config) -> list[Setting]:
    """Sets the keys that :func:`check_preprocessing` would name.

    Returns:
        What was changed; it is logged, too.
    """
    url = _backbone_url(config)
    wrong = differing(list(_settings(config.model, Needs.of(url)))) if url else []
    for setting in wrong:
        *parents, last = setting.key.split(".")
        node: Any = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = setting.wanted
        message = f"{setting.key}: {setting.given} -> {setting.wanted}"
        print_log(message, logger="current", level=logging.WARNING)
    return wrong


def _backbone_url(config: Config) -> ZooURL | None:
    load_from = config.get("load_from")
    if zoo_url(load_from) is not None:
        raise ConfigError(
            "load_from",
            f"is {load_from!r}, a backbone, where a whole detector's checkpoint belongs; set "
            f"model.backbone.init_cfg=dict(type='Pretrained', checkpoint={load_from!r})",
        )
    model = config.get("model")
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    if not isinstance(backbone, Mapping):
        return None
    given = backbone.get("init_cfg") or []
    for init in given if isinstance(given, (list, tuple)) else [given]:
        url = zoo_url(init.get("checkpoint")) if isinstance(init, Mapping) else None
        if url is not None:
            return url
    return zoo_url(backbone.get("pretrained"))


def _settings(model: Mapping[str, Any], needs: Needs) -> Iterator[Setting]:
    images = model.get("data_preprocessor") or {}
    key = "model.data_preprocessor"
    # Files are read as BGR; both flags reverse that.
    flag = "rgb_to_bgr" if images.get("rgb_to_bgr") else "bgr_to_rgb"
    yield Setting(f"{key}.{flag}", bool(images.get(flag, False)), needs.order == "RGB")
    yield Setting(f"{key}.mean", images.get("mean"), needs.mean)
    yield Setting(f"{key}.std", images.get("std"), needs.std)
    yield from _network_settings(model["backbone"], needs)
    neck = model.get("neck")
    channels = neck.get("in_channels") if isinstance(neck, Mapping) else None
    if isinstance(channels, (list, tuple)):
        stages = model["backbone"].get("out_indices", (0, 1, 2, 3))
        wanted = [64 * needs.expansion * 2**stage for stage in stages]
        yield Setting("model.neck.in_channels", list(channels), wanted)


def _network_settings(backbone: Mapping[str, Any], needs: Needs) -> Iterator[Setting]:
    key = "model.backbone"
    given = backbone.get("type")
    name = given if isinstance(given, str) else getattr(given, "__name__", str(given))
    yield Setting(f"{key}.depth", backbone.get("depth"), needs.depth)
    if needs.stride_in is not None:
        style = "caffe" if needs.stride_in == "1x1" else "pytorch"
        yield Setting(f"{key}.style", backbone.get("style", "pytorch"), style)
    match = _RESNET.fullmatch(name)
    if match:
        yield Setting(f"{key}.type", name, match[1] + _kind(needs))
    if backbone.get("deep_stem") and not needs.deep_stem:
        yield Setting(f"{key}.deep_stem", True, False)
    if needs.groups > 1:
        yield Setting(f"{key}.groups", backbone.get("groups", 1), needs.groups)
        yield Setting(f"{key}.base_width", backbone.get("base_width", 4), needs.group_width)


def _kind(needs: Needs) -> str:
    if needs.groups == 1 and needs.group_width != 64:
        raise ConfigError(
            _KEY,
            "is a wide ResNet, which MMDetection does not have; take another "
            "(`gradaug-det zoo list`), or Detectron2",
        )
    # Deep stems of the zoo are those of a ResNet-D, which MMDetection calls V1d.
    return "ResNeXt" if needs.groups > 1 else "ResNetV1d" if needs.deep_stem else "ResNet"
