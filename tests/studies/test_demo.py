"""The demonstration, in small: every part of it runs for real, in both frameworks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradaug_det.errors import ConfigError, GradAugError
from studies.demo.study import DemoSettings, run_demo
from tests.zoo.entries import describe, random_backbone

ROOT = Path(__file__).parents[2]
RUNS = ["plain-from-baseline", "plain-from-gradaug", "gradaug-from-gradaug"]
SIZE = "(128,96)"
SMALL = {
    "detectron2": (
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2"),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"),
        *("TEST.DETECTIONS_PER_IMAGE", "5"),
    ),
    "mmdet": (
        *("train_dataloader.batch_size=2", "default_hooks.checkpoint.interval=2"),
        *(f"train_dataloader.dataset.pipeline.2.scale={SIZE}",),
        *(f"val_dataloader.dataset.pipeline.1.scale={SIZE}", "default_hooks.logger.interval=2"),
        *("model.test_cfg.rcnn.max_per_img=5",),
    ),
}
RESUMED = {"detectron2": "Starting training from iteration 2", "mmdet": "resumed epoch: 0, iter: 2"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One work folder for both frameworks: they share the data."""
    return tmp_path_factory.mktemp("demo").resolve()


@pytest.fixture(scope="module")
def weights(out):
    """Two random backbones as the zoo's files, for either framework."""
    urls = []
    for number in range(2):
        path = out / f"backbone{number}.safetensors"
        random_backbone(describe(f"random{number}", "resnet18"), path)
        urls.append(f"gradaug://{path}")
    return urls


def settings(framework, weights, *opts):
    baseline, gradaug = weights
    return DemoSettings(
        framework,
        train=8,
        val=2,
        iterations=6,
        baseline_weights=baseline,
        gradaug_weights=gradaug,
        opts=(*SMALL[framework], *opts),
    )


def kill_in_the_first_training(out, report, small):
    """Runs the demo in a process, and ends it hard when the first checkpoint is complete."""
    code = (
        "from studies.demo.study import DemoSettings, run_demo\n"
        f"run_demo({str(out)!r}, {str(report)!r}, {str(ROOT)!r}, {small!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    checkpoint = out / small.framework / RUNS[0] / "last_checkpoint"
    deadline = time.monotonic() + 300
    while not checkpoint.is_file() and time.monotonic() < deadline:
        assert process.poll() is None, "the demo ended before its first checkpoint"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.is_file()


@pytest.mark.integration
@pytest.mark.parametrize("framework", list(SMALL))
def test_from_nothing_to_a_report_through_an_interruption(framework, out, weights, tmp_path):
    small, report = settings(framework, weights), tmp_path / "report"
    kill_in_the_first_training(out, report, small)
    assert not report.exists()
    index = run_demo(out, report, ROOT, small)
    assert index == report / "index.html"
    logs = [out / framework / name / "train.log" for name in RUNS]
    # The third ran beside the first and may or may not have got to a checkpoint.
    assert [RESUMED[framework] in log.read_text() for log in logs[:2]] == [True, False]

    assert {"index.html", "report.md", "report.json"} <= {p.name for p in report.iterdir()}
    content = json.loads((report / "report.json").read_text())
    assert [run["name"] for run in content["runs"]] == RUNS
    for run in content["runs"]:
        assert {"bbox", "segm"} <= run["metrics"].keys()
        assert run["curves"]["total_loss"][-1][0] == 5  # the sixth iteration
        assert ("gradaug/sub1/loss" in run["curves"]) == run["name"].startswith("gradaug")
    text = (report / "report.md").read_text()
    assert str(out) not in text and "output/demo/" in text  # reports are published

    before = [log.read_text() for log in logs]
    run_demo(out, report, ROOT, small)  # nothing left to do
    assert [log.read_text() for log in logs] == before


@pytest.mark.integration
def test_a_failed_training_names_its_log(weights, tmp_path, caplog):
    wrong = settings("detectron2", weights, "GRADAUG.MIN_WIDTH", "2.0")
    with pytest.raises(GradAugError, match=r"exit code 2; its output is in .*train.log"):
        run_demo(tmp_path, tmp_path / "report", ROOT, wrong)
    assert "GRADAUG.MIN_WIDTH must be a number in (0, 1], got 2.0" in caplog.text
    assert not (tmp_path / "detectron2" / RUNS[1]).exists()


def test_an_unknown_framework_is_an_error():
    with pytest.raises(ConfigError, match=r"framework 'yolo' is unknown; choose one of"):
        DemoSettings("yolo")
