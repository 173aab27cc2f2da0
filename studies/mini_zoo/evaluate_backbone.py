"""Accuracy of a zoo backbone's classifier on garments: clean, under FGSM, corrupted.

python -m studies.mini_zoo.evaluate_backbone B/backbone.safetensors --out B/robustness.json

With --describe the file itself, written anew, has them among its metrics: as float16, which is
what the pretraining writes.
"""

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gradaug_det.errors import GradAugError
from gradaug_det.pretrain.data import Crops
from gradaug_det.pretrain.scoring import load_classifier
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.backbone import read_backbone, save_backbone
from gradaug_det.zoo.info import METRICS
from studies.mini_zoo.robustness import corrupted_sets, measure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.mini_zoo.evaluate_backbone",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="a .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="json file to write")
    parser.add_argument("--describe", action="store_true", help="note the metrics in WEIGHTS, too")
    parser.add_argument("--size", type=int, default=32, help="side of the images (32)")
    parser.add_argument(
        "--corrupted", type=int, default=40, metavar="N", help="images of each class to corrupt"
    )
    parser.add_argument("--cache", type=Path, default=Path("output/corrupted"))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        model = load_classifier(str(args.weights))
        crops = Crops("test", root="", size=args.size)
        images, labels = crops.pixels(range(len(crops))), crops.targets
        first = torch.cat([(labels == c).nonzero()[: args.corrupted, 0] for c in labels.unique()])
        metrics = measure(
            model, images, labels, corrupted_sets(images[first], args.cache), labels[first]
        )
        with atomic_path(args.out) as temporary:
            temporary.write_text(json.dumps(metrics, indent=1) + "\n")
        if args.describe:
            state, info = read_backbone(args.weights)
            shown = {name: round(value, 4) for name, value in info.metrics.items()}
            shown |= {name: round(metrics[name], 4) for name in METRICS}
            save_backbone(args.weights, state, replace(info, metrics=shown))
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(" ".join(f"{k} {v:.1f}" for k, v in metrics.items() if "/" not in k))
    return 0


if __name__ == "__main__":
    sys.exit(main())
