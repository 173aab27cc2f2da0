"""Processor time of a training step of each mini recipe, as a ratio to the baseline's.

Steps of all recipes are interleaved, so that whatever else the machine does meets all alike.
Writes step_cost.json and .md.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lightning_fabric import Fabric

from gradaug_det.pretrain.data import train_loader
from gradaug_det.pretrain.engine import Pretraining
from gradaug_det.pretrain.recipe import load_recipe
from gradaug_det.utils.environment import describe_environment, machine_line
from studies.mini_zoo.study import METHODS

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.mini_zoo.step_cost", description=__doc__
    )
    parser.add_argument("--steps", type=int, default=20, help="of each recipe (20)")
    parser.add_argument("--out", type=Path, default=ROOT / "studies" / "mini_zoo")
    args = parser.parse_args(argv)
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        trainings, batches = {}, {}
        for name in METHODS:
            recipe = load_recipe(ROOT / f"configs/pretrain/mini_resnet18_{name}.yaml")
            trainings[name] = training = Pretraining(recipe, Path(folder) / name, fabric)
            batches[name] = iter(train_loader(training.images, recipe, training.batches))
        for step in range(args.steps + 1):
            for name, training in trainings.items():
                start = time.process_time()
                training.train_step(step, *next(batches[name]))
                if step:  # the first one warms up
                    seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: value / medians["baseline"] for name, value in medians.items()}
    environment = describe_environment()
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"steps": args.steps, "ratios": ratios, "environment": environment}
    (args.out / "step_cost.json").write_text(json.dumps(content, indent=1) + "\n")
    rows = "\n".join(f"| {METHODS[name]} | {ratio:.2f} |" for name, ratio in ratios.items())
    text = (
        "# A pretraining step, as a ratio to the baseline's\n\n"
        f"Median processor time of {args.steps} interleaved steps of each mini recipe, loading "
        f"included. `python -m studies.mini_zoo.step_cost` on {machine_line(environment)}.\n\n"
        f"| method | ratio |\n|:--|--:|\n{rows}\n"
    )
    (args.out / "step_cost.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
