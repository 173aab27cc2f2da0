"""Checks of keypoints: x, y in pixels and visibility 0, 1 or 2 of each."""

from __future__ import annotations

from collections import Counter, defaultdict
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
    """Looks at each annotation's keypoints; returns the labelled ones, (m, 2) x, y.

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
    labelled = [np.empty((0, 2))]
    if not lengths and wanted is None:
        return labelled[0]
    usual = lengths.most_common(1)[0][0] if lengths else 0
    sound: dict[int, dict[int, list]] = defaultdict(dict)  # length -> annotation -> numbers
    for index, (values, known) in enumerate(zip(lists, names, strict=True)):
        named = isinstance(known, list) and len(known) > 0
        if values is None or values == []:
            if wanted is not None or named:
                findings.add("keypoints-missing", **example(index))
            continue
        count = len(known) if named else max(1, usual // 3)
        expected = 3 * (count if wanted is None else wanted)
        length = len(values) if isinstance(values, list) else None
        if length != expected or not all(map(is_number, values)):
            shown = {"numbers": length, "expected": expected}
            findings.add("keypoints-malformed", **example(index), **shown)
            continue
        if not named:
            findings.add("keypoint-names-missing", **example(index))
        sound[expected][index] = list(map(to_float, values))
    for values in sound.values():
        rows = np.array(list(values))
        points = np.array(list(values.values()), np.float64).reshape(len(rows), -1, 3)
        places, visible = points[:, :, :2], points[:, :, 2] > 0
        odd = ~np.isin(points[:, :, 2], (0, 1, 2)).all(axis=1)
        findings.add_all("keypoint-visibility", rows[odd].tolist(), example)
        outside = ((places < -EDGE) | (places > size[rows][:, None] + EDGE)).any(axis=2)
        outside = (outside | ~np.isfinite(places).all(axis=2)) & visible
        findings.add_all("keypoints-outside-image", rows[outside.any(axis=1)].tolist(), example)
        for row, count in zip(rows.tolist(), visible.sum(axis=1).tolist(), strict=True):
            said = annotations[row].get("num_keypoints")
            if said is None:
                findings.add("num-keypoints-missing", **example(row))
            elif said != count:
                findings.add("num-keypoints-differs", **example(row), says=said, labelled=count)
        labelled.append(places[visible])
    return np.concatenate(labelled)
