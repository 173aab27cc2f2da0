"""MkDocs' hooks: the repository's own pages, links between them, tables and excerpts
from code.

Documents link to each other as they lie in the repository, so that they read the same in a
checkout. The site has those in ``docs`` at its root and the ones of `PAGES` beside them; links to
anything else in the repository become the file's name.
"""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
import re
from pathlib import Path, PurePosixPath

import settings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
README = "overview.md"  # MkDocs takes a README for an index, and there is one
PAGES = (
    "README.md",
    "RESULTS.md",
    "MODEL_ZOO.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)
EVIDENCE = ("studies/*", "studies/*/results", "studies/*/results/*", "benchmarks/results")
SUFFIXES = (".md", ".svg", ".jpg")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)((?:#[^)\s]*)?)\)|(!\[[^\]]*\])\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_SOURCE = re.compile(r"^<!-- source: ([\w.]+) -->$", re.MULTILINE)
_TABLES = {
    "<!-- table: GradAug's settings -->": settings.detector_table,
    "<!-- table: keys of a pretraining recipe -->": settings.recipe_table,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in ``docs``, with their pictures."""
    beside = [p for folder in EVIDENCE for p in sorted(ROOT.glob(f"{folder}/*"))]
    evidence = [path for path in beside if path.suffix in SUFFIXES]
    for path in [*(ROOT / name for name in PAGES), *evidence]:
        uri = uri_of(path.relative_to(ROOT).as_posix())
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts in the tables and turns links of the repository into links of the site."""
    for marker, table in _TABLES.items():
        if marker in text:
            text = text.replace(marker, table())
    text = _SOURCE.sub(_source, text)
    here = repository_path(page.file.src_uri)
    parts = _CODE.split(text)  # code at the odd places, of which nothing is a link
    parts[::2] = [_LINK.sub(lambda match: _link(match, here, files), part) for part in parts[::2]]
    return "".join(parts)


def _source(match: re.Match) -> str:
    """Today's code of a function, without its docstring."""
    lines = inspect.getsource(pkgutil.resolve_name(match[1])).splitlines()
    first = ast.parse("\n".join(lines)).body[0].body[0]
    if isinstance(first, ast.Expr):
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(["```python", *lines, "```"])


def uri_of(path: str) -> str:
    """Returns where a file of the repository is on the site."""
    return README if path == "README.md" else path.removeprefix("docs/")


def repository_path(uri: str) -> str:
    """Returns where a file of the site is in the repository."""
    if uri == README:
        return "README.md"
    return uri if uri in PAGES or uri.startswith(("studies/", "benchmarks/")) else f"docs/{uri}"


def _link(match: re.Match, here: str, files: Files) -> str:
    label, target, anchor = match[1], match[2] or match[5], match[3] or ""
    if re.match(r"[a-z]+:", target):
        return match[0]
    path = os.path.normpath(PurePosixPath(here).parent / target)
    if not (ROOT / path).exists():
        raise PluginError(f"{here} links to {target}, which is not in the repository")
    for candidate in (path, f"{path}/README.md"):
        uri = uri_of(candidate)
        if files.get_file_from_path(uri) is not None and repository_path(uri) == candidate:
            start = PurePosixPath(uri_of(here)).parent
            to = PurePosixPath(os.path.relpath(uri, start)).as_posix()
            return f"{match[4]}({to})" if match[4] else f"[{label}]({to}{anchor})"
    if match[4]:
        raise PluginError(f"{here} shows {target}, which is not on the site")
    return label if "`" in label or path in label else f"{label} (`{path}`)"
