"""The pretraining loop's step, for the benchmark (see :mod:`benchmarks.training.workload`)."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from lightning_fabric import Fabric

from benchmarks.training.authors import authors_passes, make_slimmable
from benchmarks.training.workload import ALTERNATING, Variant, Workload, sample_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.errors import ConfigError
from gradaug_det.pretrain.data import normalize
from gradaug_det.pretrain.engine import Pretraining
from gradaug_det.pretrain.recipe import load_recipe


class ClassificationTraining:
    """The authors' recipe, or the any-width one, on random images; the classes are the garments'.

    The variant ``authors`` keeps the loop's network, optimizer and batch, and takes
    :func:`benchmarks.training.authors.authors_passes` in place of its passes, in the memory format
    and with the channel counts that they have.
    """

    def __init__(self, workload: Workload, variant: Variant) -> None:
        kind = "anywidth" if variant == ALTERNATING else "gradaug"
        file = workload.configs / f"pretrain/resnet50_in1k_{kind}.yaml"
        recipe = load_recipe(file, _overrides(workload, variant))
        if variant.kind == "authors":
            _check_plain_passes(recipe.gradaug.rotations, recipe.gradaug.block_survival)
        self._options = recipe.options
        fabric = Fabric(accelerator=torch.device(workload.device).type, devices=1)
        fabric.launch()
        with tempfile.TemporaryDirectory() as folder:  # nothing is written before the first log
            self._training = Pretraining(recipe, folder, fabric)
        self._by_authors = variant.kind == "authors"
        channels_last = workload.channels_last and not self._by_authors
        self.model = self._training.model.train()
        self.optimizer = self._training.optimizer
        if self._by_authors:
            make_slimmable(self.model)
        random = torch.Generator().manual_seed(0)
        images = torch.randint(
            256, (workload.batch_size, 3, *workload.size), dtype=torch.uint8, generator=random
        )
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        classes = len(self._training.images.classes)
        labels = torch.randint(classes, (workload.batch_size,), generator=random)
        self._images, self._labels = fabric.to_device((images, labels))

    def sub_networks(self, iteration: int) -> list[SubNetwork]:
        return sample_passes(self._options, iteration)

    def step(self, iteration: int) -> None:
        if not self._by_authors:
            self._training.train_step(iteration, self._images, self._labels)
            return
        self.optimizer.zero_grad()
        images = normalize(self._images)
        authors_passes(self.model, images, self._labels, self.sub_networks(iteration))
        self.optimizer.step()


def _overrides(workload: Workload, variant: Variant) -> list[str]:
    """Returns the recipe's. The loader's images, which no step takes, are as small as can be."""
    settings: dict[str, Any] = {
        "model": f"resnet{workload.depth}",
        "batch_size": workload.batch_size,
        "data.kind": "garments",
        "data.augment": "light",
        "data.size": 16,
        "optim.lr": 1e-30,
        "channels_last": workload.channels_last and variant.kind != "authors",
        "gradaug.num_subnets": variant.num_subnets,
        # As the authors' loop of today; views of their own cost the loader, and not the step.
        "gradaug.views": "same",
        **{f"gradaug.{key}": value for key, value in workload.options.items()},
    }
    return [f"{key}={value}" for key, value in settings.items()]


def _check_plain_passes(rotations: list[float], block_survival: float) -> None:
    if rotations != [0.0] or block_survival != 1:
        raise ConfigError(
            "--options",
            "rotations and block_survival are not known to the authors' loop; leave them out, or "
            "leave the variants authors-1, -2 and -3 out with --only",
        )
