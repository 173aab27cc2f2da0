"""The cost of Mask R-CNN with GradAug on 8 and on 64 GPUs, on paper, from measured pieces.

Writes scaling.md and scaling.json into --out. What cannot be measured without GPUs is
given by options and named as such; the model is checked on two processes of this machine.
"""

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.scaling.model import Cluster, Pieces, measure_scaling, write_scaling
from benchmarks.training.detectron2 import loading_seconds
from gradaug_det.errors import GradAugError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = 0.261  # s a step of 2 images a GPU, 8 V100: MODEL_ZOO.md of Detectron2, R50-FPN 1x


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--plain-step", type=float, default=PUBLISHED, metavar="SECONDS")
    parser.add_argument("--images-per-gpu", type=int, default=2)
    parser.add_argument("--loaders", type=int, default=4, help="processes for each GPU (4)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--node-bandwidth", type=float, default=60e9, help="bytes/s (60e9)")
    parser.add_argument("--network-bandwidth", type=float, default=10e9, help="bytes/s (10e9)")
    text = "seconds that a convolution of a new shape takes longer (1.27e-3)"
    parser.add_argument("--cold", type=float, default=1.27e-3, metavar="SECONDS", help=text)
    parser.add_argument("--latency", type=float, default=20e-6, help="seconds a message (20e-6)")
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1088], metavar=("H", "W"))
    parser.add_argument("--iterations", type=int, default=2, help="whose FLOPs are counted (2)")
    parser.add_argument("--steps", type=int, default=9, help="of the check on two processes (9)")
    parser.add_argument("--images", type=int, default=20, help="to time loading (20)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        links = (args.node_bandwidth, args.network_bandwidth, args.latency)
        clusters = {
            f"{gpus} GPU{'s' if gpus > 1 else ''}": Cluster(gpus, 8, *links) for gpus in args.gpus
        }
        configs = ROOT / "configs"
        measured = measure_scaling(
            configs,
            tuple(args.size),
            args.iterations,
            args.steps,
            lambda: loading_seconds(configs, args.images),
        )
        pieces = Pieces(
            args.plain_step,
            args.images_per_gpu,
            measured["gradient_bytes"],
            measured["head_bytes"],
            measured["load_seconds"],
            args.loaders,
            measured["host_seconds"],
            measured["cold_convolutions"],
            args.cold,
        )
        print(write_scaling(args.out, measured, pieces, clusters).read_text())
    except GradAugError as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
