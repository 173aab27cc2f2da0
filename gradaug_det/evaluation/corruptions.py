"""ImageNet-C's corruptions through ``imagecorruptions``, the same every time.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, 2019; for detectors Michaelis et al., 2019, whose package does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from gradaug_det.errors import ConfigError, DataError

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 32  # pixels; the corruptions are not defined below


def corruption_names() -> list[str]:
    """ImageNet-C's fifteen."""
    from imagecorruptions import get_corruption_names

    return get_corruption_names("common")


def check_corruption(name: str, severity: int) -> None:
    """Raises ConfigError if there is no such corruption."""
    if name not in corruption_names():
        raise ConfigError(
            "corruption", f"{name!r} is unknown; choose among {', '.join(corruption_names())}"
        )
    if severity not in SEVERITIES:
        raise ConfigError("severity", f"must be one of {list(SEVERITIES)}, got {severity!r}")


def corrupt_image(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """An image, corrupted.

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
    with seeded(seed):
        return corrupt(np.ascontiguousarray(image), corruption_name=name, severity=severity)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, all that the corruptions draw from is seeded; they take no generator.

    That is NumPy's global generator, numba's own (glass blur), and a fresh ``default_rng()`` in
    scikit-image (impulse noise).
    """
    state, default_rng = np.random.get_state(), np.random.default_rng  # noqa: NPY002
    generator = default_rng(seed)
    try:
        np.random.seed(seed)  # noqa: NPY002
        _numba_seed()(seed)
        np.random.default_rng = lambda given=None: (
            generator if given is None else default_rng(given)
        )
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        np.random.default_rng = default_rng


@cache  # compiled once a process
def _numba_seed() -> Callable[[int], None]:
    from numba import njit

    return njit(lambda value: np.random.seed(value))  # noqa: NPY002
