"""The project's own programs as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gradaug_det.errors import GradAugError


def call_tool(command: Sequence[object], root: Path, log: Path) -> None:
    """Runs one of the project's tools or modules on one thread, its output appended to ``log``.

    Args:
        command: the tool's path from ``root`` or the module's name, then its arguments.
        root: the project's folder.
        log: file, made with its folder if needed.

    Raises:
        GradAugError: it failed; names the log.
    """
    start = [] if str(command[0]).endswith(".py") else ["-m"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        status = subprocess.run(
            [sys.executable, "-W", "ignore", *start, *map(str, command)],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        raise GradAugError(f"{command[0]} ended with exit code {status}; its output is in {log}")
