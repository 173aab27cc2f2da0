"""The comparison of frameworks: which trainings, and what is compared."""

from dataclasses import replace

import pytest

from gradaug_det.errors import ConfigError
from studies.frameworks.study import (
    FrameworkComparison,
    comparison_trainings,
    framework_agreements,
)
from studies.report.records import RunRecord
from studies.runner.frameworks import FRAMEWORKS


def test_all_methods_of_a_seed_before_the_next(tmp_path):
    trainings = comparison_trainings(tmp_path, tmp_path, FrameworkComparison(seeds=(1, 2)))
    names = [t.name for t in trainings]
    assert names[:4] == [
        "detectron2-plain-seed1",
        "mmdet-plain-seed1",
        "detectron2-gradaug-seed1",
        "mmdet-gradaug-seed1",
    ]
    assert names[4:] == [n.replace("seed1", "seed2") for n in names[:4]]
    assert len({t.folder for t in trainings}) == 8 and len({t.label for t in trainings}) == 4
    assert {t.job.weights for t in trainings} == {"gradaug://mini-resnet18-gradaug"}


def test_the_commands_name_seed_weights_and_schedule(tmp_path):
    trainings = comparison_trainings(tmp_path, tmp_path / "mini_coco", FrameworkComparison())
    lines = [t.shell_line(tmp_path, "output/frameworks") for t in trainings]
    assert not any(str(tmp_path) in line for line in lines)
    by_name = {t.name: line for t, line in zip(trainings, lines, strict=True)}
    ours = by_name["detectron2-gradaug-seed3"]
    assert "SOLVER.MAX_ITER 200 SOLVER.STEPS '(150,)' SEED 3 GRADAUG.SEED 3" in ours
    assert "MODEL.WEIGHTS gradaug://mini-resnet18-gradaug" in ours
    theirs = by_name["mmdet-gradaug-seed3"]
    for option in (
        "model.backbone.init_cfg.checkpoint=gradaug://mini-resnet18-gradaug",
        "train_cfg.max_iters=200",
        "'param_scheduler.1.milestones=[150]'",
        "randomness.seed=3",
        "custom_hooks.0.seed=3",
    ):
        assert option in theirs.split()
    assert "custom_hooks" not in by_name["mmdet-plain-seed3"]


def test_differences_compare_the_frameworks_and_the_methods():
    def run(framework, method, seed, ap):
        metrics = {task: {"AP": ap} for task in ("bbox", "segm")}
        name = f"{framework}-{method}"
        return RunRecord(f"{name}-{seed}", name, "", 1, metrics, method=name, seed=seed)

    values = {"plain": (4.0, 5.0, 6.0), "gradaug": (7.0, 7.5, 8.0)}
    runs = [
        run(framework, method, seed, ap)
        for framework in FRAMEWORKS
        for method, aps in values.items()
        for seed, ap in enumerate(aps)
    ]
    found = framework_agreements(runs)
    assert {what: agreed.difference for what, agreed in found.items()} == {
        "Plain, Detectron2 minus MMDetection, box AP": 0,
        "Plain, Detectron2 minus MMDetection, mask AP": 0,
        "GradAug, Detectron2 minus MMDetection, box AP": 0,
        "GradAug, Detectron2 minus MMDetection, mask AP": 0,
        "Detectron2, GradAug minus plain, box AP": 2.5,
        "Detectron2, GradAug minus plain, mask AP": 2.5,
        "MMDetection, GradAug minus plain, box AP": 2.5,
        "MMDetection, GradAug minus plain, mask AP": 2.5,
    }


@pytest.mark.parametrize("seeds", [(1,), (1, 1, 2)])
def test_a_spread_needs_several_seeds(seeds):
    with pytest.raises(ConfigError, match="seeds must be two or more, each once"):
        replace(FrameworkComparison(), seeds=seeds)
