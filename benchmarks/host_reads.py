"""What a step makes its device and its processes wait for, counted on a CPU.

A host read (`item`, `tolist`, `bool`, `nonzero`, a copy) ends when the device has computed all
that was asked of it before. Counted are those of gradaug_det's own lines, in the second step of a
small Mask R-CNN, alone and in two processes; there also its collectives, by the group that they
cross: the host's, for which no device waits, or the training's. Writes host_reads.json and
host_reads.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.overrides import TorchFunctionMode

import gradaug_det
from benchmarks.training.trainings import training_class
from benchmarks.training.workload import ALTERNATING, Variant, Workload
from gradaug_det.reports.rendering import write_files
from gradaug_det.utils.environment import describe_environment

PACKAGE = Path(gradaug_det.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
VARIANTS = (Variant(), Variant("labels", 3), Variant("both", 3), ALTERNATING)
_READS = {
    *(Tensor.item, Tensor.tolist, Tensor.nonzero, Tensor.numpy, Tensor.cpu, torch.nonzero),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
    *(torch.equal, torch.allclose, Tensor.equal, Tensor.allclose, Tensor.is_nonzero),
}
_COLLECTIVES = ("all_reduce", "gather_object", "all_gather_object", "broadcast", "barrier")


class HostReads(TorchFunctionMode):
    """Within the block, counts host reads by file and line of gradaug_det."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _READS and (line := _own_line()):
            self.found[line] += 1
        return func(*args, **(kwargs or {}))


def _own_line() -> str | None:
    """Returns the line of gradaug_det that calls PyTorch; None if the line is another's.

    Two places do not count: what processes have agreed on is on the host; and MMDetection's heads
    take crops of masks as arrays, also from its own masks.
    """
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    allowed = path.name == "processes.py" or frame.f_code.co_name == "crop_and_resize"
    if allowed or not path.is_relative_to(PACKAGE):
        return None
    return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"


def count_step(workload: Workload, variant: Variant) -> dict[str, Any]:
    """Returns the host reads by line, and the collectives by group with their bytes."""
    torch.manual_seed(0)
    training = training_class(workload.task)(workload, variant)
    training.step(0)
    collectives: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    def counting(original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            group = "training's" if kwargs.get("group") is None else "host's"
            collectives[group] += 1
            sizes[group] += sum(x.nbytes for x in args if isinstance(x, Tensor))
            return original(*args, **kwargs)

        return call

    with ExitStack() as stack, HostReads() as reads:
        for name in _COLLECTIVES:
            stack.enter_context(patch.object(dist, name, counting(getattr(dist, name))))
        training.step(1)
    return {"reads": dict(reads.found), "collectives": dict(collectives), "bytes": dict(sizes)}


def _process(rank: int, folder: str, workload: Workload, names: tuple[Variant, ...]) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    found = {variant.name: count_step(workload, variant) for variant in names}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def count(task: str, variants: tuple[Variant, ...] = VARIANTS) -> dict[str, dict[str, Any]]:
    """Returns what :func:`count_step` does, by variant, ``alone`` and in ``two`` processes."""
    workload = Workload(task, ROOT / "configs", (96, 128), batch_size=1, small=True)
    alone = {variant.name: count_step(workload, variant) for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (folder, workload, variants), nprocs=2)
        two = json.loads(Path(folder, "0.json").read_text())
    return {name: {"alone": alone[name], "two": two[name]} for name in alone}


def write_counts(content: dict[str, Any], before: dict[str, Any], out: Path) -> Path:
    """Writes ``host_reads.json`` and ``host_reads.md`` into a folder; returns the second.

    Args:
        before: an earlier ``host_reads.json``, which may have fewer trainings.
    """

    def reads(found: dict[str, Any]) -> list[str]:
        counts = (found.get(how, {}).get("reads") for how in ("alone", "two"))
        return ["" if lines is None else str(sum(lines.values())) for lines in counts]

    rows = [
        "# What a step waits for",
        "",
        *" ".join(__doc__.split("\n\n")[1].rpartition("Writes")[0].split()).split("\n"),
        "",
        "| | training | reads, alone | in two processes | before, alone | in two "
        "| collectives, host's | training's |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for task, variants in content["tasks"].items():
        for name, found in variants.items():
            two = found["two"]
            groups = [
                f"{two['collectives'].get(group, 0)} ({two['bytes'].get(group, 0) / 1e3:.1f} kB)"
                for group in ("host's", "training's")
            ]
            earlier = reads(before["tasks"].get(task, {}).get(name, {}))
            rows.append(f"| {task} | {name} | {' | '.join([*reads(found), *earlier, *groups])} |")
    commit, old = (c["environment"]["git_commit"] for c in (content, before))
    rows += ["", f"By `python -m benchmarks.host_reads`, commit {commit}; before: commit {old}."]
    texts = {"host_reads.json": json.dumps(content, indent=1), "host_reads.md": "\n".join(rows)}
    write_files(out, {name: f"{text}\n" for name, text in texts.items()})
    return out / "host_reads.md"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_reads", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    tasks = {task: count(task) for task in ("detectron2", "mmdet")}
    content = {"tasks": tasks, "environment": describe_environment()}
    before = json.loads((RESULTS / "host_reads_before.json").read_text())
    print(write_counts(content, before, args.out).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
