"""The benchmark's report: the records' numbers in three files, never half written."""

import copy
import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html import unescape

import jinja2
import numpy as np
import pytest

from gradaug_det.benchmark import report as report_module
from gradaug_det.benchmark.plots import (
    colour_at,
    corruption_plot,
    cost_plot,
    fgsm_plot,
    recall_plots,
    shape_at,
)
from gradaug_det.benchmark.ranking import image_scores
from gradaug_det.benchmark.records import Benchmark, Cost, DetectorResult, WidthResult
from gradaug_det.benchmark.report import write_benchmark
from gradaug_det.errors import DataError
from gradaug_det.evaluation.coco import COCO_METRICS, evaluate_coco, precision_curves
from gradaug_det.evaluation.coco_data import CocoData
from tests.benchmark.conftest import HOSTILE
from tests.evaluation.helpers import make_predictions


def table(html, name):
    """Text of a table's cells."""
    body = re.search(rf'<table id="{name}".*?</table>', html, re.DOTALL)[0]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    return [
        [
            unescape(re.sub(r"<[^>]*>", "", cell))
            for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row)
        ]
        for row in rows
    ]


def read_json(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "report.json").read_text(), parse_constant=refuse)


def width_result(metrics, predictions, width=1.0, cost=None, **more):
    return WidthResult(width, metrics, predictions, cost or Cost(1, 2.0 * width), **more)


def data_of(folder, images="images"):
    return CocoData.read(folder / "truth.json", folder / images, "d")


def one_detector(folder, *widths, **more):
    detector = DetectorResult("only", "Detectron2", "a.yaml", "a.pth", widths)
    data = data_of(folder)
    ids = [image["id"] for image in data.truth["images"]]
    return Benchmark("t", [detector], data, **{"image_ids": ids, **more})


def test_every_number_is_in_all_three_files(benchmark, written):
    html = (written / "index.html").read_text()
    text = (written / "report.md").read_text()
    content = read_json(written)
    results = [r for d in benchmark.detectors for r in d.widths]
    rows = {row[0]: row[1:] for row in table(html, "full")[1:]}
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
    assert content["schema_version"] == 2 and content["dataset"]["images"] == 20


def test_first_come_a_curve_and_a_row_for_each_detector_and_width(benchmark, written):
    html = (written / "index.html").read_text()
    header, *rows = table(html, "main")
    assert header == ["width", "box AP", "mask AP", "GFLOPs", "ms", "MB"]
    assert [row for row in rows if len(row) == 1] == [["plain"], [HOSTILE]]
    aps = [
        [f"{result.metric(task):.2f}" for task in ("bbox", "segm")]
        for detector in benchmark.detectors
        for result in detector.widths
    ]
    costs = (
        ["1", "3.00", "20.0", "500"],
        ["0.9", "2.43", "18.0", "450"],
        ["1", "3.00", "20.0", "500"],
    )
    wanted = [[width, *ap, *cost] for ap, (width, *cost) in zip(aps, costs, strict=True)]
    assert [row for row in rows if len(row) > 1] == wanted
    text = (written / "report.md").read_text()
    assert f"| plain | {' | '.join(wanted[1])} |" in text
    headings = re.findall(r"<h[123]>([\w ]+)|id=\"(main|full)\"|<(details)>", html)
    headings = [next(filter(None, found)) for found in headings]
    assert headings[:3] == ["Benchmark", "AP and latency by width", "main"]
    order = [
        *("Worst images", "Best images", "Corrupted and attacked images", "Precision over recall"),
        *("AP by category", "All numbers", "details", "full", "What was run", "Environment"),
    ]
    assert [name for name in headings if name in order] == order
    places = [text.index(f"## {name}") for name in (order[2], order[5], order[8], order[9])]
    assert text.index("| detector | width |") < places[0] and places == sorted(places)


