"""Fine-tunes three Mask R-CNN on garments and writes report/index.html."""

import argparse
import logging
import sys
from pathlib import Path

from gradaug_det.errors import GradAugError
from studies.demo.publish import publish
from studies.demo.study import DemoSettings, run_demo
from studies.runner.frameworks import FRAMEWORKS

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.demo", description=__doc__)
    parser.add_argument("--framework", choices=list(FRAMEWORKS), default=DemoSettings.framework)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo", help="work folder")
    parser.add_argument("--report", type=Path, help="report folder; report or report/mmdet")
    parser.add_argument("--seed", type=int, default=DemoSettings.seed)
    parser.add_argument(
        "--publish", action="store_true", help="also put report and pictures beside this"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    place = {"detectron2": "", "mmdet": "mmdet"}[args.framework]
    try:
        report = args.report or ROOT / "report" / place
        run_demo(args.out, report, ROOT, DemoSettings(args.framework, seed=args.seed))
        if args.publish:
            publish(report, Path(__file__).parent / "results" / place)
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
