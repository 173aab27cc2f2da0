"""Fine-tunes the mini detector in Detectron2 and MMDetection over seeds and compares their AP."""

import argparse
import logging
import sys
from pathlib import Path

from gradaug_det.errors import GradAugError
from studies.frameworks.study import FrameworkComparison, compare_frameworks
from studies.runner.frameworks import FRAMEWORKS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.frameworks", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "frameworks")
    parser.add_argument("--report", type=Path, default=ROOT / "report" / "frameworks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=FrameworkComparison.iterations)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each training; 0: all cores")
    parser.add_argument(
        "--publish", action="store_true", help="also copy report.md and .json to results"
    )
    for name in FRAMEWORKS:
        parser.add_argument(f"--{name}-weights", metavar="WEIGHTS", help="instead of the zoo's")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    weights = {name: getattr(args, f"{name}_weights") for name in FRAMEWORKS}
    try:
        settings = FrameworkComparison(seeds=tuple(args.seeds), iterations=args.iterations)
        settings.weights.update({name: value for name, value in weights.items() if value})
        index = compare_frameworks(
            args.out, args.report, ROOT, settings, jobs=args.jobs, threads=args.threads or None
        )
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.publish:
        for name in ("report.md", "report.json"):
            (RESULTS / name).write_text((index.parent / name).read_text())
    print(index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