def test_costs_are_ratios_too(written):
    rows = {row[0]: row[1:] for row in table((written / "index.html").read_text(), "full")[1:]}
    assert rows["time ratio"] == ["1.00", "0.90", "1.00"]
    assert rows["parameters"] == ["1,000", "900", "1,000"]
    widths = [w for d in read_json(written)["detectors"] for w in d["widths"]]
    assert [w["cost"]["time_ratio"] for w in widths] == [1.0, 0.9, 1.0]


def test_robustness(benchmark, written):
    full = benchmark.detectors[0].widths[0]
    assert full.mpc("bbox") == 12.0 and full.mpc("segm") == 6.0
    assert full.rpc("bbox") == pytest.approx(1200 / full.metrics["bbox"]["AP"])
    assert full.ap_by_severity("bbox") == {1: 18.0, 5: 6.0}
    assert full.ap_by_corruption("bbox") == {"fog": 15.0, "snow": 9.0}
    html = (written / "index.html").read_text()
    header, *rows = table(html, "changes")
    assert header == ["AP, %", "AP", "mPC", "rPC, %", "FGSM 1", "FGSM 4"]
    ap, rpc = (f"{value:.2f}" for value in (full.metric("bbox"), full.rpc("bbox")))
    assert rows[1] == ["box", ap, "12.00", rpc, "9.00", "1.50"]
    assert rows[2][3:] == [f"{full.rpc('segm'):.2f}", "7.00", "0.50"]
    assert rows[4] == ["box", *5 * ["–"]]  # noqa: RUF001
    rows = {row[0]: row[1:] for row in table(html, "full")[1:]}
    assert rows["box AP, severity 5"] == ["6.00", "–", "–"]  # noqa: RUF001
    assert rows["mask AP, snow"] == ["4.00", "–", "–"]  # noqa: RUF001
    content = read_json(written)["detectors"][0]["widths"][0]
    assert content["mPC"] == {"bbox": 12.0, "segm": 6.0}
    assert content["fgsm"]["4"] == {"bbox": 1.5, "segm": 0.5}
    assert content["AP_by_severity"]["segm"] == {"1": 9.0, "5": 3.0}
    assert content["AP_by_corruption"]["segm"] == {"fog": 8.0, "snow": 4.0}


def test_the_page_needs_nothing_else_and_escapes(written):
    html = (written / "index.html").read_text()
    assert "<script" not in html and "x&lt;script&gt;" in html
    references = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert references and all(url.startswith("data:") for url in references)
    assert HOSTILE.replace("|", "\\|") in (written / "report.md").read_text()
    # 1 cost, 2 precision and recall, 1 corruptions, 1 FGSM; 5 images of 3 columns.
    assert html.count("data:image/svg+xml") == 5 and html.count("data:image/jpeg") == 15


def all_plots(benchmark, truth):
    curves = {
        d.label: {t: precision_curves(truth, d.widths[0].predictions, t) for t in d.tasks}
        for d in benchmark.detectors
    }
    return [
        cost_plot(benchmark),
        *recall_plots(benchmark, curves),
        corruption_plot(benchmark),
        fgsm_plot(benchmark),
    ]


# Mathematics that matplotlib cannot parse, what it hides from legends, what would fill the plot.
@pytest.mark.parametrize("label", [r"a$\foo{$", "_hidden", "x" * 90, HOSTILE])
def test_plots_are_the_same_whatever_the_labels(benchmark, truth, label):
    first, second = benchmark.detectors
    detectors = dataclasses.replace(first, label=label), dataclasses.replace(second, label="b")
    other = dataclasses.replace(benchmark, detectors=detectors)
    plain, named = all_plots(benchmark, truth), all_plots(other, truth)
    assert [plot.svg for plot in plain] == [plot.svg for plot in named]
    for plot in named:
        ElementTree.fromstring(plot.svg)
        assert label in plot.description
    assert [plot.styles for plot in named] == [
        "",  # boxes alone, as the axis says
        *["Solid: IoU 0.5. Dotted: IoU 0.75."] * 2,
        *["Solid: box. Dashed: mask."] * 2,
    ]


