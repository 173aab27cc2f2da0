"""Multiply-adds at widths are counted from shapes: the stored numbers come out again."""

import json

from benchmarks.widths import ROOT, main


def test_a_kind_has_the_stored_numbers(tmp_path):
    assert main(["--kinds", "RetinaNet", "--out", str(tmp_path)]) == 0
    stored = json.loads((ROOT / "benchmarks/results/widths.json").read_text())
    found = json.loads((tmp_path / "widths.json").read_text())
    assert found == {name: {"RetinaNet": kinds["RetinaNet"]} for name, kinds in stored.items()}
    assert all(
        kind["detector"]["0.5"][0] <= 0.30 * kind["full"][0]
        for kinds in stored.values()
        for kind in kinds.values()
    )
