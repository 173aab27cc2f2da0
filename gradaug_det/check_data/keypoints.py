"""The part of a check that looks at keypoints: x, y in pixels and visibility 0, 1 or 2 of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradaug_det.check_data.kinds import Findings
from gradaug_det.check_data.masks import is_number, to_float
from gradaug_det.check_data.objects import EDGE


def check_keypoints(
    annotations: Sequence[dict],
    names: Sequence[Any],
    size: np.ndarray,
    wanted: int | None,
    example: Callable[[int], dict[str, Any]],
    findings: Findings,
) -> np.ndarray:
    """Looks at each annotation's keypoints; gives the labelled ones, (m, 2) x, y.

    Args:
        annotations: those of the file.
        names: what each annotation's category has as ``keypoints``.
        size: (n, 2) the images' width, height.
        wanted: how many a detector wants of each object; None: not known.
        example: describes an annotation.
        findings: where they go.
    """
    lists = [annotation.get("keypoints") for annotation in annotations]
    lengths = Counter(len(values) for values in lists if isinstance(values, list) and values)
    if not lengths and wanted is None:
        return np.empty((0, 2))
    usual = lengths.most_common(1)[0][0] if lengths else 0
    sound: dict[int, list[list]] = {}  # by length
    places: dict[int, list[int]] = {}
    for index, values in enumerate(lists):
        known = names[index]
        named = isinstance(known, list) and len(known) > 0
        if values is None or values == []:
            if wanted is not None or named:
                findings.add("keypoints-missing", **example(index))
            continue
        expected = 3 * (
            wanted if wanted is not None else len(known) if named else max(1, usual // 3)
        )
        numbers = isinstance(values, list) and all(map(is_number, values))
        if not numbers or len(values) != expected:
            length = len(values) if isinstance(values, list) else None
            shown = {"numbers": length, "expected": expected}
            findings.add("keypoints-malformed", **example(index), **shown)
            continue
        if not named:
            findings.add("keypoint-names-missing", **example(index))
        sound.setdefault(expected, []).append(values)
        places.setdefault(expected, []).append(index)
    labelled = [np.empty((0, 2))]
    for length, values in sound.items():
        rows = np.array(places[length])
        points = np.array([list(map(to_float, one)) for one in values], np.float64)
        points = points.reshape(len(rows), -1, 3)
        labelled.append(_check_points(points, rows, annotations, size, example, findings))
    return np.concatenate(labelled)


def _check_points(
    points: np.ndarray,
    rows: np.ndarray,
    annotations: Sequence[dict],
    size: np.ndarray,
    example: Callable[[int], dict[str, Any]],
    findings: Findings,
) -> np.ndarray:
    visible = points[:, :, 2] > 0
    odd = ~np.isin(points[:, :, 2], (0, 1, 2)).all(axis=1)
    findings.add_all("keypoint-visibility", rows[odd].tolist(), example)
    places = points[:, :, :2]
    outside = ((places < -EDGE) | (places > size[rows][:, None] + EDGE)).any(axis=2)
    outside |= ~np.isfinite(places).all(axis=2)
    findings.add_all(
        "keypoints-outside-image", rows[(outside & visible).any(axis=1)].tolist(), example
    )
    for row, count in zip(rows.tolist(), visible.sum(axis=1).tolist(), strict=True):
        said = annotations[row].get("num_keypoints")
        if said is None:
            findings.add("num-keypoints-missing", **example(row))
        elif said != count:
            findings.add("num-keypoints-differs", **example(row), says=said, labelled=count)
    return places[visible]
