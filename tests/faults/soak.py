"""A long training: memory, open files and processor time of a step stay what they were.

python -m tests.faults.soak --iterations 2000 --publish
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gradaug_det.reports.plots import METHOD_COLOURS, render_svg
from gradaug_det.utils.files import atomic_path
from tests.faults import trainings

ROOT = Path(__file__).resolve().parents[2]
PLOT = "docs/faults/soak.svg"
RESULT = "tests/faults/results/soak.json"
WARM = 100
"""Iterations that allocators and caches get before anything is compared."""
BLOCK = 50
"""Iterations that are one point of the plot."""


def measure():
    """Resident memory in MiB, open file descriptors, processor time in seconds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir("/proc/self/fd")), time.process_time()  # noqa: PTH208


def run(engine, iterations, folder, data):
    """Trains; returns (memory, files, processor seconds of the step) of each iteration."""
    points = []

    def note(_folder, _step, _losses):
        points.append(measure())

    trainings.note, trainings.STEPS = note, iterations
    trainings.STEPS_AN_EPOCH = 30
    trainings.CHECKPOINT_EVERY = max(100, iterations // 10)
    trainings.TRAININGS[engine][0](folder, data, workers=0)
    times = [b[2] - a[2] for a, b in itertools.pairwise(points)]
    return [(*point[:2], seconds) for point, seconds in zip(points[1:], times, strict=True)]


def blocks(values):
    """Medians of blocks of iterations, after the warm-up."""
    rest = values[WARM:]
    return [statistics.median(rest[i : i + BLOCK]) for i in range(0, len(rest) - BLOCK + 1, BLOCK)]


def growth(values):
    """The last fifth's mean over the first fifth's."""
    part = max(1, len(values) // 5)
    return statistics.fmean(values[-part:]) / statistics.fmean(values[:part])


def summarise(engine, points):
    """The plot, relative to the first block, and what it shows in numbers."""
    names = ("resident memory", "open files", "processor time of a step")
    curves = {
        name: blocks(list(values))
        for name, values in zip(names, zip(*points, strict=True), strict=True)
    }

    def draw(axes):
        for colour, (name, values) in zip(METHOD_COLOURS, curves.items(), strict=False):
            xs = [WARM + BLOCK * (i + 0.5) for i in range(len(values))]
            axes.plot(xs, [v / values[0] for v in values], color=colour, label=name, linewidth=1.6)
        axes.set_xlabel("iteration")
        axes.set_ylabel(f"over iterations {WARM} to {WARM + BLOCK}")
        axes.set_ylim(0, 2)
        axes.legend(frameon=False, fontsize=9.5)

    content = {
        "engine": engine,
        "iterations": len(points) + 1,
        "last fifth over first": {name: round(growth(v), 4) for name, v in curves.items()},
        "first": {name: round(v[0], 4) for name, v in curves.items()},
        "last": {name: round(v[-1], 4) for name, v in curves.items()},
    }
    return render_svg(draw), content


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--engine", choices=("Detectron2", "MMDetection"), default="Detectron2")
    parser.add_argument("--publish", action="store_true", help=f"write {PLOT} and {RESULT}")
    args = parser.parse_args(argv)
    from gradaug_det.mini_coco import build_mini_coco

    with tempfile.TemporaryDirectory() as folder:
        data = build_mini_coco(Path(folder) / "mini_coco", train=60, val=2)
        points = run(args.engine, args.iterations, Path(folder) / "out", data)
    plot, content = summarise(args.engine, points)
    text = json.dumps(content, indent=1)
    print(text)  # noqa: T201
    if args.publish:
        for path, written in ((PLOT, plot), (RESULT, text)):
            with atomic_path(ROOT / path) as temporary:
                temporary.write_text(written + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
