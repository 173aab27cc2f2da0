"""Random numbers that depend on a position in the training, not on what was drawn before it.

A training that is resumed at step t then draws what the uninterrupted one drew, with no state of a
generator in its checkpoint, in any process and whatever the number of workers that load data.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stable_seed(*parts: object) -> int:
    """Returns 63 bits that depend on nothing but the parts, on any machine and Python."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's generators, those of all devices included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the generator that frameworks draw from)
    torch.manual_seed(seed)


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Within the block, Python's, numpy's and torch's CPU numbers come from ``seed``; outside they
    are untouched. For loading data, which no accelerator takes part in."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=()):
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            # Not torch.manual_seed, which seeds the accelerators as well.
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002


@contextmanager
def isolated_rng(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within the block, torch's random numbers come from ``seed``; outside they are untouched.

    A sub-network's dropout or proposal sampling therefore neither shifts the full network's nor
    depends on where a training was resumed.
    """
    device = torch.device(device)
    devices = [device] if device.type != "cpu" else []
    kind = device.type if devices else "cuda"
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield
