"""A detector to be benchmarked, whichever framework it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gradaug_det.benchmark.changes import Change
from gradaug_det.core.slimming import Overrides
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import Scoring
from gradaug_det.evaluation.coco_data import CocoData
from gradaug_det.utils.detector_files import DetectorFiles


class Detector(Protocol):
    """A detector of one framework with its own preprocessing, made of (files, data, device).

    Raises (when it is made):
        ConfigError: the config cannot be used, or its classes are not the data's.
        ZooError: the weights cannot be used.

    Attributes:
        files: its config and weights.
        framework: for readers.
        model: the network, in evaluation mode.
        slimmed: what of it is narrow in a sub-network, as its config trains them; an error of
            :func:`gradaug_det.core.slimming.slim_plan` if it cannot be.
        divisor: of the channels of its sub-networks, likewise.
        trained_width: the smallest that its config trains.
        backbone: what has the norms that can be matched.
        statistics: of these norms at widths, where they are not the full network's, cut.
        scoring: the config's own settings of its evaluation.
        description: all of the config: detections of another one are not taken for this one's.
    """

    files: DetectorFiles
    framework: str
    model: nn.Module
    slimmed: nn.Module
    divisor: int
    trained_width: float
    backbone: nn.Module
    statistics: dict[float, list[tuple[Tensor, Tensor]]]
    scoring: Scoring
    description: str

    def dataset(self, image_ids: Sequence[int], change: Change) -> Dataset:
        """The images in that order, prepared as the config's own test pipeline does.

        With a corruption, samples are corrupted; for an attack, they carry the ground truth.
        """

    def batches(self, images: Sequence[Path]) -> Iterator[Tensor]:
        """Images (N, 3, H, W) as the backbone sees them, by the config's test pipeline."""

    def attack(self, sample: Any, change: Any) -> Any:
        """A sample of ``dataset``, moved by FGSM against the model as it is now."""

    def detect(self, sample: Any) -> list[dict]:
        """COCO results of a sample: boxes XYWH in pixels of the original image, RLE masks."""


def check_num_classes(model_classes: int | None, data: CocoData, key: str) -> None:
    """Raises ConfigError if the detector has not one class for each category of the data.

    Args:
        model_classes: None if the detector does not say.
        key: the config's for the number of classes.
    """
    classes = data.classes
    if model_classes is not None and model_classes != len(classes):
        names = ", ".join(repr(name) for _, name in classes[:5])
        raise ConfigError(
            key,
            f"is {model_classes}, but {Path(data.origin).name} has {len(classes)} categories "
            f"({names}{', ...' if len(classes) > 5 else ''}); benchmark a detector on data with "
            "the classes that it was trained for",
        )


def category_id(label: int, data: CocoData) -> int:
    """Returns the dataset's id of a class index."""
    if not 0 <= label < len(data.classes):
        raise DataError(
            f"the detector found class {label}; {Path(data.origin).name} has the classes 0 to "
            f"{len(data.classes) - 1}"
        )
    return data.classes[label][0]


@contextmanager
def training_losses(model: nn.Module, seed: int, device: torch.device | str) -> Iterator[None]:
    """Within the block, the model computes its losses: seeded, and nothing of it is changed.

    Norms and dropout stay as in evaluation: the attack is on the network that is tested.
    """
    still = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), Overrides() as overrides:
        torch.manual_seed(seed)
        for module in model.modules():
            # `model.train()` would switch the norms as well, and leave the model in that mode.
            overrides.set(module.__dict__, "training", not isinstance(module, still))
        yield
