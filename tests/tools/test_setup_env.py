"""tools/setup_env.py: its checks, its steps and their stamps, and the locks it installs."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import setup_env  # noqa: E402

LOCKS = {name: ROOT / "requirements" / f"{name}.lock" for name in ("build", "demo", "test")}


@pytest.fixture
def venv(tmp_path):
    folder = tmp_path / ".venv"
    folder.mkdir()
    return folder


@pytest.fixture
def counted(tmp_path):
    """A step that leaves a line in `runs` each time, and fails while a file `broken` is there."""
    code = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1])\n"
        "open(p / 'runs', 'a').write('x')\n"
        "print('the reason')\n"
        "sys.exit(3 if (p / 'broken').exists() else 0)"
    )
    (tmp_path / "lock").write_text("one")
    command = [sys.executable, "-c", code, str(tmp_path)]
    return setup_env.Step("counted", "counting", [command], [tmp_path / "lock"], hint="look here")


def runs(tmp_path) -> int:
    path = tmp_path / "runs"
    return len(path.read_text()) if path.exists() else 0


def program(path, *lines) -> None:
    """A shell script that can be run."""
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


def test_python_of_another_version_is_a_sentence():
    with pytest.raises(setup_env.SetupError) as info:
        setup_env.check_python((3, 13, 1))
    assert str(info.value).startswith("Python 3.11 is needed and this is 3.13: install it")
    assert "apt-get install python3.11" in str(info.value)
    setup_env.check_python((3, 11, 7, "final", 0))


def test_other_systems_are_a_sentence():
    with pytest.raises(setup_env.SetupError, match="this is darwin: install the project with `pip"):
        setup_env.check_platform("darwin")


def test_missing_compiler_names_the_package(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(setup_env.SetupError, match=r"compiler g\+\+ .*apt-get install g\+\+"):
        setup_env.check_compiler(which=lambda name: None)


def test_missing_headers_name_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(setup_env.SetupError, match=r"apt-get install python3\.11-dev"):
        setup_env.check_compiler(which=lambda name: name)


def test_full_disk_is_a_sentence():
    with pytest.raises(setup_env.SetupError, match=r"10 GB of free .* 2\.5 GB are there"):
        setup_env.check_disk(10, int(2.5e9))
    setup_env.check_disk(10, int(11e9))


def test_no_way_to_create_an_environment_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: None)
    with pytest.raises(setup_env.SetupError, match=r"apt-get install python3\.11-venv"):
        setup_env.venv_command(tmp_path)


def test_interpreter_is_tried_before_it_is_trusted(tmp_path):
    assert setup_env.works(Path(sys.executable)) == (sys.version_info[:2] == setup_env.PYTHON)
    assert not setup_env.works(tmp_path / "python")


def test_step_is_done_until_its_inputs_change(tmp_path, venv, counted):
    assert not setup_env.is_done(counted, venv)
    setup_env.run_step(counted, venv, os.environ)
    assert setup_env.is_done(counted, venv)
    (tmp_path / "lock").write_text("two")
    assert not setup_env.is_done(counted, venv)
    setup_env.run_step(counted, venv, os.environ)
    assert setup_env.is_done(counted, venv)
    assert runs(tmp_path) == 2


def test_step_with_another_command_is_not_done(venv, counted):
    setup_env.run_step(counted, venv, os.environ)
    other = setup_env.Step("counted", "counting", [["true"]], counted.inputs)
    assert not setup_env.is_done(other, venv)


def test_failed_step_says_what_to_do_and_runs_again(tmp_path, venv, counted, capsys):
    setup_env.run_step(counted, venv, os.environ)
    (tmp_path / "broken").touch()
    with pytest.raises(setup_env.SetupError, match=r"`counted` failed with status 3: look here.*"):
        setup_env.run_step(counted, venv, os.environ)
    assert "    | the reason" in capsys.readouterr().out
    assert not setup_env.is_done(counted, venv)  # although it succeeded before
    (tmp_path / "broken").unlink()
    setup_env.run_step(counted, venv, os.environ)
    assert setup_env.is_done(counted, venv)


def test_first_failing_command_ends_the_step(tmp_path, venv, counted):
    (tmp_path / "broken").touch()
    step = setup_env.Step("counted", "counting", list(counted.commands) * 2)
    with pytest.raises(setup_env.SetupError):
        setup_env.run_step(step, venv, os.environ)
    assert runs(tmp_path) == 1


def test_missing_program_is_a_failed_step(venv):
    step = setup_env.Step("missing", "", [["no-such-program-of-mine"]])
    with pytest.raises(setup_env.SetupError, match="status 127"):
        setup_env.run_step(step, venv, os.environ)


def test_long_step_shows_that_it_is_alive(venv, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "HEARTBEAT", 0.05)
    command = [sys.executable, "-c", "import time; time.sleep(0.3)"]
    setup_env.run_step(setup_env.Step("slow", "", [command]), venv, os.environ)
    assert "min so far" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("error: No space left on device (os error 28)", "free some disk space"),
        ("error: Hash mismatch for `numpy==2.4.6`", "not the one that was locked"),
        ("error: Failed to fetch: `https://example.com/simple/`", "check the network"),
        ("  Caused by: operation timed out", "check the network"),
        ("x.cpp:1:10: fatal error: foo.h: No such file or directory", "install the header"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
        ("+ pytest-timeout==2.4.0\nsomething else", "the hint"),
    ],
)
def test_advice_follows_the_log(log, advice):
    assert advice in setup_env.remedy(log, "the hint")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A project whose environment is there already and whose only step is the counted one."""
    monkeypatch.setattr(setup_env, "works", lambda python: True)
    monkeypatch.setattr(setup_env, "check_python", lambda: None)

    def use(step):
        monkeypatch.setattr(setup_env, "plan", lambda kind, root, python: [step])

    return use


