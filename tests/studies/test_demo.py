"""The demonstration, in small: every part of it runs for real, in both frameworks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradaug_det.core.options import GradAugOptions
from gradaug_det.errors import ConfigError, GradAugError
from studies.demo.publish import publish
from studies.demo.study import WIDTHS, DemoSettings, run_demo
from studies.runner.frameworks import get_framework

ROOT = Path(__file__).parents[2]
RUNS = {"plain": "plain", "gradaug": "GradAug", "anywidth": "any width"}
SIZE = "(128,96)"
SMALL = {
    "detectron2": (
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2"),
        *("SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(4,)"),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"),
        *("TEST.DETECTIONS_PER_IMAGE", "5"),
    ),
    "mmdet": (
        *("train_dataloader.batch_size=2", "default_hooks.checkpoint.interval=2"),
        *("train_cfg.max_iters=6", "param_scheduler.1.milestones=[4]"),
        *(f"train_dataloader.dataset.pipeline.2.scales=[{SIZE}]",),
        *(f"val_dataloader.dataset.pipeline.1.scale={SIZE}", "default_hooks.logger.interval=2"),
        *("model.test_cfg.rcnn.max_per_img=5",),
    ),
}
PUBLISHED = {"report.json", "report.md", "predictions.jpg", "curve.svg"}
RESUMED = {"detectron2": "Starting training from iteration 2", "mmdet": "resumed epoch: 0, iter: 2"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One work folder for both frameworks: they share the data."""
    return tmp_path_factory.mktemp("demo").resolve()


def settings(framework, *opts):
    cheap = ("--widths", "1", "0.5", "--match", "2", "--cost-images", "1", "--repeats", "1")
    return DemoSettings(framework, 8, 2, opts=(*SMALL[framework], *opts), benchmark=cheap)


def kill_in_the_first_training(out, report, small):
    """Runs the demo in a process, and ends it hard when the first checkpoint is complete."""
    code = (
        "from studies.demo.study import WIDTHS, DemoSettings, run_demo\n"
        f"run_demo({str(out)!r}, {str(report)!r}, {str(ROOT)!r}, {small!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    checkpoint = out / small.framework / "plain" / "last_checkpoint"
    deadline = time.monotonic() + 300
    while not checkpoint.is_file() and time.monotonic() < deadline:
        assert process.poll() is None, "the demo ended before its first checkpoint"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.is_file()


@pytest.mark.integration
@pytest.mark.parametrize("framework", list(SMALL))
def test_from_nothing_to_a_report_through_an_interruption(framework, out, tmp_path):
    small, report = settings(framework), tmp_path / "report"
    kill_in_the_first_training(out, report, small)
    assert not report.exists()
    index = run_demo(out, report, ROOT, small)
    assert index == report / "index.html"
    logs = [out / framework / name / "train.log" for name in RUNS]
    # The others ran beside the first and may or may not have got to a checkpoint.
    assert RESUMED[framework] in logs[0].read_text()
    curves = [get_framework(framework).curves(log.parent) for log in logs]
    assert all(of["total_loss"][-1][0] == 5 for of in curves)  # the sixth iteration
    for passes, expected in (("sub", [False, True, False]), ("w", [False, False, True])):
        logged = re.compile(rf"gradaug/{passes}[\d.]+/loss")
        assert [any(map(logged.fullmatch, of)) for of in curves] == expected

    assert {"index.html", "report.md", "report.json"} <= {p.name for p in report.iterdir()}
    content = json.loads((report / "report.json").read_text())
    found = {one["label"]: one["widths"] for one in content["detectors"]}
    assert list(found) == list(RUNS.values())
    for label, widths in found.items():
        matched = [(one["width"], one["matched"]) for one in widths]
        assert matched == [(1, False), (0.5, label != "any width")]
        assert all({"bbox", "segm"} <= one["metrics"].keys() for one in widths)
        assert widths[0]["cost"]["gflops"] > widths[1]["cost"]["gflops"]
    text = (report / "report.md").read_text()
    assert str(out) not in text  # reports are published
    publish(report, tmp_path / "results")
    assert {p.name for p in (tmp_path / "results").iterdir()} == PUBLISHED
    assert b"<svg" in (tmp_path / "results" / "curve.svg").read_bytes()[:500]

    before = [log.read_text() for log in logs]
    run_demo(out, report, ROOT, small)  # nothing left to do
    assert [log.read_text() for log in logs] == before


@pytest.mark.integration
def test_a_failed_training_names_its_log(tmp_path, caplog):
    wrong = settings("detectron2", "GRADAUG.MIN_WIDTH", "2.0")
    with pytest.raises(GradAugError, match=r"exit code 2; its output is in .*train.log"):
        run_demo(tmp_path, tmp_path / "report", ROOT, wrong)
    assert "GRADAUG.MIN_WIDTH must be a number in (0, 1], got 2.0" in caplog.text
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("folder", ["results", "results/mmdet"])
def test_the_committed_run_shows_what_the_demo_is_for(folder):
    """Detectors that find things, and one that does so at half width."""
    path = ROOT / "studies" / "demo" / folder
    content = json.loads((path / "report.json").read_text())
    aps = {
        one["label"]: {w["width"]: w["metrics"]["bbox"]["AP"] for w in one["widths"]}
        for one in content["detectors"]
    }
    assert min(aps[label][1] for label in RUNS.values()) >= 35
    assert aps["any width"][0.5] > 2 * aps["plain"][0.5]
    for label, widths in aps.items():
        assert f"| {label} | 1 | {widths[1]:.2f} |" in (path / "report.md").read_text()


def test_the_widths_are_those_that_the_third_is_trained_at():
    trained = GradAugOptions(passes="alternating").widths
    assert [float(width) for width in WIDTHS] == [1, *trained]


def test_an_unknown_framework_is_an_error():
    with pytest.raises(ConfigError, match=r"framework 'yolo' is unknown; choose one of"):
        DemoSettings("yolo")
