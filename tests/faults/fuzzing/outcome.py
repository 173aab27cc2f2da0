"""Good answers of a reader and bad ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradaug_det.errors import GradAugError


def sentence_problem(error: BaseException) -> str | None:
    """Returns what is wrong with an exception as an answer to a user; None if it is a good one."""
    text = str(error)
    if not isinstance(error, GradAugError):
        return f"{type(error).__name__} is none of the package's errors: {text!r:.300}"
    if len(text.split()) < 4:
        return f"{type(error).__name__} is no sentence: {text!r}"
    if not text.replace("\n", "").isprintable():
        return f"{type(error).__name__} has characters that a terminal would obey: {text!r:.300}"
    if len(text) > 5000:
        return f"{type(error).__name__} of {len(text)} characters"
    return None


def run_all(*calls: Callable[[], Any]) -> GradAugError | None:
    """Returns the first of the package's errors, after all calls; others are raised at once."""
    first = None
    for call in calls:
        try:
            call()
        except GradAugError as error:
            if problem := sentence_problem(error):
                raise AssertionError(problem) from error
            first = first or error
    return first


def raise_first_error(*calls: Callable[[], Any]) -> None:
    if error := run_all(*calls):
        raise error
