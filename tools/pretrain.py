#!/usr/bin/env python
"""Pretrains a backbone by classification, with or without GradAug.

    python tools/pretrain.py --config configs/pretrain/mini_resnet18_gradaug.yaml --out output/b
    torchrun --nproc_per_node 8 tools/pretrain.py \\
        --config configs/pretrain/resnet50_in1k_gradaug.yaml --out output/r50 data.root=IMAGENET

The same command goes on with an interrupted training, to the same weights. Writes
backbone.safetensors (a file for the model zoo), metrics.json and TensorBoard's files.

    python tools/pretrain.py --config configs/pretrain/mini_resnet18_gradaug.yaml \\
        --eval-only mini-resnet18-gradaug

trains nothing and prints that backbone's accuracy, under FGSM too, on the recipe's images.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger

from gradaug_det.errors import GradAugError
from gradaug_det.pretrain.engine import Pretraining
from gradaug_det.pretrain.recipe import load_recipe
from gradaug_det.pretrain.scoring import score_backbone


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="a yaml recipe")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--out", type=Path, help="folder of this training")
    text = "an entry of the zoo, or a .safetensors file: score it, and train nothing"
    goal.add_argument("--eval-only", metavar="BACKBONE", help=text)
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
            loggers=TensorBoardLogger(args.out, name="tensorboard", version="") if args.out else [],
        )
        fabric.launch()
        if args.out:
            Pretraining(recipe, args.out, fabric).run()
        else:
            metrics = score_backbone(args.eval_only, recipe, fabric)
            if fabric.is_global_zero:
                print(json.dumps({name: round(value, 4) for name, value in metrics.items()}))
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
