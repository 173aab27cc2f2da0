"""The matrix of packages: what its runs count, what its table says, what its cells leave out."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks.matrix import CELLS, ROOT, run_tests, write_matrix

OUTCOMES = """
import pytest

def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skip
def test_is_skipped(): pass
@pytest.fixture
def broken(): raise OSError
def test_has_an_error(broken): pass
"""
MMDET = re.compile(
    r"^(?:from|import) (?:mm|gradaug_det\.mmdet|tests\.(?:mmdet|cross))", re.MULTILINE
)


def test_outcomes_are_counted_and_written(tmp_path):
    tests = tmp_path / "test_outcomes.py"
    tests.write_text(OUTCOMES)
    found = run_tests(Path(sys.executable), [str(tests)], tmp_path / "report.xml")
    assert (found["passed"], found["skipped"]) == (1, 1)
    assert [name.split("::")[1] for name in found["failed"]] == ["test_fails", "test_has_an_error"]
    text = write_matrix({"this": {"tests": ["tests/x"], **found}}, tmp_path).read_text()
    (row,) = re.findall(r"^\| this \|.*", text, flags=re.MULTILINE)
    versions = found["environment"]["versions"]
    assert f"| {versions['torch']} | {versions['torchvision']} |" in row
    assert row.endswith(f"| 1 | 2 | 1 | {found['seconds']} |")
    assert text.count("- failed: ") == 2 and "this: `pytest tests/x`" in text


@pytest.mark.parametrize("name", CELLS)
def test_cells_leave_out_what_imports_a_framework_that_they_lack(name):
    cell = CELLS[name]
    folders = [ROOT / test for test in cell.tests if not test.startswith("-")]
    assert folders and all(folder.is_dir() for folder in folders)
    needing = {f for folder in folders for f in folder.glob("*.py") if MMDET.search(f.read_text())}
    ignored = {ROOT / t.removeprefix("--ignore=") for t in cell.tests if t.startswith("--ignore=")}
    assert ignored == (set() if cell.mmcv else needing)
