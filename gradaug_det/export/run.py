"""Writes a detector as narrow as a sub-network: checked first, then config and weights."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pooch
import torch
from torch import nn

from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.errors import ConfigError
from gradaug_det.export.calibration import find_images, has_statistics, recalibrate
from gradaug_det.export.exporter import Exporter
from gradaug_det.export.programs import check_format, make_program
from gradaug_det.export.slicing import check_same, find_readers, load_narrow, narrow_state
from gradaug_det.export.widths import share_of_channels
from gradaug_det.frameworks import load_exporter
from gradaug_det.utils.detector_files import DetectorFiles
from gradaug_det.utils.environment import describe_environment
from gradaug_det.utils.files import atomic_path

logger = logging.getLogger(__name__)
IMAGES = 256


@dataclass(frozen=True)
class Calibration:
    """On what BatchNorm statistics are measured.

    Args:
        source: see :func:`gradaug_det.export.calibration.find_images`.
        images: how many of it.
    """

    source: Path
    images: int = IMAGES


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        config, weights: their paths.
        program: the program's, if one was asked for.
        record: the content of ``export.json``.
    """

    config: Path
    weights: Path
    program: Path | None
    record: dict[str, Any]


def export_detector(
    files: DetectorFiles,
    width: float,
    out: str | Path,
    *,
    calibration: Calibration | None = None,
    program: str | None = None,
) -> Exported:
    """Writes the sub-network of that width as a detector of its own.

    Nothing is written before the narrow detector was built from its config, has taken its weights
    and computes what the sub-network does.

    Args:
        files: config and weights of the detector as it was trained.
        width: of the sub-network; 1 for the full one.
        out: folder; files of these names in it are replaced.
        calibration: measure BatchNorm statistics; without it, they are the full network's, cut.
        program: also write one of :data:`gradaug_det.export.programs.FORMATS`.

    Raises:
        ConfigError, DataError, UnslimmableError, ZooError: something given cannot be used.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError("--out", f"must be a folder, and {str(out)!r} is a file")
    if program is not None:
        check_format(program)
    images = find_images(calibration.source, calibration.images) if calibration else []
    exporter = load_exporter(files)
    model, backbone = exporter.model, exporter.backbone
    share = share_of_channels(slim_plan(backbone), width)
    readers = find_readers(model, backbone, exporter.detect_blank)
    weights = out / exporter.weights_name
    name, content = exporter.config(share, str(weights))
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(content, "utf-8")
        narrow = exporter.build(path)
    load_narrow(narrow, narrow_state(model, backbone, readers, width), name)
    difference = _compare(exporter, narrow, width)
    if images:
        recalibrate(exporter.part(narrow), exporter.batches(narrow, images))
    made = (
        make_program(program, lambda: exporter.traceable(narrow)) if program is not None else None
    )
    record = {
        "framework": exporter.framework,
        "width": width,
        "channels": _channels(backbone, width),
        "parameters": {"full": _count(model), "exported": _count(narrow)},
        "largest_difference_to_sub_network": difference,
        "source": {
            "config": files.config.name,
            "overrides": list(files.overrides),
            "weights": Path(str(files.weights)).name,
            "weights_sha256": _sha256(Path(str(files.weights))),
        },
        "calibration": _described(calibration, images, narrow, exporter),
        "program": None if made is None else {"file": made.name, "note": made.note},
        "environment": describe_environment(),
    }
    with atomic_path(weights) as temporary:
        torch.save(exporter.checkpoint(narrow.state_dict(), content), temporary)
    if made is not None:
        with atomic_path(out / made.name) as temporary:
            temporary.write_bytes(made.content)
    for file, text in ((name, content), ("export.json", json.dumps(record, indent=1) + "\n")):
        with atomic_path(out / file) as temporary:
            temporary.write_text(text, "utf-8")
    return Exported(out / name, weights, made and out / made.name, record)


@torch.no_grad()
def _compare(exporter: Exporter, narrow: nn.Module, width: float) -> float:
    """Largest difference of feature maps to the sub-network's, as a share of the largest value."""
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with at_width(exporter.backbone, width, norm="frozen"):
        sliced = exporter.features(exporter.model, images)
    return check_same(exporter.features(narrow, images), sliced)


def _channels(backbone: nn.Module, width: float) -> dict[str, list[int]]:
    plan = slim_plan(backbone)
    outputs = [plan.groups[group] for group in plan.outputs if group is not None]
    return {
        "full": [group.channels for group in outputs],
        "exported": [group.at(width) for group in outputs],
    }


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _described(
    calibration: Calibration | None, images: list[Path], narrow: nn.Module, exporter: Exporter
) -> dict[str, Any] | None:
    if calibration is not None:
        return {"source": calibration.source.name, "images": len(images)}
    if has_statistics(exporter.part(narrow)):
        logger.info("BatchNorm statistics are the full network's, cut; --calibrate measures them")
    return None


def _sha256(path: Path) -> str | None:
    """None for what is not a file of this machine."""
    return pooch.file_hash(str(path)) if path.is_file() else None
