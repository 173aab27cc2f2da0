"""The ``GRADAUG`` keys of a Detectron2 config, and how config files are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import LazyConfig, get_cfg
from yaml import YAMLError
from yaml.constructor import ConstructorError

from gradaug_det.core.checks import check_bool, check_integer
from gradaug_det.core.options import GradAugOptions
from gradaug_det.errors import ConfigError


def add_gradaug_config(cfg: CN) -> None:
    """Adds the ``GRADAUG`` node with its defaults: the same settings as
    :class:`gradaug_det.core.options.GradAugOptions`, in upper case, and ``ENABLED``; and
    ``SOLVER.EXACT_RESUME`` and ``SOLVER.OPTIMIZER`` for ``tools/train_net.py``.

    The node accepts any key so that :func:`gradaug_options` can name the one that was meant.
    """
    # A resumed training sees the images and random numbers that it would have seen without the
    # break; see gradaug_det.d2.resume. False: as Detectron2 does.
    cfg.SOLVER.EXACT_RESUME = True
    # SGD, as Detectron2 builds it, or AdamW with the same learning rates and weight decays.
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.GRADAUG = CN(new_allowed=True)
    # Train with GradAug. The other keys are ignored without it.
    cfg.GRADAUG.ENABLED = False
    for name, default in vars(GradAugOptions()).items():
        cfg.GRADAUG[name.upper()] = list(default) if isinstance(default, tuple) else default


def gradaug_options(cfg: CN) -> GradAugOptions:
    """Returns the validated settings of ``cfg.GRADAUG``.

    Raises:
        ConfigError: names the key, the value given and the values allowed.
    """
    if "GRADAUG" not in cfg:
        raise ConfigError("GRADAUG", "is missing; call add_gradaug_config(cfg) before merging")
    for key in cfg.GRADAUG:
        if not key.isupper():
            raise ConfigError(f"GRADAUG.{key}", f"is unknown; write keys as {key.upper()}")
    values = {key.lower(): v for key, v in cfg.GRADAUG.items() if key != "ENABLED"}
    check_bool("GRADAUG.ENABLED", cfg.GRADAUG.get("ENABLED"))
    with name_config_keys():
        # The hook takes n = 0 as a control; a config says ENABLED: False for plain training.
        count = check_integer("num_subnets", values.get("num_subnets", 1))
        if count < 1:
            problem = f"must be at least 1, got {count}; for plain training set GRADAUG.ENABLED"
            raise ConfigError("num_subnets", f"{problem} to False")
        return GradAugOptions.from_mapping(values)


def trained_options(cfg: CN) -> GradAugOptions:
    """Returns the settings with which a config's detector was trained; without GradAug, that there
    were no sub-networks, and what of the detector is narrow at a width below 1."""
    options = gradaug_options(cfg)
    if cfg.GRADAUG.ENABLED:
        return options
    return GradAugOptions(num_subnets=0, slim=options.slim, keep_whole=options.keep_whole)


@contextmanager
def name_config_keys() -> Iterator[None]:
    """Within the block, errors about GradAug's settings name the keys of a yaml config."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"GRADAUG.{error.key.upper()}", error.problem) from None


_WANTED = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number with a decimal point",
    "str": "text in quotation marks",
    "tuple": "several values in brackets",
    "list": "several values in brackets",
    "CfgNode": "a mapping of keys",
}
_MISMATCH = re.compile(
    r"Type mismatch \(<class '(\S+)'> vs. <class '(\S+)'>\) with values \(.* vs. (.*)\) for config "
    r"key: (\S+)",
    re.DOTALL,
)
# Of the lists that are empty by default.
_ELEMENTS = {"DATASETS.TRAIN": "", "DATASETS.TEST": "", "TEST.KEYPOINT_OKS_SIGMAS": 0.1}


def type_mismatch(message: str) -> ConfigError | None:
    """Makes yacs's message about a value of the wrong type a sentence with the way out; returns
    None if ``message`` is about something else."""
    found = _MISMATCH.fullmatch(message)
    if found is None:
        return None
    wanted, given, value, key = found.groups()
    wanted = wanted.rpartition(".")[2]
    shown = repr(value) if given == "str" else " ".join(value.split())
    way_out = {"tuple": f"({shown},)", "list": f"[{shown}]", "str": repr(value)}.get(wanted)
    if wanted == "float" and given == "int":
        way_out = f"{value}.0"
    problem = f"must be {_WANTED.get(wanted, f'a {wanted}')}, got {shown}"
    return ConfigError(key, problem + (f"; write {way_out}" if way_out else ""))


