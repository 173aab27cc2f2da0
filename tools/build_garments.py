#!/usr/bin/env python
"""Regenerates the embedded subset of Fashion-MNIST from its idx files.

python tools/build_garments.py --fashion-mnist DIR --out gradaug_det/mini_coco/data/garments.npz
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gradaug_det.mini_coco.garments import build_garments


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fashion-mnist",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of Fashion-MNIST's four idx files, plain or .gz",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="npz to write")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_garments(args.fashion_mnist, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
