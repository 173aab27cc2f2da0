"""Checks an MMDetection config against the zoo's backbone that it loads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger

from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.values import type_name
from gradaug_det.mmdet.zoo import zoo_url
from gradaug_det.zoo.info import BackboneInfo
from gradaug_det.zoo.preprocessing import Setting, check_settings, fix_settings
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
    if url := _find_url(config):
        check_settings(_KEY, url, _list_settings(config.model, url.info()), _FIX)


def fix_preprocessing(config: Config) -> list[Setting]:
    """Sets the keys that :func:`check_preprocessing` would name; logs and returns them."""
    if not (url := _find_url(config)):
        return []
    settings = list(_list_settings(config.model, url.info()))
    return fix_settings(config, settings, MMLogger.get_current_instance())


def _find_url(config: Config) -> ZooURL | None:
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
    initial = given if isinstance(given, (list, tuple)) else [given]
    values = [init.get("checkpoint") for init in initial if isinstance(init, Mapping)]
    urls = map(zoo_url, [*values, backbone.get("pretrained")])
    return next((url for url in urls if url is not None), None)


def _list_settings(model: Mapping[str, Any], info: BackboneInfo) -> Iterator[Setting]:
    key, images = "model.data_preprocessor", model.get("data_preprocessor") or {}
    # Files are read as BGR; both flags reverse that.
    flag = "rgb_to_bgr" if images.get("rgb_to_bgr") else "bgr_to_rgb"
    yield Setting(f"{key}.{flag}", bool(images.get(flag, False)), info.channel_order == "RGB")
    yield Setting(f"{key}.mean", images.get("mean"), list(info.pixel_mean))
    yield Setting(f"{key}.std", images.get("std"), list(info.pixel_std))

    key, backbone = "model.backbone", model["backbone"]
    yield Setting(f"{key}.depth", backbone.get("depth"), info.depth)
    if info.is_bottleneck:
        style = "caffe" if info.stride_in == "1x1" else "pytorch"
        yield Setting(f"{key}.style", backbone.get("style", "pytorch"), style)
    name = type_name(backbone)
    if match := _RESNET.fullmatch(name):
        yield Setting(f"{key}.type", name, match[1] + _name_class(info))
    if backbone.get("deep_stem") and info.stem != "deep":
        yield Setting(f"{key}.deep_stem", True, False)
    if info.groups[0] > 1:
        yield Setting(f"{key}.groups", backbone.get("groups", 1), info.groups[0])
        yield Setting(f"{key}.base_width", backbone.get("base_width", 4), info.groups[1])

    neck = model.get("neck")
    channels = neck.get("in_channels") if isinstance(neck, Mapping) else None
    if isinstance(channels, (list, tuple)):
        stages = backbone.get("out_indices", (0, 1, 2, 3))
        wanted = [64 * (4 if info.is_bottleneck else 1) * 2**stage for stage in stages]
        yield Setting("model.neck.in_channels", list(channels), wanted)


def _name_class(info: BackboneInfo) -> str:
    if info.groups == (1, 128):
        raise ConfigError(
            _KEY,
            "is a wide ResNet, which MMDetection does not have; take another "
            "(`gradaug-det zoo list`), or Detectron2",
        )
    # Deep stems of the zoo are those of a ResNet-D, which MMDetection calls V1d.
    return "ResNeXt" if info.groups[0] > 1 else "ResNetV1d" if info.stem == "deep" else "ResNet"
