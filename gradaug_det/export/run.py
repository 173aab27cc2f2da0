"""Writes a detector as narrow as a sub-network: checked first, then config and weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import pooch
import torch
from torch import Tensor, nn

from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.core.tracing import example_image
from gradaug_det.errors import ConfigError
from gradaug_det.export.calibration import find_norms, measure_moments, recalibrate
from gradaug_det.export.programs import Traceable, make_program
from gradaug_det.export.slicing import largest_difference, layer_outputs, narrow_state
from gradaug_det.export.widths import share_of_channels
from gradaug_det.utils.detector_files import DetectorFiles
from gradaug_det.utils.environment import describe_environment
from gradaug_det.utils.files import atomic_path

logger = logging.getLogger(__name__)
WEIGHTS = "model.pth"


class Exporter(Protocol):
    """A detector of one framework that can be written as an ordinary one, made of `files`.

    Raises (when it is made):
        ConfigError: the config cannot be used, or is of a kind that cannot be exported.
        ZooError: the weights cannot be used, or do not fit the config.
    """

    framework: str  # for readers
    files: DetectorFiles  # config and weights as they were trained
    model: nn.Module  # the detector, in evaluation mode, on the CPU
    slimmed: nn.Module  # what of it was narrow in training, with its plan
    divisor: int  # of the channels of its sub-networks

    def backbone_of(self, model: nn.Module) -> nn.Module:
        """Returns the backbone of a detector, whose norms are calibrated."""

    def config(self, share: Fraction, weights: str) -> tuple[str, str]:
        """Returns name and content of the narrow detector's config, which needs no gradaug_det.

        Args:
            share: of the channels that it keeps; a ConfigError if no config can say so.
            weights: where its weights will be.
        """

    def build(self, config: Path) -> nn.Module:
        """Builds the detector of such a config, in evaluation mode, without weights."""

    def run(self, model: nn.Module, image: Tensor) -> None:
        """Runs all layers on an image (1, C, H, W) of noise, of mean 0 and deviation 1.

        The heads first see one box, whatever the detector finds; then it detects.
        """

    def checkpoint(self, state: dict[str, Tensor], config: str) -> dict[str, Any]:
        """Returns the content of the framework's checkpoint; ``config`` is the config's."""

    def batches(self, model: nn.Module, images: Sequence[Path]) -> Iterator[Tensor]:
        """Yields the images (N, 3, H, W) as a backbone sees them, by the config's test pipeline."""

    def traceable(self, model: nn.Module) -> Traceable:
        """Returns what of a detector a program can be made of; may fail as tracing may."""


class Exported(NamedTuple):
    """Paths of what was written, and the content of ``export.json``."""

    config: Path
    weights: Path
    program: Path | None
    record: dict[str, Any]


def export_detector(
    exporter: Exporter,
    width: float,
    out: str | Path,
    *,
    images: Sequence[Path] = (),
    match: bool = False,
    program: str | None = None,
) -> Exported:
    """Writes the sub-network of that width as a detector of its own.

    Nothing is written before the narrow detector was built from its config, has taken its weights
    and computes what the sub-network does.

    Args:
        exporter: the detector as it was trained.
        width: of the sub-network; 1 for the full one.
        out: folder; files of these names in it are replaced.
        images: on which BatchNorm statistics are measured; without them, they are the full
            network's, cut.
        match: gives the norms' outputs the full network's moments on the images in place of
            measured statistics: for a detector that was never trained at that width.
        program: also write one of :data:`gradaug_det.export.programs.FORMATS`.

    Raises:
        ConfigError, DataError, UnslimmableError, ZooError: something given cannot be used.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError("--out", f"must be a folder, and {str(out)!r} is a file")
    model, files, slimmed = exporter.model, exporter.files, exporter.slimmed
    share = share_of_channels(slim_plan(slimmed), width, exporter.divisor)
    name, config = exporter.config(share, str(out / WEIGHTS))
    # From a file, as whoever uses the export will build it.
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(config, "utf-8")
        narrow = exporter.build(path)
    narrow.load_state_dict(narrow_state(model, slimmed, narrow, width, exporter.divisor))

    backbone = exporter.backbone_of(model)
    # No image: in noise every channel matters, so that a wrong slice cannot go unnoticed.
    shape = 1, example_image(backbone).shape[1], 256, 384
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with at_width(slimmed, width, norm="frozen", divisor=exporter.divisor):
        sliced = layer_outputs(model, lambda: exporter.run(model, noise))
    difference = largest_difference(
        lambda: layer_outputs(narrow, lambda: exporter.run(narrow, noise)), sliced
    )
    if images:
        moments = measure_moments(backbone, exporter.batches(model, images)) if match else None
        recalibrate(exporter.backbone_of(narrow), exporter.batches(narrow, images), moments)
    elif find_norms(backbone):
        logger.info("BatchNorm statistics are the full network's, cut; --calibrate measures them")
    made = make_program(program, lambda: exporter.traceable(narrow)) if program else None

    weights = Path(str(files.weights))
    plan = slim_plan(backbone)
    groups = [plan.groups[group] for group in plan.outputs if group is not None]
    record = {
        "framework": exporter.framework,
        "width": width,
        "channels": {
            "full": [group.channels for group in groups],
            "exported": [group.at(width, exporter.divisor) for group in groups],
        },
        "parameters": {"full": _count(model), "exported": _count(narrow)},
        "largest_difference_to_sub_network": difference,
        "source": {
            "config": files.config.name,
            "overrides": list(files.overrides),
            "weights": weights.name,
            # A URL is no file of this machine.
            "weights_sha256": pooch.file_hash(str(weights)) if weights.is_file() else None,
        },
        "calibration": None
        if not images
        else {"source": images[0].parent.name, "images": len(images), "matched": match},
        "program": {"file": made.name, "note": made.note} if made else None,
        "environment": describe_environment(),
    }
    with atomic_path(out / WEIGHTS) as temporary:
        torch.save(exporter.checkpoint(narrow.state_dict(), config), temporary)
    contents = {name: config.encode(), "export.json": f"{json.dumps(record, indent=1)}\n".encode()}
    if made:
        contents[made.name] = made.content
    for file, content in contents.items():
        with atomic_path(out / file) as temporary:
            temporary.write_bytes(content)
    return Exported(out / name, out / WEIGHTS, out / made.name if made else None, record)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