def test_a_plot_tells_its_line_ends(benchmark, truth):
    ap = benchmark.detectors[0].widths[0].metrics["bbox"]["AP"]
    narrow = benchmark.detectors[0].widths[1].metrics["bbox"]["AP"]
    cost, _, _, corruption, fgsm = (plot.description for plot in all_plots(benchmark, truth))
    assert f"plain, box from {narrow:.3g} at 18 to {ap:.3g} at 20;" in cost
    assert f"plain, box from {ap:.3g} at 0 to 6 at 5;" in corruption
    assert f"plain, box from {ap:.3g} at 0 to 1.5 at 4;" in fgsm


def test_ap_over_cost_has_a_point_for_each_network_that_has_both(benchmark):
    first = benchmark.detectors[0]
    full, narrow = first.widths

    def plotted(*widths):
        detector = dataclasses.replace(first, widths=widths)
        return cost_plot(dataclasses.replace(benchmark, detectors=[detector]))

    def with_ap(one, task, ap):
        return dataclasses.replace(one, metrics={task: {"AP": ap}})

    def with_cost(one, *cost):
        return dataclasses.replace(one, cost=Cost(1, *cost))

    crowd = [dataclasses.replace(narrow, width=0.9 - i / 10) for i in range(8)]
    for widths, title, y, points, texts in (
        ([full], "AP and latency", "box", 1, []),
        ([full, narrow], "AP and latency by width", "box", 2, ["0.9", "1"]),
        ([full, with_ap(narrow, "bbox", math.nan)], "AP and latency by width", "box", 1, ["1"]),
        ([with_ap(narrow, "bbox", 0.0)], "AP and latency by width", "box", 1, ["0.9"]),
        ([with_ap(full, "segm", 9.0)], "AP and latency", "mask", 1, []),
        ([full, with_cost(narrow)], "AP and latency by width", "box", 1, ["1"]),
        # Equal costs, and points so close that the texts of all would lie on each other.
        ([full, with_cost(narrow, 1, 20)], "AP and latency by width", "box", 2, ["0.9", "1"]),
        ([full, *crowd], "AP and latency by width", "box", 9, ["0.2", "1"]),
        ([with_cost(full, 3.0)], "AP and multiply-adds", "box", 1, []),
    ):
        plot = plotted(*widths)
        assert plot.title == title
        assert plot.svg.count('<use xlink:href="#m') == points
        assert re.findall(r"font-size: 8px[^>]*>([^<]*)<", plot.svg) == texts
        x = "ms" if "latency" in title else "GFLOPs"
        assert f">{x} an image<" in plot.svg and f">{y} AP, %<" in plot.svg
    assert plotted(with_ap(full, "bbox", math.nan)) is None
    assert plotted(with_cost(full)) is None


