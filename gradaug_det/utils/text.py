"""Untrusted values and errors as text that a terminal can show."""

from __future__ import annotations


def to_printable(value: object) -> str:
    """A value as text, cut and printable: it may be a whole file's worth, or steer a terminal.

    A sentence stays as it is; a word is put in quotes.
    """
    is_sentence = isinstance(value, str) and " " in value and value.isprintable()
    text = value if is_sentence else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def describe_error(error: Exception) -> str:
    """An error's class and message in one printable line."""
    return to_printable(" ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(":"))
