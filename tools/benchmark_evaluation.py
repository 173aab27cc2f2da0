#!/usr/bin/env python
"""Time of COCO's metrics as a ratio to pycocotools'; writes evaluation.json and evaluation.md."""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from gradaug_det.evaluation.speed import measure_evaluation, write_evaluation_speed

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="COCO val 2017 has 5000 (5000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    command = f"tools/benchmark_evaluation.py --images {args.images} --rounds {args.rounds}"
    with tempfile.TemporaryDirectory() as folder:
        content = measure_evaluation(Path(folder), args.images, args.rounds)
    print(write_evaluation_speed(content, args.out, command).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
