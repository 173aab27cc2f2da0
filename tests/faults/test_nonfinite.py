"""NaN and infinity in a step: raised with a file to replay, or skipped and counted."""

import copy
import logging
import math
import re

import pytest
import torch
from mmengine.config import Config

from gradaug_det.commands import cli
from gradaug_det.commands.replay import replay_file
from gradaug_det.core.dump import read_dump
from gradaug_det.core.gradients import check_gradients
from gradaug_det.d2.hook import GradAugHook
from gradaug_det.d2.replay import decode as decode_detectron2
from gradaug_det.d2.replay import encode as encode_detectron2
from gradaug_det.errors import GradAugError, NonFiniteLossError
from gradaug_det.mmdet import replay as mmdet_replay
from gradaug_det.mmdet.batch import make_batch
from tests.amp import cpu_scaler
from tests.d2 import helpers as d2
from tests.mmdet import helpers as mm

INFINITE = {"supervision": "labels", "labels_weight": float("1e39"), "num_subnets": 2}
"""Overflows float32 in the sub-networks' losses alone."""
STEEP = INFINITE | {"labels_weight": 1e38}
"""Losses are finite, their gradients are not."""
NARROW = {"passes": "alternating", "widths": [0.5], "full_share": 0.0}
"""No step that a test takes is at full width."""


def detectron2(tmp_path, options, steps=1, box_weight=1.0):
    cfg = d2.tiny_cfg()
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = box_weight
    cfg.OUTPUT_DIR = str(tmp_path)
    model = d2.tiny_model(cfg=cfg)
    trainer = d2.make_trainer(model, hook := GradAugHook(**options), lr=1e-5)
    trainer.cfg = cfg
    before = {k: v.clone() for k, v in model.state_dict().items()}
    return model, before, lambda: trainer.train(0, steps), lambda: hook._skipped


def mmdetection(tmp_path, options, steps=1, box_weight=1.0):
    cfg = mm.tiny_model_cfg()
    cfg.roi_head.bbox_head.loss_bbox.loss_weight = box_weight
    model = mm.tiny_model(cfg=copy.deepcopy(cfg))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    runner = mm.make_runner(
        model,
        tmp_path,
        options,
        loop={"type": "IterBasedTrainLoop", "max_iters": steps},
        optim={"optimizer": {"type": "SGD", "lr": 1e-5}},
        cfg=Config({"model": cfg}),
        default_hooks={"checkpoint": None, "timer": None},
    )
    return model, before, runner.train, lambda: runner.message_hub.get_info("gradaug_skipped", 0)


FRAMEWORKS = pytest.mark.parametrize("made", [detectron2, mmdetection])


def same(one, two):
    return all(torch.equal(one[key], two[key]) for key in two)


@FRAMEWORKS
def test_raise_names_the_step_and_leaves_it_to_be_replayed(made, tmp_path, capsys):
    model, before, train, _ = made(tmp_path, INFINITE)
    with pytest.raises(NonFiniteLossError) as raised:
        train()
    text = str(raised.value)
    assert re.search(r"iteration 0: sub-network 0 \(width 0\.\d+, .*scale.*has the losses", text)
    assert "images " in text and "nonfinite to 'skip'" in text
    assert set(raised.value.losses) <= {f"labels_{n}" for n in LABELS} and raised.value.losses
    assert same(model.state_dict(), before), "the optimizer has stepped"
    (file,) = (tmp_path / "nonfinite").iterdir()
    assert ("--config FILE" in text) == (made is mmdetection)  # whose config is Python
    assert str(file) in text and file.name == "iter_0000000_sub0_rank0.pt"

    assert cli.main(["replay", str(file), "--trust-config"]) == 1
    out = capsys.readouterr().out
    assert "weights that are not finite: none" in out
    full, first = (
        re.search(r"full network: (.*)", out)[1],
        re.search(r"sub-network 0 .*: (.*)", out)[1],
    )
    assert "inf" not in full and "inf" in first


LABELS = ("rpn_cls", "rpn_loc", "rpn_bbox", "cls", "box_reg", "bbox", "mask")


@FRAMEWORKS
def test_the_replay_of_a_step_is_the_step(made, tmp_path):
    """The full pass too: its random numbers are in the file."""
    _, _, train, _ = made(tmp_path, INFINITE)
    with pytest.raises(NonFiniteLossError) as raised:
        train()
    (file,) = (tmp_path / "nonfinite").iterdir()
    first, second = (replay_file(file, trust_config=True) for _ in range(2))
    assert first.passes == second.passes and len(first.passes) == 3
    infinite = {k for k, v in first.passes[1].losses.items() if v == float("inf")}
    assert infinite == set(raised.value.losses)
    assert first.gradients == []  # of the full pass alone: the others left none


