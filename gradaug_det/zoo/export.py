"""Backbones as files for other programs: a framework's names, channel order and container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.utils.checkpoints import load_checkpoint
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.backbone import read_backbone, save_backbone
from gradaug_det.zoo.convert import convert
from gradaug_det.zoo.info import SOURCES, BackboneInfo


def convert_file(
    source: str | Path,
    out: str | Path,
    target: str,
    *,
    framework: str | None = None,
    source_format: str | None = None,
    target_format: str | None = None,
    classifier: bool = False,
    info: BackboneInfo | None = None,
) -> Path:
    """Write the weights in a file under another framework's names.

    Args:
        source: a backbone file, or any checkpoint (see ``load_checkpoint``).
        out: ``.safetensors``, or ``.pth`` for ``torch.save``'s format; for Detectron2 that is a
            dict which its checkpointer matches to any detector.
        target: one of TARGETS.
        framework: whose names the source has, one of SOURCES; a backbone file knows it itself.
        source_format, target_format: "RGB" or "BGR"; by default a backbone file's own, else the
            framework's usual order.
        classifier: whether to keep the classifier.
        info: describes the result: writes a backbone file, ready for a zoo.

    Raises:
        ConfigError, ZooError: an argument is wrong, or the source is not what it should be.
    """
    out = Path(out)
    if out.suffix not in (".safetensors", ".pth"):
        raise ConfigError("OUT", f"must end in .safetensors or .pth, got '{out.name}'")
    if info is not None:
        if target != "torchvision" or out.suffix != ".safetensors":
            raise ConfigError(
                "--info", "makes a backbone file: --to torchvision and an OUT in .safetensors"
            )
        target_format = target_format or info.channel_order
        if target_format != info.channel_order:
            raise ConfigError("--format", f"must be {info.channel_order}, as --info says")
    if framework is None:
        state, described = _backbone(Path(source))
        framework = "timm" if described.stem == "deep" else "torchvision"
        source_format = source_format or described.channel_order
    else:
        state = load_checkpoint(source)
    weights = convert(
        state,
        framework,
        target,
        source_format=source_format,
        target_format=target_format,
        classifier=classifier,
    )
    if info is not None:
        return save_backbone(out, weights, info)
    _write(out, weights, target)
    return out


def _backbone(path: Path) -> tuple[dict[str, Tensor], BackboneInfo]:
    if path.suffix != ".safetensors":
        raise ConfigError(
            "--from",
            f"must name the framework whose checkpoint {path} is: {', '.join(SOURCES)} (only "
            "backbone files, .safetensors, know it themselves)",
        )
    try:
        return read_backbone(path)
    except ZooError as error:
        raise ZooError(
            f"{error}; if it is a framework's checkpoint, say whose with --from"
        ) from None


def _write(out: Path, weights: Mapping[str, Tensor], target: str) -> None:
    # Tensors of a checkpoint may share memory, which safetensors refuses.
    weights = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    with atomic_path(out) as temporary:
        if out.suffix == ".safetensors":
            save_file(weights, temporary, metadata={"format": "pt"})
        elif target == "detectron2":
            content = {"model": weights, "__author__": "gradaug_det", "matching_heuristics": True}
            torch.save(content, temporary)
        else:
            torch.save(weights, temporary)
