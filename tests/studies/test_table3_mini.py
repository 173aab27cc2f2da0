"""The study of table 3: tables that say what the results say."""

from dataclasses import replace
from pathlib import Path

import pytest

from gradaug_det.evaluation.coco import COCO_METRICS
from gradaug_det.reports.rendering import with_sign
from studies.table3_mini import study as module
from studies.table3_mini import tables as table
from studies.table3_mini.study import PARTS, SEEDS, Cell, read_results
from studies.table3_mini.tables import part_rows, study_plots, study_text

FOLDER = Path(__file__).parents[2] / "studies" / "table3_mini"
PLAIN, LABELS = Cell("gradaug", "plain", 1), Cell("gradaug", "labels", 1)


def test_names_say_what_differs_from_the_default():
    assert LABELS.name == "gradaug-labels-1x-seed1"
    assert replace(PLAIN, share=0.1, seed=2).name == "gradaug-plain-1x-10pct-seed2"
    assert replace(PLAIN, budget="as-labels").name == "gradaug-plain-as-labels-seed1"
    other = replace(LABELS, num_subnets=3, min_width=0.8, scales=(1.0, 0.5), split="dev")
    assert other.name == "gradaug-labels-1x-n3-alpha0.8-scales1+0.5-dev-seed1"
    assert replace(LABELS, soft_warmup=150).name == "gradaug-labels-1x-warmup150-seed1"


def test_compute_is_counted_in_plain_steps():
    assert PLAIN.iterations == LABELS.iterations == 600
    assert replace(PLAIN, budget="as-labels").iterations == round(600 * 2.7)


def result(box=10.0, mask=8.0):
    metrics = {
        task: {**dict.fromkeys(COCO_METRICS, ap), "AP-Coat": ap}
        for task, ap in (("bbox", box), ("segm", mask))
    }
    return {"metrics": metrics}


def results_of(made):
    """Results from ``{cell of any seed: [(box AP, mask AP) of each seed]}``."""
    return {
        own.name: result(box, mask)
        for cell, aps in made.items()
        for seed, (box, mask) in enumerate(aps, start=1)
        for own in [replace(cell, seed=seed)]
    }


