"""tests/faults/fuzzing: each target a little, and a planted bug, a hang and a death are found."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings

from gradaug_det.errors import ConfigError, ZooError
from tests.faults.fuzzing import watch
from tests.faults.fuzzing.outcome import sentence_problem
from tests.faults.fuzzing.reader import Canary
from tests.faults.fuzzing.report import PAGE, RESULTS, Report, table, write
from tests.faults.fuzzing.targets import TARGETS
from tests.properties import FIXED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs_of_each_target(tmp_path, name):
    """The same ones everywhere: an error of the package with a sentence, or a result."""
    inputs, seen = TARGETS[name].inputs(tmp_path), []
    (tmp_path / "input").mkdir()

    @settings(FIXED, max_examples=8)
    @given(inputs)
    def attempt(drawn):
        path = tmp_path / "input" / drawn[0]
        path.write_bytes(drawn[1])
        try:
            TARGETS[name].read(tmp_path, path)
        except Exception as error:
            assert sentence_problem(error) is None, error
        seen.append(drawn)

    attempt()
    assert len(seen) >= 5


def test_what_is_a_good_answer():
    assert sentence_problem(ConfigError("key", "must be a number, got 'x'")) is None
    for bad, problem in (
        (KeyError("name"), "none of the package's errors"),
        (ZooError("no"), "is no sentence"),
        (ZooError("the file has \x1b[31m in it"), "that a terminal would obey"),
    ):
        assert problem in sentence_problem(bad)


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: os.system("true"),
        lambda folder: subprocess.run(["true"], check=True),
        lambda folder: (folder.parent / "x").write_text("x"),
        lambda folder: (folder.parent / "x").mkdir(),
        lambda folder: pickle._loads(b"cos\nsystem\n."),
    ],
)
def test_what_runs_is_noticed_and_stopped(tmp_path, act):
    folder = tmp_path / "own"
    folder.mkdir()
    canary = Canary(folder)
    canary.on = True
    (folder / "x").write_text("x")
    (tmp_path / "own" / "y").mkdir()
    assert canary.ran == []
    with pytest.raises(PermissionError):
        act(folder)
    canary.on = False
    assert len(canary.ran) == 1 and [p.name for p in tmp_path.iterdir()] == ["own"]


PLANTED = """
import sys, time
sys.path.insert(0, {root!r})
from tests.faults.fuzzing.__main__ import main
from tests.faults.fuzzing.targets import TARGETS, Target

calls = []

def read(folder, path):
    calls.append(path)
    if len(calls) == 3:
        (folder / "third").write_bytes(path.read_bytes())
        raise KeyError("planted")
    if len(calls) == 5:
        {action}

TARGETS["zoo-index"] = Target("planted", TARGETS["zoo-index"].inputs, read)
sys.exit(main())
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("action", "reason"),
    [("time.sleep(60)", "took more than 1 s"), ("import os; os._exit(7)", "exit code 7")],
)
def test_planted_faults_are_found(tmp_path, monkeypatch, action, reason):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(root=str(ROOT), action=action))
    monkeypatch.setattr(watch, "READER", [sys.executable, str(script)])
    monkeypatch.setattr(watch, "INPUT_SECONDS", 1.0)
    report = Report("zoo-index", 1, 0)
    folder = tmp_path / "work"
    folder.mkdir()
    ended = watch.follow(report, folder, 0, time.monotonic() + 60, tmp_path / "keep")
    assert reason in ended
    assert [finding["at"].split(":")[0] for finding in report.findings] == ["planted.py"]
    assert "KeyError" in report.findings[0]["finding"]
    kept = tmp_path / "keep" / "zoo-index" / "0" / "index.json"
    assert kept.read_bytes() == (folder / "third").read_bytes()
    write(report, tmp_path)
    assert "| zoo-index |" in (tmp_path / PAGE).read_text()


def test_the_committed_table_is_of_the_committed_files():
    assert (ROOT / PAGE).read_text("utf-8") == table(ROOT / RESULTS)
    found = {p.stem: json.loads(p.read_text()) for p in (ROOT / RESULTS).glob("*.json")}
    assert found.keys() == TARGETS.keys()
    for values in found.values():
        assert values["seconds"] >= 600 and values["findings"] == []
