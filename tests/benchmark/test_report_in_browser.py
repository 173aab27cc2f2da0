"""The benchmark's page in a real browser."""

import dataclasses
import json

import pytest

from gradaug_det.benchmark.report import write_benchmark
from tests.browser import assert_fits, assert_pictures_load, opened

pytestmark = pytest.mark.integration
SIZES = ((1100, 800), (390, 844), (360, 780), (1280, 900))


def assert_tables_fit(page):
    """The tables that are read first need no scrolling, down to their last column."""
    for table in ("main", "changes"):
        widths = page.locator(f"#{table}").evaluate(
            "table => [table.parentElement.scrollWidth, table.parentElement.clientWidth]"
        )
        last = page.locator(f"#{table} thead th").last.bounding_box()
        assert widths[0] <= widths[1] and last["x"] + last["width"] <= page.viewport_size["width"]


def test_opens(written):
    content = json.loads((written / "report.json").read_text())
    with opened(written / "index.html", *SIZES[0]) as page:
        assert_pictures_load(page)
        assert page.title() == content["title"]
        # The first screen of a laptop: title, curve, a typical image and all of the table.
        for selector in ("h1", ".first img", ".first .pictures", "#main"):
            box = page.locator(selector).first.bounding_box()
            assert box["x"] >= 0 and box["y"] + box["height"] <= 800, selector
        for (width, height), scheme in zip(SIZES, ("light", "dark", "light", "dark"), strict=True):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            assert_fits(page)
            assert_tables_fit(page)
        # A plot alone in its row is no larger than two beside each other.
        widths = [figure.bounding_box()["width"] for figure in page.locator(".plots figure").all()]
        assert len(widths) == 4 and max(widths) == pytest.approx(min(widths), abs=1)
        assert not page.locator("#full").is_visible()
        page.locator("summary").last.click()
        cells = page.locator("#full tbody tr").first.locator("td").all_inner_texts()
        wanted = [
            f"{w['metrics']['bbox']['AP']:.2f}" for d in content["detectors"] for w in d["widths"]
        ]
        assert cells == wanted
        # What somebody called a detector is text, not a script.
        assert "<script>" in page.locator("#main").inner_text()


def test_many_detectors_with_long_names_fit(benchmark, tmp_path):
    """Nothing overflows, and the numbers of the first network are in sight beside their names."""
    first, second = benchmark.detectors
    names = ["mask_rcnn_r50_fpn_gradaug_" * 4, "Mask R-CNN of ResNet-50 and FPN, " * 3]
    result = dataclasses.replace(
        second.widths[0], cost=dataclasses.replace(second.widths[0].cost, milliseconds=123456.7)
    )
    narrow = [dataclasses.replace(result, width=width / 10) for width in range(3, 10)]
    detectors = [
        dataclasses.replace(first, label=names[0]),
        *(
            dataclasses.replace(second, label=f"{names[1]}{i}", widths=[result, *narrow])
            for i in range(8)
        ),
    ]
    many = dataclasses.replace(benchmark, detectors=detectors, num_pictures=1)
    with opened(write_benchmark(tmp_path, many), *SIZES[0]) as page:
        page.locator("summary").last.click()
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            assert_fits(page)
            assert_tables_fit(page)
            cell = page.locator("#full tbody tr").first.locator("td").first.bounding_box()
            assert cell["x"] + cell["width"] <= width
