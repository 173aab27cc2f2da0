"""``gradaug-det build-garments``: regenerate the embedded subset of Fashion-MNIST."""

from __future__ import annotations

import argparse
from pathlib import Path

from gradaug_det.datasets.garments import build_garments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fashion-mnist",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of Fashion-MNIST's four idx files, plain or .gz",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="npz to write")


def run(args: argparse.Namespace) -> int:
    build_garments(args.fashion_mnist, args.out)
    return 0
