"""The study of table 3 in small: its trainings, and their stored results.

A training is a cell: Mask R-CNN on mini-COCO from one backbone, fine-tuned one way, with one seed.
What it measured is a small JSON file. The program that trained the cells is in the commit that the
study's README names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ITERATIONS = 600
"""Length of the 1x schedule, at 4 images a step."""
TRAIN, VAL = 100, 200
"""Images of mini-COCO; cells with a smaller share have its first training images."""
BACKBONES = {
    "none": "None (random)",
    "baseline": "Baseline",
    "mixup": "Mixup",
    "cutmix": "CutMix",
    "gradaug": "GradAug",
}
"""Pretraining, as :data:`studies.mini_zoo.study.METHODS` calls it: all garments, seed 0."""
METHODS = {
    "plain": "plain",
    "rescaled": "plain, rescaled images",
    "soft": "GradAug, soft",
    "labels": "GradAug, labels",
    "both": "GradAug, both",
    "labels-rescaled": "GradAug, labels, rescaled images",
}
"""Fine-tuning: plain, or GradAug by what its sub-networks learn from; and with images that have the
sizes of sub-networks' already when the full network sees them."""
COMPUTE_RATIO = {"soft": 2.4, "labels": 2.7, "both": 3.1}
"""A GradAug step (n = 2) over a plain one, in processor time on one thread: 28 steps of 4 images of
each, in turns of 14 after 2 others (0.45 s plain; 1.09 s, 1.22 s and 1.37 s). Step times of the
study's own trainings are in the results; they are of different days, and of whatever ran beside."""
EQUAL_COMPUTE = ("labels", "both")
"""Supervisions that plain fine-tuning of the same compute is trained for. Not ``soft``, which loses
to plain fine-tuning of the same iterations already."""
BUDGETS = {"1x": 1.0, **{f"as-{method}": COMPUTE_RATIO[method] for method in EQUAL_COMPUTE}}
"""Length in 1x schedules. ``as-labels``: plain, and as long as GradAug ``labels`` at 1x takes."""
PARTS = {
    "main": "Backbones and fine-tunings, same iterations",
    "compute": "Same compute",
    "controls": "Narrower networks or rescaled images",
    "low-data": "Fewer images",
    "sweep": "GradAug's settings",
}
SHARES = (0.1, 0.2, 0.5)
LOW_DATA = (("plain", "1x"), ("labels", "1x"), ("rescaled", "as-labels"))
"""Fine-tunings, and how long, whose need of images is compared; the last, a control, with the
fewest images and over one seed alone."""
SEEDS = (1, 2, 3)
FIRST_SEED = SEEDS[0]
"""The only one of trainings that need no interval: settings of the sweep, some controls."""
COMPARED = ("plain", "labels", "both")
"""Fine-tunings of which one becomes the default: on dev over all seeds, and their robustness."""
ROBUSTNESS = {"images": 100, "corruptions": [], "severities": [3], "fgsm": [2.0]}
"""Under which the finals are measured: the first images of the validation set under corruptions
(none named: all 15) at these severities, and under FGSM with these steps of 255."""
CANDIDATE_SCALES = (1.25, 1.0, 0.8)
"""The scales that the sweep's one seed shows to be best: over all seeds before they become a
default, and beside plain fine-tuning whose images have these sizes."""


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the study.

    The defaults of GradAug's settings are those that all parts but the sweep use.

    Args:
        backbone: key of :data:`BACKBONES`.
        method: key of :data:`METHODS`.
        seed: of new layers (of all layers without a backbone), image order and sub-networks.
        budget: key of :data:`BUDGETS`.
        share: of the training images, in (0, 1].
        num_subnets, min_width: n and alpha of GradAug's sub-networks.
        scales: of sub-networks, or of the images of a method with rescaled images.
        soft_warmup: iterations in which the weight of the losses against soft targets rises.
        split: ``test``: what is reported; ``dev``: for choosing settings, with other garments.
    """

    backbone: str
    method: str
    seed: int
    budget: str = "1x"
    share: float = 1.0
    num_subnets: int = 2
    min_width: float = 0.9
    scales: tuple[float, ...] = (1.0, 0.857, 0.714, 0.571)
    soft_warmup: int = 0
    split: str = "test"

    @property
    def uses_gradaug(self) -> bool:
        return self.supervision in COMPUTE_RATIO

    @property
    def supervision(self) -> str:
        """The targets that sub-networks learn from, if there are any."""
        return self.method.removesuffix("-rescaled")

    @property
    def iterations(self) -> int:
        """Optimizer steps."""
        return round(ITERATIONS * BUDGETS[self.budget])

    @property
    def plain(self) -> Cell:
        """Plain 1x fine-tuning of the same backbone, with the same images and seed."""
        return Cell(self.backbone, "plain", self.seed, share=self.share, split=self.split)

    @property
    def control(self) -> Cell:
        """Plain fine-tuning, images having sub-networks' sizes, of the compute of ``labels``."""
        return replace(self, method="rescaled", budget="as-labels")

    @property
    def changed(self) -> dict[str, Any]:
        """GradAug's settings that are not the default."""
        settings = ("num_subnets", "min_width", "scales", "soft_warmup")
        default = Cell.__dataclass_fields__
        return {k: getattr(self, k) for k in settings if getattr(self, k) != default[k].default}

    @property
    def name(self) -> str:
        """E.g. ``gradaug-labels-1x-seed1``; what is not the default is spelled out."""
        short = {"num_subnets": "n", "min_width": "alpha", "scales": "scales"}
        parts = [self.backbone, self.method, self.budget]
        parts += [f"{100 * self.share:g}pct"] if self.share < 1 else []
        parts += [f"{short.get(k, 'warmup')}{_value_in_name(v)}" for k, v in self.changed.items()]
        parts += ["dev"] if self.split == "dev" else []
        return "-".join([*parts, f"seed{self.seed}"])


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what each training measured, by the cells' names."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in folder.glob("*.json")}


def _value_in_name(value: Any) -> str:
    """Returns a setting as it stands in a file's name."""
    return "+".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"