@FRAMEWORKS
def test_skip_goes_on_with_the_other_passes(made, tmp_path, caplog):
    plain_model, _, train_plain, _ = made(tmp_path / "plain", {"num_subnets": 0}, steps=2)
    train_plain()
    model, before, train, skipped = made(tmp_path, INFINITE | {"nonfinite": "skip"}, steps=2)
    with caplog.at_level(logging.WARNING):
        train()
    assert not same(model.state_dict(), before)
    assert same(model.state_dict(), plain_model.state_dict()), "more than the full pass was left"
    assert skipped() == 4  # two sub-networks, two steps
    assert not (tmp_path / "nonfinite").exists()


@FRAMEWORKS
def test_a_gradient_that_is_not_finite_is_never_stepped_with(made, tmp_path):
    model, before, train, _ = made(tmp_path, STEEP)
    with pytest.raises(NonFiniteLossError, match=r"gradient that is not finite; the optimizer"):
        train()
    assert same(model.state_dict(), before)
    (file,) = (tmp_path / "nonfinite").iterdir()
    found = replay_file(file, trust_config=True)
    assert found.gradients and file.name.startswith("iter_0000000_gradient")
    model, before, train, skipped = made(tmp_path / "skip", STEEP | {"nonfinite": "skip"})
    train()
    assert skipped() == 1 and all(v.isfinite().all() for v in model.state_dict().values())
    assert same(model.state_dict(), before)  # gradients of zeros


@FRAMEWORKS
def test_a_narrow_step_leaves_itself_to_be_replayed(made, tmp_path):
    model, before, train, _ = made(tmp_path, NARROW, box_weight=1e39)
    with pytest.raises(NonFiniteLossError, match="gradient that is not finite"):
        train()
    assert same(model.state_dict(), before)
    (file,) = (tmp_path / "nonfinite").iterdir()
    (one,) = replay_file(file, trust_config=True).passes
    box = "loss_box_reg" if made is detectron2 else "loss_bbox"
    assert one.name == "narrow step (width 0.5)"
    assert [name for name, loss in one.losses.items() if not math.isfinite(loss)] == [box]
    options = NARROW | {"nonfinite": "skip"}
    model, before, train, skipped = made(tmp_path / "skip", options, box_weight=1e39)
    if made is detectron2:  # whose trainers stop at such a loss of their own pass themselves
        with pytest.raises(FloatingPointError, match="Loss became infinite or NaN"):
            train()
    else:
        train()
    assert skipped() == 1 and same(model.state_dict(), before)


def test_the_first_bad_layer_is_named(tmp_path):
    _, _, train, _ = detectron2(tmp_path, INFINITE)
    with pytest.raises(NonFiniteLossError):
        train()
    (file,) = (tmp_path / "nonfinite").iterdir()
    content = torch.load(file, weights_only=True)
    name = "backbone.fpn_lateral4.weight"
    content["weights"][name][0] = float("nan")
    torch.save(content, file)
    found = replay_file(file)
    assert found.weights == [name]
    (full,) = found.passes  # Detectron2 stops at proposals that are not finite
    assert full.first == "backbone.fpn_lateral4" and "Training has diverged" in full.stopped
    assert found.is_bad
    assert "backbone.fpn_lateral4" in "\n".join(found.lines)


@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
def test_batches_come_back_as_they_were(masks):
    batch = d2.tiny_batch(masks=masks)
    batch[0]["sem_seg"] = torch.zeros(96, 128, dtype=torch.long)
    again = decode_detectron2(encode_detectron2(batch))
    for one, two in zip(batch, again, strict=True):
        assert one.keys() == two.keys() and torch.equal(one["image"], two["image"])
        fields = (one["instances"].get_fields(), two["instances"].get_fields())
        assert fields[0].keys() == fields[1].keys()
        assert torch.equal(fields[0]["gt_boxes"].tensor, fields[1]["gt_boxes"].tensor)
        crops = [f["gt_masks"].crop_and_resize(f["gt_boxes"].tensor, 14) for f in fields]
        assert torch.equal(*crops)
    data = mm.collated(mm.tiny_items(masks="polygon" if masks == "polygon" else "bitmap"))
    mm_batch = make_batch(data["inputs"][0][None].float(), data["data_samples"][:1])
    restored = mmdet_replay.decode(mmdet_replay.encode(mm_batch))
    one, two = mm_batch.samples[0].gt_instances, restored.samples[0].gt_instances
    assert one.keys() == two.keys()
    assert (one.masks.to_ndarray() == two.masks.to_ndarray()).all()
    assert restored.samples[0].metainfo["img_shape"] == mm_batch.samples[0].metainfo["img_shape"]


def test_what_is_no_step_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "model.pt")
    with pytest.raises(GradAugError, match="is not a step that a training left"):
        read_dump(tmp_path / "model.pt")


