"""Documents say what holds: numbers are the reports', names exist, and their code runs."""

import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from gradaug_det import __version__, errors
from tests.documents import CODE, DOCUMENTS, ROOT, assert_printed, blocks, parse, run_all

README = (ROOT / "README.md").read_text()
NOT_RUN = {
    "CONTRIBUTING.md": 1,
    "MODEL_ZOO.md": 3,
    "README.md": 4,
    "docs/benchmark.md": 1,
    "docs/check_data.md": 1,
    "docs/export.md": 3,
    "docs/launching.md": 4,
    "docs/resume.md": 2,
    "docs/zoo.md": 1,
}
"""Blocks that are only parsed, a document. A new one needs a reason better than haste."""


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_and_targets_that_it_names_exist(document):
    text = document.read_text("utf-8")
    named = re.findall(
        r"(?<![\w./-])(?:configs|tools|tests|docs|studies|benchmarks)/[\w./-]*\w", text
    )
    for path in set(named) - {"tools/deploy/export_model.py"}:  # Detectron2's
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_readmes_table_is_the_studys():
    head = "| fine-tuning | iterations | box AP | mask AP |"
    rows = README.split(head)[1].strip().split("\n\n")[0].splitlines()[1:]
    study = (ROOT / "studies" / "table3_mini" / "README.md").read_text()
    everywhere = [[cell.strip() for cell in line.split("|")] for line in study.splitlines()]
    assert len(rows) == 4
    for row in rows:
        label, iterations, box, mask = (cell.strip() for cell in row.strip("|").split("|"))
        method, _, length = label.partition(", 2.7x")
        wanted = {method, iterations, "3", box, mask} | ({"2.7x"} if length else set())
        assert any(wanted <= set(cells) for cells in everywhere), row


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_docs_are_pages_and_no_raw_results():
    files = [path for path in (ROOT / "docs").rglob("*") if path.is_file()]
    compiled = {".pyc"}  # by `make docs`, of the hooks
    assert {path.suffix for path in files} - compiled <= {".md", ".svg", ".css", ".py"}


def test_the_conventions_quote_docstrings_of_today():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert text.count("\n") <= 60
    quotes = re.findall(r"`(gradaug_det[\w.]+)`:\n\n```\n(.*?)\n```\n", text, re.DOTALL)
    assert len(quotes) == 2
    for name, quoted in quotes:
        assert inspect.getdoc(pkgutil.resolve_name(name)) == quoted, name


def test_the_readmes_lines_for_detectron2():
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.engine import TrainerBase

    (block,) = (b for b in blocks(ROOT / "README.md") if "register_hooks" in b.text)
    assert len(list(filter(None, block.text.splitlines()))) == 6
    trainer = TrainerBase()
    exec(block.text, {"cfg": get_cfg(), "trainer": trainer})
    (hook,) = trainer._hooks
    assert hook.options.passes == "alternating"


# ---- code blocks ------------------------------------------------------------------------------


def test_every_fence_is_read():
    for document in DOCUMENTS:
        fences = re.findall(r"^```\w+.*$", document.read_text("utf-8"), flags=re.MULTILINE)
        found = blocks(document)
        assert len(found) == len(fences), name_of(document)
        for block in found:
            assert block.language in (*CODE, "text"), block.where
            assert block.language in CODE or block.title == "output", block.where


def test_what_is_not_run_is_counted():
    every = [block for document in DOCUMENTS for block in blocks(document)]
    left_out = {
        name_of(document): sum(not block.runs for block in blocks(document))
        for document in DOCUMENTS
        if not all(block.runs for block in blocks(document))
    }
    assert left_out == NOT_RUN
    # yaml without a name and outputs are compared, not executed.
    executed = [b for b in every if b.runs and b.language in ("bash", "python")]
    assert len(executed) >= 27


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_blocks_are_of_their_language(document):
    for block in blocks(document):
        parse(block)


@pytest.mark.integration
@pytest.mark.timeout(1800)  # the tutorials start about ten processes with a framework
@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if any(b.runs for b in blocks(d))], ids=name_of
)
def test_blocks_run(document, tmp_path):
    run_all(document, tmp_path)


def test_outputs_are_compared():
    shown = next(b for b in blocks(ROOT / "docs/configuration.md") if b.title == "output")
    good = shown.text.replace("...", "anything")
    assert_printed(shown, f"first\n{good}last\n")
    with pytest.raises(AssertionError, match="not printed"):
        assert_printed(shown, "\n".join(reversed(good.splitlines())))


# ---- troubleshooting, citation ----------------------------------------------------------------

TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")


def test_every_error_class_is_explained():
    classes = [n for n, c in vars(errors).items() if isinstance(c, type)]
    assert "GradAugError" in classes
    for name in classes:
        assert re.search(rf"^## {name}( itself)?$", TROUBLESHOOTING, flags=re.MULTILINE), name


def test_quoted_messages_are_in_the_code():
    package = ROOT / "gradaug_det"
    files = sorted([*package.rglob("*.py"), package / "check_data" / "kinds.json"])
    code = "\n".join(path.read_text("utf-8") for path in files)
    # Sentences that are broken over lines, in one piece.
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)
    rows = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING, flags=re.MULTILINE)
    assert len(rows) > 30
    for message in rows:
        for part in filter(None, (part.strip() for part in message.split("..."))):
            assert part in code, f"no message has {part!r}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert citation["preferred-citation"]["title"].startswith("GradAug: ")