def test_each_of_two_dozen_detectors_has_a_marker_of_its_own(benchmark):
    assert len({(colour_at(i), *shape_at(i)) for i in range(24)}) == 24


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
    objects = [
        *(box(0), box(20), box(40, category=2)),
        *(box(0, image_id=2), box(50, image_id=2, iscrowd=1)),
        box(0, image_id=4, iscrowd=1),
    ]
    truth = {
        "images": [{"id": number} for number in (1, 2, 3, 4)],
        "categories": [{"id": number, "name": str(number)} for number in (1, 2)],
        "annotations": [{"iscrowd": 0, **one, "id": row} for row, one in enumerate(objects)],
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
    """A detector that is perfect on one image, blind on another, and wrong once on the rest."""
    with_objects = sorted(
        {a["image_id"] for a in truth["annotations"] if not a["iscrowd"]},
        key=lambda i: -sum(a["image_id"] == i for a in truth["annotations"]),
    )
    perfect, blind = with_objects[:2]
    predictions = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for a in truth["annotations"]
        if a["image_id"] != blind and not a["iscrowd"]
    ] + [
        {
            "image_id": image["id"],
            "category_id": 13,
            "bbox": [0, 0, image["width"], image["height"]],
            "score": 0.9,
        }
        for image in truth["images"]
        if image["id"] != perfect
    ]
    metrics = evaluate_coco(truth, predictions, ("bbox",))
    result = WidthResult(1.0, metrics, predictions, Cost(1))
    made = one_detector(folder, result)
    index = write_benchmark(tmp_path, dataclasses.replace(made, num_pictures=1))
    pictures = read_json(tmp_path)["pictures"]
    assert pictures["best"] == [{"image_id": perfect, "f1": 1.0}]
    assert pictures["worst"] == [{"image_id": blind, "f1": 0.0}]
    html = index.read_text()
    assert f"Image {perfect}, F1 1.00" in html
    assert html.index("<h2>Worst images") < html.index("<h2>Best images")
    assert 'id="changes"' not in html and "mask AP" not in html
    assert "AP and multiply-adds" not in html  # nobody counted them


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
    recall, precision = zip(*curves[0.5], strict=True)
    assert len(recall) == 101 and recall[-1] == 100
    assert recall[50] == 50 and precision[50] == pytest.approx(100)  # one of two found
    assert precision[0] == pytest.approx(100) and precision[-1] == 0  # IoU 0.43 is no match
    found[2]["bbox"][0] = 22  # IoU 0.67
    curves = precision_curves(truth, found, "bbox")
    assert curves[0.5][-1][1] == pytest.approx(200 / 3)
    assert curves[0.75][-1][1] == 0
    truth["annotations"] = []
    assert precision_curves(truth, found, "bbox") == {0.5: [], 0.75: []}


def test_the_curves_are_in_the_json(benchmark, written):
    stored = [d["precision_recall"] for d in read_json(written)["detectors"]]
    for curves, detector in zip(stored, benchmark.detectors, strict=True):
        metrics = detector.widths[0].metrics
        for task in ("bbox", "segm"):
            for iou, name in (("0.5", "AP50"), ("0.75", "AP75")):
                # AP is the mean precision over the recalls.
                precision = [point[1] for point in curves[task][iou]]
                assert sum(precision) / 101 == pytest.approx(metrics[task][name])


def test_a_part_of_the_images(benchmark, truth, tmp_path):
    ids = [image["id"] for image in truth["images"][:6]]
    part = copy.deepcopy(benchmark)
    part.image_ids = ids
    for width in (width for detector in part.detectors for width in detector.widths):
        width.predictions = [p for p in width.predictions if p["image_id"] in ids]
    write_benchmark(tmp_path, part)
    content = read_json(tmp_path)
    assert content["dataset"]["images"] == 6 and content["dataset"]["of_images"] == 20
    assert content["dataset"]["objects"] == sum(a["image_id"] in ids for a in truth["annotations"])
    shown = content["pictures"]["best"] + content["pictures"]["worst"]
    assert len(shown) == 4 and {picture["image_id"] for picture in shown} <= set(ids)
    for stored, detector in zip(content["detectors"], benchmark.detectors, strict=True):
        found = [p for p in detector.widths[0].predictions if p["image_id"] in ids]
        assert stored["widths"][0]["detections"] == len(found)
        scored = evaluate_coco(truth, found, ("bbox",), image_ids=ids)["bbox"]["AP50"]
        precision = [point[1] for point in stored["precision_recall"]["bbox"]["0.5"]]
        assert sum(precision) / 101 == pytest.approx(scored)
    assert "6 of 20 images" in (tmp_path / "report.md").read_text()


