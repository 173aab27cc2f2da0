"""Random numbers that depend on a position in the training, not on what was drawn before it.

A training that is resumed at step t then draws what the uninterrupted one drew, with no state of a
generator in its checkpoint, in any process and whatever the number of workers that load data.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's generators, those of all devices included.

    Args:
        seed: at least 0; see :func:`gradaug_det.core.sampling.stable_seed`.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the generator that frameworks draw from)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's CPU numbers within the block come from ``seed``; outside they
    are untouched. For loading data, which no accelerator takes part in."""
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        torch.set_rng_state(tensor)
