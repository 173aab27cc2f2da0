"""Make the project's .venv: `demo` (Detectron2 only) or `test` (MMDetection too).

Runs on the system's Python 3.11 with nothing but the standard library. Each step is skipped when it
was done with the same inputs before, so running this again continues where it stopped.

    python3.11 tools/setup_env.py demo|test
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from install_detectron2 import cache_dir, configured_index

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (3, 11)  # what the locks were made for
NEEDED_GB = {"demo": 10, "test": 12}  # 7 and 8 GB when done; the rest is uv's cache and the build
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # names on PATH; the tests use one
HEARTBEAT = 60.0
LAST_LINES = 15

# What a log says, and what to do about it; the first that matches counts.
REMEDIES = (
    (r"No space left on device", "free some disk space"),
    (
        r"[Hh]ash mismatch|DO NOT MATCH THE HASHES",
        "a downloaded file is not the one that was locked: ask who serves your package index,"
        " or run `make lock` if you trust it",
    ),
    (
        r"error sending request|dns error|Failed to fetch|Connection(Error| refused| reset)"
        r"|timed out|NewConnectionError|Temporary failure in name resolution",
        "check the network and the package index that pip, uv or apt is set up to use",
    ),
    (r"(fatal error: \S+|cannot find \S+): No such file", "install the header that the log names"),
    (
        r"Killed|internal compiler error",
        "the compiler ran out of memory: set MAX_JOBS=1, which needs less",
    ),
)


class SetupError(Exception):
    """What went wrong and what to do, in one sentence."""


@dataclass(frozen=True)
class Step:
    """One command, or more, that is run once for each state of its inputs.

    Args:
        name: file name of its stamp and its log.
        title: what it does, how long it takes and how much it needs.
        commands: run one after the other; the first failure ends the step.
        inputs: files whose content decides whether the step must run again.
        env: added to the environment of the commands.
        hint: what to do when it fails and the log tells no more.
        there: finds what the step makes outside the environment, where a stamp knows nothing of it.
    """

    name: str
    title: str
    commands: Sequence[Sequence[str]]
    inputs: Sequence[Path] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    hint: str = "read the log"
    there: Callable[[], object] | None = None

    def key(self) -> str:
        """Hash of everything that decides what the step does (paths too: projects are moved)."""
        digest = hashlib.sha256(repr(self.commands).encode())
        for path in self.inputs:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()


def check_python(version: Sequence[int] = sys.version_info) -> None:
    """Refuse a Python that the locks were not made for."""
    if tuple(version[:2]) != PYTHON:
        raise SetupError(
            f"Python {PYTHON[0]}.{PYTHON[1]} is needed and this is {version[0]}.{version[1]}:"
            " install it (Debian: `apt-get install python3.11 python3.11-venv python3.11-dev`),"
            " or name one with `make PYTHON=/path/to/python3.11`."
        )


def check_platform(platform: str = sys.platform) -> None:
    """Refuse an operating system that the locks were not made for."""
    if platform != "linux":
        raise SetupError(
            f"the locked packages are Linux ones and this is {platform}: install the project with"
            " `pip install -e '.[detectron2,mmdet,dev]'` instead."
        )


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> None:
    """MMCV's operators are compiled: refuse to start without a compiler and Python's headers."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    if which(compiler) is None:
        raise SetupError(
            f"the C++ compiler {compiler} is needed to build MMCV's operators and was not found:"
            " install one (Debian: `apt-get install g++`)."
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise SetupError(
            "Python's C headers are needed to build MMCV's operators and were not found:"
            " install them (Debian: `apt-get install python3.11-dev`)."
        )


def check_disk(needed_gb: int, free_bytes: int) -> None:
    """Refuse to start what would fill the disk."""
    free_gb = free_bytes / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"{needed_gb} GB of free disk space are needed and {free_gb:.1f} GB are there:"
            " free some, or move the project to another disk."
        )


def works(python: Path) -> bool:
    """Whether this is an interpreter of the right version that runs."""
    code = f"import sys; sys.exit(sys.version_info[:2] != {PYTHON})"
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def venv_command(venv: Path) -> list[str]:
    """The command that creates the environment with whatever this machine has for it."""
    if importlib.util.find_spec("ensurepip"):
        return [sys.executable, "-m", "venv", "--clear", str(venv)]
    if uv := shutil.which("uv"):
        return [uv, "venv", "--clear", "--seed", "--python", sys.executable, str(venv)]
    raise SetupError(
        "this Python cannot create virtual environments:"
        " install its venv package (Debian: `apt-get install python3.11-venv`) or uv."
    )


