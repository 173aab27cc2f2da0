"""What cannot be trained with the hook says so before the first step."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS

from gradaug_det.errors import ConfigError, GradAugError
from tests.mmdet.helpers import (
    HOOK,
    make_runner,
    tiny_model,
)


def test_settings_are_checked_where_the_config_is_read():
    build = HOOKS.build
    with pytest.raises(ConfigError, match=r"GradAugHook\.min_width must be a number in \(0, 1\]"):
        build(dict(type="GradAugHook", min_width=1.5))
    with pytest.raises(ConfigError, match=r"GradAugHook\.num_subnet is not .* 'num_subnets'"):
        build(dict(type="GradAugHook", num_subnet=2))
    with pytest.raises(ConfigError, match=r"supervision must be one of .*'soft'"):
        build(dict(type="GradAugHook", supervision="hard"))
    assert build(dict(type="GradAugHook", scales=[1.0, 0.5])).options.scales == (1.0, 0.5)
    assert build(dict(type="mmengine.GradAugHook")).options.num_subnets == 3


def test_a_compiled_step_is_refused(tmp_path):
    runner = make_runner(tiny_model("retinanet"), tmp_path, HOOK)
    runner.model.train_step = runner.model.train_step  # what compile=True leaves behind
    with pytest.raises(ConfigError, match="compile must be False"):
        runner.train()


def test_what_does_not_fit_the_detector_fails_before_the_first_step(tmp_path):
    model = tiny_model("retinanet")
    model.bbox_head.__class__ = type("OwnHead", (type(model.bbox_head),), {})
    runner = make_runner(model, tmp_path, HOOK)
    with pytest.raises(ConfigError, match=r"GradAugHook\.supervision .* OwnHead; use 'labels'"):
        runner.train()
    assert runner.iter == 0 and "train_step" not in vars(model)


def test_one_optimizer_wrapper_is_needed(tmp_path):
    model = tiny_model("retinanet")
    runner = make_runner(model, tmp_path, HOOK)
    one = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner.optim_wrapper = OptimWrapperDict(a=one)
    with pytest.raises(ConfigError, match="optim_wrapper is a OptimWrapperDict"):
        runner.train()


def test_wrappers_that_split_the_detector_are_refused(tmp_path):
    model = tiny_model("retinanet")
    runner = make_runner(model, tmp_path, HOOK)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.model = torch.nn.DataParallel(model)  # as MMFullyShardedDataParallel, a model wrapper
    with pytest.raises(ConfigError, match="model_wrapper_cfg is DataParallel, which splits"):
        runner.call_hook("before_train")


def test_a_train_step_that_goes_around_the_optimizer_wrapper(tmp_path):
    class Own(type(tiny_model("retinanet"))):
        def train_step(self, data, optim_wrapper):
            batch = self.data_preprocessor(data, True)
            loss, terms = self.parse_losses(self(**batch, mode="loss"))
            loss.backward()
            optim_wrapper.optimizer.step()
            return terms

    model = tiny_model("retinanet")
    model.__class__ = Own
    runner = make_runner(model, tmp_path, HOOK | dict(supervision="labels"))
    with pytest.raises(GradAugError, match=r"Own\.train_step never called OptimWrapper\.backward"):
        runner.train()
