"""benchmarks.training on real trainings, as small as there are. No time is asserted."""

import json
import math
from pathlib import Path
from statistics import fmean, median

import pytest
import torch

from benchmarks.training.__main__ import main
from benchmarks.training.measure import measure, per_pass
from benchmarks.training.report import summarise, write_report
from benchmarks.training.run import Run, parse_options
from benchmarks.training.workload import Variant, Workload, variants_of
from gradaug_det.errors import ConfigError, DataError, GradAugError

ROOT = Path(__file__).parents[2]
WHOLE = {"min_width": 1.0, "scales": [1.0]}


def tiny(task, options=WHOLE, **more):
    settings = {"size": (64, 64), "batch_size": 2, "depth": 18, "small": True} | more
    return Workload(task, ROOT / "configs", options=options, **settings)


@pytest.mark.parametrize(
    ("task", "variants"),
    [
        ("classification", [Variant("soft", 3), Variant("authors", 2)]),
        ("detectron2", [Variant("labels", 2), Variant("soft", 1)]),
        ("mmdet", [Variant("labels", 2), Variant("soft", 1)]),
    ],
)
def test_whole_sub_networks_cost_a_plain_pass_each(task, variants):
    """At width 1 and scale 1 every pass has the plain step's FLOPs.

    Of detectors too: the network is the same, so proposals are, and as many of them are sampled.
    """
    measured = measure(tiny(task), [Variant(), *variants], rounds=1)
    for variant in variants:
        row = summarise(measured)[variant.name]
        assert row["bound"] == variant.num_subnets + 1
        assert [part["flops"] for part in row["passes"]] == [1.0] * (variant.num_subnets + 1) + [0]
        assert 1 <= row["memory"] < 2
        (entry,) = measured[variant.name]["rounds"]
        assert entry["sub_networks"] == [{"width": 1.0, "scale": 1.0}] * variant.num_subnets
        assert len(entry["cpu"]) == len(entry["wall"]) == variant.num_subnets + 2


def test_the_heads_have_as_many_proposals_as_in_training():
    from benchmarks.training.detectron2 import Detectron2Training

    training = Detectron2Training(tiny("detectron2", size=(192, 256)), Variant())
    training.step(0)
    latest = training._trainer.storage.latest()
    sampled = sum(latest[f"roi_head/num_{kind}_samples"][0] for kind in ("fg", "bg"))
    assert sampled == training.model.roi_heads.batch_size_per_image


def test_narrow_and_small_sub_networks_cost_less():
    workload = tiny("classification", {"min_width": 0.5, "scales": [0.5]})
    measured = measure(workload, [Variant(), Variant("soft", 1), Variant("authors", 1)], rounds=1)
    ours, theirs = (summarise(measured)[name] for name in ("soft-1", "authors-1"))
    assert ours["bound"] == theirs["bound"]
    assert ours["passes"][1]["flops"] == pytest.approx(0.5**2 * 0.5**2, rel=0.1)


def test_a_pass_ends_with_its_backward():
    x = torch.ones(1, requires_grad=True)
    clock = iter([0.0, 1.0, 3.0, 6.0])
    step = lambda: [x.sum().backward() for _ in range(2)]  # noqa: E731
    assert per_pass(step, lambda: (next(clock),), 2) == [(1.0,), (2.0,), (3.0,)]
    with pytest.raises(GradAugError, match="3 passes called backward 2 times"):
        per_pass(step, lambda: (0.0,), 3)
    assert torch.Tensor.backward.__module__ == "torch._tensor"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    command = "--tasks classification --depth 18 --size 32 --batch 2 --rounds 9 --only soft-2"
    command += " authors-1 alternating --profile soft-2 --options divisor=8 --channels-last"
    assert main([*command.split(), "--out", str(folder)]) == 0
    return folder