def check_values(cfg: CN) -> None:
    """Raises ConfigError for what yacs lets pass although Detectron2 cannot use it: a value that is
    left empty, one in a list of the wrong type, or none of the few that Detectron2 knows."""
    defaults = get_cfg()
    add_gradaug_config(defaults)
    _check_node(cfg, defaults, "")
    few = {"INPUT.MASK_FORMAT": ("polygon", "bitmask"), "SOLVER.OPTIMIZER": ("SGD", "AdamW")}
    for key, allowed in few.items():
        node, name = key.split(".")
        if (value := cfg[node][name]) not in allowed:
            raise ConfigError(key, f"must be {' or '.join(allowed)}, got {value!r}")


def _check_node(node: CN, defaults: CN, prefix: str) -> None:
    for name, default in defaults.items():
        key, value = f"{prefix}{name}", node.get(name)
        if key == "GRADAUG" or name not in node:
            continue  # of GRADAUG, gradaug_options has the last word
        # Detectron2 takes nothing for "" and False, and for no number.
        if value is None and default is not None and not isinstance(default, (bool, str)):
            problem = f"is empty; leave the line out for Detectron2's own value ({default!r})"
            raise ConfigError(key, problem)
        if isinstance(value, CN) and isinstance(default, CN):
            _check_node(value, default, f"{key}.")
        elif isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
            example = default[0] if default else _ELEMENTS.get(key)
            text, single = isinstance(example, str), not isinstance(example, (list, tuple))
            for element in value if example is not None else ():
                listed = isinstance(element, (list, tuple))
                if isinstance(element, str) != text or element is None or (single and listed):
                    wanted = "names in quotation marks" if text else "numbers"
                    problem = f"must hold {wanted} alone, got {element!r} in {value!r}"
                    raise ConfigError(key, problem)


def load_config(file: str | Path, overrides: list[str] = ()) -> CN:
    """Reads a Detectron2 yaml config with GradAug's keys, overridden and validated.

    Args:
        file: a yaml file; its ``_BASE_`` is followed.
        overrides: ``KEY VALUE`` pairs in one flat list.

    Raises:
        ConfigError: names the key, its value and the values allowed.
    """
    cfg = get_cfg()
    add_gradaug_config(cfg)
    if not Path(file).is_file():
        raise ConfigError("--config-file", f"names a file that does not exist: {file}")
    if len(overrides) % 2:
        raise ConfigError("overrides", f"must be KEY VALUE pairs, got {' '.join(overrides)!r}")
    try:
        cfg.merge_from_file(str(file), allow_unsafe=False)
        for key, value in zip(overrides[::2], overrides[1::2], strict=True):
            if key.startswith("GRADAUG.") and key.removeprefix("GRADAUG.") not in cfg.GRADAUG:
                cfg.GRADAUG[key.removeprefix("GRADAUG.")] = value  # named by gradaug_options
            else:
                cfg.merge_from_list([key, value])
    except ConfigError:
        raise
    except Exception as error:  # yacs and PyYAML raise almost anything for a wrong file
        problem = f"or an override cannot be used: {_reason(error)}"
        raise type_mismatch(str(error)) or ConfigError(str(file), problem) from None
    check_values(cfg)
    gradaug_options(cfg)
    return cfg


def _reason(error: Exception) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if isinstance(error, (KeyError, ValueError, AssertionError)):
        return text
    if isinstance(error, ConstructorError):  # as in Detectron2's Base-RetinaNet.yaml
        return (
            "it has a tag that would run code; write the value that comes out, as "
            f"configs/detectron2/retinanet_R_50_FPN_1x_gradaug.yaml has anchors' sizes ({text})"
        )
    if isinstance(error, YAMLError):
        return f"it is not valid yaml: {text}"
    if isinstance(error, RecursionError):
        return "files name each other as _BASE_ in a circle"
    if isinstance(error, (AttributeError, TypeError)):
        return f"a mapping of keys is expected where something else stands ({text})"
    return f"{type(error).__name__}: {text}"


def load_lazy_config(file: str | Path, overrides: list[str] = ()) -> Any:
    """Reads a LazyConfig with ``key=value`` overrides.

    Raises:
        ConfigError: the file or an override cannot be used.
    """
    if not Path(file).is_file():
        raise ConfigError("--config-file", f"names a file that does not exist: {file}")
    try:
        cfg = LazyConfig.load(str(file))
    except Exception as error:  # a config is a program
        problem = f"cannot be run: {type(error).__name__}: {error}"
        raise ConfigError(str(file), problem) from error
    try:
        return LazyConfig.apply_overrides(cfg, list(overrides))
    except Exception as error:  # of Hydra's parser and OmegaConf
        problem = f"cannot be used with {file}: {' '.join(str(error).split())}"
        raise ConfigError("overrides", problem) from None
