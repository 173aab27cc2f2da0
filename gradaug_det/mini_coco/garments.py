"""Fashion-MNIST garments: the embedded subset, and the full data set in its idx files.

``data/garments.npz`` holds an unmodified, class-balanced subset (MIT licence, see the text beside
it). It is read with ``allow_pickle=False``, so the file can hold nothing but arrays.
"""

from __future__ import annotations

import gzip
import logging
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.utils.files import atomic_path

logger = logging.getLogger(__name__)

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

EMBEDDED = Path(__file__).parent / "data" / "garments.npz"
PER_CLASS = {"train": 400, "test": 120}
GARMENT_SIDE = 28

_IDX_STEM = {"train": "train", "test": "t10k"}
_SPLIT_ALIASES = {"train": "train", "test": "test", "val": "test"}


def load_garments(
    split: str, fashion_mnist: str | Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Load garment images and labels of one Fashion-MNIST split.

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
    if split not in _SPLIT_ALIASES:
        raise ConfigError("split", f"{split!r} is unknown; use one of {sorted(_SPLIT_ALIASES)}")
    split = _SPLIT_ALIASES[split]
    if fashion_mnist is not None:
        return _load_idx_split(Path(fashion_mnist), split)
    images, labels, _ = _load_embedded(split)
    return images, labels


def build_garments(fashion_mnist: str | Path, out: str | Path) -> Path:
    """Write the embedded subset from Fashion-MNIST's idx files, bit-identically every time.

    The first 400 train and 120 test garments of every class, in file order, are taken (fewer
    if the files hold fewer). Arrays ``{train,test}_{images,labels,index}``; ``index`` is the
    position in Fashion-MNIST.

    Args:
        fashion_mnist: a directory as in `load_garments`.
        out: the ``.npz`` to write; an existing file is replaced.

    Returns:
        The path written.

    Raises:
        DataError: the idx files cannot be used.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, per_class in PER_CLASS.items():
        images, labels = _load_idx_split(Path(fashion_mnist), split)
        chosen = np.sort(
            np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
        )
        arrays[f"{split}_images"] = images[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
        arrays[f"{split}_index"] = chosen.astype(np.uint16 if len(labels) < 65536 else np.uint32)
    out = Path(out)
    with atomic_path(out) as partial:
        _write_npz(partial, arrays)
    logger.info(
        "Wrote %s: %d train and %d test garments, %.2f MB.",
        out,
        len(arrays["train_labels"]),
        len(arrays["test_labels"]),
        out.stat().st_size / 1e6,
    )
    return out


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """`numpy.savez_compressed`, but with the zip entries' metadata fixed too."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)


def _load_embedded(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        with np.load(EMBEDDED, allow_pickle=False) as archive:
            return tuple(archive[f"{split}_{name}"] for name in ("images", "labels", "index"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"The embedded garments {EMBEDDED} cannot be read ({error}); reinstall the package, "
            "or regenerate the file with `python tools/build_garments.py`"
        ) from error


def _load_idx_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    stem = _IDX_STEM[split]
    images = read_idx(_find_idx(folder, f"{stem}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(folder, f"{stem}-labels-idx1-ubyte"))
    if images.ndim != 3 or images.shape[1:] != (GARMENT_SIDE, GARMENT_SIDE):
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
    """Read a uint8 idx file, plain or gzip.

    torchvision's reader is not part of its public API and does not take ``.gz``.

    Args:
        path: an idx file; a name ending in ``.gz`` is decompressed.

    Returns:
        A uint8 array of the shape that the header states.

    Raises:
        DataError: not an idx file of bytes, or truncated.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    # Header: two zero bytes, the type (8 is uint8), the rank, then big-endian int32 sizes.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is not an idx file of uint8")
    rank = data[3]
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", count=rank, offset=4))
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if min(shape, default=0) < 0 or body.size != math.prod(shape):
        raise DataError(f"{path} states shape {shape} but holds {body.size} bytes")
    return body.reshape(shape).copy()
