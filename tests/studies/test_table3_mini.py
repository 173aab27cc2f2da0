"""The study of table 3: its cells, what counts as a result, and tables that say what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.evaluation.coco import COCO_METRICS
from gradaug_det.reports.rendering import signed
from studies.report.statistics import Agreement
from studies.table3_mini import study as module
from studies.table3_mini import tables as table
from studies.table3_mini.study import (
    BACKBONES,
    BUDGETS,
    COMPUTE_RATIO,
    METHODS,
    PARTS,
    SEEDS,
    SHARES,
    Cell,
    Study,
    all_cells,
    finals,
)
from studies.table3_mini.tables import (
    part_rows,
    study_text,
    verdict,
    write_study,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "studies" / "table3_mini"
TINY = (
    *("SOLVER.IMS_PER_BATCH", "2", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"),
)
PLAIN, LABELS = Cell("gradaug", "plain", 1), Cell("gradaug", "labels", 1)


@pytest.fixture
def study(tmp_path):
    return Study(ROOT, tmp_path / "out", tmp_path / "results")


# ---- cells ------------------------------------------------------------------------------------


def test_names_say_what_differs_from_the_default():
    assert LABELS.name == "gradaug-labels-1x-seed1"
    assert replace(PLAIN, share=0.1, seed=2).name == "gradaug-plain-1x-10pct-seed2"
    assert replace(PLAIN, budget="as-labels").name == "gradaug-plain-as-labels-seed1"
    other = replace(LABELS, num_subnets=3, min_width=0.8, scales=(1.0, 0.5), split="dev")
    assert other.name == "gradaug-labels-1x-n3-alpha0.8-scales1+0.5-dev-seed1"
    assert replace(LABELS, soft_warmup=150).name == "gradaug-labels-1x-warmup150-seed1"
    names = [cell.name for cell in all_cells()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "backbone must be one of .*'none'.*got 'vgg'"),
        ({"method": "hard"}, "method must be one of"),
        ({"budget": "2x"}, "budget must be one of"),
        ({"split": "val"}, "split must be one of"),
        ({"share": 0.0}, "share must be above 0"),
        ({"budget": "as-soft"}, "budget must be one of .*'as-both'.*got 'as-soft'"),
        ({"budget": "as-both"}, "budget of GradAug must be 1x, got 'as-both'"),
    ],
)
def test_a_cell_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(LABELS, **change)


def test_a_part_is_balanced_over_seeds_wherever_it_stops():
    cells = all_cells([1, 2, 3], ["sweep", "main"])
    assert cells == all_cells([1, 2, 3], ["main"]) + all_cells([1, 2, 3], ["sweep"])
    for part in PARTS:
        seeds = [cell.seed for cell in all_cells([3, 2], [part])]
        assert seeds == sorted(seeds, reverse=True)
        assert seeds.count(2) == seeds.count(3)
    with pytest.raises(ConfigError, match="'rest' is unknown"):
        all_cells([1], ["rest"])


def test_the_parts_are_the_study():
    main, compute, controls, low, sweep = (all_cells([1], [part]) for part in PARTS)
    assert {(c.backbone, c.method) for c in main} == {(b, "plain") for b in BACKBONES} | {
        ("gradaug", method) for method in COMPUTE_RATIO
    }
    assert {(c.method, *c.changed) for c in controls} == {
        ("rescaled",),
        ("labels-rescaled",),
        ("labels", "min_width"),
        ("labels", "scales"),
    }
    assert {c.backbone for c in compute} == {"baseline", "gradaug"}
    assert {c.budget for c in compute if c.backbone == "gradaug"} == set(BUDGETS) - {"1x"}
    assert {(c.share, c.method, c.budget) for c in low} == {
        (min(SHARES), "rescaled", "as-labels"),
        *((share, method, "1x") for share in SHARES for method in ("plain", "labels")),
    }
    assert {c.num_subnets for c in sweep} == {1, 2, 3}
    assert {c.min_width for c in sweep} == {0.8, 0.9}
    assert len({c.scales for c in sweep}) >= 3
    for cell in main + compute + low:
        assert (cell.split, cell.changed) == ("test", {})
    assert {cell.split for cell in sweep} == {"dev"}, "settings are not chosen on what is reported"


def test_what_needs_no_interval_has_one_seed():
    first, second = ({replace(c, seed=0) for c in all_cells([seed])} for seed in (1, 2))
    assert second < first
    once = first - second
    assert {c.method for c in once if c.share < 1} == {"rescaled"}
    full_width = replace(LABELS, seed=0, min_width=1.0)
    assert full_width in once
    settings = {c for c in once if c.share == 1 and c != full_width}
    assert {c.split for c in settings} == {"dev"}
    assert all(c.changed or c.method == "soft" for c in settings)
    compared = {(c.method, *c.changed) for c in second if c.split == "dev"}
    candidates = {("plain",), ("labels",), ("both",), ("labels", "scales")}
    control = ("rescaled", "scales")
    assert compared == {*candidates, control}, "of which one becomes the default"
    (cell,) = (c for c in second if (c.method, *c.changed) == control)
    assert cell.scales == module.CANDIDATE_SCALES


def test_robustness_is_of_trainings_of_the_study():
    assert set(finals(SEEDS)) <= set(all_cells())


def test_a_warm_up_is_for_soft_targets_alone():
    for method in METHODS:
        has = "GRADAUG.SOFT_WARMUP" in replace(PLAIN, method=method, soft_warmup=150).overrides
        assert has == (method in ("soft", "both"))


def test_compute_is_counted_in_plain_steps(study):
    assert study.cell_iterations(PLAIN) == study.cell_iterations(LABELS) == 600
    assert study.cell_iterations(replace(PLAIN, budget="as-labels")) == round(600 * 2.7)


def test_the_configs_take_all_overrides(study):
    pytest.importorskip("detectron2")
    from gradaug_det.d2.train import load_config

    for cell in all_cells([1]):
        job = study._job(cell, "")
        cfg = load_config(ROOT / module.FRAMEWORKS["detectron2"].config(job.method), [*job.opts])
        norm, node = cfg.MODEL.RESNETS.NORM, cfg.GRADAUG
        assert norm == ("BN" if cell.backbone == "none" else "FrozenBN")
        assert cell.uses_gradaug == node.ENABLED
        sizes, longest = ((192, 165, 137, 110) if "rescaled" in cell.method else (192,)), 256
        if cell.method == "rescaled" and cell.changed:
            sizes, longest = (240, 192, 154), 320
        assert (sizes, longest) == (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN)
        if cell.uses_gradaug:
            assert cell.supervision == node.SUPERVISION
            assert tuple(node.SCALES) == cell.scales
            assert (cell.num_subnets, cell.min_width) == (node.NUM_SUBNETS, node.MIN_WIDTH)
            assert cell.soft_warmup == node.SOFT_WARMUP


# ---- hashes and results -----------------------------------------------------------------------


def test_a_hash_tells_all_settings_apart(study):
    cells = all_cells()
    assert len({study.hash(cell) for cell in cells}) == len(cells)
    for other in (
        replace(study, iterations=400),
        replace(study, val=100),
        replace(study, data_seeds=(("test", 5), ("dev", 2))),
        replace(study, opts=("SOLVER.BASE_LR", "0.1")),
    ):
        assert other.hash(LABELS) != study.hash(LABELS)
    elsewhere = replace(study, out=Path("elsewhere"), results=Path("there"))
    assert elsewhere.hash(LABELS) == study.hash(LABELS)


def test_a_hash_follows_inherited_configs_but_not_comments(study, tmp_path):
    configs = tmp_path / "configs" / "detectron2"
    configs.mkdir(parents=True)
    for file in (ROOT / "configs" / "detectron2").glob("*.yaml"):
        (configs / file.name).write_text(file.read_text())
    (tmp_path / "configs" / "pretrain").symlink_to(ROOT / "configs" / "pretrain")
    copied = replace(study, root=tmp_path)
    before = study.hash(LABELS)
    assert copied.hash(LABELS) == before
    grandparent = configs / "Base-RCNN-FPN.yaml"
    grandparent.write_text("# a comment\n" + grandparent.read_text())
    (configs / "retinanet_R_50_FPN_1x_gradaug.yaml").write_text("")  # no ancestor
    assert copied.hash(LABELS) == before
    grandparent.write_text(grandparent.read_text().replace("BASE_LR: 0.02", "BASE_LR: 0.03"))
    assert copied.hash(LABELS) != before


def test_a_backbone_of_the_zoo_and_of_its_study_have_the_same_hash(study, monkeypatch):
    """A result stays when its backbone is published."""
    before = {name: study.hash(Cell(name, "plain", 1)) for name in ("baseline", "mixup")}
    monkeypatch.setattr(module, "_zoo_entry", lambda _: None)
    assert {name: study.hash(Cell(name, "plain", 1)) for name in before} == before
    assert study._weights("mixup").startswith("gradaug://output/mini_zoo/mixup-full-epochs-seed0/")
    assert study._weights("none") == ""


def test_a_backbone_of_another_recipe_is_not_taken(study, tmp_path, monkeypatch):
    from tests.zoo.entries import describe, random_backbone

    monkeypatch.setattr(module, "_zoo_entry", lambda _: None)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    file = tmp_path / module._backbone_file("mixup")
    file.parent.mkdir(parents=True)
    random_backbone(describe("random", "resnet18"), file)
    with pytest.raises(GradAugError, match=r"another recipe than .*mixup\.yaml is today"):
        replace(study, root=tmp_path)._make_backbone("mixup")


def result(study, cell, box=10.0, mask=8.0):
    metrics = {
        task: {**dict.fromkeys(COCO_METRICS, ap), "AP-Coat": ap}
        for task, ap in (("bbox", box), ("segm", mask))
    }
    return {"hash": study.hash(cell), "metrics": metrics}


def test_another_hash_is_no_result(study):
    assert study.result(LABELS) is None
    study.results.mkdir()
    content = result(study, LABELS)
    (study.results / f"{LABELS.name}.json").write_text(json.dumps(content))
    assert study.result(LABELS) == content
    assert study.found(all_cells()) == {LABELS.name: content}
    assert replace(study, iterations=301).result(LABELS) is None
    assert study.seeds() == [1, 2, 3]
    (study.results / f"{replace(PLAIN, seed=12).name}.json").touch()
    assert study.seeds() == [1, 2, 3, 12]


def test_only_what_is_missing_is_trained(study, monkeypatch):
    study.results.mkdir()
    cells = [PLAIN, LABELS, replace(LABELS, seed=2)]
    (study.results / f"{PLAIN.name}.json").write_text(json.dumps(result(study, PLAIN)))
    stale = result(study, LABELS) | {"hash": "of other settings"}
    (study.results / f"{LABELS.name}.json").write_text(json.dumps(stale))
    started = []
    built = []
    monkeypatch.setattr(module, "build_mini_coco", lambda folder, **_: built.append(folder))
    monkeypatch.setattr(
        module, "run_trainings", lambda trainings, *_, **__: started.extend(trainings)
    )
    study.run(cells)
    assert [training.name for training in started] == [cell.name for cell in cells[1:]]
    assert started[0].depends_on == study.hash(LABELS)
    assert built == [study.out / "datasets" / "test-100-200" / "mini_coco"]


@pytest.mark.integration
def test_two_cells_for_real_and_once_more(tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    small = {"iterations": 4, "train": 6, "val": 2, "opts": TINY}
    study = Study(ROOT, tmp_path / "out", tmp_path / "study" / "results", **small)
    scratch = Cell("none", "plain", 1, split="dev")
    cells = [scratch, replace(LABELS, share=0.5)]
    study.run(cells)
    found = study.found(cells)
    assert set(found) == {cell.name for cell in cells}
    for cell in cells:
        content = found[cell.name]
        for task in ("bbox", "segm"):
            assert set(COCO_METRICS) < content["metrics"][task].keys()
            assert "AP-Coat" in content["metrics"][task]
        assert content["iterations"] == 4
        assert content["losses"]["total_loss"] > 0
        assert str(tmp_path) not in json.dumps(content)
        folder = tmp_path / "out" / cell.name
        assert [f.name for f in folder.glob("*.pth")] == ["model_final.pth"]
    assert "gradaug/sub1/loss" in found[cells[1].name]["losses"]
    assert "MODEL.RESNETS.NORM BN" in found[scratch.name]["command"]
    assert (found[scratch.name]["weights_sha256"] is None) != (
        found[cells[1].name]["weights_sha256"] is None
    )
    arguments = json.loads((tmp_path / "out/datasets/dev-6-2/mini_coco/build.json").read_text())
    assert arguments["arguments"]["dev"] is True

    less = module.ROBUSTNESS | {"images": 2, "corruptions": ["contrast"]}
    monkeypatch.setattr(module, "ROBUSTNESS", less)
    study.measure_robustness(cells[:1], jobs=1)
    robust = study.result(scratch)["robustness"]
    assert list(robust["corruptions"]) == ["contrast"] and "3" in robust["corruptions"]["contrast"]
    assert set(robust["AP"]) == set(robust["mPC"]) == {"bbox", "segm"} and "2" in robust["fgsm"]
    assert robust["cpu"] == found[scratch.name]["cpu"]
    own = {task: values["AP"] for task, values in found[scratch.name]["metrics"].items()}
    assert robust["detector_AP"] == own
    assert (tmp_path / "out" / scratch.name / "robustness" / "report.json").is_file()

    assert study.redo(cells[1]) == []
    file = study.results / f"{cells[1].name}.json"
    changed = json.loads(file.read_text())
    changed["losses"]["total_loss"] += 0.0001
    file.write_text(json.dumps(changed))
    (line,) = study.redo(cells[1])
    assert line.startswith("losses total_loss: ")
    with pytest.raises(ConfigError, match="no result of today's settings"):
        replace(study, iterations=5).redo(cells[1])


# ---- tables -----------------------------------------------------------------------------------


def results_of(study, made):
    """Results from ``{cell of any seed: [(box AP, mask AP) of each seed]}``."""
    return {
        own.name: result(study, own, box, mask)
        for cell, aps in made.items()
        for seed, (box, mask) in enumerate(aps, start=1)
        for own in [replace(cell, seed=seed)]
    }


def rows_of(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_a_table_has_means_spreads_and_differences(study):
    results = results_of(
        study,
        {
            Cell("baseline", "plain", 0): [(9.0, 7.0)],
            PLAIN: [(10.0, 8.0), (11.0, 9.0), (12.0, 10.0)],
            LABELS: [(14.0, 12.0), (15.0, 13.0), (16.0, 14.0)],
        },
    )
    text = study_text(study, results, SEEDS)
    rows = {tuple(row[:2]): row[2:] for row in rows_of(text)}
    assert rows["Baseline", "plain"][:4] == ["600", "1", "9.0", "7.0"]
    assert rows["GradAug", "plain"][1:4] == ["3", "11.0 ± 1.0", "9.0 ± 1.0"]
    labels = rows["GradAug", "GradAug, labels"]
    assert labels[3] == "13.0 ± 1.0"
    assert labels[4] == "+4.00 [+1.73, +6.27]"  # Welch, 4 degrees of freedom
    assert ("Mixup", "plain") not in rows
    assert "main 7 of 24" in text and "Unfinished" in text
    assert "GradAug, labels: **target reached**: box AP +4.00" in text
    for part in list(PARTS)[1:]:
        assert PARTS[part] not in text, "a part without a training of its own"


def test_both_is_compared_with_labels(study):
    aps = [(14.0, 12.0), (15.0, 13.0), (16.0, 14.0)]
    made = {LABELS: aps, replace(LABELS, method="both"): [(box, mask + 3) for box, mask in aps]}
    line = "- GradAug, both, minus GradAug, labels, same iterations: "
    line += "box AP 0.00 [\N{MINUS SIGN}2.27, +2.27], "
    assert f"{line}mask AP +3.00 [+0.73, +5.27]." in study_text(
        study, results_of(study, made), SEEDS
    )


@pytest.mark.parametrize(
    ("budget", "part", "same"),
    [("1x", "main", "iterations"), ("as-labels", "compute", "compute of fine-tuning")],
)
def test_all_of_gradaug_is_compared_with_none_of_it(study, budget, part, same):
    neither = Cell("baseline", "plain", 1, budget)
    made = {LABELS: [(14, 12), (15, 13), (16, 14)], neither: [(11, 8), (12, 9), (13, 10)]}
    text = study_text(study, results_of(study, made), SEEDS).split(f"## {PARTS[part]}")[1]
    line = f"- GradAug, labels, minus plain from the baseline backbone, same {same}: box AP +3.00 ["
    assert line in text.split("## ")[0]


def test_at_equal_compute_each_method_has_a_reference_of_its_own(study):
    results = results_of(
        study,
        {
            PLAIN: [(10.0, 8.0), (11.0, 9.0), (12.0, 10.0)],
            LABELS: [(14.0, 12.0), (15.0, 13.0), (16.0, 14.0)],
            replace(PLAIN, budget="as-labels"): [(13.0, 11.0), (14.0, 12.0), (15.0, 13.0)],
        },
    )
    text = study_text(study, results, SEEDS)
    compute = text.split(f"## {PARTS['compute']}")[1]
    below = "box AP +1.00 [\N{MINUS SIGN}1.27, +3.27] is below +1.7"
    assert f"GradAug, labels: target not reached: {below}" in compute
    (row,) = (row for row in rows_of(compute) if row[1] == "GradAug, labels, 1x")
    assert row[6].startswith("+1.00")
    assert "compute.svg" in compute


def test_the_plot_of_compute_has_each_fine_tuning_at_its_cost(study, monkeypatch):
    drawn = []
    monkeypatch.setattr(table, "ap_plot", lambda curves, *_: drawn.append(curves) or "")
    made = {cell: [(10.0, 8.0)] for cell in (PLAIN, replace(PLAIN, budget="as-labels"), LABELS)}
    table.study_plots(study, results_of(study, made), SEEDS)
    (curves,) = (c for c in drawn if c[0].label == "plain" and c[0].points[-1].x < 10)
    found = {curve.label: [point.x for point in curve.points] for curve in curves if curve.points}
    assert found == {"plain": [1.0, 2.7], "GradAug, labels": [2.7]}


def test_low_data_rows_are_compared_within_a_share(study, tmp_path):
    made = {}
    for share, gain in ((0.1, 1.0), (0.5, 2.0), (1.0, 3.0)):
        plain = [(5 + 5 * share + noise, 4 + noise) for noise in (0.0, 0.1, 0.2)]
        made[replace(PLAIN, share=share)] = plain
        made[replace(LABELS, share=share)] = [(box + gain, mask + gain) for box, mask in plain]
    control = replace(PLAIN, share=0.1, method="rescaled", budget="as-labels")
    made[control] = [(9, 7), (9.1, 7), (9.2, 7)]
    results = results_of(study, made)
    readme = write_study(tmp_path / "study", study, results, SEEDS)
    rows = rows_of(readme.read_text().split(f"## {PARTS['low-data']}")[1])
    (control,) = (row for row in rows if row[:2] == ["10 %", "plain, rescaled images, 2.7x"])
    assert control[6].startswith("+3.50"), "9.1 against a mean of 5.6, of plain with 10 %"
    title = "- 10 %: GradAug minus plain on rescaled images, same compute"
    line = f"{title}: box AP {signed(-2.5)} ["
    assert line in readme.read_text()
    gains = {row[0]: row[6].split()[0] for row in rows if row[1] == "GradAug, labels"}
    assert gains == {"10 %": "+1.00", "50 %": "+2.00", "100 %": "+3.00"}
    plot = (readme.parent / "low_data.svg").read_text()
    assert plot.startswith("<svg") and "training images" in plot
    assert "low_data.svg" in readme.read_text()
    write_study(tmp_path / "study", study, {}, SEEDS)
    assert not (readme.parent / "low_data.svg").exists()
    assert "Finished" not in readme.read_text() and "|" not in readme.read_text().split("##")[-1]


def test_gradaug_on_rescaled_images_is_compared_with_plain_on_rescaled_images(study, tmp_path):
    rescaled = replace(PLAIN, method="rescaled")
    made = {
        rescaled: [(10, 9), (10.1, 9.1), (10.2, 9.2)],
        replace(rescaled, budget="as-labels"): [(14, 13), (14.1, 13.1), (14.2, 13.2)],
        replace(rescaled, method="labels-rescaled"): [(12, 11), (12.1, 11.1), (12.2, 11.2)],
    }
    readme = write_study(tmp_path / "study", study, results_of(study, made), SEEDS)
    title = "GradAug on rescaled images minus plain on rescaled images, same"
    assert f"- {title} iterations: box AP +2.00 [" in readme.read_text()
    assert f"- {title} compute: box AP {signed(-2.0)} [" in readme.read_text()


def test_narrower_networks_alone_are_compared_with_plain(study):
    narrower = replace(LABELS, scales=(1.0,))
    made = {narrower: [(11, 9), (11.1, 9.1)], PLAIN: [(10, 9), (10.1, 9.1)]}
    text = study_text(study, results_of(study, made), SEEDS)
    title = "GradAug, labels, with scales 1 minus plain, same iterations"
    assert f"- {title}: box AP +1.00 [" in text


def test_larger_scales_are_compared_with_images_of_these_sizes(study):
    labels = replace(LABELS, split="dev", scales=module.CANDIDATE_SCALES)
    control = replace(labels, method="rescaled", budget="as-labels")
    made = {labels: [(15, 13), (15.2, 13.1)], control: [(17, 15), (17.2, 15.1)]}
    text = study_text(study, results_of(study, made), SEEDS)
    scales = "scales 1.25, 1, 0.8"
    assert f"| plain, rescaled images | 2.7x; {scales} | 1620 | 2 | 17.1 ± 0.1 |" in text
    line = f"- GradAug, labels, with {scales} minus plain on images of these sizes, 2.7x: box AP"
    assert f"{line} {signed(-2.0)} [" in text


@pytest.mark.parametrize("part", PARTS)
def test_every_training_has_a_row(part):
    rows = {row.cell for row in part_rows(part)}
    assert {replace(cell, seed=0) for cell in all_cells([1, 2], [part])} <= rows


def test_the_sweep_is_compared_with_the_settings_of_the_other_parts():
    rows = part_rows("sweep")
    assert {row.reference for row in rows} == {Cell("gradaug", "labels", 0, split="dev")}
    titles = {row.title for row in rows}
    assert {("GradAug, labels", "as everywhere"), ("GradAug, labels", "n 3")} <= titles
    assert ("GradAug, labels", "scales 1, 0.75, 0.5") in titles
    assert len(titles) == len(rows)


def test_settings_of_one_seed_are_read_against_that_seed(study):
    labels = replace(LABELS, split="dev")
    made = {labels: [(14.0, 12.0), (18.0, 16.0)], replace(labels, num_subnets=3): [(15.0, 13.0)]}
    text = study_text(study, results_of(study, made), SEEDS)
    assert "- GradAug, labels, seed 1 alone: box AP 14.0, mask AP 12.0." in text
    assert "plain, seed 1 alone" not in text


@pytest.mark.parametrize(
    ("box", "mask", "expected"),
    [
        ((2.0, 0.5), (2.5, 0.5), "**target reached**: box AP +2.00 [+0.50, +3.50], mask AP +2.50"),
        ((1.6, 0.5), (2.5, 0.5), "target not reached: box AP +1.60 [+0.50, +2.70] is below +1.7"),
        (
            (2.0, -0.1),
            (2.0, 1.0),
            "target not reached: box AP +2.00 [\N{MINUS SIGN}0.10, +4.10] has an interval",
        ),
        (None, (2.5, 0.5), "not enough seeds yet (at least 3 of each)"),
    ],
)
def test_the_verdict_is_what_the_numbers_say(box, mask, expected):
    def made(pair):
        if pair is None:
            return None
        difference, low = pair
        return Agreement(difference, 0.5, low, 2 * difference - low)

    assert verdict({"bbox": made(box), "segm": made(mask)}).startswith(expected)


def test_robustness_has_a_table_when_it_is_measured(study):
    results = results_of(study, {PLAIN: [(9.0, 7.0)] * 2, LABELS: [(14.0, 12.0)] * 2})
    assert "## Robustness" not in study_text(study, results, SEEDS)
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
    text = study_text(study, results, SEEDS).split("## Robustness")[1]
    assert "have: 1 of these 4." in text
    plain, labels = [row for row in rows_of(text) if row[0] != "fine-tuning"]
    assert plain[:2] == ["plain", "2"]
    ap, mpc, rpc, mask, fgsm = plain[2:7]
    assert (ap, mpc, mask, fgsm) == ("9.0 ± 0.0", "5.5 ± 0.7", "3.0 ± 0.0", "2.5 ± 0.7")
    assert rpc == "61.1 ± 7.9", "of 5 and 6 out of 9"
    assert labels[7].startswith("+2.00 [") and labels[8].startswith("+2.00 [")
    for seed in (1, 2):
        results[replace(PLAIN, seed=seed).name]["robustness"]["AP"]["bbox"] = 0.0
    text = study_text(study, results, SEEDS).split("## Robustness")[1]
    assert [row[4] for row in rows_of(text) if row[0] == "plain"] == [""], "nothing to divide by"


def test_two_seeds_are_no_verdict(study):
    two = {PLAIN: [(10.0, 8.0), (10.1, 8.1)], LABELS: [(14.0, 12.0), (14.1, 12.1)]}
    text = study_text(study, results_of(study, two), SEEDS)
    assert "GradAug, labels: not enough seeds yet" in text and "reached" not in text


def test_committed_results_are_todays_and_the_readme_is_theirs():
    study = Study(ROOT, Path("out"), FOLDER / "results")
    cells = {cell.name: cell for cell in all_cells(study.seeds())}
    for file in sorted(study.results.glob("*.json")):
        content = json.loads(file.read_text())
        assert content["hash"] == study.hash(cells[file.stem]), f"{file.name} is of other settings"
        assert content["cell"] == file.stem
    found = study.found(cells.values())
    assert (FOLDER / "README.md").read_text() == study_text(study, found, study.seeds())
