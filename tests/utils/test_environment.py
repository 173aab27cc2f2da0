"""The machine and version lines of a report."""

import importlib.metadata
import json
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import torch

import gradaug_det
from gradaug_det.utils import environment
from gradaug_det.utils.environment import describe_environment, machine_line


def test_describes_this_machine():
    described = describe_environment()
    assert described["python"] == platform.python_version()
    assert described["cores"] >= 1 and described["cpu"]
    assert len(described["gpus"]) == torch.cuda.device_count()
    assert described["versions"]["torch"] == importlib.metadata.version("torch")
    assert datetime.fromisoformat(described["date"]).utcoffset().total_seconds() == 0

    text = json.dumps(described)
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(Path.home()) not in text
    assert str(Path(gradaug_det.__file__).parent) not in text


def test_revision_is_that_of_this_project_only(tmp_path):
    assert environment._git_revision(tmp_path) == (None, None)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "file").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert environment._git_revision(tmp_path.resolve()) == (commit, False)
    (tmp_path / "package" / "file").write_text("2")
    assert environment._git_revision(tmp_path.resolve()) == (commit, True)
    # Installed into a folder inside another project's checkout.
    assert environment._git_revision(tmp_path.resolve() / "package") == (None, None)


def test_machine_line():
    assert machine_line({"cpu": "Xeon", "cores": 2, "gpus": []}) == "Xeon, 2 cores, no GPU"
    gpus = ["A100", "A100", "T4"]
    assert machine_line({"cpu": "Xeon", "cores": 1, "gpus": gpus}) == "Xeon, 1 core, 2 x A100, T4"
    assert machine_line({}) == ""
