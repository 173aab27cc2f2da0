"""benchmarks.gpu as a machine without a GPU can run it: all of it, on tiny shapes."""

import json
import warnings

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks
from benchmarks.gpu.backends import backends
from benchmarks.gpu.report import add_ratios
from benchmarks.gpu.steps import ALTERNATING, PLAIN, settings, shares_of
from benchmarks.gpu.waits import MESSAGE, synchronizations
from benchmarks.training.detectron2 import Detectron2Training
from gradaug_det.core.sampling import sample_own_pass


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    assert gpu.main(["--device", "cpu", "--out", str(folder)]) == 0
    return json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


def test_all_parts_run_without_an_error(report):
    content, text = report
    rows = [row for part in content["parts"].values() for row in part.values()]
    assert [row["error"] for row in rows if "error" in row] == []
    assert "Rows that failed: 0. A dry run" in text and "**" not in text
    assert list(content["parts"]["checks"]) == list(checks.CHECKS)
    for name, row in content["parts"]["checks"].items():
        assert f"| {name} | {row['difference']:.1e} | {row['allowed']} |  |" in text


def test_steps_are_beside_the_plain_one_and_the_rest_is_said(report):
    content, text = report
    found = content["parts"]["steps"]
    plain, added = found["plain, batch 1, TF32"], found["labels-3 continuous, batch 1, TF32"]
    times = " | ".join(
        f"{1000 * added[key]:.0f} | {added[key] / plain[key]:.2f}" for key in ("first", "again")
    )
    assert f"| labels-3 | continuous | 1 | TF32 | off | {times} | – | – | 1 of 1 |" in text  # noqa: RUF001
    assert added["again"] > plain["again"] > 0
    assert found["alternating, batch 1, TF32"]["planned"] == 4
    assert [added["times"][0][place] for place in (0, 1)] == [added["first"], added["again"]]
    assert "since this is a dry run: labels-3 continuous, batch 1, bfloat16; " in text


def test_waits_and_profile(report):
    content, text = report
    waits = content["parts"]["waits"]
    assert {name: row["own"] for name, row in waits.items()} == {
        "plain": 0,
        "labels-3": 2,
        "alternating": 2,
    }
    assert "| labels-3 | 2 | 0 | gradaug_det/core/" in text
    assert "aten::convolution_backward" in text


def test_a_row_that_fails_does_not_stop_the_rest(tmp_path, monkeypatch):
    def fail(device):
        raise ValueError(f"of {device}\nthe reason")

    wrong = {"difference": 0.5, "allowed": 0.1}
    monkeypatch.setattr(gpu, "CHECKS", {"fails": fail, "is wrong": lambda device: wrong})
    monkeypatch.setattr(gpu, "SECONDS", {"checks": 9, "steps": -1, "waits": -1, "profile": -1})
    parts = gpu.run("cpu", tmp_path)["parts"]
    assert parts["checks"] == {
        "fails": {"error": "ValueError: of cpu\nthe reason"},
        "is wrong": wrong,
    }
    text = (tmp_path / "gpu.md").read_text()
    assert "Rows that failed: 2." in text and "- fails: **the reason**" in text
    assert "| is wrong | 5.0e-01 | 0.1 | **failed** |" in text
    assert "since this part had -1 s: plain; labels-3; alternating." in text


def test_the_checks_see_sub_networks_that_are_left_out():
    state, with_them = checks._reference("cpu")
    training = Detectron2Training(checks.WORKLOAD, PLAIN, checks.SAMPLED)
    training.model.load_state_dict(state)
    found = checks.compare(checks.gradients(training), with_them)
    assert found["difference"] > 5 * found["allowed"]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there_is_said(device, tmp_path):
    with pytest.raises(SystemExit, match=f"error: --device is '{device}', but this machine has"):
        gpu.main(["--device", device, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_what_decides_something_comes_first_and_after_its_plain_step():
    order = list(settings(2, 8))
    assert [one.name for one in order[:5]] == [
        "plain, batch 2, TF32",
        "labels-3 continuous, batch 2, TF32",
        "labels-3 fixed, batch 2, TF32",
        "labels-3 divisor 16, batch 2, TF32",
        "alternating, batch 2, TF32",
    ]
    assert len({one.name for one in order}) == len(order)
    groups = [(one.batch, one.precision, one.benchmark) for one in order]
    assert all(order[groups.index(group)].variant == PLAIN for group in groups)


def test_alternating_steps_have_the_shares_of_their_widths():
    shares = shares_of(ALTERNATING, rounds=1)
    options = ALTERNATING.detector_options({})
    assert options.shares == {
        sample_own_pass(options, iteration).width: share for iteration, share in shares.items()
    }
    assert shares_of(PLAIN, rounds=4) == {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}


def test_ratios_are_of_one_group():
    def row(variant, batch, first, peak):
        group = {"batch": batch, "precision": "TF32", "benchmark": False}
        return {"variant": variant, **group, "first": first, "again": 2.0, "peak_bytes": peak}

    rows = [row("plain", 2, 1.0, 10), row("labels-3", 2, 4.0, 15), row("labels-3", 8, 4.0, 15)]
    assert [one["ratios"] for one in add_ratios(rows)] == [
        {"first": 1.0, "again": 1.0, "peak_bytes": 1.0},
        {"first": 4.0, "again": 1.0, "peak_bytes": 1.5},
        {"first": None, "again": None, "peak_bytes": None},
    ]


def test_synchronizations_are_counted_by_module():
    with synchronizations() as found:
        for _ in range(3):
            warnings.warn(f"{MESSAGE} (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert found == {__name__: 3}


def test_the_switches_of_kernels_are_set_back():
    def now():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32

    before = now()
    with backends(tf32=False, benchmark=True):
        assert now() == (False, True, False)
    assert now() == before
