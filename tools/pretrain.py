#!/usr/bin/env python
"""Pretrains a backbone by classification, with or without GradAug.

    python tools/pretrain.py --config configs/pretrain/mini_resnet18_gradaug.yaml --out output/b
    torchrun --nproc_per_node 8 tools/pretrain.py \\
        --config configs/pretrain/resnet50_in1k_gradaug.yaml --out output/r50 data.root=IMAGENET

The same command goes on with an interrupted training, to the same weights. Writes
backbone.safetensors (a file for the model zoo), metrics.json and TensorBoard's files.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger

from gradaug_det.errors import GradAugError
from gradaug_det.pretrain.engine import Pretraining
from gradaug_det.pretrain.recipe import load_recipe


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="a yaml recipe")
    parser.add_argument("--out", type=Path, required=True, help="folder of this training")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, ... (auto)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. optim.lr=0.05")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        recipe = load_recipe(args.config, args.overrides)
        fabric = Fabric(
            accelerator=args.accelerator,
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),  # of torchrun
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
            precision=recipe.precision,
            loggers=TensorBoardLogger(args.out, name="tensorboard", version=""),
        )
        fabric.launch()
        Pretraining(recipe, args.out, fabric).run()
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
