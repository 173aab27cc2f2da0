"""The benchmark's report: the records' numbers in three files, never half written."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree

import jinja2
import numpy as np
import pytest

from gradaug_det.benchmark import report as report_module
from gradaug_det.benchmark.plots import mean_by_severity, precision_curves
from gradaug_det.benchmark.ranking import image_scores
from gradaug_det.benchmark.records import Benchmark, Cost, DetectorResult, WidthResult
from gradaug_det.benchmark.report import write_benchmark
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import COCO_METRICS, evaluate_coco
from tests.benchmark.conftest import HOSTILE
from tests.evaluation.helpers import make_predictions


def table(html, name):
    """Text of a table's cells."""
    body = re.search(rf'<table id="{name}">.*?</table>', html, re.DOTALL)[0]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in rows
    ]


def test_every_number_is_in_all_three_files(benchmark, written):
    html = (written / "index.html").read_text()
    text = (written / "report.md").read_text()
    content = json.loads((written / "report.json").read_text())
    results = [r for d in benchmark.detectors for r in d.widths]
    rows = {row[0]: row[1:] for row in table(html, "ap")[1:]}
    assert len(rows) == 24
    for task, name in (("bbox", "box"), ("segm", "mask")):
        for metric in COCO_METRICS:
            wanted = [f"{r.metrics[task][metric]:.2f}" for r in results]
            assert rows[f"{name} {metric}"] == wanted
            assert f"| {name} {metric} | {' | '.join(wanted)} |" in text
    stored = [w["metrics"] for d in content["detectors"] for w in d["widths"]]
    for saved, result in zip(stored, results, strict=True):
        for task, metrics in result.metrics.items():
            for name, value in metrics.items():
                if np.isnan(value):  # the category without objects
                    assert saved[task][name] is None
                else:
                    assert saved[task][name] == value
    assert content["schema_version"] == 1 and content["dataset"]["images"] == 20


def test_costs_are_ratios_too(written):
    rows = {row[0]: row[1:] for row in table((written / "index.html").read_text(), "cost")[1:]}
    assert rows["GFLOPs"] == ["3.00", "2.43", "3.00"]
    assert rows["ms an image"] == ["20.0", "18.0", "20.0"]
    assert rows["time ratio"] == ["1.00", "0.90", "1.00"]
    assert rows["parameters"] == ["1,000", "900", "1,000"]
    assert "peak MB" not in rows  # nobody measured it


def test_robustness(benchmark, written):
    full = benchmark.detectors[0].widths[0]
    assert full.mpc("bbox") == 12.0 and full.mpc("segm") == 6.0
    assert full.rpc("bbox") == pytest.approx(1200 / full.metrics["bbox"]["AP"])
    assert mean_by_severity(full.corruptions, "bbox") == {1: 18.0, 5: 6.0}
    html = (written / "index.html").read_text()
    rows = {row[0]: row[1:] for row in table(html, "corruptions")[1:]}
    assert rows["box, mPC"] == ["12.00", "–"]  # noqa: RUF001
    assert rows["box, severity 5"] == ["6.00", "–"]  # noqa: RUF001
    assert rows["mask, snow"] == ["4.00", "–"]  # noqa: RUF001
    assert rows["box, rPC, %"][0] == f"{full.rpc('bbox'):.2f}"
    rows = {row[0]: row[1:] for row in table(html, "fgsm")[1:]}
    assert rows["box, epsilon 4/255"] == ["1.50", "–"]  # noqa: RUF001
    content = json.loads((written / "report.json").read_text())["detectors"][0]["widths"][0]
    assert content["mPC"] == {"bbox": 12.0, "segm": 6.0}
    assert content["fgsm"]["4"] == {"bbox": 1.5, "segm": 0.5}


def test_the_summary_says_it_in_words(benchmark, written):
    first, second = json.loads((written / "report.json").read_text())["summary"]
    full, narrow = benchmark.detectors[0].widths
    other = benchmark.detectors[1].widths[0]
    assert f"plain reaches {full.metrics['bbox']['AP']:.1f} box AP" in first
    assert f"At width 0.9 it has {narrow.metrics['bbox']['AP']:.1f} box AP" in first
    assert "81 % of the multiply-adds" in first
    assert "Under corruption, box AP is 12.0" in first
    assert "FGSM of epsilon 4/255 it has 1.5 box AP and 0.5 mask AP" in first
    delta = other.metrics["bbox"]["AP"] - full.metrics["bbox"]["AP"]
    assert delta > 1 and f"(+{delta:.1f} to plain)" in second


def test_the_page_needs_nothing_else_and_escapes(written):
    html = (written / "index.html").read_text()
    assert "<script" not in html and "x&lt;script&gt;" in html
    references = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert references and all(url.startswith("data:") for url in references)
    assert HOSTILE.replace("|", "\\|") in (written / "report.md").read_text()
    # 1 cost, 2 precision and recall, 1 corruptions, 1 FGSM; 4 images of 3 columns.
    assert html.count("data:image/svg+xml") == 5 and html.count("data:image/jpeg") == 12


def test_plots_are_xml_whatever_the_labels(benchmark, truth):
    from gradaug_det.benchmark import plots

    made = [
        plots.cost_plot(benchmark),
        *plots.recall_plots(benchmark, truth),
        plots.corruption_plot(benchmark),
        plots.fgsm_plot(benchmark),
    ]
    for plot in made:
        ElementTree.fromstring(plot.svg)
        assert "plain" in plot.svg and "plain" in plot.description


