"""An MMDetection config without gradaug_det, and with the channels of a narrow backbone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mmdet.registry
import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from gradaug_det.errors import ConfigError
from gradaug_det.export.widths import scaled
from gradaug_det.mmdet.backbone import SlimmableResNet, SlimmableResNetV1d, SlimmableResNeXt
from gradaug_det.mmdet.mask_head import SmallInitMaskHead

_OWN = {
    ours.__name__: ours.__base__.__name__
    for ours in (SlimmableResNet, SlimmableResNetV1d, SlimmableResNeXt, SmallInitMaskHead)
}
_NARROWED = ("ResNet", "ResNetV1d", "ResNeXt")
_BACKBONE, _NECK = "model.backbone", "model.neck"


def plain_config(config: Config, share: Fraction) -> Config:
    """The config of the same detector for plain MMDetection.

    Args:
        config: of the detector as it was trained; not changed.
        share: of the backbone's channels that are kept.

    Raises:
        ConfigError: names the key that cannot be narrowed, or needs gradaug_det.
    """
    config = copy.deepcopy(config)
    for node, _ in _nodes(config._cfg_dict, ""):
        if _type_name(node) in _OWN:
            node["type"] = _OWN[_type_name(node)]
    _remove_hook_and_imports(config)
    if share != 1:
        _narrow(config.model, share)
    # All weights come from the checkpoint.
    config.model.backbone.init_cfg = None
    config.model.backbone.pop("pretrained", None)
    _check_plain(config)
    return config


def _remove_hook_and_imports(config: Config) -> None:
    ours = ("GradAugHook", "ExactResumeHook")
    hooks = [hook for hook in config.get("custom_hooks") or [] if _type_name(hook) not in ours]
    imports = (config.get("custom_imports") or {}).get("imports") or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    imports = [name for name in imports if name.split(".")[0] != "gradaug_det"]
    if hooks or "custom_hooks" in config:
        config.custom_hooks = hooks
    if imports:
        config.custom_imports.imports = imports
    else:
        config.pop("custom_imports", None)


def _narrow(model: Any, share: Fraction) -> None:
    backbone = model.backbone
    kind = _type_name(backbone)
    if kind not in _NARROWED:
        raise ConfigError(
            f"{_BACKBONE}.type",
            f"is {kind}, whose channels no setting changes; {', '.join(_NARROWED)} can be "
            "exported at other widths than 1",
        )
    backbone.base_channels = scaled(
        f"{_BACKBONE}.base_channels", backbone.get("base_channels", 64), share
    )
    if backbone.get("stem_channels") is not None:
        backbone.stem_channels = scaled(f"{_BACKBONE}.stem_channels", backbone.stem_channels, share)
    if backbone.get("groups", 1) > 1:
        backbone.groups = scaled(f"{_BACKBONE}.groups", backbone.groups, share)
    norm = backbone.get("norm_cfg") or {}
    if "num_groups" in norm:
        key = f"{_BACKBONE}.norm_cfg.num_groups"
        # Configs share one norm_cfg among their parts, of which only this one changes.
        backbone.norm_cfg = {**norm, "num_groups": scaled(key, norm["num_groups"], share)}
    neck = model.get("neck")
    first = neck[0] if isinstance(neck, (list, tuple)) and neck else neck
    if not isinstance(first, dict) or "in_channels" not in first:
        raise ConfigError(
            _NECK,
            "must have in_channels, the channels of the backbone's outputs; detectors without "
            "such a neck can be exported at width 1 only",
        )
    given = first["in_channels"]
    first["in_channels"] = (
        scaled(f"{_NECK}.in_channels", given, share)
        if isinstance(given, int)
        else [scaled(f"{_NECK}.in_channels[{i}]", value, share) for i, value in enumerate(given)]
    )


def _check_plain(config: Config) -> None:
    ours = _registered_here()
    for node, key in _nodes(config._cfg_dict, ""):
        name = _type_name(node)
        if name in ours:
            raise ConfigError(
                f"{key}.type",
                f"is {name}, which gradaug_det registers, and plain MMDetection has not got; "
                "take one of MMDetection's own, then train and export",
            )
        for name, value in node.items():
            if isinstance(value, str) and value.startswith("gradaug://"):
                raise ConfigError(
                    f"{key}.{name}".lstrip("."),
                    f"is {value!r}, which only gradaug_det can read; remove it with --opts",
                )


def _registered_here() -> set[str]:
    registries = [
        registry
        for module in (mmengine.registry, mmdet.registry)
        for registry in vars(module).values()
        if isinstance(registry, Registry)
    ]
    return {
        name
        for registry in registries
        for name, item in registry.module_dict.items()
        if getattr(item, "__module__", "").split(".")[0] == "gradaug_det"
    }


def _nodes(value: Any, key: str) -> Iterator[tuple[dict, str]]:
    """Every dict in a config with its dotted key, from the outside in."""
    if isinstance(value, dict):
        yield value, key
        for name, item in value.items():
            yield from _nodes(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _nodes(item, f"{key}.{index}")


def _type_name(node: dict) -> str:
    """``type`` without its scope or module, whether it is a name or a class."""
    given = node.get("type")
    return given.rpartition(".")[2] if isinstance(given, str) else getattr(given, "__name__", "")
