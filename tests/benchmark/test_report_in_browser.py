"""The benchmark's page in a real browser."""

import dataclasses
import json

import pytest

from gradaug_det.benchmark.report import write_benchmark
from tests.browser import assert_fits, assert_pictures_load, opened

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(360, 780, "light"), (390, 844, "dark"), (1280, 900, "light")],
)
def test_opens(written, width, height, scheme):
    content = json.loads((written / "report.json").read_text())
    with opened(written / "index.html", width, height, scheme) as page:
        assert_pictures_load(page)
        assert_fits(page)
        assert page.title() == content["title"]
        cells = page.locator("#ap tbody tr").first.locator("td").all_inner_texts()
        wanted = [
            f"{w['metrics']['bbox']['AP']:.2f}" for d in content["detectors"] for w in d["widths"]
        ]
        assert cells == wanted
        # What somebody called a detector is text, not a script.
        assert "<script>" in page.locator("#cost thead").inner_text()


def test_long_names_fit_a_phone(benchmark, tmp_path):
    """Nothing overflows, and the numbers of the first network are in sight beside their names."""
    first, second = benchmark.detectors
    detectors = [
        dataclasses.replace(first, label="mask_rcnn_r50_fpn_gradaug_" * 4),
        dataclasses.replace(second, label="Mask R-CNN of ResNet-50 and FPN, " * 3),
    ]
    index = write_benchmark(tmp_path, dataclasses.replace(benchmark, detectors=detectors))
    with opened(index, 360, 780) as page:
        assert_pictures_load(page)
        assert_fits(page)
        for table in ("ap", "cost", "corruptions", "fgsm"):
            cell = page.locator(f"#{table} tbody tr").first.locator("td").first.bounding_box()
            assert cell["x"] + cell["width"] <= 360, table


def test_a_plot_alone_is_no_larger_than_two_beside_each_other(written):
    with opened(written / "index.html", 1280, 900) as page:
        widths = [figure.bounding_box()["width"] for figure in page.locator(".plots figure").all()]
        assert len(widths) == 5 and max(widths) == pytest.approx(min(widths), abs=1)
