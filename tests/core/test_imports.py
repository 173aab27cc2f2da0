"""The import graph: core knows only torch, adapters do not know each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import circles, climbs, import_graph, imports

PACKAGE = Path(__file__).parents[2] / "gradaug_det"
LAYERS = (  # the lowest first; a layer imports itself and what is below it
    {"errors", "utils"},
    {"core"},
    {"zoo", "check_data", "evaluation", "reports", "mini_coco"},
    {"benchmark", "export", "pretrain", "replay"},
    {"d2", "mmdet"},
    {"frameworks"},
    {"commands"},
)
LOWEST = ("gradaug_det.core", "gradaug_det.utils", "gradaug_det.errors")
FRAMEWORKS = {"detectron2", "fvcore", "mmdet", "mmcv", "mmengine"}


def tops(path):
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_knows_only_torch(path):
    third_party = tops(path) - set(sys.stdlib_module_names)
    assert third_party <= {"torch", "torchvision", "gradaug_det"}
    ours = {n for n in imports(path) if n.startswith("gradaug_det")}
    assert all(n.startswith(LOWEST) for n in ours)


def test_adapters_do_not_know_each_other():
    for path in (PACKAGE / "d2").rglob("*.py"):
        assert not tops(path) & {"mmdet", "mmcv", "mmengine"}, path
        assert not any(n.startswith("gradaug_det.mmdet") for n in imports(path)), path
    for path in (PACKAGE / "mmdet").rglob("*.py"):
        assert not tops(path) & {"detectron2", "fvcore"}, path
        assert not any(n.startswith("gradaug_det.d2") for n in imports(path)), path


def test_nothing_else_imports_a_framework():
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in ("d2", "mmdet"):
            assert not tops(path) & FRAMEWORKS, path


def test_every_part_has_a_layer():
    parts = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} == set().union(*LAYERS)


def test_imports_go_down_and_in_no_circle():
    graph = import_graph(PACKAGE.parent)
    assert circles(graph) == []
    assert climbs(graph, LAYERS) == []


def test_the_package_knows_no_evidence():
    for path in PACKAGE.rglob("*.py"):
        assert not tops(path) & {"studies", "benchmarks", "tests", "tools"}, path


def test_importing_the_package_imports_no_framework():
    code = (
        "import sys, gradaug_det, gradaug_det.core.regularizer, gradaug_det.commands.cli\n"
        f"found = {FRAMEWORKS!r} & {{name.split('.')[0] for name in sys.modules}}\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
