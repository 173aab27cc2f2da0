"""The Makefile: .venv step by step, what it says when it cannot, and the locks it installs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.browser import BROWSERS

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LOCKS = {name: ROOT / "requirements" / f"{name}.lock" for name in ("build", "demo", "test")}
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")

# Python (of $VERSION) and uv: notes its arguments, and fails while there is a file `broken`.
PROGRAM = f"""\
: ${{VERSION:=3, 11}}
case "$*" in
"-m venv "*|"venv "*) for to; do :; done; test "$to" = .venv || to=build/uv
    mkdir -p $to/bin; for name in python pip uv; do cp "$0" $to/bin/$name; done ;;
-V) echo "$VERSION"; exit ;;
*version_info*) exec {sys.executable} -IS -c "import sys; sys.version_info = $VERSION; $2" ;;
*ensurepip*) test -z "$BARE"; exit ;;
*cache_tag*) echo cpython-311; exit ;;
*sysconfig*) test -z "$BARE"; exit ;;
"-c "*) exit ;;
*"pip config"*) exit 1 ;;
"build "*) head -c "$SIZE" /dev/zero > dist/any.whl ;;
esac
echo "${{0##*/}} $*" >> calls
env > "environment-${{0##*/}}"
test ! -e broken"""


def program(path: Path, text: str) -> Path:
    """A shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Project:
    """A copy of the Makefile with programs that only note how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "requirements").mkdir(parents=True)
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "Makefile", folder)
        for name in LOCKS:
            (folder / "requirements" / f"{name}.lock").write_text("torch==2.9.1 \\\n")
        for name in ("tools/install_detectron2.py", "setup.py", "pyproject.toml"):
            (folder / name).touch()
        self.python = program(folder / "python", PROGRAM)
        program(folder / "chromium", "")
        self.env = {"HOME": str(folder), "CXX": "sh"}
        self.env["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def make(self, *args: str, status: int = 0) -> list[str]:
        """The programs called, in order; the output is kept."""
        (self.folder / "calls").write_text("")
        named = [f"PYTHON={self.python}"] if self.python else []
        command = [MAKE, "-C", self.folder, *named, *args]
        run = subprocess.run(command, env=self.env, capture_output=True, text=True)
        self.output = run.stdout + run.stderr
        assert (run.returncode != 0) == bool(status), self.output
        return (self.folder / "calls").read_text().splitlines()

    def change(self, name: str) -> None:
        os.utime(self.folder / name, (9e9, 9e9))  # newer than any stamp


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.mark.parametrize("version", ["3, 9", "3, 14"])
def test_a_named_python_must_fit(project, version):
    project.env["VERSION"] = version
    assert project.make("env-demo", status=2) == []
    assert "is no Python 3.10 to 3.13, which the locked packages are for" in project.output


def test_environment_is_made_anew_for_another_python_that_is_named(project):
    calls = project.make("env-demo")
    assert project.make("env-demo") == []
    project.python = program(project.folder / "python3.12", f"VERSION='3, 12'\n{PROGRAM}")
    assert project.make("env-demo") == ["python3.12 -m venv --clear .venv", *calls[1:]]
    project.python = None
    assert project.make("env-demo") == []


def test_other_systems_are_a_sentence(project):
    program(project.folder / "uname", "echo Darwin")
    assert project.make("env-demo", status=2) == []
    assert "on this system, install the project with `pip install -e" in project.output


def test_demo_needs_no_mmdetection(project):
    calls = project.make("env-test")
    locks = [re.search(r"requirements/(\w+)\.lock", call) for call in calls]
    # MMCV's build imports torch, so the demo's packages come first.
    assert [lock[1] for lock in locks if lock] == ["build", "demo", "test"]
    assert all("--require-hashes" in call for call in calls if "-r " in call)
    assert calls[0] == "python -m venv --clear .venv"
    assert "python tools/install_detectron2.py" in calls
    shutil.rmtree(project.folder / ".venv")
    assert project.make("env-demo") == [call for call in calls if "test.lock" not in call]


def test_steps_are_done_once_until_a_lock_changes(project):
    project.make("env-test")
    assert project.make("env-test") == []
    project.change("requirements/test.lock")
    assert project.make("env-demo") == []
    (call,) = project.make("env-test")
    assert call.startswith("uv pip install") and call.endswith("requirements/test.lock")


def test_a_failed_step_runs_again(project):
    (project.folder / "broken").touch()
    project.make("env-demo", status=2)
    (project.folder / "broken").unlink()
    calls = project.make("env-demo")
    assert calls[0] == "python -m venv --clear .venv"
    project.change("requirements/demo.lock")
    (project.folder / "broken").touch()
    assert len(project.make("env-demo", status=2)) == 1
    (project.folder / "broken").unlink()
    assert "demo.lock" in project.make("env-demo")[0]  # although it succeeded before


def test_an_environment_that_was_moved_or_does_not_run_is_made_anew(project):
    calls = project.make("env-demo")
    project.folder = project.folder.rename(project.folder.with_name("moved"))
    project.python = project.folder / "python"
    assert project.make("env-demo") == calls
    program(project.folder / ".venv" / "bin" / "python", "exit 1")
    assert project.make("env-demo") == calls


def test_mmcv_is_built_for_the_cpu_in_a_cache_for_this_torch_and_python(project):
    project.env |= {"XDG_CACHE_HOME": str(project.folder / "cache"), "MAX_JOBS": "7"}
    project.make("env-test")
    lines = (project.folder / "environment-uv").read_text().splitlines()
    assert {"MMCV_WITH_OPS=1", "FORCE_CUDA=0", "CUDA_VISIBLE_DEVICES=", "MAX_JOBS=7"} <= set(lines)
    assert f"UV_CACHE_DIR={project.folder}/cache/gradaug_det/uv-torch-2.9.1-cpython-311" in lines


def test_commands_are_not_disturbed_by_another_environment(project):
    project.env |= {"PYTHONPATH": "x", "VIRTUAL_ENV": "y", "PIP_INDEX_URL": "https://m.test"}
    project.make("env-demo")
    lines = (project.folder / "environment-uv").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("PYTHONPATH=", "VIRTUAL_ENV="))]
    assert "UV_DEFAULT_INDEX=https://m.test" in lines
    path = next(line for line in lines if line.startswith("PATH="))
    assert path == f"PATH={project.folder}/.venv/bin{os.pathsep}{project.env['PATH']}"


@pytest.fixture
def bare(project):
    """A machine with nothing but what the Makefile calls, neither Python nor browser."""
    (project.folder / "chromium").unlink()
    project.python.unlink()
    project.python = None
    for name in ("sh", "sed", "cat", "mkdir", "cp", "touch", "uname", "echo", "rm"):
        (project.folder / name).symlink_to(shutil.which(name))
    project.env |= {"PATH": str(project.folder), "CXX": "g++"}
    program(project.folder / "env", 'test $# = 0 || { export "$1"; shift; exec "$@"; }')
    program(project.folder / "id", "echo 1000")
    return project


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3": "3, 13", "python3.11": "3, 11"}, "python3"),
        ({"python3": "3, 9", "python3.12": "3, 12", "python3.10": "3, 10"}, "python3.12"),
        ({"python3": "3, 14", "python3.10": "3, 10"}, "python3.10"),
        ({"python": "3, 10"}, "python"),
    ],
)
def test_a_python_that_fits_is_looked_for(bare, there, taken):
    for name, version in there.items():
        program(bare.folder / name, f"VERSION='{version}'\n{PROGRAM}")
    assert bare.make("env-demo")[0] == f"{taken} -m venv --clear .venv"
    assert f"Making .venv with {taken}\n" in bare.output


def test_uv_fetches_a_python_where_none_fits(bare):
    program(bare.folder / "python3", f"VERSION='3, 14'\n{PROGRAM}")
    fetch = "uv venv --clear --seed --python >=3.10,<3.14 .venv"
    got = ["python3 -m venv build/uv", "pip install -qq --require-hashes -r "]
    assert bare.make("env-demo")[:3] == [got[0], f"{got[1]}requirements/build.lock", fetch]
    shutil.rmtree(bare.folder / ".venv")
    program(bare.folder / "uv", PROGRAM)
    assert bare.make("env-demo")[0] == fetch
    shutil.rmtree(bare.folder / ".venv")
    (bare.folder / "broken").touch()
    bare.make("env-demo", status=2)
    assert "where it reaches neither, install a Python 3.10 to 3.13" in bare.output


def test_uv_makes_the_environment_where_venv_is_missing(bare):
    program(bare.folder / "python3", PROGRAM)
    program(bare.folder / "uv", PROGRAM)
    bare.env["BARE"] = "yes"
    assert bare.make("env-demo")[0] == "uv venv --clear --seed --python python3 .venv"


@pytest.mark.parametrize("name", BROWSERS)
def test_any_browser_on_path_will_do(bare, name):
    program(bare.folder / name, "")
    bare.make("system-test", status=2)
    assert "python3-venv g++ python3-dev`" in bare.output


@pytest.mark.parametrize(("user", "prefix"), [(0, ""), (1000, "sudo -n ")])
def test_packages_are_installed_by_apt_all_at_once(bare, user, prefix):
    program(bare.folder / "python3.12", f"VERSION='3, 12'\n{PROGRAM}")
    program(bare.folder / "id", f"echo {user}")
    program(bare.folder / "sudo", 'test $1 = -n && shift && SUDO="sudo -n " exec "$@"')
    names = "python3.12-venv g++ python3.12-dev chromium"
    install = f"install -y --no-install-recommends {names}"
    program(bare.folder / "apt-get", 'echo "$SUDO$DEBIAN_FRONTEND $@" >> calls')
    bare.env |= {"SUDO": "", "BARE": "yes"}
    calls = [f"{prefix}noninteractive {command}" for command in ("update", install)]
    assert bare.make("system-test") == calls
    assert f"Installing Debian's packages {names} (a minute)" in bare.output
    assert bare.make("system-demo")[1] == calls[1].replace(names, "python3.12-venv")
    bare.env["BARE"] = ""
    for name in ("chromium", "g++"):
        program(bare.folder / name, "")
    assert bare.make("system-test") == []


@pytest.mark.parametrize("sudo", [None, "echo 'sudo: a password is required' >&2; exit 1"])
def test_forbidden_packages_say_what_to_do(bare, sudo):
    if sudo:
        program(bare.folder / "sudo", sudo)
    bare.make("env-test", status=2)
    assert "`sudo apt-get install python3-venv g++ python3-dev chromium`" in bare.output


def pinned(name: str, python: str) -> list[tuple[str, str]]:
    """The names and versions that a lock installs with this Python."""
    lines = re.findall(r"^([\w.-]+==.*?) ?\\?$", LOCKS[name].read_text(), flags=re.MULTILINE)
    wanted = {"python_version": python, "python_full_version": f"{python}.0"}
    found = [Requirement(line) for line in lines]
    return [
        (requirement.name, str(requirement.specifier))
        for requirement in found
        if requirement.marker is None or requirement.marker.evaluate(wanted)
    ]


@pytest.mark.parametrize("python", PYTHONS)
def test_locks_agree_and_cover_each_python(python):
    pins = {name: dict(pinned(name, python)) for name in LOCKS}
    assert all(len(pins[name]) == len(pinned(name, python)) for name in LOCKS)  # one version each
    assert pins["build"].items() <= pins["demo"].items() <= pins["test"].items()
    for name, lock in LOCKS.items():
        lines = re.findall(r"^(\w[\w-]+)", lock.with_suffix(".in").read_text(), flags=re.MULTILINE)
        assert set(lines) <= set(pins[name]), name
    assert not {"onedl-mmcv", "playwright"} & set(pins["demo"])
    assert "opencv-python" not in pins["test"]


def test_locks_have_hashes():
    for lock in LOCKS.values():
        blocks = re.split(r"\n(?=\S)", lock.read_text().split("\n", 2)[2].strip())
        assert all("--hash=sha256:" in block for block in blocks), lock.name


def test_make_runs_setup_then_the_program(project):
    def dry_run(*args):
        project.make("-n", "--no-print-directory", *args)
        return project.output

    demo = dry_run("demo", "FRAMEWORK=detectron2")
    assert demo.index("demo.lock") < demo.index("-m studies.demo --framework detectron2")
    assert "test.lock" not in demo
    assert "test.lock" in dry_run("demo", "FRAMEWORK=mmdet")
    test = dry_run("test", "ARGS=-x")
    assert test.index("test.lock") < test.index("ruff check") < test.index("pytest -q ")
    assert test.rstrip().endswith(" -x")


@pytest.mark.parametrize(("size", "status"), [(5_000_000, 0), (5_000_001, 2)])
def test_a_commit_is_built_checked_and_at_most_5_megabytes(project, size, status):
    for command in ("init -q", "add Makefile", "commit -q -m one"):
        who = "-c user.name=me -c user.email=me@example.test"
        subprocess.run(f"git {who} {command}", shell=True, check=True, cwd=project.folder)
    project.env |= {"SIZE": str(size)}
    *_, build, check = project.make("dist", status=status)
    assert build.startswith("uv build ") and build.endswith("--out-dir dist build/source")
    assert check == "python -m twine check --strict dist/any.whl"
    assert [path.name for path in (project.folder / "build/source").iterdir()] == ["Makefile"]
    assert ("Larger than 5 MB: dist/any.whl" in project.output) == bool(status)


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"


def test_a_clean_clone_is_tried_until_a_command_fails(tmp_path):
    program(tmp_path / "make", "mkdir -p .venv ~/.cache; echo $1 | tee -a ~/did; test $1 != demo")
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [ROOT / ".ci" / "fresh", tmp_path / "here"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert (tmp_path / "here" / "home" / "did").read_text() == "env-demo\ndemo\n"
    rows = run.stdout.splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| `make env-demo`", "| `make demo`"]
    assert [row.split(" | ")[2] for row in rows] == ["0", "1"]
