"""Counts the house: lines, files, circles, climbs, tables of frameworks, scripts, README.

    python -m tests.house           # of this checkout
    python -m tests.house FOLDER    # of another one, as a worktree of an old commit

tests/core/test_imports.py holds the layers and fails on the first circle or climb.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "gradaug_det"


def imports(path: Path) -> set[str]:
    """Returns the absolute names of everything a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            # A name may be a module of its package: both are named, the graph keeps what exists.
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def import_graph(root: Path) -> networkx.DiGraph:
    """Returns the package's modules, and an edge from each to every module that it imports."""
    files = {_module(path, root): path for path in (root / PACKAGE).rglob("*.py")}
    graph = networkx.DiGraph()
    graph.add_nodes_from(files)
    for module, path in files.items():
        found = imports(path) & files.keys()
        # `from package import module` needs the package's __init__ only if that has content.
        found = {name for name in found if files[name].read_text("utf-8").strip()} | {
            name for name in found if not files[name].name.startswith("__init__")
        }
        graph.add_edges_from((module, name) for name in found if name != module)
    return graph


def circles(graph: networkx.DiGraph) -> list[list[str]]:
    """Returns the groups of modules that import each other, in functions or not."""
    return [sorted(c) for c in networkx.strongly_connected_components(graph) if len(c) > 1]


def climbs(graph: networkx.DiGraph, layers: Sequence[Iterable[str]]) -> list[tuple[str, str]]:
    """Returns the imports that lead from a lower layer into a higher one.

    Args:
        layers: the parts of the package in each layer, the lowest first.
    """
    rank = {part: height for height, parts in enumerate(layers) for part in parts}

    def height(module: str) -> int | None:
        return rank.get(module.split(".")[1]) if "." in module else None

    pairs = [(a, b, height(a), height(b)) for a, b in sorted(graph.edges)]
    return [(a, b) for a, b, low, high in pairs if None not in (low, high) and low < high]


def framework_tables(root: Path) -> list[str]:
    """Returns the files outside the adapters whose code chooses between both frameworks by name."""
    found = []
    for top in (PACKAGE, "studies", "benchmarks", "tools"):
        for path in sorted((root / top).rglob("*.py")):
            if not {"d2", "mmdet"} & set(path.relative_to(root).parts):
                tree = ast.parse(path.read_text("utf-8"))
                if any(_chooses_framework(node) for node in ast.walk(tree)):
                    found.append(path.relative_to(root).as_posix())
    return found


def _chooses_framework(node: ast.AST) -> bool:
    """Returns whether a dict has both frameworks' names as keys, or code compares with one."""
    if isinstance(node, ast.Dict):
        names = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        return {"detectron2", "mmdet"} <= names
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(isinstance(s, ast.Constant) and s.value == "detectron2" for s in sides)
    return False


def _module(path: Path, root: Path) -> str:
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return name.removesuffix(".__init__")


def count_house(root: Path, layers: Sequence[Iterable[str]]) -> Iterator[tuple[str, str]]:
    """Yields what is counted, and how much of it there is."""
    texts = [path.read_text("utf-8") for path in sorted((root / PACKAGE).rglob("*.py"))]
    lines = [line for text in texts for line in text.splitlines()]
    comments = sum(line.lstrip().startswith("#") or "  # " in line for line in lines)
    docstrings = [
        ast.get_docstring(node) or ""
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    ]
    fragments = sum(bool(re.match(r"(Of|That of|What|Whether)\b", text)) for text in docstrings)
    graph = import_graph(root)
    readme = (root / "README.md").read_text("utf-8")
    changes = (root / "CHANGELOG.md").read_text("utf-8")
    yield "lines of Python in the package", str(len(lines))
    yield "files of Python in the package", str(len(texts))
    yield "lines with a comment", f"{comments / len(lines):.1%}"
    yield "docstrings that begin with Of, That of, What, Whether", str(fragments)
    yield "circles of imports", str(len(circles(graph)))
    yield "imports that climb", str(len(climbs(graph, layers)))
    yield "tables of the two frameworks", str(len(framework_tables(root)))
    yield "scripts in tools/", str(len(list((root / "tools").glob("*.py"))))
    yield "words of the README", str(len(readme.split()))
    yield (
        "lines of the README, the longest",
        (f"{len(readme.splitlines())}, {max(map(len, readme.splitlines()))} characters"),
    )
    yield "bullets of the CHANGELOG", str(len(re.findall(r"^[-*] ", changes, re.MULTILINE)))
    yield "raw results in docs/", str(len(list((root / "docs").rglob("*.json"))))


def main() -> None:
    from tests.core.test_imports import LAYERS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    folder = parser.parse_args().folder.resolve()
    for name, value in count_house(folder, LAYERS):
        print(f"{name:55}{value}")
    graph = import_graph(folder)
    for circle in circles(graph):
        print("circle: " + " <-> ".join(circle))
    for source, target in climbs(graph, LAYERS):
        print(f"climb:  {source} -> {target}")
    for file in framework_tables(folder):
        print(f"table:  {file}")


if __name__ == "__main__":
    main()
