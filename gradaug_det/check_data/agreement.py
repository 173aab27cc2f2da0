"""Agreement of data sets with each other, and whether enough of one is left to learn from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from gradaug_det.errors import DataError

logger = logging.getLogger(__name__)
FEW = 4  # objects of a class: if fewer are given, the loss of most of them is not worth a line


def shorten(names: Sequence[str]) -> str:
    """``(bolt, nut, pin, nail, screw, ...)``"""
    return f"({', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''})"


def check_same_classes(classes: Mapping[str, Sequence[str]]) -> None:
    """Fails if a class index stands for one class in a data set and for another in the next.

    Args:
        classes: what the user calls a data set -> names of its classes by class index.

    Raises:
        DataError: names two data sets, the first index that differs, and the way out.
    """
    (first, expected), *others = classes.items() or [("", ())]
    for name, names in others:
        for index, pair in enumerate(zip_longest(expected, names)):
            if pair[0] == pair[1]:
                continue
            if None not in pair and len({"".join(one.split()).casefold() for one in pair}) == 1:
                hint = "the names differ in case or spaces alone: spell them alike"
            elif sorted(expected) == sorted(names):
                hint = "give the same classes the same order of category ids in both files"
            else:
                hint = (
                    f"write the same categories with the same ids in both files ({len(expected)} "
                    f"and {len(names)} now), also those of which a file has no object"
                )
            left, right = ("no class" if one is None else repr(one) for one in pair)
            raise DataError(f"class {index} is {left} in {first} and {right} in {name}; {hint}")


def check_kept(
    name: str, kept: Mapping[str, int], given: Mapping[str, int], reason: str = ""
) -> None:
    """Fails if a framework keeps no object to learn from; warns if it loses most, of a class too.

    Args:
        name: what the user calls the data set, or all that train together.
        kept: class name -> objects that the framework learns from.
        given: class name -> objects in the annotation file.
        reason: what is known of why, without a full stop.

    Raises:
        DataError: no object is left of all.
    """
    total, left = sum(given.values()), sum(kept.values())
    because = f" ({reason})" if reason else ""
    if not left:
        raise DataError(
            f"{name}: 0 of {total} objects are left to learn from{because}; "
            "gradaug-det check-data shows what is wrong with them"
        )
    lost = [
        f"{kept.get(key, 0)} of {count} of {key!r}"
        for key, count in given.items()
        if count >= FEW and 2 * kept.get(key, 0) < count
    ]
    if total >= FEW and 2 * left < total:
        lost = [f"{left} of {total} objects in all", *lost]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        shown = ", ".join(lost[:3]) + more
        logger.warning("%s: only %s are left to learn from%s", name, shown, because)
