#!/usr/bin/env python
"""Writes the embedded subset of Fashion-MNIST from its idx files, bit-identically every time.

python tools/build_garments.py --fashion-mnist DIR --out gradaug_det/mini_coco/data/garments.npz
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np

from gradaug_det.mini_coco import CLASS_NAMES, load_garments
from gradaug_det.utils.files import atomic_path

PER_CLASS = {"train": 400, "test": 120}


def build_garments(fashion_mnist: str | Path, out: str | Path) -> Path:
    """Writes arrays ``{train,test}_{images,labels,index}``; ``index`` is Fashion-MNIST's position.

    The first 400 train and 120 test garments of every class, in file order, are taken (fewer
    if the files hold fewer).

    Args:
        fashion_mnist: a directory as in `gradaug_det.mini_coco.load_garments`.
        out: the ``.npz`` to write; an existing file is replaced.

    Raises:
        DataError: the idx files cannot be used.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, per_class in PER_CLASS.items():
        images, labels = load_garments(split, fashion_mnist)
        classes = range(len(CLASS_NAMES))
        first = [np.flatnonzero(labels == label)[:per_class] for label in classes]
        chosen = np.sort(np.concatenate(first))
        arrays[f"{split}_images"] = images[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
        arrays[f"{split}_index"] = chosen.astype(np.uint16 if len(labels) < 65536 else np.uint32)
    with atomic_path(out) as partial:
        write_npz(partial, arrays)
    return Path(out)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Does what `numpy.savez_compressed` does, with fixed metadata of the zip entries too."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "directory of Fashion-MNIST's four idx files, plain or .gz"
    add("--fashion-mnist", type=Path, required=True, metavar="DIR", help=text)
    add("--out", type=Path, required=True, metavar="FILE", help="npz to write")
    args = parser.parse_args()
    out = build_garments(args.fashion_mnist, args.out)
    print(f"Wrote {out}, {out.stat().st_size / 1e6:.2f} MB.")


if __name__ == "__main__":
    main()
