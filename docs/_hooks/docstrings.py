"""This project's docstrings, as the reference needs them: Google's style with two habits of ours,
Sphinx' roles (``:class:`package.Name```) and arguments that share a line (``a, b: ...``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[2]
_ROLE = re.compile(r":(?:class|func|meth|mod|data):`([~\w.]+)`")
_RAISES = re.compile(r"^( *)Raises \([^\n]*\):$", re.MULTILINE)
_ELSEWHERE = re.compile(r"^( *)Args: ", re.MULTILINE)
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): ")


class OurDocstrings(griffe.Extension):
    """Rewrites every docstring before it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring in Markdown, in sections that griffe can read."""
    text = _RAISES.sub(r"\1Raises:", text)
    text = _ELSEWHERE.sub(r"\1Arguments: ", text)
    return _ROLE.sub(lambda match: _reference(match[1]), _own_lines(text))


def _reference(name: str) -> str:
    """A link to what the reference describes; to nothing where it does not."""
    name = name.lstrip("~")
    shown = f"<code>{name.rsplit('.', 1)[-1]}</code>"
    return f'<autoref optional identifier="{name}">{shown}</autoref>' if "." in name else shown


def _own_lines(text: str) -> str:
    """The text with ``a, b: what`` as an entry each for a and b."""
    lines, result = text.split("\n"), []
    while lines:
        entry = [lines.pop(0)]
        match = _SHARED.match(entry[0])
        if match is None:
            result += entry
            continue
        while lines and lines[0].startswith(match[1] + "  "):
            entry.append(lines.pop(0))
        rest = entry[0][match.end() :]
        for name in match[2].split(", "):
            result += [f"{match[1]}{name}: {rest}", *entry[1:]]
    return "\n".join(result)


def describe_arguments(path: str) -> dict[str, str]:
    """Returns what a class' docstring says of each of its arguments.

    Args:
        path: ``module.Class``.

    Returns:
        Argument -> Markdown of one line.
    """
    module, name = path.rsplit(".", 1)
    extensions = griffe.load_extensions(OurDocstrings)
    loader = griffe.GriffeLoader(search_paths=[ROOT], extensions=extensions)
    docstring = loader.load(module)[name].docstring
    options = {"warn_unknown_params": False, "warn_missing_types": False}
    sections = docstring.parse("google", **options) if docstring else []
    return {
        item.name: " ".join(item.description.split())
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for item in section.value
    }