def test_second_setup_does_nothing(tmp_path, venv, counted, machine, capsys):
    machine(counted)
    setup_env.setup("demo", tmp_path)
    assert "[2/5] counting" in capsys.readouterr().out
    setup_env.setup("demo", tmp_path)
    assert capsys.readouterr().out == ""
    assert runs(tmp_path) == 1


def test_failure_is_one_sentence_and_an_exit_status(
    tmp_path, venv, counted, machine, monkeypatch, capsys
):
    machine(counted)
    (tmp_path / "broken").touch()
    monkeypatch.setattr(setup_env, "setup", partial(setup_env.setup, root=tmp_path))
    assert setup_env.main(["demo"]) == 1
    assert capsys.readouterr().err.startswith("setup_env: the step `counted` failed")


def test_demo_needs_no_mmdetection(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: f"/bin/{name}")
    python = tmp_path / "bin" / "python"
    demo = setup_env.plan("demo", ROOT, python)
    test = setup_env.plan("test", ROOT, python)
    assert [step.name for step in demo] == ["tools", "packages", "detectron2", "project"]
    assert [step.name for step in test if step not in demo] == ["browser", "mmdetection"]
    # MMCV's build imports torch, so the packages come first.
    assert [step.name for step in test][:4] == ["browser", "tools", "packages", "mmdetection"]
    for step in test:
        from_locks = [command for command in step.commands if "-r" in command]
        assert all("--require-hashes" in command for command in from_locks)


def test_mmcv_is_built_for_the_cpu_in_a_cache_for_this_torch(tmp_path):
    env = setup_env.build_env("2.9.1", {"XDG_CACHE_HOME": str(tmp_path), "MAX_JOBS": "7"})
    assert env["MMCV_WITH_OPS"] == "1"
    assert (env["FORCE_CUDA"], env["CUDA_VISIBLE_DEVICES"]) == ("0", "")
    assert env["MAX_JOBS"] == "7"
    assert env["UV_CACHE_DIR"] == str(tmp_path / "gradaug_det" / "uv-torch-2.9.1")


