"""The mini pretraining: it learns, resumes exactly, and leaves a Detectron2 checkpoint."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

import gradaug_det.pretrain.mini as mini
from gradaug_det.d2.train import load_config
from gradaug_det.pretrain.mini import MiniPretraining, pretrain_mini
from tests.d2.test_config import MINI

TINY = MiniPretraining(epochs=2, garments=256, crop=16, batch=32)


def load(path):
    return torch.load(path, weights_only=True)


def test_resume_is_exact_and_a_second_run_does_nothing(tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole.pth", tmp_path / "halves.pth"
    pretrain_mini(whole, TINY)

    step, calls = mini.gradaug_step, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 12:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(mini, "gradaug_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_mini(halves, TINY)
    assert not halves.exists()
    metrics = pretrain_mini(halves, TINY)
    assert len(calls) == 12 + 8  # the second epoch alone was run again
    one, two = load(whole), load(halves)
    assert one["metrics"] == two["metrics"] == metrics
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][name]), name
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []

    pretrain_mini(halves, TINY)
    assert len(calls) == 20
    with pytest.raises(ZeroDivisionError):  # other settings train anew
        monkeypatch.setattr(mini, "gradaug_step", lambda *_: 1 / 0)
        pretrain_mini(halves, MiniPretraining(epochs=1, garments=256, crop=16, batch=32))


def test_the_detector_loads_every_tensor(tmp_path):
    pretrain_mini(tmp_path / "b.pth", TINY)
    model = build_model(load_config(MINI))
    missing = DetectionCheckpointer(model).load(str(tmp_path / "b.pth"))
    assert "settings" in missing  # what is not a weight is handed back
    state = load(tmp_path / "b.pth")["model"]
    backbone = {k: v for k, v in model.state_dict().items() if "bottom_up" in k}
    assert backbone.keys() == state.keys()
    for name, tensor in backbone.items():
        assert torch.equal(tensor, state[name]), name
