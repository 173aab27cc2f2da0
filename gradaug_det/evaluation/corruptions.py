"""ImageNet-C's corruptions through ``imagecorruptions``, the same every time.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, 2019; for detectors Michaelis et al., 2019, whose package does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from gradaug_det.errors import DataError
from gradaug_det.utils.seeding import temporary_seed

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 32  # pixels; the corruptions are not defined below


def corruption_names() -> list[str]:
    """Returns ImageNet-C's fifteen."""
    from imagecorruptions import get_corruption_names

    return get_corruption_names("common")


def corrupt_image(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """Returns an image, corrupted.

    Args:
        image: uint8 (H, W, 3), RGB.
        name: one of :func:`corruption_names`.
        severity: 1 to 5.
        seed: of what is random in it.

    Raises:
        DataError: the image is smaller than the corruptions are defined for.
    """
    from imagecorruptions import corrupt

    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise DataError(
            f"corruptions need images of {SMALLEST_SIDE} pixels or more a side, this one has "
            f"{image.shape[0]} x {image.shape[1]}"
        )
    with seeded_corruptions(seed):
        return corrupt(np.ascontiguousarray(image), corruption_name=name, severity=severity)


@contextmanager
def seeded_corruptions(seed: int) -> Iterator[None]:
    """Within the block, all that the corruptions draw from is seeded; they take no generator.

    Beside NumPy's global generator that is numba's own (glass blur), and a fresh ``default_rng()``
    in scikit-image (impulse noise).
    """
    default_rng = np.random.default_rng
    generator = default_rng(seed)
    with temporary_seed(seed):
        _numba_seed()(seed)
        np.random.default_rng = lambda own=None: generator if own is None else default_rng(own)
        try:
            yield
        finally:
            np.random.default_rng = default_rng


@cache  # compiled once a process
def _numba_seed() -> Callable[[int], None]:
    from numba import njit

    return njit(lambda value: np.random.seed(value))  # noqa: NPY002