def test_a_failure_leaves_the_old_report(benchmark, folder, tmp_path, monkeypatch):
    write_benchmark(tmp_path, benchmark)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.json", "report.md", "index.html"}
    with pytest.raises(DataError, match="does not exist"):
        write_benchmark(tmp_path, dataclasses.replace(benchmark, data=data_of(folder, "nowhere")))
    monkeypatch.setattr(report_module, "_table", lambda *_: {})
    with pytest.raises(jinja2.UndefinedError, match="columns"):
        write_benchmark(tmp_path, dataclasses.replace(benchmark, title="changed"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_to_find(truth, folder, tmp_path):
    """All AP is NaN where the images, as a small limit may choose them, have no objects."""
    with_objects = {annotation["image_id"] for annotation in truth["annotations"]}
    ids = [image["id"] for image in truth["images"] if image["id"] not in with_objects]
    metrics = evaluate_coco(truth, [], image_ids=ids)
    assert ids and math.isnan(metrics["bbox"]["AP"])
    nothing = {"bbox": math.nan, "segm": math.nan}
    robust = {"corruptions": {"fog": {1: nothing}}, "fgsm": {2.0: nothing}}
    widths = width_result(metrics, [], **robust), width_result(metrics, [], 0.5)
    index = write_benchmark(tmp_path, one_detector(folder, *widths, image_ids=ids))
    content = read_json(tmp_path)
    width = content["detectors"][0]["widths"][0]
    assert width["mPC"] == width["rPC"] == {"bbox": None, "segm": None}
    html = index.read_text()
    for _, *cells in table(html, "full")[1:-1]:
        assert cells == ["–", "–"]  # noqa: RUF001
    assert [row[1:3] for row in table(html, "main")[2:]] == [["–", "–"]] * 2  # noqa: RUF001
    assert "<svg" not in html and "<img" not in html and 'id="changes"' not in html
    for name in ("report.md", "index.html"):
        assert not re.search(r"\bnan\b", (tmp_path / name).read_text(), re.IGNORECASE)


def test_a_narrow_detector_of_boxes_that_finds_nothing(truth, folder, tmp_path):
    """Nothing found is scored on masks too, as nobody can tell; that makes it no mask detector."""
    boxes = [{k: v for k, v in p.items() if k != "segmentation"} for p in make_predictions(truth)]
    empty = evaluate_coco(truth, [])
    robust = {"corruptions": {"fog": {5: {"bbox": 0.0, "segm": 0.0}}}}
    full = width_result(evaluate_coco(truth, boxes, ("bbox",)), boxes, **robust)
    for widths in ((full, width_result(empty, [], 0.5)), (width_result(empty, [], 0.5), full)):
        html = write_benchmark(tmp_path, one_detector(folder, *widths)).read_text()
        assert "mask" not in (tmp_path / "report.md").read_text()
        names = [row[0] for row in table(html, "full")[1:] + table(html, "changes")[1:]]
        assert "box" in names and not any("mask" in name for name in names)


def test_masks_alone(benchmark, folder, tmp_path):
    result = benchmark.detectors[0].widths[0]
    masks = width_result({"segm": result.metrics["segm"]}, result.predictions)
    html = write_benchmark(tmp_path, one_detector(folder, masks)).read_text()
    assert [row[0].split()[0] for row in table(html, "full")[1:-1]] == ["mask"] * 12
    assert table(html, "main")[0][1] == "mask AP"
    assert "<h2>AP by category" in html


def test_few_images_are_worst_or_best_and_not_both(benchmark, truth, folder, tmp_path):
    result = benchmark.detectors[0].widths[0]
    objects = [a["image_id"] for a in truth["annotations"] if not a["iscrowd"]]
    ids = list(dict.fromkeys(objects))
    for count, worst, best, typical in ((1, 1, 0, 0), (3, 2, 1, 0), (9, 3, 3, 1)):
        part = one_detector(folder, result, image_ids=ids[:count])
        write_benchmark(tmp_path, part)
        pictures = read_json(tmp_path)["pictures"]
        groups = [pictures[name] for name in ("worst", "best", "typical")]
        assert list(map(len, groups)) == [worst, best, typical]
        shown = [p["image_id"] for group in groups for p in group]
        assert len(set(shown)) == len(shown)
        scores = image_scores(truth, result.predictions, ids[:count], 0.5)
        ranked = sorted(scores.values())
        assert [p["f1"] for p in pictures["worst"]] == ranked[:worst]
        assert [p["f1"] for p in pictures["best"]] == ranked[::-1][:best]
        assert [p["f1"] for p in pictures["typical"]] == ranked[count // 2 :][:typical]
