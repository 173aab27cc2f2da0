"""The queue of trainings: what is done stays, what was interrupted goes on, a failure stops it.

The "framework" here is a script of a few lines: the real ones are in tests/studies/test_demo.py.
"""

import json
import threading
from pathlib import Path

import pytest

from gradaug_det.errors import GradAugError
from gradaug_det.mini_coco import build_mini_coco
from studies.report.curves import read_detectron2_metrics
from studies.runner.finetuning import Training, run_trainings, score_training
from studies.runner.frameworks import FineTuning

SCRIPT = """
import json, os, pathlib, sys, time
folder, iterations, mode = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
assert os.environ["SCRIPT_DATA"].endswith("datasets")
marker = folder / "checkpoint"
print("started with", os.environ.get("OMP_NUM_THREADS"), "resumed", marker.is_file(), flush=True)
print("eta: something worth showing")
if mode == "meet":  # ends only if another training runs at the same time
    (folder / "here").touch()
    others = folder.parent
    deadline = time.monotonic() + 30
    while len(list(others.glob("*/here"))) < 2:
        assert time.monotonic() < deadline, "alone"
        time.sleep(0.01)
if mode == "fail once" and not marker.is_file():
    marker.touch()
    sys.exit(3)
if mode == "fail":
    sys.exit(4)
(folder / "metrics.json").write_text(json.dumps({"iteration": iterations - 1, "total_loss": 1.0}))
(folder / "predictions.json").write_text("[]")
"""


class Script:
    name = title = "script"
    datasets_variable = "SCRIPT_DATA"
    script_in_shell = "train.py"

    def __init__(self, path: Path):
        self.path = path

    def script(self):
        return str(self.path)

    def config(self, method, experiment):
        return {"mini": f"{method}.yaml"}[experiment]

    def arguments(self, job, folder):
        return [str(folder), str(job.iterations), job.weights]

    def curves(self, folder):
        return read_detectron2_metrics(folder / "metrics.json")

    def predictions(self, folder):
        return folder / "predictions.json"

    def progress(self, line):
        return line.strip() if line.startswith("eta") else None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_mini_coco(tmp_path_factory.mktemp("datasets") / "mini_coco", train=1, val=2)


@pytest.fixture
def training(data, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    # The data's folder is called datasets0 by pytest; the script wants a name it can check.
    link = tmp_path / "datasets"
    link.symlink_to(data.parent)
    (tmp_path / "plain.yaml").touch()

    def make(name, mode="", iterations=4):
        job = FineTuning("plain", mode, iterations, seed=7)
        folder = tmp_path / "runs" / name
        return Training(name, name, name, Script(script), job, folder, link / "mini_coco")

    return make


def log(training):
    return (training.folder / "train.log").read_text()


def test_records_are_in_the_order_of_the_trainings(training, tmp_path):
    trainings = [training("a"), training("b", iterations=9)]
    records = list(map(score_training, trainings, run_trainings(trainings, tmp_path, threads=1)))
    assert [r.name for r in records] == ["a", "b"]
    assert records[1].curves == {"total_loss": [(8, 1.0)]}
    assert records[1].metrics["bbox"]["AP"] == records[1].metrics["segm"]["AP"] == 0
    assert (records[1].seed, records[1].iterations, records[1].config) == (7, 9, "plain.yaml")
    assert records[1].seconds > 0
    assert log(trainings[0]).startswith("started with 1 resumed False\n")


def test_what_is_done_is_left_alone(training, tmp_path):
    one = training("a")
    (first,) = run_trainings([one], tmp_path)
    before = log(one)
    (again,) = run_trainings([one], tmp_path)
    assert log(one) == before
    assert again == first


def test_other_settings_start_anew(training, tmp_path):
    one, other = training("a"), training("a", iterations=5)
    run_trainings([one], tmp_path)
    (one.folder / "checkpoint").touch()
    record = score_training(other, *run_trainings([other], tmp_path))
    assert record.curves == {"total_loss": [(4, 1.0)]}
    assert log(other).count("resumed False") == 1 and "resumed True" not in log(other)


def test_a_changed_config_starts_anew(training, tmp_path):
    """Also one that is inherited from: it lies in the same folder."""
    (tmp_path / "plain.yaml").write_text("_BASE_: base.yaml")
    (tmp_path / "base.yaml").write_text("lr: 1")
    one = training("a")
    run_trainings([one], tmp_path)
    (one.folder / "checkpoint").touch()
    (tmp_path / "base.yaml").write_text("lr: 2")
    run_trainings([one], tmp_path)
    assert log(one).count("resumed False") == 1 and "resumed True" not in log(one)
    assert not (one.folder / "checkpoint").exists()


def test_a_config_of_others_changes_nothing(training, tmp_path):
    (tmp_path / "plain.yaml").write_text("_BASE_: base.yaml")
    (tmp_path / "base.yaml").write_text("lr: 1")
    one = training("a")
    run_trainings([one], tmp_path)
    (tmp_path / "child.yaml").write_text("_BASE_: base.yaml")
    run_trainings([one], tmp_path)
    assert log(one).count("started with") == 1


def test_a_failure_names_the_log_and_the_next_run_resumes(training, tmp_path, caplog):
    one = training("a", "fail once")
    with pytest.raises(GradAugError, match=r"'a' ended with exit code 3; .*a/train\.log\. Run"):
        run_trainings([one], tmp_path)
    assert "eta: something worth showing" in caplog.text
    spent = json.loads((one.folder / "done.json").read_text())["seconds"]
    (seconds,) = run_trainings([one], tmp_path)
    assert seconds > spent > 0
    assert "resumed True" in log(one)


def test_nothing_is_started_after_a_failure(training, tmp_path):
    failing, waiting = training("a", "fail"), training("b")
    with pytest.raises(GradAugError, match="exit code 4"):
        run_trainings([failing, waiting], tmp_path)
    assert not waiting.folder.exists()


def test_two_at_a_time(training, tmp_path):
    before = set(threading.enumerate())  # other tests' libraries may have threads of their own
    trainings = [training("a", "meet"), training("b", "meet")]
    assert len(run_trainings(trainings, tmp_path, jobs=2)) == 2
    assert set(threading.enumerate()) <= before


def test_the_shell_line_has_no_local_path(training, tmp_path):
    line = training("a b").shell_line(tmp_path, "output/x")
    assert line == ("SCRIPT_DATA=output/x/datasets python train.py 'output/x/runs/a b' 4 ''")
