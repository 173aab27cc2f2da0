"""Values of a config that cannot be used, each said in one sentence before anything is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
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

# A dataset's key, or that of one that it wraps.
_DATASET = r"(train|val|test)_dataloader(\.datasets?(\.\d+)?)+"
_PATH = (str, PathLike)
# What the value of a key must be, if it is there.
_SHAPES = [
    (r"model|default_hooks", Mapping, "a dict"),
    (r"train_cfg", Mapping, "a dict such as dict(type='EpochBasedTrainLoop', max_epochs=12)"),
    (r"custom_hooks", list, "a list of dicts"),
    (r"(train|val|test)_dataloader", (Mapping, DataLoader), "a dict"),
    (rf"{_DATASET}\.data_root", _PATH, "a folder's path"),
    (rf"{_DATASET}\.(ann_file|data_prefix\.\w+)", _PATH, "a path"),
    (rf"{_DATASET}\.data_prefix", Mapping, "a dict such as dict(img='images/')"),
    (rf"{_DATASET}\.metainfo", Mapping, "a dict such as dict(classes=('bolt', 'nut'))"),
    (rf"{_DATASET}\.pipeline", (list, tuple), "a list of dicts"),
    (rf"{_DATASET}\.pipeline\.\d+", (Mapping, Callable), "a dict"),
    (rf"{_DATASET}\.filter_cfg", Mapping, "a dict such as dict(filter_empty_gt=True)"),
]
# Where a dict stands whose type has to be known, and to which registry.
_TYPES = [
    (_DATASET, DATASETS),
    (rf"{_DATASET}\.pipeline\.\d+", TRANSFORMS),
    (r"optim_wrapper\.optimizer", OPTIMIZERS),
]
# The least value of each, wherever it stands.
_WHOLE = {"batch_size": 1, "num_classes": 1, "max_iters": 1, "max_epochs": 1, "val_interval": 1}
_WHOLE |= {"num_workers": 0, "num_things_classes": 0, "num_stuff_classes": 0}
_NUMBERS = ("lr", "momentum", "weight_decay", "score_thr", "max_per_img")


def walk(value: Any, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """All values of nested dicts and lists: dotted key, its last name, value."""
    if isinstance(value, Mapping):
        inner = value.items()
    else:
        inner = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for name, one in inner:
        yield f"{key}.{name}".lstrip("."), str(name), one
        yield from walk(one, f"{key}.{name}")


def type_name(node: Mapping[str, Any]) -> str:
    """Returns a part's ``type`` without its scope or module: a name, or in new-style configs the
    class itself."""
    given = node.get("type")
    return given.rpartition(".")[2] if isinstance(given, str) else getattr(given, "__name__", "")


def check_values(config: Config) -> None:
    """Looks at types and ranges, at the names of datasets, transforms and optimizers, and at what
    the machine lacks.

    Raises:
        ConfigError: names the key, the value and what it must be.
    """
    for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if config.get(key) is None:
            raise ConfigError(key, "is missing, and a training needs it")
    for key, name, value in walk(dict(config.items())):
        if value is None and not name.isdigit():  # in a list, nothing is left out by None
            continue
        for pattern, kinds, wanted in _SHAPES:
            if re.fullmatch(pattern, key) and not isinstance(value, kinds):
                problem = f"must be {wanted}, got {value!r}"
                if name == "ann_file" and isinstance(value, (list, tuple)):
                    problem += "; write dict(type='ConcatDataset', datasets=[...]) with one each"
                raise ConfigError(key, problem)
        for pattern, registry in _TYPES:
            if isinstance(value, Mapping) and re.fullmatch(pattern, key):
                _check_type(value, registry, key)
        least = _WHOLE.get(name)
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if least is not None and not (whole and value >= least):
            raise ConfigError(key, f"must be a whole number from {least} on, got {value!r}")
        if name in _NUMBERS and isinstance(value, str):
            raise ConfigError(key, f"must be a number, got {value!r}; write it without quotes")
    if isinstance(config["optim_wrapper"], Mapping):  # else built, or the hook's own check says so
        _check_optim(config["optim_wrapper"])
    if config.get("launcher", "none") == "pytorch" and "RANK" not in environ:
        problem = (
            "is 'pytorch', but torchrun started no processes: use torchrun, or launcher='none'"
        )
        raise ConfigError("launcher", problem)


def _check_type(settings: Mapping[str, Any], registry: Registry, key: str) -> None:
    kind = settings.get("type")
    if kind is None:
        raise ConfigError(f"{key}.type", "is missing")
    if not isinstance(kind, str) or registry.get(kind) is not None:
        return
    known = [name for part in (registry, registry.parent) if part for name in part.module_dict]
    near = get_close_matches(kind, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "import what registers it (custom_imports)"
    raise ConfigError(f"{key}.type", f"is {kind!r}, which is not registered; {hint}")


def _check_optim(wrapper: Mapping[str, Any]) -> None:
    optimizer = wrapper.get("optimizer")
    rate = optimizer.get("lr") if isinstance(optimizer, Mapping) else None
    if isinstance(rate, Real) and rate < 0:
        raise ConfigError("optim_wrapper.optimizer.lr", f"must be from 0 on: {rate}")
    kind = wrapper.get("type", "OptimWrapper")
    kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    accelerators = (is_cuda_available, is_npu_available, is_mlu_available, is_musa_available)
    half = isinstance(kind, type) and issubclass(kind, AmpOptimWrapper)
    if half and not any(available() for available in accelerators):
        problem = f"is {kind.__name__}, which needs a GPU, and torch sees none; "
        raise ConfigError("optim_wrapper.type", f"{problem}use 'OptimWrapper' on a CPU")
