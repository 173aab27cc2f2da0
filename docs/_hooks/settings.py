"""Tables of the configuration page, from the classes that validate the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from docstrings import describe_arguments

from gradaug_det.core.options import GradAugOptions
from gradaug_det.pretrain.recipe import Recipe


def detector_table() -> str:
    """Every setting of GradAugOptions under its names in both frameworks."""
    texts = describe_arguments("gradaug_det.core.options.GradAugOptions")
    rows = [
        (f"`GRADAUG.{field.name.upper()}`<br>`{field.name}`", _type_and_default(field), text)
        for field, text in _with_texts(GradAugOptions, texts)
    ]
    return _table(("Detectron2's key, hook's argument", "type, default", "meaning"), rows)


def recipe_table() -> str:
    """Every key of a pretraining recipe, with those of its sections."""
    rows = [(f"`{key}`", _type_and_default(field), text) for key, field, text in _keys(Recipe)]
    return _table(("key", "type, default", "meaning"), rows)


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, Field, str]]:
    plain = [f for f in fields(kind) if not is_dataclass(f.default_factory)]
    # What a recipe shares with a detector's training is told there.
    texts = (
        describe_arguments("gradaug_det.core.options.GradAugOptions") if "gradaug" in prefix else {}
    )
    texts |= describe_arguments(f"{kind.__module__}.{kind.__name__}")
    for field, text in _with_texts(kind, texts, plain):
        yield prefix + field.name, field, text
    for field in fields(kind):
        if is_dataclass(field.default_factory):
            yield from _keys(field.default_factory, f"{prefix}{field.name}.")


def _with_texts(
    kind: type, texts: dict[str, str], wanted: list[Field] | None = None
) -> Iterator[tuple[Field, str]]:
    for field in fields(kind) if wanted is None else wanted:
        if not texts.get(field.name):
            raise ValueError(f"the docstring of {kind.__name__} says nothing of '{field.name}'")
        yield field, texts[field.name]


def _type_and_default(field: Field) -> str:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return f"{field.type}<br>`{_default_text(default)}`"


def _default_text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
