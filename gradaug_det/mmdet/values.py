"""Values of a config that cannot be used, each said in one sentence before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from os import PathLike, environ
from typing import Any

from mmdet.registry import DATASETS, OPTIM_WRAPPERS, OPTIMIZERS, TRANSFORMS
from mmengine.config import Config
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import Registry
from torch.utils.data import DataLoader

from gradaug_det.errors import ConfigError

# The least value of each; None: any number.
_WHOLE = {"batch_size": 1, "num_classes": 1, "max_iters": 1, "max_epochs": 1, "val_interval": 1}
_WHOLE |= {"num_workers": 0, "num_things_classes": 0, "num_stuff_classes": 0}
_NUMBERS = ("lr", "momentum", "weight_decay", "score_thr", "max_per_img")
_SHAPES = {
    "model": (Mapping, "a dict"),
    "train_cfg": (Mapping, "a dict such as dict(type='EpochBasedTrainLoop', max_epochs=12)"),
    "default_hooks": (Mapping, "a dict"),
    "custom_hooks": (list, "a list of dicts"),
    "train_dataloader": ((Mapping, DataLoader), "a dict"),
    "val_dataloader": ((Mapping, DataLoader), "a dict"),
    "test_dataloader": ((Mapping, DataLoader), "a dict"),
}
_DATASET = {
    "data_root": ((str, PathLike), "a folder's path"),
    "data_prefix": (Mapping, "a dict such as dict(img='images/')"),
    "metainfo": (Mapping, "a dict such as dict(classes=('bolt', 'nut'))"),
    "pipeline": ((list, tuple), "a list of dicts"),
    "filter_cfg": (Mapping, "a dict such as dict(filter_empty_gt=True)"),
}


def walk(value: Any, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """All values of nested dicts and lists: dotted key, its last name, value."""
    if isinstance(value, Mapping):
        inner = value.items()
    else:
        inner = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for name, one in inner:
        yield f"{key}.{name}".lstrip("."), str(name), one
        yield from walk(one, f"{key}.{name}")


def check_values(config: Config) -> None:
    """Looks at types and ranges, at the names of datasets, transforms and optimizers, and at what
    the machine lacks.

    Raises:
        ConfigError: names the key, the value and what it must be.
    """
    for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if config.get(key) is None:
            raise ConfigError(key, "is missing, and a training needs it")
    _check_shapes(config, _SHAPES, "")
    for key, name, value in walk(dict(config.items())):
        if isinstance(value, Mapping) and name in _SHAPES and name.endswith("_dataloader"):
            _check_dataset(value.get("dataset"), f"{key}.dataset")
        least = _WHOLE.get(name)
        if least is not None and value is not None:
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ConfigError(key, f"must be a whole number from {least} on, got {value!r}")
        elif name in _NUMBERS and isinstance(value, str):
            raise ConfigError(key, f"must be a number, got {value!r}; write it without quotes")
    _check_optim(config["optim_wrapper"])
    if config.get("launcher", "none") == "pytorch" and "RANK" not in environ:
        problem = (
            "is 'pytorch', but torchrun started no processes: use torchrun, or launcher='none'"
        )
        raise ConfigError("launcher", problem)


def _check_shapes(values: Mapping[str, Any], shapes: Mapping[str, Any], key: str) -> None:
    for name, (kinds, wanted) in shapes.items():
        if values.get(name) is not None and not isinstance(values[name], kinds):
            raise ConfigError(f"{key}{name}", f"must be {wanted}, got {values[name]!r}")


def _check_dataset(dataset: Any, key: str) -> None:
    """A dataset's config with what it wraps."""
    if not isinstance(dataset, Mapping):
        return  # an object, or left to check_data
    _check_type(dataset, DATASETS, key)
    _check_shapes(dataset, _DATASET, f"{key}.")
    file = dataset.get("ann_file")
    if isinstance(file, (list, tuple)):
        problem = (
            f"must be one path, got {file!r}; write dict(type='ConcatDataset', datasets=[...])"
        )
        raise ConfigError(f"{key}.ann_file", f"{problem} with a dataset for each file")
    if file is not None and not isinstance(file, (str, PathLike)):
        raise ConfigError(f"{key}.ann_file", f"must be a path, got {file!r}")
    prefix = dataset.get("data_prefix") or {}
    for name, value in prefix.items():
        if value is not None and not isinstance(value, (str, PathLike)):
            raise ConfigError(f"{key}.data_prefix.{name}", f"must be a path, got {value!r}")
    for index, step in enumerate(dataset.get("pipeline") or ()):
        if isinstance(step, Mapping):
            _check_type(step, TRANSFORMS, f"{key}.pipeline.{index}")
        elif not callable(step):
            raise ConfigError(f"{key}.pipeline.{index}", f"must be a dict, got {step!r}")
    _check_dataset(dataset.get("dataset"), f"{key}.dataset")
    inner = dataset.get("datasets")
    for index, one in enumerate(inner if isinstance(inner, (list, tuple)) else ()):
        _check_dataset(one, f"{key}.datasets.{index}")


def _check_type(settings: Mapping[str, Any], registry: Registry, key: str) -> None:
    """The class that ``type`` names has to be known."""
    kind = settings.get("type")
    if kind is None:
        raise ConfigError(f"{key}.type", "is missing")
    if not isinstance(kind, str) or registry.get(kind) is not None:
        return
    known = [name for part in (registry, registry.parent) if part for name in part.module_dict]
    near = get_close_matches(kind, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "import what registers it (custom_imports)"
    raise ConfigError(f"{key}.type", f"is {kind!r}, which is not registered; {hint}")


def _check_optim(wrapper: Any) -> None:
    if not isinstance(wrapper, Mapping):
        return  # built already, or the hook's own check says so
    settings = wrapper.get("optimizer")
    if isinstance(settings, Mapping):
        _check_type(settings, OPTIMIZERS, "optim_wrapper.optimizer")
        if isinstance(settings.get("lr"), Real) and settings["lr"] < 0:
            raise ConfigError("optim_wrapper.optimizer.lr", f"must be from 0 on: {settings['lr']}")
    kind = wrapper.get("type", "OptimWrapper")
    kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    accelerators = (is_cuda_available, is_npu_available, is_mlu_available, is_musa_available)
    half = isinstance(kind, type) and issubclass(kind, AmpOptimWrapper)
    if half and not any(available() for available in accelerators):
        problem = f"is {kind.__name__}, which needs a GPU, and torch sees none; "
        raise ConfigError("optim_wrapper.type", f"{problem}use 'OptimWrapper' on a CPU")
