"""README's numbers are those of the committed report, and its commands exist."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_is_the_committed_reports():
    table = README.split("<!-- demo table: begin -->")[1].split("<!-- demo table: end -->")[0]
    report = json.loads((ROOT / "docs" / "demo" / "report.json").read_text())
    row = r"^\| ((?:Plain|GradAug) fine-tuning[^|]*) \|(.*)\|$"
    rows = re.findall(row, table, flags=re.MULTILINE)
    assert len(rows) >= 2
    assert [label for label, _ in rows] == [run["label"] for run in report["runs"]]
    for (_, row), run in zip(rows, report["runs"], strict=True):
        expected = [
            f"{run['metrics'][task][name]:.1f}"
            for task in ("bbox", "segm")
            for name in ("AP", "AP50", "AP75")
        ]
        assert [cell.strip() for cell in row.split("|")] == expected
        assert run["metrics"]["bbox"]["AP"] > 0
        assert run["metrics"]["segm"]["AP"] > 0


def test_files_and_targets_that_it_names_exist():
    for path in set(re.findall(r"(?:configs|tools|tests|docs)/[\w./-]*\w", README)):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_keys_are_the_configs():
    from gradaug_det.core.options import GradAugOptions

    for key in re.findall(r"`([A-Z_]+)`", README.split("| key")[1].split("\n\n")[0]):
        assert hasattr(GradAugOptions, key.lower()), key
