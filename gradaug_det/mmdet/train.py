"""Training with MMDetection from a script; MMDetection's own ``tools/train.py`` does the same.

What this adds to ``Runner.from_cfg``: errors that name what is wrong with the config, a look at the
data's files before the model is built, and checkpoints that are read without running code in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.runner import Runner

from gradaug_det.datasets.check import check_before_training
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.files import check_writable
from gradaug_det.mmdet import preprocessing
from gradaug_det.mmdet.checkpoint import load_files_safely
from gradaug_det.mmdet.resume import ExactResumeHook


def load_config(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """An MMEngine config file with values replaced.

    Args:
        file: a config file; what it inherits (``_base_``) is followed.
        overrides: dotted key -> value, as in MMDetection's ``--cfg-options``, e.g.
            ``{"train_cfg.max_iters": 100, "custom_hooks.0.min_width": 0.8}``.

    Raises:
        ConfigError: the file does not exist, or an override does not fit it.
    """
    if not Path(file).is_file():
        raise ConfigError("config", f"names a file that does not exist: {file}")
    try:
        config = Config.fromfile(file)
    except Exception as error:  # a config is a program
        problem = f"cannot be read: {file}: {type(error).__name__}: {error}"
        raise ConfigError("config", problem) from error
    try:
        config.merge_from_dict(dict(overrides or {}))
    except (KeyError, TypeError, AssertionError) as error:
        message = error.args[0] if error.args else error
        raise ConfigError("overrides", f"cannot be used with {file}: {message}") from None
    return config


def check_data(config: Config) -> None:
    """Fails before anything is built if data is missing or cannot be learned from.

    What is a CocoDataset is looked at by
    :func:`gradaug_det.datasets.check.check_before_training`, which parses the annotation file
    once more than MMDetection does, and logs warnings.

    Raises:
        DataError: names the file, the dataset's key in the config and what is wrong or to do.
    """
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = (config.get(key) or {}).get("dataset", {})
        while isinstance(dataset, Mapping) and "dataset" in dataset:  # RepeatDataset and its kin
            dataset = dataset["dataset"]
        if not isinstance(dataset, Mapping):
            raise ConfigError(f"{key}.dataset", f"must be a dict, got {dataset!r}")
        prefix = dataset.get("data_prefix") or {}
        if not isinstance(prefix, Mapping):
            problem = f"must be a dict such as dict(img='images/'), got {prefix!r}"
            raise ConfigError(f"{key}.dataset.data_prefix", problem)
        root = Path(dataset.get("data_root") or "")
        paths = [dataset.get("ann_file"), prefix.get("img")]
        for path in (root / path for path in paths if path):
            if "://" not in str(path) and not path.exists():
                hint = (
                    f"build it with: gradaug-det build-mini-coco --out {root}"
                    if root.name == "mini_coco"
                    else f"correct {key}.dataset.data_root"
                )
                raise DataError(f"{key}: {path} is missing; {hint}")
        if _is_coco(dataset) and not any("://" in str(root / path) for path in paths if path):
            check_before_training(
                root / dataset["ann_file"],
                root / paths[1] if paths[1] else None,
                name=f"{key}.dataset",
                class_names=_class_names(dataset),
                masks=any(step.get("with_mask") for step in dataset.get("pipeline") or ()),
                handled=("ignore-set",),  # MMDetection means to leave these out
            )


def _is_coco(dataset: Mapping[str, Any]) -> bool:
    """Whether a dataset's config is one of a CocoDataset itself: subclasses read other formats."""
    kind = dataset.get("type")
    return bool(dataset.get("ann_file")) and (
        kind is CocoDataset or kind in ("CocoDataset", "mmdet.CocoDataset")
    )


def _class_names(dataset: Mapping[str, Any]) -> Sequence[str] | None:
    """The classes of a CocoDataset's config, COCO's own by default; None for a file of names."""
    classes = (dataset.get("metainfo") or {}).get("classes") or CocoDataset.METAINFO["classes"]
    return None if isinstance(classes, str) else classes


def build_runner(
    file: str | Path,
    work_dir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    fix_preprocessing: bool = False,
    exact_resume: bool = True,
) -> Runner:
    """The runner of a config, ready to ``train()``.

    Args:
        file, overrides: see :func:`load_config`.
        work_dir: where logs and checkpoints go.
        resume: go on from the latest checkpoint in ``work_dir``, if there is one.
        fix_preprocessing: set what a ``gradaug://`` backbone needs and the config has otherwise
            (channel order, mean, std, network); without it that is an error.
        exact_resume: register :class:`gradaug_det.mmdet.resume.ExactResumeHook`.

    Raises:
        ConfigError: the config cannot be used.
        DataError: its data is not there.
        GradAugError: nothing can be written to ``work_dir``.
    """
    config = load_config(file, overrides)
    config.work_dir, config.resume = str(work_dir), resume
    if fix_preprocessing:
        preprocessing.fix_preprocessing(config)
    preprocessing.check_preprocessing(config)
    check_data(config)
    check_writable(work_dir)
    load_files_safely()
    hooks = list(config.get("custom_hooks") or [])
    if exact_resume and not any(_is_exact_resume(hook) for hook in hooks):
        config.custom_hooks = [*hooks, {"type": "ExactResumeHook"}]
    return Runner.from_cfg(config)


def _is_exact_resume(hook: Any) -> bool:
    kind = hook.get("type") if isinstance(hook, Mapping) else type(hook)
    return kind is ExactResumeHook or kind == ExactResumeHook.__name__
