"""An MMDetection config without gradaug_det, and with the channels of a narrow detector."""

from __future__ import annotations

import copy
import inspect
from fractions import Fraction
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config

from gradaug_det.errors import ConfigError
from gradaug_det.export.widths import scale_channels
from gradaug_det.mmdet.backbone import SlimmableResNet, SlimmableResNetV1d, SlimmableResNeXt
from gradaug_det.mmdet.mask_head import SmallInitMaskHead
from gradaug_det.mmdet.values import type_name, walk

# Components of ours -> the same of MMDetection.
_PLAIN_NAMES = {
    ours.__name__: ours.__bases__[-1].__name__
    for ours in (SlimmableResNet, SlimmableResNetV1d, SlimmableResNeXt, SmallInitMaskHead)
}
_HOOKS = ("GradAugHook", "ExactResumeHook")
_NARROWED = ("ResNet", "ResNetV1d", "ResNeXt")
# What follows a backbone, and its settings that count channels, or groups of them.
_HEADS = ("neck", "rpn_head", "bbox_head", "roi_head")
_CHANNELS = (
    *("in_channels", "out_channels", "feat_channels", "conv_out_channels", "fc_out_channels"),
    *("num_groups", "block_mid_channels"),
)


def plain_config(config: Config, share: Fraction, heads: Fraction) -> Config:
    """Returns the config of the same detector for plain MMDetection.

    Args:
        config: of the detector as it was trained; not changed.
        share: of the backbone's channels that are kept.
        heads: of those of the neck and the heads.

    Raises:
        ConfigError: names the key that cannot be narrowed, or needs gradaug_det.
    """
    config = copy.deepcopy(config)
    for _, _, node in walk(config._cfg_dict):
        if isinstance(node, dict) and type_name(node) in _PLAIN_NAMES:
            node["type"] = _PLAIN_NAMES[type_name(node)]
    _remove_hooks_and_imports(config)
    if share != 1:
        _narrow_backbone(config.model.backbone, share)
        if heads == 1:
            _narrow_neck(config.model.get("neck"), share)
    if heads != 1:
        for part in filter(config.model.get, _HEADS):
            config.model[part] = _narrowed(config.model[part], heads, f"model.{part}")
    # All weights come from the checkpoint.
    config.model.backbone.init_cfg = None
    config.model.backbone.pop("pretrained", None)
    _check_plain(config)
    return config


def _remove_hooks_and_imports(config: Config) -> None:
    if "custom_hooks" in config:
        hooks = config.custom_hooks or []
        config.custom_hooks = [hook for hook in hooks if type_name(hook) not in _HOOKS]
    imports = (config.get("custom_imports") or {}).get("imports") or []
    imports = [imports] if isinstance(imports, str) else imports
    others = [name for name in imports if name.split(".")[0] != "gradaug_det"]
    if others:
        config.custom_imports.imports = others
    else:
        config.pop("custom_imports", None)


def _narrow_backbone(backbone: Any, share: Fraction) -> None:
    if type_name(backbone) not in _NARROWED:
        raise ConfigError(
            "model.backbone.type",
            f"is {type_name(backbone)}, whose channels no setting changes; "
            f"{', '.join(_NARROWED)} can be exported at other widths than 1",
        )
    backbone.setdefault("base_channels", 64)
    for key in ("base_channels", "stem_channels", "groups"):
        if (backbone.get(key) or 1) > 1:  # no stem_channels: those of base_channels
            backbone[key] = scale_channels(f"model.backbone.{key}", backbone[key], share)
    norm = backbone.get("norm_cfg") or {}
    if "num_groups" in norm:
        groups = scale_channels("model.backbone.norm_cfg.num_groups", norm["num_groups"], share)
        # Configs share one norm_cfg among their parts, of which only this one changes.
        backbone.norm_cfg = {**norm, "num_groups": groups}


def _narrow_neck(neck: Any, share: Fraction) -> None:
    first = neck[0] if isinstance(neck, (list, tuple)) and neck else neck
    if not isinstance(first, dict) or "in_channels" not in first:
        raise ConfigError(
            "model.neck",
            "must have in_channels, the channels of the backbone's outputs; detectors without "
            "such a neck can be exported at width 1 only",
        )
    key = "in_channels"
    first[key] = _narrowed(first[key], share, f"model.neck.{key}", counts=True)


def _narrowed(value: Any, share: Fraction, key: str, counts: bool = False) -> Any:
    """Returns a part of a config anew: parts may share a norm_cfg, which changes once in each."""
    if isinstance(value, dict):
        return {
            name: _narrowed(item, share, f"{key}.{name}", name in _CHANNELS)
            for name, item in {**_defaults(value), **value}.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_narrowed(v, share, f"{key}[{i}]", counts) for i, v in enumerate(value))
    return scale_channels(key, value, share) if counts and isinstance(value, int) else value


def _defaults(part: dict) -> dict[str, Any]:
    """Returns the settings that count channels, or a norm's groups, and that a part leaves to its
    class, as FCOS its ``norm_cfg``."""
    kind = part.get("type")
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    found: dict[str, Any] = {}
    for one in inspect.getmro(kind) if inspect.isclass(kind) else ():
        for name, parameter in inspect.signature(one.__init__).parameters.items():
            found.setdefault(name, parameter.default)
    return {
        name: copy.deepcopy(default)
        for name, default in found.items()
        if (name in _CHANNELS and type(default) is int)
        or (name == "norm_cfg" and isinstance(default, dict) and "num_groups" in default)
    }


def _check_plain(config: Config) -> None:
    for key, _, value in walk(config._cfg_dict):
        kind = type_name(value) if isinstance(value, dict) else ""
        if kind in _HOOKS or (kind and "gradaug_det." in str(value["type"])):
            raise ConfigError(
                f"{key}.type",
                f"is {kind}, which plain MMDetection has not got; take one of "
                "MMDetection's own, then train and export",
            )
        if isinstance(value, str) and value.startswith("gradaug://"):
            problem = f"is {value!r}, which only gradaug_det can read; remove it with --opts"
            raise ConfigError(key, problem)
