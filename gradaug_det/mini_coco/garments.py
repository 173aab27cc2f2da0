"""Fashion-MNIST garments: the embedded subset, and the full data set in its idx files."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from gradaug_det.errors import ConfigError, DataError

CLASS_NAMES: tuple[str, ...] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Fashion-MNIST's ten classes; the position in the tuple is the label."""

# An unmodified, class-balanced subset (MIT licence, see the text beside it), written by
# tools/build_garments.py. Read with allow_pickle=False, it can hold nothing but arrays.
EMBEDDED = Path(__file__).parent / "data" / "garments.npz"
GARMENT_SIDE = 28

_IDX_STEMS = {"train": "train", "test": "t10k", "val": "t10k"}


def load_garments(
    split: str, fashion_mnist: str | Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Loads garment images and labels of one Fashion-MNIST split.

    Args:
        split: ``"train"`` or ``"test"``; ``"val"`` is another name of ``"test"``. The two never
            share a garment, so what is trained on the first can be measured on the second.
        fashion_mnist: a directory with Fashion-MNIST's idx files (plain or ``.gz``): the Debian
            package's, or the ``raw`` folder (or any parent of it) that
            ``torchvision.datasets.FashionMNIST`` leaves. None takes the embedded subset
            (4000 train and 1200 test garments, the same number of every class).

    Returns:
        ``images`` (N, 28, 28) uint8, 0 is the background, and ``labels`` (N,) uint8 in 0..9,
        indices into `CLASS_NAMES`. Both are new, writable arrays.

    Raises:
        ConfigError: the split has another name.
        DataError: a file is missing, damaged or of another format.
    """
    if split not in _IDX_STEMS:
        raise ConfigError("split", f"{split!r} is unknown; use one of {sorted(_IDX_STEMS)}")
    if fashion_mnist is not None:
        return _load_idx_split(Path(fashion_mnist), split)
    name = "test" if split == "val" else split
    try:
        with np.load(EMBEDDED, allow_pickle=False) as archive:
            return archive[f"{name}_images"], archive[f"{name}_labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"The embedded garments {EMBEDDED} cannot be read ({error}); reinstall the package, "
            "or regenerate the file with `python tools/build_garments.py`"
        ) from error


def _load_idx_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(_find_idx(folder, f"{_IDX_STEMS[split]}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(folder, f"{_IDX_STEMS[split]}-labels-idx1-ubyte"))
    if images.shape[1:] != (GARMENT_SIDE, GARMENT_SIDE):
        raise DataError(f"{folder}: {split} images have shape {images.shape}, not (N, 28, 28)")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{folder}: {len(images)} {split} images but labels of {labels.shape}")
    if len(labels) == 0 or labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{folder}: {split} labels are empty or beyond 0..{len(CLASS_NAMES) - 1}")
    return images, labels


def _find_idx(folder: Path, name: str) -> Path:
    # torchvision's root argument is the grandparent of the idx files.
    for place in (folder, folder / "raw", folder / "FashionMNIST" / "raw"):
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(
        f"{folder} has no {name}[.gz]; give the directory of Fashion-MNIST's four idx files "
        "(the Debian package dataset-fashion-mnist, or torchvision's FashionMNIST/raw)"
    )


def read_idx(path: Path) -> np.ndarray:
    """Reads a uint8 idx file, also a compressed one, whose name ends in ``.gz``.

    torchvision's reader is not part of its public API and does not take ``.gz``.

    Raises:
        DataError: not an idx file of bytes, or truncated.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    # Header: two zero bytes, the type (8 is uint8), the rank, then big-endian 32-bit sizes.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is not an idx file of uint8")
    shape = tuple(np.frombuffer(data, ">u4", count=data[3], offset=4).tolist())
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != math.prod(shape):
        raise DataError(f"{path} states shape {shape} but holds {body.size} bytes")
    return body.reshape(shape).copy()
