"""Time, FLOPs and memory of a GradAug training step, as ratios to the plain step's.

Writes training.json and training.md into --out; what they hold of other tasks and settings stays.
Profiles go beside them. On a busy machine believe the processor time.
"""

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from benchmarks.training.run import Run, parse_options, run
from benchmarks.training.workload import TASKS
from gradaug_det.errors import GradAugError

ROOT = Path(__file__).resolve().parents[2]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=10, help="steps of each variant (10)")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="e.g. soft-2")
    parser.add_argument("--profile", nargs="+", default=[], metavar="VARIANT", help="or plain")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of GradAug")
    parser.add_argument("--batch", type=int, help="images a step")
    parser.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="height and width")
    parser.add_argument("--depth", type=int, default=50, help="of the classification's ResNet (50)")
    parser.add_argument("--small", action="store_true", help="detectors of the mini configs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("report/training"), metavar="DIR")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    # PyTorch's profiler, which counts memory, reports a missing GPU as an error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = vars(args) | {"options": parse_options(args.options)}
    command = shlex.join(["python", "-m", "benchmarks.training", *_without_out(argv)])
    try:
        run(Run(configs=ROOT / "configs", command=command, **settings))
    except GradAugError as error:
        sys.exit(f"error: {error}")
    return 0


def _without_out(argv: list[str]) -> list[str]:
    """The arguments that a reader needs: not the folder that this run writes to."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--out")
    return own.parse_known_args(argv)[1]


if __name__ == "__main__":
    sys.exit(main())
