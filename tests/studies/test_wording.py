"""The summary says what the numbers say, in both directions and no more."""

import math

import pytest

from gradaug_det.reports.rendering import signed
from studies.report.comparison import group_methods
from studies.report.records import RunRecord
from studies.report.wording import summarise


def run(name, box=None, mask=None, *, method="", label="", iterations=100, **more):
    metrics = {}
    for task, value in (("bbox", box), ("segm", mask)):
        if value is not None:
            metrics[task] = dict(value) if isinstance(value, dict) else {"AP": value}
    label = label or (method or name).capitalize()
    return RunRecord(name, label, "c.yaml", iterations, metrics, method=method, **more)


def paragraph(*runs):
    (text,) = summarise(group_methods(runs, runs[0].method))
    return text


def test_above():
    text = paragraph(run("plain", 40.0, 35.0), run("gradaug", 41.2, 35.5))
    assert text.startswith(
        "Gradaug is 1.2 box AP above Plain (41.2 against 40.0) and 0.5 mask AP above it "
        "(35.5 against 35.0)."
    )


def test_below_is_called_below():
    text = paragraph(run("plain", 40.0), run("gradaug", 38.7))
    assert text.startswith("Gradaug is 1.3 box AP below Plain (38.7 against 40.0).")
    assert "above" not in text


def test_opposite_and_equal():
    text = paragraph(run("plain", 40.0, 35.0), run("gradaug", 40.02, 34.0))
    assert "equal to Plain in box AP (40.0 against 40.0) and 1.0 mask AP below it" in text


def test_one_seed_concludes_nothing():
    text = paragraph(run("plain", 40.0), run("gradaug", 60.0))
    assert "one seed" in text and "nobody can tell how much of this difference is chance" in text


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([41.0, 41.5, 42.0], "the ranges do not overlap (41.0 to 42.0 over 3 seeds against"),
        ([38.0, 38.5, 38.6], "the ranges do not overlap (38.0 to 38.6 over 3 seeds against"),
        ([39.9, 41.5, 42.0], "the difference is within the spread of seeds (39.9 to 42.0"),
    ],
)
def test_several_seeds(values, verdict):
    plain = [run(f"p{i}", v, method="plain") for i, v in enumerate([39.0, 40.0])]
    gradaug = [run(f"g{i}", v, method="gradaug") for i, v in enumerate(values)]
    text = paragraph(*plain, *gradaug)
    assert verdict in text and "39.0 to 40.0 over 2 seeds" in text
    assert "Gradaug is on average" in text
    assert "one seed" not in text


def test_sizes_and_categories():
    plain = {
        "AP": 40.0,
        "APs": 20.0,
        "APm": 40.0,
        "APl": math.nan,
        "AP-a": 30,
        "AP-b": 50,
        "AP-c": 9,
    }
    gradaug = {"AP": 41.0, "APs": 17.5, "APm": 42.0, "APl": 99.0, "AP-a": 35, "AP-b": 45, "AP-c": 9}
    text = paragraph(run("plain", plain), run("gradaug", gradaug))
    assert "differs most for small objects (\N{MINUS SIGN}2.5)" in text
    assert "Box AP is higher in 1 and lower in 1 of 3 categories." in text


def test_cost_and_unfair_comparisons():
    plain = run("plain", 40.0, seconds=100.0, num_parameters=1_000_000)
    gradaug = run("gradaug", 41.0, seconds=560.0, num_parameters=1_000_000, iterations=200)
    text = paragraph(plain, gradaug)
    assert "A training step took 2.80 times as long as one of Plain." in text
    assert "not trained equally long: 200 iterations against 100." in text
    assert "Both networks have 1,000,000 parameters." in text
    gradaug.num_parameters = 2
    assert "differ in size: 2 parameters against 1,000,000" in paragraph(plain, gradaug)


def test_logged_step_times_count_before_the_total():
    logged = run("plain", 40.0, seconds=900.0, curves={"time": [(1, 9.0), (2, 1.0), (3, 1.0)]})
    assert logged.seconds_per_iteration == 1.0
    assert run("plain", 40.0).seconds_per_iteration is None


def test_barely_trained_detectors_are_called_so():
    assert "barely trained" in paragraph(run("plain", 1.0), run("gradaug", 3.0))
    assert "barely trained" not in paragraph(run("plain", 1.0), run("gradaug", 30.0))


def test_nothing_to_compare():
    assert paragraph(run("plain", 40.0, 35.0)) == (
        "Plain reaches 40.0 box AP and 35.0 mask AP after 100 iterations. Nothing was compared."
    )
    assert "no AP in common" in paragraph(run("plain", 40.0), run("gradaug", mask=30.0))
    assert "no AP in common" in paragraph(run("plain", math.nan), run("gradaug", 30.0))
    assert paragraph(run("plain")) == "Plain has no AP: nothing was evaluated."


def test_a_paragraph_for_each_method():
    runs = [run("plain", 40.0), run("soft", 41.0), run("labels", 39.0)]
    first, second = summarise(group_methods(runs, "plain"))
    assert first.startswith("Soft is 1.0 box AP above Plain")
    assert second.startswith("Labels is 1.0 box AP below Plain")


def test_signs():
    assert [signed(v) for v in (1.239, -0.5, 0.001, -0.001)] == ["+1.24", "−0.50", "0.00", "0.00"]  # noqa: RUF001
