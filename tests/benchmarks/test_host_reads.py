"""Steps read at most twice from their device: once the losses, once the gradients."""

import pytest

from benchmarks.host_reads import ROOT, VARIANTS, count_step, write_counts
from benchmarks.training.workload import Workload


@pytest.mark.parametrize("task", ["detectron2", "mmdet"])
def test_reads_of_a_step(task, tmp_path):
    workload = Workload(task, ROOT / "configs", (64, 96), batch_size=1, small=True)
    found = {variant.name: count_step(workload, variant) for variant in VARIANTS}
    reads = {name: sum(one["reads"].values()) for name, one in found.items()}
    assert reads == {"plain": 0, "labels-3": 2, "both-3": 2, "alternating": 2}
    files = {line.partition(":")[0] for one in found.values() for line in one["reads"]}
    assert files == {"core/gradients.py", "core/regularizer.py"}
    tasks = {task: {name: {"alone": one, "two": one} for name, one in found.items()}}
    content = {"tasks": tasks, "environment": {"git_commit": "abc"}}
    earlier = {task: {"both-3": {"alone": {"reads": {"core/a.py:1": 7}}}}}
    before = {"tasks": earlier, "environment": {"git_commit": "def"}}
    text = write_counts(content, before, tmp_path).read_text()
    assert f"| {task} | both-3 | 2 | 2 | 7 |  | 0 (0.0 kB) | 0 (0.0 kB) |" in text
    assert f"| {task} | plain | 0 | 0 |  |  | 0 (0.0 kB) | 0 (0.0 kB) |" in text