@pytest.mark.parametrize("name", setup_env.BROWSERS)
def test_any_browser_on_path_will_do(tmp_path, venv, monkeypatch, name):
    monkeypatch.setenv("PATH", str(tmp_path))
    step = setup_env.browser_step()
    assert not setup_env.is_done(step, venv)
    program(tmp_path / name, "exit 0")
    assert setup_env.find_browser() == str(tmp_path / name)
    assert setup_env.is_done(step, venv)


@pytest.mark.parametrize(("user", "prefix"), [(0, ""), (1000, "sudo -n ")])
def test_browser_is_installed_by_apt_and_looked_for_each_time(
    tmp_path, venv, machine, monkeypatch, capsys, user, prefix
):
    program(tmp_path / "sudo", 'test $1 = -n && shift && SUDO="sudo -n " exec "$@"')
    program(tmp_path / "env", 'export "$1"; shift; exec "$@"')
    program(
        tmp_path / "apt-get",
        f'echo "$SUDO$DEBIAN_FRONTEND $@" >> {tmp_path}/calls',
        f"test $1 = update || {shutil.which('cp')} -p $0 {tmp_path}/chromium",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_env.os, "geteuid", lambda: user)
    machine(setup_env.browser_step())
    setup_env.setup("test", tmp_path)
    assert "[2/7] installing Debian's Chromium" in capsys.readouterr().out
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"{prefix}noninteractive update",
        f"{prefix}noninteractive install -y --no-install-recommends chromium",
    ]
    setup_env.setup("test", tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "chromium").unlink()  # as on another machine with the same .venv
    setup_env.setup("test", tmp_path)
    assert len((tmp_path / "calls").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("programs", "status"),
    [
        ({}, 127),  # neither sudo nor apt-get
        ({"sudo": "echo 'sudo: a password is required' >&2; exit 1"}, 1),
    ],
)
def test_forbidden_browser_says_what_to_do(tmp_path, venv, monkeypatch, programs, status):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_env.os, "geteuid", lambda: 1000)
    for name, line in programs.items():
        program(tmp_path / name, line)
    with pytest.raises(
        setup_env.SetupError,
        match=rf"`browser` failed with status {status}: install Chromium or Google Chrome yourself"
        r" \(Debian: `sudo apt-get install chromium`\), then run the same command again",
    ):
        setup_env.run_step(setup_env.browser_step(), venv, os.environ)


def test_commands_are_not_disturbed_by_another_environment(tmp_path):
    env = {"PYTHONPATH": "x", "VIRTUAL_ENV": "y", "PATH": "/bin", "PIP_INDEX_URL": "https://m.test"}
    clean = setup_env.tool_env(tmp_path, env)
    assert "PYTHONPATH" not in clean
    assert "VIRTUAL_ENV" not in clean
    assert clean["PATH"] == f"{tmp_path / 'bin'}{os.pathsep}/bin"
    assert clean["UV_DEFAULT_INDEX"] == "https://m.test"


def test_locks_agree_and_have_hashes():
    pins = {name: setup_env.pinned(lock) for name, lock in LOCKS.items()}
    assert pins["build"].items() <= pins["demo"].items() <= pins["test"].items()
    assert {"uv", "setuptools", "ninja"} <= set(pins["build"])
    assert {"torch", "pypi-simple", "pytest"} <= set(pins["demo"])
    only_test = {"onedl-mmcv", "onedl-mmdetection", "playwright"}
    assert only_test <= set(pins["test"]) - set(pins["demo"])
    assert "opencv-python" not in pins["test"]
    for lock in LOCKS.values():
        blocks = re.split(r"\n(?=\S)", lock.read_text().split("\n", 2)[2].strip())
        assert all("--hash=sha256:" in block for block in blocks), lock.name


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_runs_setup_then_the_program():
    def dry_run(*args):
        command = ["make", "-n", "--no-print-directory", "-C", str(ROOT), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "setup_env.py demo" in dry_run("demo")
    assert "-m studies.demo --framework detectron2" in dry_run("demo", "FRAMEWORK=detectron2")
    test = dry_run("test", "ARGS=-x")
    assert test.index("setup_env.py test") < test.index("ruff check") < test.index("pytest -q ")
    assert test.rstrip().endswith(" -x")


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
