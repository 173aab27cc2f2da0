"""tools/fuzz.py: each target a little, and a planted bug, a hang and a death are found."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from gradaug_det.errors import ConfigError, ZooError
from tests.properties import FIXED

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import fuzz

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "faults"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_few_inputs_of_each_target(tmp_path, name):
    """The same ones everywhere: an error of the package with a sentence, or a result."""
    inputs, seen = fuzz.TARGETS[name].inputs(tmp_path), []
    (tmp_path / "input").mkdir()

    @settings(FIXED, max_examples=8)
    @given(inputs)
    def attempt(drawn):
        path = tmp_path / "input" / drawn[0]
        path.write_bytes(drawn[1])
        try:
            fuzz.TARGETS[name].read(tmp_path, path)
        except Exception as error:
            assert fuzz.sentence_problem(error) is None, error
        seen.append(drawn)

    attempt()
    assert len(seen) >= 5


def test_what_is_a_good_answer():
    assert fuzz.sentence_problem(ConfigError("key", "must be a number, got 'x'")) is None
    for bad, problem in (
        (KeyError("name"), "none of the package's errors"),
        (ZooError("no"), "is no sentence"),
        (ZooError("the file has \x1b[31m in it"), "that a terminal would obey"),
    ):
        assert problem in fuzz.sentence_problem(bad)


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
    canary = fuzz.Canary(folder)
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
sys.path.insert(0, {tools!r})
import fuzz

fuzz.INPUT_SECONDS = 1.0
calls = []

def read(folder, path):
    calls.append(path)
    if len(calls) == 3:
        raise KeyError("planted")
    if len(calls) == 5:
        {action}

target = fuzz.TARGETS["zoo-index"]
fuzz.TARGETS["zoo-index"] = fuzz.Target("planted", target.inputs, read)
fuzz.__file__ = __file__
sys.exit(fuzz.main())
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("action", "reason"),
    [("time.sleep(60)", "took more than 1 s"), ("import os; os._exit(7)", "exit code 7")],
)
def test_planted_faults_are_found(tmp_path, monkeypatch, action, reason):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(tools=str(ROOT / "tools"), action=action))
    monkeypatch.setattr(fuzz, "__file__", str(script))
    monkeypatch.setattr(fuzz, "INPUT_SECONDS", 1.0)
    report = fuzz.Report("zoo-index", 1, 0)
    folder = tmp_path / "work"
    folder.mkdir()
    until = fuzz.time.monotonic() + 60
    ended = fuzz._follow(report, folder, 0, until, tmp_path / "keep")
    assert reason in ended
    assert [finding["at"].split(":")[0] for finding in report.findings] == ["planted.py"]
    assert "KeyError" in report.findings[0]["finding"]
    assert (tmp_path / "keep" / "zoo-index" / "0" / "index.json").is_file()
    fuzz.write(report, tmp_path / "docs")
    assert "| zoo-index |" in (tmp_path / "docs" / "fuzzing.md").read_text()


def test_the_committed_table_is_of_the_committed_files():
    assert (DOCS / "fuzzing.md").read_text("utf-8") == fuzz.table(DOCS / "fuzzing")
    found = {p.stem: json.loads(p.read_text()) for p in (DOCS / "fuzzing").glob("*.json")}
    assert found.keys() == fuzz.TARGETS.keys()
    for values in found.values():
        assert values["seconds"] >= 600 and values["findings"] == []
