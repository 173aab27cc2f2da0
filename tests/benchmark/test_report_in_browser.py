"""The benchmark's page in a real browser."""

import json

import pytest

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
