"""Helpers of the data set tests: fake Fashion-MNIST files, file hashes, decoded annotations."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 in Fashion-MNIST's format; gzip if the name ends in .gz."""
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as stream:
        stream.write(header + array.astype(np.uint8).tobytes())


def write_fake_fashion_mnist(
    folder: Path, train: int = 20, test: int = 10, suffix: str = ".gz"
) -> Path:
    """All four files. Train garments are upright bars, test garments lying ones."""
    folder.mkdir(parents=True, exist_ok=True)
    upright = np.zeros((train, 28, 28), np.uint8)
    upright[:, 2:26, 8:20] = np.arange(100, 100 + train)[:, None, None]
    lying = np.zeros((test, 28, 28), np.uint8)
    lying[:, 8:20, 2:26] = np.arange(160, 160 + test)[:, None, None]
    for stem, images in (("train", upright), ("t10k", lying)):
        labels = np.arange(len(images)) % 10
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return folder


def hashes(root: Path) -> dict[str, str]:
    """Relative path to sha256 of every file under ``root``."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read_split(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text("utf-8"))
