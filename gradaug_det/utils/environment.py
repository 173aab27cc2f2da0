"""The machine and the versions that a report was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# By import name: Detectron2 and MMDetection are distributed under several names.
_PACKAGES = (
    *("gradaug_det", "torch", "torchvision", "detectron2", "mmdet", "mmcv", "mmengine"),
    *("numpy", "pycocotools", "faster_coco_eval"),
)


def describe_environment() -> dict[str, Any]:
    """Describes machine, versions and source revision, without a host name or a path.

    The frameworks are not imported: their versions come from their installed metadata.

    Returns:
        ``date`` (UTC, ISO 8601), ``python``, ``system``, ``cpu``, ``cores`` (usable by this
        process), ``gpus`` (list of names), ``versions`` (by import name, installed ones only),
        ``git_commit`` and ``git_dirty`` (None outside a checkout of this project).
    """
    distributions = metadata.packages_distributions()
    commit, dirty = _git_revision(Path(__file__).resolve().parents[2])
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {
            package: version
            for package in _PACKAGES
            if (version := _version(distributions.get(package, [package])[0]))
        },
        "git_commit": commit,
        "git_dirty": dirty,
    }


def machine_line(environment: dict[str, Any]) -> str:
    """Returns one line about the machine, e.g. ``Intel Xeon, 2 cores, no GPU``."""
    parts = [str(environment["cpu"])] if environment.get("cpu") else []
    if cores := environment.get("cores"):
        parts.append(f"{cores} core{'' if cores == 1 else 's'}")
    if "gpus" in environment:
        counts = Counter(environment["gpus"])
        parts += [f"{n} x {name}" if n > 1 else name for name, n in counts.items()] or ["no GPU"]
    return ", ".join(parts)


def usable_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(distribution: str) -> str | None:
    # Python 3.10 does not know the modules of a distribution without top_level.txt.
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _git_revision(root: Path) -> tuple[str | None, bool | None]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside someone else's checkout; its commit is not ours.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None