def tools_command(python: Path, lock: Path) -> list[str]:
    """The command that installs the pinned uv: with pip, or a uv from elsewhere."""
    if python.with_name("pip").exists():
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", str(python)]
    else:
        raise SetupError("the .venv has neither pip nor uv: run `make clean` and try again.")
    return [*command, "--require-hashes", "-r", str(lock)]


def build_env(torch_version: str, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of the step that compiles MMCV, with its CPU operators only.

    uv forgets a wheel that it built when anything else asks for the metadata of the same sdist and
    the index sends no caching headers, and it does not know that the wheel fits one version of
    PyTorch only. So this step has a cache of its own.

    Its build looks for a GPU and would then need a CUDA toolkit that matches PyTorch's; the tests
    run on the CPU, and users with a GPU take MMCV's own prebuilt wheels.
    """
    jobs = env.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    cpu_only = {"FORCE_CUDA": "0", "CUDA_VISIBLE_DEVICES": ""}
    cache = cache_dir(env) / f"uv-torch-{torch_version}"
    return {"MMCV_WITH_OPS": "1", **cpu_only, "MAX_JOBS": jobs, "UV_CACHE_DIR": str(cache)}


def find_browser() -> str | None:
    """The browser in which the tests open the reports, if the machine has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def browser_step() -> Step:
    """Installs Debian's Chromium: Playwright's own browsers are not on the package indexes."""
    # Through `env`, because sudo does not pass the variable on.
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    return Step(
        "browser",
        "installing Debian's Chromium, in which the tests open the reports (about a minute)",
        [[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", "chromium"]],
        hint="install Chromium or Google Chrome yourself (Debian: `sudo apt-get install chromium`)",
        there=find_browser,
    )


def pinned(lock: Path) -> dict[str, str]:
    """The version of each package in a lock."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE))


def plan(kind: str, root: Path, python: Path) -> list[Step]:
    """The steps that follow the creation of the environment."""
    uv = str(python.parent / "uv")
    locks = {name: root / "requirements" / f"{name}.lock" for name in ("build", "demo", "test")}
    demo = pinned(locks["demo"])
    # The locks are complete, so nothing is resolved, and they name the tools that builds use.
    sync = [uv, "pip", "install", "--python", str(python), "--require-hashes", "--no-deps"]
    # Where Python is told to write no bytecode (as in many containers), each of the tests' many
    # processes would compile PyTorch and the frameworks itself, which takes 7 s.
    sync += ["--no-build-isolation", "--compile-bytecode"]
    steps = [
        Step(
            "tools",
            "installing uv and the build tools (about 10 seconds)",
            [tools_command(python, locks["build"])],
            [locks["build"]],
        ),
        Step(
            "packages",
            f"installing PyTorch and {len(demo) - 1} pinned packages"
            " (about 2 minutes, 7 GB; half a minute if uv has them in its cache)",
            [[*sync, "-r", str(locks["demo"])]],
            [locks["demo"]],
        ),
    ]
    if kind == "test":
        steps.insert(0, browser_step())  # the one that may be forbidden, so before the long ones
        env = build_env(demo["torch"])
        steps.append(
            Step(
                "mmdetection",
                "compiling MMCV and installing MMDetection"
                f" (15 to 25 minutes on 2 free cores, {env['MAX_JOBS']} at a time;"
                " a minute when it was done before)",
                [[*sync, "-r", str(locks["test"])]],
                [locks["test"]],
                env,
                "look for the first `error:` in the log",
            )
        )
    installer = root / "tools" / "install_detectron2.py"
    editable = ["--no-deps", "--no-build-isolation", "--editable", str(root)]
    steps += [
        Step(
            "detectron2",
            "installing Detectron2 (about 15 seconds)",
            [[str(python), str(installer)]],
            [installer],
            hint="do what its last line says",
        ),
        Step(
            "project",
            "installing gradaug_det itself (a few seconds)",
            [[uv, "pip", "install", "--python", str(python), *editable]],
            [root / "setup.py", root / "pyproject.toml"],
        ),
    ]
    return steps


def execute(command: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
    """Run a command with its output appended to the log, with a sign of life every minute."""
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as out:
        print("$", *command, file=out, flush=True)
        try:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env
            )
        except OSError as error:
            print(error, file=out)
            return 127
        while True:
            try:
                return process.wait(timeout=HEARTBEAT)
            except subprocess.TimeoutExpired:
                print(f"      {(time.monotonic() - start) / 60:.0f} min so far ...", flush=True)
            except BaseException:
                process.terminate()
                process.wait()
                raise


def remedy(log_text: str, hint: str) -> str:
    """What to do about a failure, from what the log says."""
    return next((advice for pattern, advice in REMEDIES if re.search(pattern, log_text)), hint)


def is_done(step: Step, venv: Path) -> bool:
    """Whether the step succeeded with the inputs of today, or what it makes is there."""
    if step.there:
        return bool(step.there())
    stamp = venv / ".stamps" / step.name
    return stamp.is_file() and stamp.read_text() == step.key()


def run_step(step: Step, venv: Path, env: Mapping[str, str]) -> None:
    """Run a step and stamp it if it succeeds; a step that fails or is stopped has no stamp."""
    stamp = venv / ".stamps" / step.name
    log = venv / "logs" / f"{step.name}.log"
    key = step.key()
    stamp.parent.mkdir(exist_ok=True)
    log.parent.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    for command in step.commands:
        status = execute(command, log, {**env, **step.env})
        if status != 0:
            text = log.read_text(encoding="utf-8", errors="replace")
            print(*("    | " + line for line in text.splitlines()[-LAST_LINES:]), sep="\n")
            raise SetupError(
                f"the step `{step.name}` failed with status {status}: {remedy(text, step.hint)},"
                f" then run the same command again (whole log: {log})."
            )
    partial = stamp.with_name(f".{stamp.name}.partial")
    partial.write_text(key)
    partial.replace(stamp)


def tool_env(venv: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of the commands: another active environment must not get in the way."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")
    clean = {key: value for key, value in env.items() if key not in dropped}
    clean["PATH"] = os.pathsep.join([str(venv / "bin"), env.get("PATH", os.defpath)])
    clean.setdefault("UV_HTTP_TIMEOUT", "300")  # some wheels have 800 MB
    clean["UV_NO_PROGRESS"] = "1"
    if index := configured_index(env):
        clean.setdefault("UV_DEFAULT_INDEX", index)  # uv does not read pip's configuration
    return clean


def create_venv(venv: Path, label: str) -> None:
    """Create the environment, in place of one that does not run."""
    print(f"{label} creating {venv.name} with Python {PYTHON[0]}.{PYTHON[1]} (about 10 seconds)")
    run = subprocess.run(venv_command(venv), capture_output=True, text=True)
    if run.returncode != 0 or not works(venv / "bin" / "python"):
        output = (run.stdout + run.stderr).strip()
        print(*("    | " + line for line in output.splitlines()[-LAST_LINES:]), sep="\n")
        raise SetupError(
            f"{venv} could not be created: {remedy(output, 'check that the folder can be written')}"
            " (Debian: `apt-get install python3.11-venv`), then run the same command again."
        )


def setup(kind: str, root: Path = ROOT) -> None:
    """Check the machine and run the steps that were not done yet."""
    check_python()
    check_platform()
    venv = root / ".venv"
    python = venv / "bin" / "python"
    total = 7 if kind == "test" else 5
    if not works(python):
        check_disk(NEEDED_GB[kind], shutil.disk_usage(root).free)
        if kind == "test":
            check_compiler()
        create_venv(venv, f"[1/{total}]")
    env = None
    for number, step in enumerate(plan(kind, root, python), start=2):
        if is_done(step, venv):
            continue
        if step.name == "mmdetection":
            check_compiler()
        env = env or tool_env(venv)
        print(f"[{number}/{total}] {step.title}", flush=True)
        start = time.monotonic()
        run_step(step, venv, env)
        print(f"      done in {time.monotonic() - start:.0f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("demo", "test"), help="what the environment is for")
    kind = parser.parse_args(argv).kind
    try:
        setup(kind)
    except SetupError as error:
        print(f"setup_env: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"setup_env: {error}: check that the project's folder can be written.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nsetup_env: stopped; the same command continues from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
