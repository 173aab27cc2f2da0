"""Bad input ends in a sentence, a warning or the right result: never in a hang or a bare error."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.corpus import (
    BAD_OPTIONS,
    BAD_RECIPE,
    CASES,
    option_keys,
    recipe_keys,
)
from tests.faults.entries import DATA_ENTRIES, outcome
from tests.faults.expected import EXPECTED

DOCS = Path(__file__).parents[2] / "docs" / "faults" / "bad_inputs.md"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES)
def test_what_it_gives(tmp_path, case):
    line = outcome(CASES[case].run, tmp_path)
    pattern = ".*".join(map(re.escape, CASES[case].gives.split(" ... ")))
    assert re.match(pattern, line), f"gives: {line}"


def test_every_case_has_an_expectation_and_no_other():
    assert CASES.keys() == EXPECTED.keys()


def test_the_corpus_has_every_category_and_both_frameworks():
    count = Counter(case.category for case in CASES.values())
    assert count.keys() == {
        *("images", "annotations", "annotation files", "configs", "checkpoints", "zoo")
    }
    assert sum(count.values()) >= 60
    for category in ("images", "annotations", "annotation files", "configs", "checkpoints"):
        entries = {case.entry for case in CASES.values() if case.category == category}
        assert entries >= {"Detectron2", "MMDetection"}
    assert {case.entry for case in CASES.values()} >= {*DATA_ENTRIES, "pretraining"}


def test_every_setting_has_wrong_values():
    """A new key of GradAug's options or of a recipe needs a line in the corpus."""
    assert list(BAD_OPTIONS) == option_keys()
    assert sorted(BAD_RECIPE) == sorted(recipe_keys())
    assert all(BAD_OPTIONS.values()) and all(BAD_RECIPE.values())


def test_no_wrong_setting_is_taken():
    """Each ends in a ConfigError that names the key."""
    configs = {id_: line for id_, line in EXPECTED.items() if id_.startswith("configs: ")}
    for id_, line in configs.items():
        assert line.startswith(("ConfigError: ", "DataError: ")), id_
        key = re.match(r"configs: ([\w.]+) = ", id_)
        if key:
            assert key[1].lower() in line.lower(), id_


def test_the_table_has_exactly_the_cases():
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| ", DOCS.read_text("utf-8"), re.MULTILINE)
    listed = [": ".join(row).replace("\\|", "|") for row in rows if row[0] != "category"]
    assert listed == list(CASES), "run: python -m tests.faults.bad_inputs"
