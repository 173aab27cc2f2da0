"""Runs tests with the oldest and the newest packages that setup.py admits; writes matrix.md.

Each cell of the matrix is an environment of its own in ``output/matrix``, made by uv. A cell that
is not asked for keeps its row of the last time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gradaug_det.reports.rendering import write_files

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / "output" / "matrix"
# What tests import beside the package's own requirements; of any version.
TOOLS = ("hypothesis", "opencv-python-headless", "pypi-simple", "pytest", "pytest-timeout", "timm")
VERSIONS = ("torch", "torchvision", "numpy", "detectron2", "mmdet", "mmcv", "mmengine")


@dataclass(frozen=True)
class Cell:
    """One environment and what is tested in it.

    Args:
        python: its version.
        resolution: which versions of setup.py's ranges, in uv's words.
        tests: pytest's arguments.
        mmcv: the version that is compiled with its operators, empty for none.
        packages: what there is beside setup.py's requirements.
    """

    python: str
    resolution: str
    tests: tuple[str, ...]
    mmcv: str = ""
    packages: tuple[str, ...] = ()


CELLS = {
    # OpenMMLab's own last releases, which name no newer MMCV.
    "oldest": Cell(
        python="3.10",
        resolution="lowest-direct",
        tests=(
            *(f"tests/{folder}" for folder in ("core", "d2", "mmdet", "cross", "pretrain", "zoo")),
            "-knot test_orientation",  # of file formats that old readers of images do not know
        ),
        mmcv="2.1.0",
        packages=("mmdet==3.3.0", "mmengine==0.10.7", "ninja", "psutil"),
    ),
    # MMCV does not compile with this PyTorch, so what imports it is left out.
    "newest": Cell(
        python="3.13",
        resolution="highest",
        tests=("tests/core", "tests/d2", "--ignore=tests/core/test_depth.py"),
    ),
}


def make_environment(name: str, cell: Cell) -> Path:
    """Makes the environment of a cell anew and returns its Python."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    pins = folder / "pins.txt"
    overrides = ("--override", "requirements/overrides.txt")
    install = ("uv", "pip", "install", "--quiet", "--python", str(python))
    _run(python, *("uv", "venv", "--quiet", "--clear", "--python", cell.python, str(folder)))
    _run(
        python,
        *("uv", "pip", "compile", "--quiet", "--python", str(python), *overrides, "setup.py"),
        *(f"--extra={extra}" for extra in ("detectron2", "gdrive", "pretrain")),
        *("--resolution", cell.resolution, "--output-file", str(pins)),
    )
    _run(python, *install, *overrides, "--requirements", str(pins), *TOOLS, *cell.packages)
    if cell.mmcv:
        _run(python, *install, "--no-deps", "--no-build-isolation", f"mmcv=={cell.mmcv}")
    _run(python, str(python), "tools/install_detectron2.py")
    return python


def run_tests(python: Path, tests: Sequence[str], report: Path) -> dict[str, Any]:
    """Runs pytest with these arguments in an environment.

    Args:
        report: where pytest's XML report is written.

    Returns:
        ``passed``, ``skipped``, ``failed`` (names), ``seconds`` and the environment's description.
    """
    start = time.perf_counter()
    command = (str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}")
    # OpenMMLab's MMEngine goes on to write into the folder of a process' first training.
    options = ("-o", "tmp_path_retention_policy=all")
    run = subprocess.run((*command, *options, *tests), cwd=ROOT, env=_variables(python))
    if run.returncode > 1:  # not "all passed" or "some failed"
        sys.exit(f"pytest was not run to its end (exit status {run.returncode}): no row is written")
    seconds = time.perf_counter() - start
    outcomes: dict[str, list[str]] = {"passed": [], "skipped": [], "failed": []}
    for case in ElementTree.parse(report).iter("testcase"):
        children = {child.tag for child in case}
        outcome = "failed" if children & {"failure", "error"} else "passed"
        name = f"{case.get('classname')}::{case.get('name')}"
        outcomes["skipped" if "skipped" in children else outcome].append(name)
    code = "from gradaug_det.utils.environment import *; print(json.dumps(describe_environment()))"
    return {
        "passed": len(outcomes["passed"]),
        "skipped": len(outcomes["skipped"]),
        "failed": outcomes["failed"],
        "seconds": round(seconds),
        "environment": json.loads(_run(python, str(python), "-c", f"import json; {code}")),
    }


def write_matrix(content: dict[str, Any], out: Path) -> Path:
    """Writes ``matrix.json`` and ``matrix.md`` into a folder; returns the second."""
    lines = [
        "# Tests with the oldest and the newest packages\n",
        "`make test-matrix` runs these folders' tests in environments of their own, with the lowest"
        "\nversions that setup.py admits and with the highest that there are.\n",
        "| | Python | " + " | ".join(VERSIONS) + " | passed | failed | skipped | seconds |",
        "|:--" * (2 + len(VERSIONS)) + "|--:" * 4 + "|",
    ]
    for name, cell in content.items():
        versions = cell["environment"]["versions"]
        row = (
            *(name, cell["environment"]["python"], *(versions.get(v, "none") for v in VERSIONS)),
            *(cell["passed"], len(cell["failed"]), cell["skipped"], cell["seconds"]),
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    for name, cell in content.items():
        lines.append(f"\n{name}: `pytest {' '.join(cell['tests'])}`")
        lines += [f"- failed: {test}" for test in cell["failed"]]
    texts = {"matrix.json": json.dumps(content, indent=1), "matrix.md": "\n".join(lines)}
    write_files(out, {name: f"{text}\n" for name, text in texts.items()})
    return out / "matrix.md"


def _variables(python: Path) -> dict[str, str]:
    """The variables of programs of an environment; MMCV's operators are compiled for the CPU."""
    path = os.pathsep.join((str(python.parent), str(Path(sys.executable).parent)))
    return {
        **os.environ,
        "PATH": path + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MMCV_WITH_OPS": "1",
        "FORCE_CUDA": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _run(python: Path, *command: str) -> str:
    run = subprocess.run(
        command, cwd=ROOT, env=_variables(python), stdout=subprocess.PIPE, text=True
    )
    if run.returncode:
        sys.exit(f"`{' '.join(command)}` failed (exit status {run.returncode}), see above")
    return run.stdout


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)} (all)")
    parser.add_argument("--keep", action="store_true", help="the environments (7 GB each)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(argv)
    if unknown := set(args.cells) - set(CELLS):
        parser.error(f"no cell {', '.join(sorted(unknown))}: there are {', '.join(CELLS)}")
    written = args.out / "matrix.json"
    content = json.loads(written.read_text()) if written.exists() else {}
    for name in args.cells or CELLS:
        python = make_environment(name, CELLS[name])
        tests = CELLS[name].tests
        content[name] = {"tests": tests, **run_tests(python, tests, ENVIRONMENTS / f"{name}.xml")}
        print(write_matrix(content, args.out).read_text())
        if not args.keep:
            shutil.rmtree(ENVIRONMENTS / name)
    return int(any(content[name]["failed"] for name in args.cells or CELLS))


if __name__ == "__main__":
    sys.exit(main())
