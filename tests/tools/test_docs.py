"""The documentation's site: built for real, in strict mode, and its tables from today's code."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files

from gradaug_det.core.options import GradAugOptions
from gradaug_det.pretrain.recipe import Recipe, load_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "_hooks"))

import docstrings
import hooks
import settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(
        "index",
        "overview",
        "tutorial_detectron2",
        "tutorial_mmdet",
        "how_it_works",
        "configuration",
        "faq",
    ),
    *("troubleshooting", "check_data", "zoo", "benchmark", "export", "licences"),
    *("RESULTS", "MODEL_ZOO", "CHANGELOG", "CONTRIBUTING", "SECURITY"),
    *("studies/table3_mini/index", "studies/mini_zoo/index", "studies/mini_zoo/FINDINGS"),
    "studies/table3_mini/FINDINGS",
    *("benchmarks/results/training", "studies/frameworks/results/report"),
    *("studies/demo/index", "studies/demo/results/report", "measured"),
    *("reference/core", "reference/d2", "reference/mmdet", "reference/errors"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search("WARNING|ERROR", done.stdout + done.stderr), done.stderr[-3000:]
    return folder


def text_of(site: Path, page: str) -> str:
    return (site / f"{page}.html").read_text("utf-8")


@pytest.mark.integration
def test_pages_and_pictures_are_there(site):
    for page in PAGES:
        assert "<h1" in text_of(site, page), page
    for picture in ("assets/gradaug_step.svg", "studies/table3_mini/compute.svg"):
        assert (site / picture).is_file(), picture
    assert 'src="studies/table3_mini/compute.svg"' in text_of(site, "RESULTS")
    # Links of the repository are links of the site, or the names of files.
    assert 'href="studies/mini_zoo/FINDINGS.html"' in text_of(site, "RESULTS")
    assert 'href="RESULTS.html"' in text_of(site, "faq")
    assert 'href="overview.html"' in text_of(site, "index")
    assert 'src="assets/gradaug_step.svg"' in text_of(site, "overview")
    assert 'src="results/predictions.jpg"' in text_of(site, "studies/demo/index")


@pytest.mark.integration
def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]* src=.?(?:https?:)?//", text), page
        assert not re.findall(r"<link[^>]* rel=.?stylesheet[^>]*href=.?(?:https?:)?//", text), page


@pytest.mark.integration
def test_the_configuration_page_has_every_setting(site):
    text = text_of(site, "configuration")
    for field in fields(GradAugOptions):
        assert f"<code>GRADAUG.{field.name.upper()}</code>" in text
    assert "<code>optim.warmup_epochs</code>" in text
    assert "<!-- table" not in text


@pytest.mark.integration
def test_the_reference_is_made_of_docstrings(site):
    text = text_of(site, "reference/core")
    assert 'id="gradaug_det.core.slimming.at_width"' in text
    assert "Running statistics are never written:" in text
    assert ":func:" not in text
    assert ":class:" not in text
    source = text_of(site, "how_it_works")
    assert "sub_network_passes" in source
    assert "<!-- source" not in source


def test_settings_have_the_names_that_the_frameworks_take():
    from detectron2.config import get_cfg

    import gradaug_det.d2
    import gradaug_det.mmdet

    names = [field.name for field in fields(GradAugOptions)]
    cfg = get_cfg()
    gradaug_det.d2.add_gradaug_config(cfg)
    assert {"ENABLED", *(name.upper() for name in names)} == set(cfg.GRADAUG)
    for hook in (gradaug_det.d2.GradAugHook, gradaug_det.mmdet.GradAugHook):
        assert hook(**vars(GradAugOptions())).options == GradAugOptions()
    table = settings.detector_table()
    for name in names:
        assert f"| `GRADAUG.{name.upper()}`<br>`{name}` |" in table


def test_keys_of_the_recipe_are_what_the_tool_takes():
    keys = re.findall(r"^\| `([\w.]+)` \|", settings.recipe_table(), flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    config = ROOT / "configs" / "pretrain" / "mini_resnet18_gradaug.yaml"
    recipe = load_recipe(config)
    known = {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in Recipe().as_dict().items()
        for key in (value if isinstance(value, dict) else (None,))
    }
    # Not written at their defaults.
    unwritten = ("views", "divisor", "passes", "widths", "full_share", "smallest_share")
    unwritten = {f"gradaug.{key}" for key in unwritten}
    assert set(keys) == known | unwritten | {"channels_last", "eval_epochs"}
    for key in keys:
        attrgetter(key)(recipe)


def test_a_setting_without_a_word_about_it_is_an_error():
    @dataclass
    class Settings:
        told: int = 1
        untold: int = 2

    with pytest.raises(ValueError, match="says nothing of 'untold'"):
        list(settings._with_texts(Settings, {"told": "something"}))


def test_links_to_files_that_are_not_on_the_site():
    def linked(text: str) -> str:
        return hooks._LINK.sub(lambda match: hooks._link(match, "docs/faq.md", Files([])), text)

    assert linked("[the code](../setup.py)") == "the code (`setup.py`)"
    assert linked("[`setup.py`](../setup.py)") == "`setup.py`"
    assert linked("[x](https://example.com/a)") == "[x](https://example.com/a)"
    with pytest.raises(PluginError, match="not in the repository"):
        linked("[x](nowhere.md)")
    with pytest.raises(PluginError, match="not on the site"):
        linked("![x](../setup.py)")


def test_docstrings_become_markdown():
    text = docstrings.markdown(
        "One of :class:`pkg.mod.Thing` and :func:`own`.\n\nArgs:\n    a, b: both,\n"
        "        on two lines.\n    c: alone.\n\nRaises (from :meth:`check`):\n    E: why.\n"
    )
    assert '<autoref optional identifier="pkg.mod.Thing"><code>Thing</code></autoref>' in text
    assert "<code>own</code>." in text
    assert "    a: both,\n        on two lines.\n    b: both,\n        on two lines.\n" in text
    assert "\nRaises:\n" in text
