"""Training with MMDetection from a script; MMDetection's own ``tools/train.py`` does the same.

Beyond ``Runner.from_cfg``: errors that name what is wrong with the config, a look at the data's
files before the model is built, and checkpoints that are read without running code in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from mmengine.runner import Runner

from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.mmdet import preprocessing
from gradaug_det.mmdet.checkpoint import load_files_safely
from gradaug_det.mmdet.checks import TrainingChecks
from gradaug_det.mmdet.config import load_config
from gradaug_det.mmdet.resume import ExactResumeHook
from gradaug_det.mmdet.values import check_values, type_name
from gradaug_det.utils.files import check_writable

# A runner's methods that build parts of it when they are needed -> what of the config they build.
_BUILT_LATER = {
    "build_train_loop": "train_cfg or train_dataloader",
    "build_val_loop": "val_cfg, val_dataloader or val_evaluator",
    "build_optim_wrapper": "optim_wrapper",
    "build_param_scheduler": "param_scheduler",
}


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
        file, overrides: see :func:`gradaug_det.mmdet.config.load_config`.
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
    check_values(config)
    preprocessing.check_preprocessing(config)
    check_writable(work_dir)
    load_files_safely()
    hooks = list(config.get("custom_hooks") or [])
    if exact_resume and not any(_is_exact_resume(hook) for hook in hooks):
        config.custom_hooks = [*hooks, {"type": "ExactResumeHook"}]
    with _explain_build_errors("config"):
        runner = Runner.from_cfg(config)
    for method, key in _BUILT_LATER.items():
        setattr(runner, method, _explain_build_errors(key)(getattr(runner, method)))
    checks = TrainingChecks()
    checks.before_build(runner)
    runner.register_hook(checks, priority="HIGHEST")
    return runner


@contextmanager
def _explain_build_errors(key: str) -> Iterator[None]:
    """Turns what MMEngine raises into a ConfigError, with its own words. Also a decorator."""
    try:
        yield
    except GradAugError:
        raise
    except Exception as error:  # a config may name any program
        words = shorten(str(error), 300, placeholder=" ...")
        if words.startswith("need at least one array"):
            words = "no image is left; look at its filter_cfg and indices"
        raise ConfigError(key, f"cannot be used: {type(error).__name__}: {words}") from error


def _is_exact_resume(hook: Any) -> bool:
    name = type_name(hook) if isinstance(hook, Mapping) else type(hook).__name__
    return name == ExactResumeHook.__name__
