"""The written report: one set of numbers in three files, self-contained, never half written."""

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from PIL import Image

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import evaluate_coco
from gradaug_det.reports.rendering import with_sign, write_files
from studies.report import report as report_module
from studies.report.comparison import TABLE_METRICS
from studies.report.report import Report, RunRecord, choose_images, report_markdown, write_report
from studies.report.statistics import agreement
from tests.evaluation.helpers import (
    make_ground_truth,
    make_predictions,
    write_images,
    write_json,
)

PICTURES = 3


class Page(HTMLParser):
    """Collects what a browser would fetch, the cells of the AP table and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references, self.tags, self.rows, self.text = [], [], [], []
        self.images: list[dict] = []
        self._in_table = self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.references += [attributes[a] for a in ("src", "href", "srcset") if a in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag == "table":
            self._in_table = attributes.get("id") == "ap"
        if self._in_table and tag == "tr":
            self.rows.append([])
        if self._in_table and tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._in_cell = False
        if tag == "table":
            self._in_table = False

    def handle_data(self, data):
        self.text.append(data)
        if self._in_table and self._in_cell:
            self.rows[-1][-1] += data


def curves(offset: float, gradaug: bool) -> dict:
    steps = range(19, 1000, 20)
    made = {
        "total_loss": [(i, 3 * math.exp(-i / 400) + offset) for i in steps],
        "bbox/AP": [(499, 20.0), (999, 30.0)],
        "time": [(i, 0.5 + gradaug) for i in steps],
    }
    if gradaug:
        for index in range(2):
            made[f"gradaug/sub{index}/loss"] = [(i, 1 + offset) for i in steps]
            made[f"gradaug/sub{index}/width"] = [(i, 0.9) for i in steps]
    made["total_loss"][5] = (made["total_loss"][5][0], math.nan)
    return made


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("data")
    truth = make_ground_truth(images=20)
    write_images(truth, folder / "images")
    runs = []
    for name, label, noise in (("plain", "Plain", 0.05), ("gradaug", "GradAug", 0.08)):
        predictions = make_predictions(truth, noise=noise)
        runs.append(
            RunRecord(
                name=name,
                label=label,
                config=f"mask_rcnn_{name}.yaml",
                iterations=1000,
                metrics=evaluate_coco(truth, predictions),
                curves=curves(noise, name == "gradaug"),
                seconds=500.0,
                predictions=write_json(folder / f"{name}.json", predictions),
                num_parameters=44_000_000,
                seed=7,
            )
        )
    return Report(
        title="GradAug <b> & plain",
        runs=runs,
        baseline="plain",
        gt_json=write_json(folder / "truth.json", truth),
        image_root=folder / "images",
        environment={"cpu": "Xeon", "cores": 2, "gpus": [], "versions": {"torch": "2.9"}},
        commands=["gradaug-det demo --out <folder> | tee log"],
        num_pictures=PICTURES,
    )


@pytest.fixture(scope="module")
def written(report, tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("out") / "new", report).parent


def read_json(folder: Path) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "report.json").read_text(), parse_constant=refuse)


def markdown_table(folder: Path, heading: str) -> list[list[str]]:
    section = (folder / "report.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line.startswith("|")
    ]


def test_json_schema(report, written):
    content = read_json(written)
    assert content["schema_version"] == 2
    assert list(content) == [
        *("schema_version", "title", "introduction", "dataset", "baseline", "methods"),
        *("comparisons", "agreements", "runs", "pictures", "commands", "environment"),
    ]
    assert content["dataset"]["images"] == 20 and content["dataset"]["categories"][1] == "boot"
    for record, run in zip(content["runs"], report.runs, strict=True):
        assert record["metrics"]["bbox"]["AP"] == run.metrics["bbox"]["AP"]
        assert record["metrics"]["bbox"]["AP-never seen"] is None  # NaN
        assert record["curves"]["total_loss"][5][1] is None
        assert record["curves"]["total_loss"][6] == list(run.curves["total_loss"][6])
        assert record["predictions"] == f"{run.name}.json"
        assert record["seed"] == 7
    (comparison,) = content["comparisons"]
    plain, gradaug = (run.metrics["segm"]["AP50"] for run in report.runs)
    assert comparison["difference"]["segm"]["AP50"] == pytest.approx(gradaug - plain)
    assert comparison["step_time_ratio"] == pytest.approx(3.0)
    assert len(content["pictures"]["image_ids"]) == PICTURES


def test_tables_of_all_files_are_the_numbers_of_the_json(written):
    content = read_json(written)
    plain, gradaug = (run["metrics"] for run in content["runs"])
    difference = content["comparisons"][0]["difference"]
    expected = [
        [
            f"{'box' if task == 'bbox' else 'mask'} {metric}",
            f"{plain[task][metric]:.2f}",
            f"{gradaug[task][metric]:.2f}",
            with_sign(difference[task][metric]),
        ]
        for task in ("bbox", "segm")
        for metric in TABLE_METRICS
    ]
    expected.append(["s per step", "0.500", "1.500", "×3.00"])  # noqa: RUF001
    header, rule, *rows = markdown_table(written, "Average precision")
    assert header == ["", "Plain", "GradAug", "diff."] and rule == [":--", "--:", "--:", "--:"]
    assert rows == expected
    page = Page((written / "index.html").read_text())
    assert [[cell.strip() for cell in row] for row in page.rows[1:]] == expected
    assert [cell.strip() for cell in page.rows[0]] == ["%", "Plain", "GradAug", "diff."]


def test_a_worse_result_is_shown_as_worse(report, written):
    plain, gradaug = (run.metrics["bbox"]["AP"] for run in report.runs)
    assert gradaug < plain - 1
    html = (written / "index.html").read_text()
    assert re.search(r'class="down">\N{MINUS SIGN}\d', html)


def test_html_needs_nothing_else(written):
    html = (written / "index.html").read_text()
    page = Page(html)
    assert page.references and all(r.startswith("data:image/") for r in page.references)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    html = re.sub(r"base64,[^\"]+", "", html)  # whose letters may say anything
    assert "http" not in html and "url(" not in html and "@import" not in html
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html


def test_pictures_and_plots_decode(written):
    page = Page((written / "index.html").read_text())
    kinds = {"image/jpeg": 0, "image/svg+xml": 0}
    for image in page.images:
        media_type, content = re.fullmatch(r"data:([^;]+);base64,(.+)", image["src"]).groups()
        kinds[media_type] += 1
        content = base64.b64decode(content, validate=True)
        assert image["alt"]
        if media_type == "image/jpeg":
            picture = Image.open(io.BytesIO(content))
            picture.load()
            assert picture.size == (int(image["width"]), int(image["height"]))
        else:
            root = ElementTree.fromstring(content)
            assert root.tag.endswith("svg")
            text = "".join(root.itertext())
            assert "iteration" in text and "prefers-color-scheme" in text
    # Ground truth and two runs an image; total loss, sub-networks of one run, box AP.
    assert kinds == {"image/jpeg": 3 * PICTURES, "image/svg+xml": 3}
    alts = " ".join(image["alt"] for image in page.images)
    assert "sub-network 0 (mean width 0.90)" in alts and "nan" not in alts


def test_text_is_escaped_and_no_local_path_is_published(report, written):
    html, markdown = ((written / name).read_text() for name in ("index.html", "report.md"))
    assert "GradAug &lt;b&gt; &amp; plain" in html and "<b> & plain" not in html
    assert "--out &lt;folder&gt; | tee log" in html and "--out <folder> | tee log" in markdown
    folder = str(Path(report.gt_json).parent)
    for name in ("report.json", "report.md", "index.html"):
        assert folder not in (written / name).read_text()


def test_seeds_are_averaged(report, tmp_path):
    runs = [
        RunRecord(f"{m}{s}", m, "c", 10, {"bbox": {"AP": v}}, method=m, seed=s)
        for m, values in (("a|b", [40.0, 41.0]), ("new", [43.0, 44.0, 45.0]))
        for s, v in enumerate(values)
    ]
    found = agreement([43.0, 44.0, 45.0], [40.0, 41.0])
    report = Report("t", runs, "a|b0", report.gt_json, agreements={"new minus a|b, box": found})
    folder = write_report(tmp_path, report).parent
    content = read_json(folder)
    assert content["methods"][1]["metrics"]["bbox"]["AP"] == {"mean": 44.0, "std": 1.0}
    assert content["comparisons"][0]["difference"]["bbox"]["AP"] == 3.5
    header, _, row = markdown_table(folder, "Average precision")
    assert header == ["", "a|b", "new", "diff."]
    assert row == ["box AP", "40.50 ± 0.71", "44.00 ± 1.00", "+3.50"]
    assert len(markdown_table(folder, "Runs")) == 2 + 5
    (row,) = markdown_table(folder, "Differences over seeds")[2:]
    shown = [
        "+3.50",
        f"{found.pooled:.2f}",
        f"{with_sign(found.low)} to {with_sign(found.high)}",
    ]
    assert row == ["new minus a|b, box", *shown]
    html = (folder / "index.html").read_text()
    assert "new minus a|b, box</th><td>" + "</td><td>".join(shown) in html


def test_a_report_of_almost_nothing(report, tmp_path):
    run = RunRecord("only", "Only", "c.yaml", 0, {}, notes="stopped | early")
    folder = write_report(tmp_path, Report("t", [run], "only", report.gt_json)).parent
    assert read_json(folder)["comparisons"] == []
    assert "Differences over seeds" not in (folder / "index.html").read_text()
    assert markdown_table(folder, "Runs")[2][-1] == "stopped | early"


def test_committed_tables_are_those_of_the_committed_numbers():
    folder = Path(__file__).parents[2] / "studies" / "frameworks" / "results"
    text = report_markdown(read_json(folder))
    start = "\nScored on "  # what stands before it was worded by earlier versions
    committed = (folder / "report.md").read_text()
    assert text.split(start)[1] == committed.split(start)[1]


def test_a_failing_template_leaves_the_old_report(report, tmp_path, monkeypatch):
    write_report(tmp_path, report)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.json", "report.md", "index.html"}

    broken = {"report.md.j2": "{{ title }}", "report.html.j2": "{{ title }} {{ no_such_number }}"}
    monkeypatch.setattr(
        report_module,
        "load_templates",
        lambda *_: jinja2.Environment(
            loader=jinja2.DictLoader(broken), undefined=jinja2.StrictUndefined
        ),
    )
    with pytest.raises(jinja2.UndefinedError, match="no_such_number"):
        write_report(tmp_path, Report("changed", report.runs, "plain", report.gt_json))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "index.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_files(tmp_path, {path.name: "x" * 100_000 + "\ud800"})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_files(tmp_path, {path.name: "new"})
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644


def test_unusable_input_is_named(report, tmp_path):
    run = report.runs[0]
    with pytest.raises(ConfigError, match="at least one"):
        Report("t", [], "plain", report.gt_json)
    with pytest.raises(ConfigError, match="needs its own"):
        Report("t", [run, run], "plain", report.gt_json)
    with pytest.raises(ConfigError, match="'gone' is not one of the runs"):
        Report("t", [run], "gone", report.gt_json)
    with pytest.raises(DataError, match="the folder of images must be"):
        write_report(tmp_path, Report("t", [run], "plain", report.gt_json, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_choice_of_images_does_not_depend_on_results():
    truth = make_ground_truth(images=30)
    chosen = choose_images(truth, 5)
    objects = {i["id"]: 0 for i in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]] += not annotation["iscrowd"]
    ids = [image["id"] for image in chosen]
    assert len(set(ids)) == 5 and ids == sorted(ids)
    assert all(objects[i] >= 2 for i in ids)
    reordered = {**truth, "images": truth["images"][::-1]}
    assert choose_images(reordered, 5) == chosen
    assert len(choose_images(truth, 1000)) == sum(count >= 1 for count in objects.values())
    assert choose_images({**truth, "annotations": []}, 5) == []