def test_the_table_says_what_was_measured(report):
    (task,) = json.loads((report / "training.json").read_text())["sections"]
    text = (report / "training.md").read_text()
    plain = task["measured"]["plain"]
    assert list(task["summary"]) == ["soft-2", "authors-1", "alternating"]
    for name, row in task["summary"].items():
        own = task["measured"][name]
        ratio = {
            meter: [
                math.fsum(a[meter]) / math.fsum(b[meter])
                for a, b in zip(own["rounds"], plain["rounds"], strict=True)
            ]
            for meter in ("wall", "cpu", "flops")
        }
        over = [t / f for t, f in zip(ratio["cpu"], ratio["flops"], strict=True)]
        middle = fmean if name == "alternating" else median
        numbers = (
            f"{middle(ratio['wall']):.2f} | {middle(ratio['cpu']):.2f} | "
            f"{fmean(ratio['flops']):.2f} | {median(over):.3f} | "
            f"{own['peak_bytes'] / plain['peak_bytes']:.3f} |"
        )
        assert f"| {name} | {numbers}" in text
        assert f"({row['passes'][0]['flops']:.3f})" in text
    assert "## Classification, 32x32, channels last, divisor 8" in text
    assert "--only soft-2 authors-1 alternating --profile soft-2" in text
    iterations = [entry["iteration"] for entry in plain["rounds"]]
    assert iterations == [entry["iteration"] for entry in own["rounds"]] == [*range(1, 10)]
    widths = [s["width"] for entry in own["rounds"] for s in entry["sub_networks"]]
    assert widths == [*8 * [1.0], 0.5]  # of the first window's
    last = task["measured"]["authors-1"]["rounds"][0]["sub_networks"]
    assert [s["width"] for s in last] == [0.9]


def test_profile_and_report_name_no_folder(report):
    profile = (report / "profile_classification_soft-2.md").read_text()
    assert "aten::convolution_backward" in profile
    for file in report.iterdir():
        text = file.read_text()
        assert str(report) not in text
        assert str(ROOT) not in text
        assert "--out" not in text


def test_other_tasks_stay_in_the_report(report, tmp_path):
    file = tmp_path / "training.json"
    file.write_text((report / "training.json").read_text())
    (content,) = json.loads(file.read_text())["sections"]
    measured = {k: v for k, v in content.items() if k not in ("summary", "task")}
    write_report(tmp_path, "mmdet", measured)
    write_report(tmp_path, "mmdet", measured | {"command": "again"})
    other = measured | {"workload": measured["workload"] | {"threads": 7}}
    write_report(tmp_path, "classification", other)
    sections = json.loads(file.read_text())["sections"]
    assert [s["task"] for s in sections] == ["classification", "classification", "mmdet"]
    assert sections[0] == content
    assert sections[1]["workload"]["threads"] == 7 and sections[2]["command"] == "again"
    assert (tmp_path / "training.md").read_text().count("\n## ") == 3


def test_a_file_of_something_else_is_not_overwritten(report, tmp_path):
    (content,) = json.loads((report / "training.json").read_text())["sections"]
    (tmp_path / "training.json").write_text('{"ratios": {}}')
    with pytest.raises(DataError, match="another --out"):
        write_report(tmp_path, "mmdet", content)
    assert (tmp_path / "training.json").read_text() == '{"ratios": {}}'


def test_what_cannot_be_measured_is_named():
    def run(**settings):
        return Run(ROOT / "configs", Path("x"), "command", **settings)

    with pytest.raises(ConfigError, match="'soft-9' is no variant of these tasks: plain, soft-1"):
        run(only=["soft-9"])
    with pytest.raises(ConfigError, match="authors-1"):
        run(tasks=["mmdet"], profile=["authors-1"])
    with pytest.raises(ConfigError, match="--rounds"):
        run(rounds=0)
    with pytest.raises(ConfigError, match="--options cannot set supervision"):
        tiny("mmdet", {"supervision": "soft"})
    with pytest.raises(ConfigError, match="--batch"):
        tiny("classification", batch_size=1)
    with pytest.raises(ConfigError, match="did you mean 'min_width'"):
        Variant("soft", 1).detector_options({"min_widht": 0.8})
    with pytest.raises(ConfigError, match="key=value"):
        parse_options(["min_width"])
    with pytest.raises(ConfigError, match="authors' loop"):
        measure(
            tiny("classification", {"rotations": [90.0]}), [Variant(), Variant("authors", 1)], 1
        )
    assert parse_options(["scales=[1.0, 0.5]"]) == {"scales": [1.0, 0.5]}


def test_the_plain_step_is_always_measured():
    assert [v.name for v in variants_of("mmdet", ["both-3"])] == ["plain", "both-3"]
