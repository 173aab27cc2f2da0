"""The demonstration, in small: every part of it runs for real."""

import json
import logging
from pathlib import Path

import pytest

from gradaug_det.demo import DemoSettings, run_demo
from gradaug_det.errors import GradAugError
from gradaug_det.pretrain.mini import MiniPretraining

ROOT = Path(__file__).parents[1]
SMALL = ("SOLVER.IMS_PER_BATCH", "2", "GRADAUG.NUM_SUBNETS", "1", "SOLVER.CHECKPOINT_PERIOD", "2")


def settings(*opts):
    return DemoSettings(
        train=12,
        val=6,
        iterations=4,
        pretraining=MiniPretraining(epochs=1, garments=256, crop=16),
        opts=(*SMALL, *opts),
    )


@pytest.mark.integration
def test_from_nothing_to_a_report_and_again(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="gradaug_det.demo")
    out, report = tmp_path / "work", tmp_path / "report"
    index = run_demo(out, report, ROOT, settings())
    assert index == report / "index.html"
    content = json.loads((report / "report.json").read_text())
    assert {"index.html", "report.md", "report.json"} <= {p.name for p in report.iterdir()}
    assert [run["name"] for run in content["runs"]] == ["plain", "gradaug"]
    for run in content["runs"]:
        assert {"bbox", "segm"} <= run["metrics"].keys()
    assert "gradaug/sub0/loss" in content["runs"][1]["curves"]
    assert str(tmp_path) not in (report / "report.md").read_text()  # reports are published

    before = (out / "gradaug" / "train.log").read_text()
    run_demo(out, report, ROOT, settings())  # nothing left to do
    assert (out / "gradaug" / "train.log").read_text() == before

    with pytest.raises(GradAugError, match=r"exit code 2; its output is in .*train.log"):
        run_demo(out, report, ROOT, settings("GRADAUG.MIN_WIDTH", "2.0"))
    assert "GRADAUG.MIN_WIDTH must be a number in (0, 1], got 2.0" in caplog.text