def box(x, category=1, score=0.9, image_id=1, **more):
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [x, 0, 10, 10],
        "area": 100,
        "score": score,
        **more,
    }


def test_ranking_counts_matches():
    truth = {
        "annotations": [
            *(box(0), box(20), box(40, category=2)),
            *(box(0, image_id=2), box(50, image_id=2, iscrowd=1)),
            box(0, image_id=4, iscrowd=1),
        ]
    }
    found = [
        *(box(1), box(1, score=0.8), box(20, category=2), box(60, score=0.3)),
        *(box(0, image_id=2), box(51, image_id=2)),
    ]
    scores = image_scores(truth, found, [1, 2, 3, 4], 0.5)
    # One of three objects found; its double and the wrong category count, the weak one does not.
    assert scores[1] == pytest.approx(2 * 1 / (3 + 3))
    assert scores[2] == 1.0  # what lies in a crowd counts as nothing
    assert set(scores) == {1, 2}  # no objects: not ranked
    assert image_scores(truth, [], [1], 0.5) == {1: 0.0}


def test_best_and_worst_pictures(truth, folder, tmp_path):
    """A detector that is perfect on one image and blind on another."""
    with_objects = sorted(
        {a["image_id"] for a in truth["annotations"] if not a["iscrowd"]},
        key=lambda i: -sum(a["image_id"] == i for a in truth["annotations"]),
    )
    perfect, blind = with_objects[:2]
    predictions = [
        p for p in make_predictions(truth, noise=0.2) if p["image_id"] not in (perfect, blind)
    ] + [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for a in truth["annotations"]
        if a["image_id"] == perfect and not a["iscrowd"]
    ]
    metrics = evaluate_coco(truth, predictions, ("bbox",))
    result = WidthResult(1.0, metrics, predictions, Cost(1))
    detector = DetectorResult("only", "Detectron2", "a.yaml", "a.pth", [result])
    made = Benchmark("t", [detector], folder / "truth.json", "d", folder / "images")
    index = write_benchmark(tmp_path, dataclasses.replace(made, num_pictures=1))
    pictures = json.loads((tmp_path / "report.json").read_text())["pictures"]
    assert pictures["best"] == [{"image_id": perfect, "f1": 1.0}]
    assert pictures["worst"][0]["f1"] == 0.0
    html = index.read_text()
    assert f"Image {perfect}, F1 1.00" in html
    assert html.index("<h2>Worst images") < html.index("<h2>Best images")
    assert 'id="corruptions"' not in html and "mask AP" not in html
    assert "AP and cost" not in html  # one point is no line


def test_precision_curves_by_hand():
    """Three detections of two objects: right at 0.9, wrong at 0.8, right at 0.7."""
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "none of it"}],
        "annotations": [
            {**box(x), "id": i + 1, "iscrowd": 0, "segmentation": []} for i, x in enumerate((0, 20))
        ],
    }
    found = [box(0), box(70, score=0.8), box(24, score=0.7)]
    curves = precision_curves(truth, found, "bbox")
    recall, precision = curves[0.5]
    assert recall[50] == 50 and precision[50] == pytest.approx(100)  # one of two found
    assert precision[0] == pytest.approx(100) and precision[-1] == 0  # IoU 0.43 is no match
    found[2]["bbox"][0] = 22  # IoU 0.67
    curves = precision_curves(truth, found, "bbox")
    assert curves[0.5][1][-1] == pytest.approx(200 / 3)
    assert curves[0.75][1][-1] == 0


def test_a_part_of_the_images(benchmark, truth, tmp_path):
    ids = [image["id"] for image in truth["images"][:6]]
    part = dataclasses.replace(benchmark, image_ids=ids)
    write_benchmark(tmp_path, part)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["dataset"]["images"] == 6 and content["dataset"]["of_images"] == 20
    assert content["dataset"]["objects"] == sum(a["image_id"] in ids for a in truth["annotations"])
    shown = content["pictures"]["best"] + content["pictures"]["worst"]
    assert len(shown) == 4 and {picture["image_id"] for picture in shown} <= set(ids)
    assert "6 of 20 images" in (tmp_path / "report.md").read_text()


def test_a_failure_leaves_the_old_report(benchmark, folder, tmp_path, monkeypatch):
    write_benchmark(tmp_path, benchmark)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.json", "report.md", "index.html"}
    with pytest.raises(DataError, match="does not exist"):
        write_benchmark(tmp_path, dataclasses.replace(benchmark, image_root=folder / "nowhere"))
    monkeypatch.setattr(report_module, "_cost_rows", lambda _: [{"no": "name"}])
    with pytest.raises(jinja2.UndefinedError, match="name"):
        write_benchmark(tmp_path, dataclasses.replace(benchmark, title="changed"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_records_that_cannot_be_shown(benchmark):
    detector = benchmark.detectors[0]
    for detectors, message in (
        ([], "detectors is empty"),
        ([detector, detector], "label each detector needs its own"),
        ([dataclasses.replace(detector, widths=[])], "widths is empty for the detector 'plain'"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(benchmark, detectors=detectors)
