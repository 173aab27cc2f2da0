"""The written report in a real browser: on a phone and a desktop, by day and by night."""

import json
from pathlib import Path

import pytest

from gradaug_det.evaluation.coco import evaluate_coco
from gradaug_det.reports.rendering import with_sign
from studies.report.comparison import TABLE_METRICS
from studies.report.report import Report, RunRecord, write_report
from tests.browser import assert_fits, assert_pictures_load, opened
from tests.evaluation.helpers import make_ground_truth, make_predictions, write_images, write_json

PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A report with what needs room: three methods, long names, long commands."""
    folder = tmp_path_factory.mktemp("data")
    truth = make_ground_truth(images=12)
    write_images(truth, folder / "images")
    runs = []
    for index, label in enumerate(("Plain", "GradAug", "GradAug with four sub-networks")):
        predictions = make_predictions(truth, noise=0.05 + 0.02 * index)
        curves = {
            "total_loss": [(step, 3 / (step + 1 + index)) for step in range(0, 1000, 20)],
            "bbox/AP": [(499, 20.0), (999, 30.0 + index)],
            "time": [(step, 0.5 + index) for step in range(0, 1000, 20)],
        }
        runs.append(
            RunRecord(
                name=f"run{index}",
                label=label,
                config=f"COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gradaug_{index}x.yaml",
                iterations=1000,
                metrics=evaluate_coco(truth, predictions),
                curves=curves,
                seconds=500.0,
                predictions=write_json(folder / f"run{index}.json", predictions),
                num_parameters=44_000_000,
                seed=7,
            )
        )
    report = Report(
        title="GradAug <b> & plain, on an unusually long name of a validation set",
        runs=runs,
        baseline="run0",
        gt_json=write_json(folder / "truth.json", truth),
        image_root=folder / "images",
        environment={"cpu": "Xeon", "git_commit": "0123456789abcdef" * 3, "gpus": []},
        commands=["gradaug-det demo --framework detectron2 --out <folder> --seeds 1 2 3 | tee log"],
        num_pictures=2,
    )
    return write_report(tmp_path_factory.mktemp("out"), report)


def expected_rows(content: dict) -> list[list[str]]:
    """The body of the AP table as the numbers of report.json make it."""
    plain, *others = content["runs"]
    pairs = list(zip(others, content["comparisons"], strict=True))
    rows = []
    for task, name in (("bbox", "box"), ("segm", "mask")):
        for metric in TABLE_METRICS:
            row = [f"{name} {metric}", f"{plain['metrics'][task][metric]:.2f}"]
            for run, comparison in pairs:
                row.append(f"{run['metrics'][task][metric]:.2f}")
                row.append(with_sign(comparison["difference"][task][metric]))
            rows.append(row)
    return [*rows, ["s per step", "0.500", "1.500", "×3.00", "2.500", "×5.00"]]  # noqa: RUF001


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_report_shows_its_pictures_and_numbers(written, size, scheme):
    content = json.loads((written.parent / "report.json").read_text())
    with opened(written, *size, scheme) as page:
        assert_pictures_load(page)
        assert_fits(page)
        assert page.title() == page.locator("h1").inner_text() == content["title"]
        head, *rows = page.locator("#ap tr").all()
        labels = [run["label"] for run in content["runs"]]
        assert head.locator("th").all_inner_texts() == [
            *("%", labels[0], labels[1], "diff.", labels[2], "diff.")
        ]
        assert [row.locator("th, td").all_inner_texts() for row in rows] == expected_rows(content)
        # Text and background change together: light on dark, or dark on light.
        page_colour, text_colour = page.evaluate(
            """() => ["backgroundColor", "color"].map(name =>
                getComputedStyle(document.body)[name].match(/\\d+/g).reduce((a, b) => +a + +b))"""
        )
        assert (page_colour < 150 and text_colour > 600) == (scheme == "dark")
        assert (page_colour > 600 and text_colour < 150) == (scheme == "light")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("<script>undefined_name()</script>", "uncaught: undefined_name is not defined"),
        ("<script>console.warn('odd')</script>", "console warning: odd"),
        ("<img src='missing.png' alt=''>", "request for file:.*missing.png"),
        ("<img src='http://127.0.0.1:9/a.png' alt=''>", "request for http://127.0.0.1:9/a.png"),
        ("<img src='data:image/png;base64,AAAA' alt='empty'>", "do not load: .'empty'"),
        (
            "<p id='long' style='width: 400px'>wide</p>",
            r"pixels in a window of 390: .'<p id=\"long",
        ),
    ],
)
def test_a_broken_report_is_noticed(tmp_path, broken, message):
    path = tmp_path / "index.html"
    good = (
        '<img src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">'
    )
    path.write_text(f"<!doctype html><title>t</title><body>{good}{broken}")
    with pytest.raises(AssertionError, match=message):
        with opened(path, *PHONE) as page:
            assert_pictures_load(page)
            assert_fits(page)


def test_without_a_browser_the_tests_fail_and_say_what_to_do(written, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="run `make env-test`"):
        with opened(written, *PHONE):
            pass