def step(framework, config):
    """The content of a step's file that holds nothing to learn from."""
    content = {"format": 2, "framework": framework, "config": config, "iteration": 0, "rank": 0}
    content |= {"subs": [], "bad": None, "options": {}, "rng": torch.get_rng_state()}
    return content | {"weights": {}, "batch": [], "images": ["a"]}


def test_nothing_in_a_file_runs_unasked(tmp_path, capsys):
    made, file, own = tmp_path / "made", tmp_path / "step.pt", tmp_path / "own.py"
    code = f"import os\nos.mkdir({str(made)!r})\nmodel = dict(type='os.mkdir')"
    torch.save(step("mmdet", code), file)
    assert cli.main(["replay", str(file)]) == 2
    wanted = "the config in it is Python that would run: pass the training's own with --config"
    assert wanted in capsys.readouterr().err and not made.exists()
    own.write_text("model = dict(type='nothing_of_the_kind')")
    assert cli.main(["replay", str(file), "--config", str(own)]) == 2
    assert "nothing_of_the_kind" in capsys.readouterr().err and not made.exists()
    for text in (
        f"MODEL: !!python/object/apply:os.mkdir [{made}]",
        "MODEL: {META_ARCHITECTURE: !!python/name:os.mkdir }",
        f"_BASE_: {own}\nMODEL: {{META_ARCHITECTURE: os.mkdir}}",
        f"MODEL: {{META_ARCHITECTURE: __import__('os').mkdir('{made}')}}",
        # Each of them holds the one before twice.
        "A0: &0 {x: 1}\n"
        + "".join(f"A{i}: &{i} {{x: *{i - 1}, y: *{i - 1}}}\n" for i in range(1, 40)),
    ):
        torch.save(step("detectron2", text), file)
        assert cli.main(["replay", str(file), "--trust-config"]) == 2
        assert "cannot be run again" in capsys.readouterr().err and not made.exists()
    assert cli.main(["replay", str(file), "--config", str(own), "--trust-config"]) == 2
    assert not made.exists()
    torch.save(step("mmdet", code), file)
    assert cli.main(["replay", str(file), "--trust-config"]) == 2
    assert made.exists()  # asked for, it runs


@pytest.mark.parametrize(
    "change",
    [
        *({"framework": 3}, {"subs": 3}, {"subs": [{}]}, {"rng": 1}, {"config": ["x"]}),
        *(
            {"more": 1},
            {"format": torch.ones(2)},
            {"subs": [{"index": 0, "width": 1.0, "transform": {"scale": 1e4}}]},
        ),
    ],
)
def test_steps_of_other_kinds_are_refused(tmp_path, change):
    torch.save(step("detectron2", "") | change, tmp_path / "x.pt")
    with pytest.raises(GradAugError, match="is not a step that a training left"):
        read_dump(tmp_path / "x.pt")


def test_a_step_of_no_framework_is_refused(tmp_path, capsys):
    torch.save(step("os", ""), tmp_path / "x.pt")
    assert cli.main(["replay", str(tmp_path / "x.pt")]) == 2
    assert "'os', not of detectron2 or mmdet" in capsys.readouterr().err


def test_a_step_of_other_contents_is_said_in_one_printable_line(tmp_path, capsys):
    _, _, train, _ = detectron2(tmp_path, INFINITE)
    with pytest.raises(NonFiniteLossError):
        train()
    (file,) = (tmp_path / "nonfinite").iterdir()
    content = torch.load(file, weights_only=True)
    for change, code in (({"batch": 3}, 2), ({"iteration": "\x1b[31m"}, 1)):
        torch.save(content | change, file)
        assert cli.main(["replay", str(file)]) == code
        said = capsys.readouterr()
        assert "\x1b" not in said.out and ("cannot be run again" in said.err) == (code == 2)


def test_a_scaler_looks_at_gradients_itself():
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.full_like(layer.weight, float("inf"))
    scaler = cpu_scaler()
    assert check_gradients(layer, 0, skip=False, scaler=scaler)
    off = cpu_scaler(enabled=False)
    with pytest.raises(NonFiniteLossError, match=r"iteration 7: 1 of 1 parameters"):
        check_gradients(layer, 7, skip=False, scaler=off)
    assert not check_gradients(layer, 7, skip=True) and layer.weight.grad.eq(0).all()


def test_finite_gradients_whose_sum_overflows_are_finite():
    layer = torch.nn.Linear(4, 4)
    layer.weight.grad = torch.full_like(layer.weight, 3e38)
    layer.bias.grad = torch.zeros_like(layer.bias)
    assert check_gradients(layer, 0, skip=False)
    layer.bias.grad[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="1 of 2 parameters"):
        check_gradients(layer, 0, skip=False)
    layer.half()
    layer.weight.grad, layer.bias.grad = layer.weight.data * 0 + 6e4, layer.bias.data * 0
    assert check_gradients(layer, 0, skip=False), "float16 gradients are added up in float32"
