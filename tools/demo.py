#!/usr/bin/env python
"""Trains Mask R-CNN on mini-COCO with and without GradAug and writes report/index.html."""

import argparse
import logging
import sys
from pathlib import Path

from gradaug_det.demo import DemoSettings, run_demo
from gradaug_det.errors import GradAugError

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--framework", choices=["detectron2"], default="detectron2")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo", help="work folder")
    parser.add_argument("--report", type=Path, default=ROOT / "report", help="report folder")
    parser.add_argument("--iterations", type=int, default=DemoSettings.iterations)
    parser.add_argument("--seed", type=int, default=DemoSettings.seed)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        settings = DemoSettings(iterations=args.iterations, seed=args.seed)
        run_demo(args.out, args.report, ROOT, settings)
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