def rows_of(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_a_table_has_means_spreads_and_differences():
    results = results_of(
        {
            Cell("baseline", "plain", 0): [(9.0, 7.0)],
            PLAIN: [(10.0, 8.0), (11.0, 9.0), (12.0, 10.0)],
            LABELS: [(14.0, 12.0), (15.0, 13.0), (16.0, 14.0)],
        },
    )
    text = study_text(results)
    rows = {tuple(row[:2]): row[2:] for row in rows_of(text)}
    assert rows["Baseline", "plain"][:4] == ["600", "1", "9.0", "7.0"]
    assert rows["GradAug", "plain"][1:4] == ["3", "11.0 ± 1.0", "9.0 ± 1.0"]
    labels = rows["GradAug", "GradAug, labels"]
    assert labels[3] == "13.0 ± 1.0"
    assert labels[4] == "+4.00 [+1.73, +6.27]"  # Welch, 4 degrees of freedom
    assert ("Mixup", "plain") not in rows


def test_both_is_compared_with_labels():
    aps = [(14.0, 12.0), (15.0, 13.0), (16.0, 14.0)]
    made = {LABELS: aps, replace(LABELS, method="both"): [(box, mask + 3) for box, mask in aps]}
    line = "- GradAug, both, minus GradAug, labels, same iterations: "
    line += "box AP 0.00 [\N{MINUS SIGN}2.27, +2.27], "
    assert f"{line}mask AP +3.00 [+0.73, +5.27]." in study_text(results_of(made))


@pytest.mark.parametrize(
    ("budget", "part", "same"),
    [("1x", "main", "iterations"), ("as-labels", "compute", "compute of fine-tuning")],
)
def test_all_of_gradaug_is_compared_with_none_of_it(budget, part, same):
    neither = Cell("baseline", "plain", 1, budget)
    made = {LABELS: [(14, 12), (15, 13), (16, 14)], neither: [(11, 8), (12, 9), (13, 10)]}
    text = study_text(results_of(made)).split(f"## {PARTS[part]}")[1]
    line = f"- GradAug, labels, minus plain from the baseline backbone, same {same}: box AP +3.00 ["
    assert line in text.split("## ")[0]


def test_at_equal_compute_each_method_has_a_reference_of_its_own():
    results = results_of(
        {
            PLAIN: [(10.0, 8.0), (11.0, 9.0), (12.0, 10.0)],
            LABELS: [(14.0, 12.0), (15.0, 13.0), (16.0, 14.0)],
            replace(PLAIN, budget="as-labels"): [(13.0, 11.0), (14.0, 12.0), (15.0, 13.0)],
        },
    )
    text = study_text(results)
    compute = text.split(f"## {PARTS['compute']}")[1]
    (row,) = (row for row in rows_of(compute) if row[1] == "GradAug, labels, 1x")
    assert row[6] == "+1.00 [\N{MINUS SIGN}1.27, +3.27]"
    assert "compute.svg" in compute


def test_the_plot_of_compute_has_each_fine_tuning_at_its_cost(monkeypatch):
    drawn = []
    monkeypatch.setattr(table, "ap_plot", lambda curves, *_: drawn.append(curves) or "")
    made = {cell: [(10.0, 8.0)] for cell in (PLAIN, replace(PLAIN, budget="as-labels"), LABELS)}
    table.study_plots(results_of(made))
    (curves,) = (c for c in drawn if c[0].label == "plain" and c[0].points[-1].x < 10)
    found = {curve.label: [point.x for point in curve.points] for curve in curves if curve.points}
    assert found == {"plain": [1.0, 2.7], "GradAug, labels": [2.7]}


def test_low_data_rows_are_compared_within_a_share():
    made = {}
    for share, gain in ((0.1, 1.0), (0.5, 2.0), (1.0, 3.0)):
        plain = [(5 + 5 * share + noise, 4 + noise) for noise in (0.0, 0.1, 0.2)]
        made[replace(PLAIN, share=share)] = plain
        made[replace(LABELS, share=share)] = [(box + gain, mask + gain) for box, mask in plain]
    control = replace(PLAIN, share=0.1, method="rescaled", budget="as-labels")
    made[control] = [(9, 7), (9.1, 7), (9.2, 7)]
    results = results_of(made)
    text = study_text(results)
    rows = rows_of(text.split(f"## {PARTS['low-data']}")[1])
    (control,) = (row for row in rows if row[:2] == ["10 %", "plain, rescaled images, 2.7x"])
    assert control[6].startswith("+3.50"), "9.1 against a mean of 5.6, of plain with 10 %"
    title = "- 10 %: GradAug minus plain on rescaled images, same compute"
    line = f"{title}: box AP {with_sign(-2.5)} ["
    assert line in text
    gains = {row[0]: row[6].split()[0] for row in rows if row[1] == "GradAug, labels"}
    assert gains == {"10 %": "+1.00", "50 %": "+2.00", "100 %": "+3.00"}
    plot = study_plots(results)["low_data.svg"]
    assert plot.startswith("<svg") and "training images" in plot
    assert "low_data.svg" in text


def test_gradaug_on_rescaled_images_is_compared_with_plain_on_rescaled_images():
    rescaled = replace(PLAIN, method="rescaled")
    made = {
        rescaled: [(10, 9), (10.1, 9.1), (10.2, 9.2)],
        replace(rescaled, budget="as-labels"): [(14, 13), (14.1, 13.1), (14.2, 13.2)],
        replace(rescaled, method="labels-rescaled"): [(12, 11), (12.1, 11.1), (12.2, 11.2)],
    }
    text = study_text(results_of(made))
    title = "GradAug on rescaled images minus plain on rescaled images, same"
    assert f"- {title} iterations: box AP +2.00 [" in text
    assert f"- {title} compute: box AP {with_sign(-2.0)} [" in text


def test_narrower_networks_alone_are_compared_with_plain():
    narrower = replace(LABELS, scales=(1.0,))
    made = {narrower: [(11, 9), (11.1, 9.1)], PLAIN: [(10, 9), (10.1, 9.1)]}
    text = study_text(results_of(made))
    title = "GradAug, labels, with scales 1 minus plain, same iterations"
    assert f"- {title}: box AP +1.00 [" in text


def test_larger_scales_are_compared_with_images_of_these_sizes():
    labels = replace(LABELS, split="dev", scales=module.CANDIDATE_SCALES)
    control = replace(labels, method="rescaled", budget="as-labels")
    made = {labels: [(15, 13), (15.2, 13.1)], control: [(17, 15), (17.2, 15.1)]}
    text = study_text(results_of(made))
    scales = "scales 1.25, 1, 0.8"
    assert f"| plain, rescaled images | 2.7x; {scales} | 1620 | 2 | 17.1 ± 0.1 |" in text
    line = f"- GradAug, labels, with {scales} minus plain on images of these sizes, 2.7x: box AP"
    assert f"{line} {with_sign(-2.0)} [" in text


def test_the_sweep_is_compared_with_the_settings_of_the_other_parts():
    rows = part_rows("sweep")
    assert {row.reference for row in rows} == {Cell("gradaug", "labels", 0, split="dev")}
    titles = {row.title for row in rows}
    assert {("GradAug, labels", "as everywhere"), ("GradAug, labels", "n 3")} <= titles
    assert ("GradAug, labels", "scales 1, 0.75, 0.5") in titles
    assert len(titles) == len(rows)


def test_settings_of_one_seed_are_read_against_that_seed():
    labels = replace(LABELS, split="dev")
    made = {labels: [(14.0, 12.0), (18.0, 16.0)], replace(labels, num_subnets=3): [(15.0, 13.0)]}
    text = study_text(results_of(made))
    assert "- GradAug, labels, seed 1 alone: box AP 14.0, mask AP 12.0." in text
    assert "plain, seed 1 alone" not in text


def test_robustness_has_a_table_when_it_is_measured():
    results = results_of({PLAIN: [(9.0, 7.0)] * 2, LABELS: [(14.0, 12.0)] * 2})
    assert not rows_of(study_text(results).split("## Robustness")[1])[1:]
    for cell, box in ((PLAIN, 4.0), (LABELS, 6.0)):
        for seed in (1, 2):
            results[replace(cell, seed=seed).name]["robustness"] = {
                "settings": module.ROBUSTNESS,
                "AP": {"bbox": 9.0, "segm": 7.0},
                "mPC": {"bbox": box + seed, "segm": 3.0},
                "fgsm": {"2": {"bbox": box - seed, "segm": 1.0}},
            }
    results[PLAIN.name]["robustness"]["detector_AP"] = {"bbox": 9.0, "segm": 7.5}
    results[LABELS.name]["robustness"]["detector_AP"] = {"bbox": 14.0, "segm": 12.0}
    text = study_text(results).split("## Robustness")[1]
    assert "have: 1 of these 4." in text
    plain, labels = [row for row in rows_of(text) if row[0] != "fine-tuning"]
    assert plain[:2] == ["plain", "2"]
    ap, mpc, rpc, mask, fgsm = plain[2:7]
    assert (ap, mpc, mask, fgsm) == ("9.0 ± 0.0", "5.5 ± 0.7", "3.0 ± 0.0", "2.5 ± 0.7")
    assert rpc == "61.1 ± 7.9", "of 5 and 6 out of 9"
    assert labels[7].startswith("+2.00 [") and labels[8].startswith("+2.00 [")
    for seed in (1, 2):
        results[replace(PLAIN, seed=seed).name]["robustness"]["AP"]["bbox"] = 0.0
    text = study_text(results).split("## Robustness")[1]
    assert [row[4] for row in rows_of(text) if row[0] == "plain"] == [""], "nothing to divide by"


def test_every_committed_result_has_a_row_and_the_readme_is_theirs():
    results = read_results(FOLDER / "results")
    rows = {row.cell for part in PARTS for row in part_rows(part)}
    assert results.keys() <= {replace(cell, seed=seed).name for cell in rows for seed in SEEDS}
    assert all(content["cell"] == name for name, content in results.items())
    readme = (FOLDER / "README.md").read_text()
    assert readme == study_text(results)
    for name, plot in study_plots(results).items():
        assert (FOLDER / name).read_text() == plot and f"]({name})" in readme
