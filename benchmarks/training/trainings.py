"""The training of each task."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.training.workload import Training, Variant, Workload


def training_class(task: str) -> Callable[[Workload, Variant], Training]:
    """Returns the task's :class:`Training`; what it needs is imported only now."""
    if task == "detectron2":
        from benchmarks.training.detectron2 import Detectron2Training as Adapter
    elif task == "mmdet":
        from benchmarks.training.mmdet import MMDetTraining as Adapter
    else:
        from benchmarks.training.classification import ClassificationTraining as Adapter
    return Adapter
