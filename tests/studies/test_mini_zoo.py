"""The mini zoo's study: a queue that goes on, and tables that say what the results say."""

import json

import pytest

from gradaug_det.errors import GradAugError
from gradaug_det.pretrain.recipe import load_recipe
from studies.mini_zoo import study
from studies.mini_zoo.study import (
    COMPUTE_RATIO,
    LONG,
    PLAIN,
    SPLITS,
    Run,
    all_runs,
    read_result,
    recipe_hash,
    run_study,
    train_accuracies,
)
from studies.mini_zoo.tables import COLUMNS, values, write_tables
from tests.pretrain.helpers import ROOT


def test_runs_share_a_budget():
    runs = all_runs([0, 1, 2])
    assert len({run.name for run in runs}) == len(runs) == 3 * 2 * (8 + 4 + 2)
    for run in runs:
        recipe = load_recipe(ROOT / run.config, run.overrides)
        share, epochs = SPLITS[run.split]
        longer = run.budget != "epochs"
        assert recipe.epochs == (round(epochs * COMPUTE_RATIO) if longer else epochs)
        assert (recipe.data.fraction, recipe.seed) == (share, run.seed)
        assert (run.budget != "compute") or run.method in PLAIN
        assert (run.budget != "long") or run.method in LONG
    seeds = [run.seed for run in runs if run.budget != "long"]
    assert seeds == sorted(seeds)  # what is there when it stops is balanced


@pytest.mark.integration
def test_a_run_for_real_and_again(tmp_path, monkeypatch):
    monkeypatch.setitem(study.SPLITS, "tenth", (0.02, 1))
    run, results = Run("gradaug", "tenth", "epochs", 5), tmp_path / "results"
    few = ("--corrupted", "1", "--cache", str(tmp_path / "corrupted"))
    found = run_study([run], ROOT, tmp_path / "out", results, evaluation=few)
    metrics = found[run.name]["metrics"]
    assert set(COLUMNS) <= metrics.keys()
    assert all(0 <= value <= 100 for value in metrics.values())
    assert read_result(run, ROOT, results) == found[run.name]
    assert str(tmp_path) not in (results / f"{run.name}.json").read_text()

    other = Run("baseline", "tenth", "epochs", 5)
    fitted = train_accuracies([run, other], tmp_path / "out")
    assert list(fitted) == [run.name] and 0 < fitted[run.name] <= 100

    monkeypatch.setattr(study, "call_tool", lambda *_: pytest.fail("it was done"))
    assert run_study([run], ROOT, tmp_path / "out", results, evaluation=few) == found
    monkeypatch.setitem(study.SPLITS, "tenth", (0.02, 2))
    assert read_result(run, ROOT, results) is None  # another recipe's result


def test_a_failure_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "overrides", property(lambda _: ["epochs=0"]))
    monkeypatch.setattr(study, "read_result", lambda *_: None)
    with pytest.raises(GradAugError, match=r"tools/pretrain.py ended with exit code 2.*train.log"):
        run_study([Run("baseline", "full", "epochs", 0)], ROOT, tmp_path, tmp_path / "results")
    log = (tmp_path / "baseline-full-epochs-seed0" / "train.log").read_text()
    assert "epochs must be an integer of at least 1, got 0" in log


def result(top1):
    return {"metrics": dict.fromkeys(COLUMNS, 50.0) | {"top1": top1}}


def test_tables_show_means_spreads_and_differences(tmp_path):
    made = {"baseline": (60.0, 61.0, 62.0), "gradaug": (64.0, 65.0, 66.0), "mixup": (60.5,)}
    results = {
        Run(method, "full", "epochs", seed).name: result(top1)
        for method, tops in made.items()
        for seed, top1 in enumerate(tops)
    }
    text = write_tables(tmp_path / "README.md", results, [0, 1, 2]).read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert "| 3 | 61.0 ± 1.0 |" in rows["Baseline"]
    assert "| 3 | 65.0 ± 1.0 |" in rows["GradAug, width"]
    assert "+4.00 [+1.73, +6.27]" in rows["GradAug, width"]  # Welch, 4 degrees of freedom
    assert "| 1 | 60.5 |" in rows["Mixup"]
    assert rows["Mixup"].rstrip().endswith("|  |")  # one seed: no interval
    assert "CutMix" not in rows
    assert "A tenth of them" in text and "Same compute" not in text.split("## A tenth")[1]


def test_at_equal_compute_gradaugs_row_is_the_same():
    results = {Run("gradaug", "full", "epochs", 0).name: result(70.0)}
    assert values(results, Run("gradaug", "full", "compute", 0), [0], "top1") == [70.0]
    assert values(results, Run("baseline", "full", "compute", 0), [0], "top1") == []


def test_long_rows_have_equal_epochs(tmp_path):
    results = {
        Run("gradaug", "full", "long", 0).name: result(75.0),
        Run("gradaug", "full", "epochs", 0).name: result(70.0),
        Run("baseline", "full", "compute", 0).name: result(71.0),
    }
    assert values(results, Run("gradaug", "full", "long", 0), [0], "top1") == [75.0]
    assert values(results, Run("baseline", "full", "long", 0), [0], "top1") == [71.0]
    text = write_tables(tmp_path / "README.md", results, [0]).read_text()
    long = text.split("more of them (27)")[1]
    assert "| Baseline | 1 | 71.0 |" in long and "| GradAug, width | 1 | 75.0 |" in long


def test_how_well_they_fit_is_a_table(tmp_path):
    fit = {
        Run("baseline", "tenth", "epochs", 0).name: 99.0,
        Run("baseline", "tenth", "epochs", 1).name: 97.0,
        Run("baseline", "tenth", "compute", 0).name: 100.0,
    }
    text = write_tables(tmp_path / "README.md", {}, [0, 1], fit).read_text()
    row = next(line for line in text.splitlines() if line.startswith("| Baseline"))
    assert row == "| Baseline |  |  | 98.0 ± 1.4 | 100.0 |"
    assert "| method | all, 10 epochs | all, 27 epochs | a tenth, 40 epochs |" in text


def test_committed_results_are_of_todays_recipes_and_the_table_is_theirs(tmp_path):
    folder = ROOT / "studies" / "mini_zoo"
    files = sorted((folder / "results").glob("*.json"))
    runs = {run.name: run for run in all_runs([0, 1, 2])}
    found = {}
    for file in files:
        content = json.loads(file.read_text())
        assert content["recipe_hash"] == recipe_hash(runs[file.stem], ROOT), file.name
        found[file.stem] = content
    fit = json.loads((folder / "fit.json").read_text())
    written = write_tables(tmp_path / "README.md", found, [0, 1, 2], fit)
    assert written.read_bytes() == (folder / "README.md").read_bytes()
