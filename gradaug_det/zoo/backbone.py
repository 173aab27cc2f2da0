"""Backbone files that describe themselves: safetensors with what a detector must know of them.

A file holds a ResNet's tensors under torchvision's names, and under the metadata key
``gradaug_det`` a :class:`BackboneInfo` as JSON. Files come from anywhere, so nothing in them is
believed before it is checked, and nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradaug_det.errors import ZooError
from gradaug_det.utils.files import atomic_path
from gradaug_det.utils.text import to_printable
from gradaug_det.zoo.info import BackboneInfo, require

METADATA_KEY = "gradaug_det"
MAX_FILE_BYTES = 2 * 2**30  # the largest ResNet of torchvision has 0.5 GB in float32
MAX_METADATA_CHARS = 64 * 2**10
_FLOATS = ("F16", "BF16", "F32", "F64")
_WAY_OUT = "write the file with gradaug_det.zoo.backbone.save_backbone"


def save_backbone(
    path: str | Path,
    state: Mapping[str, Tensor],
    info: BackboneInfo,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a backbone file, whole or not at all.

    Args:
        state: tensors under torchvision's names, with or without ``fc``; ``num_batches_tracked``
            is left out.
        dtype: of the tensors in the file.

    Raises:
        ZooError: the tensors are not those of ``info.architecture``, or not finite in ``dtype``.
    """
    path = Path(path)
    # Counters of batches say nothing about a network that is not trained on.
    state = {name: tensor for name, tensor in state.items() if not _is_counter(name)}
    check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, info)
    saved = {name: t.detach().to("cpu", dtype).contiguous() for name, t in state.items()}
    _check_finite(saved, f"a value that is not finite in {dtype}; give dtype=torch.float32")
    text = json.dumps(info.to_dict(), allow_nan=False)
    rule = f"the description must have at most {MAX_METADATA_CHARS} characters; shorten recipe"
    require(len(text) <= MAX_METADATA_CHARS, rule, len(text))
    with atomic_path(path) as temporary:
        # One key: safetensors writes several in no fixed order, and files should be reproducible.
        save_file(saved, temporary, metadata={METADATA_KEY: text})
    return path


def read_info(path: str | Path) -> BackboneInfo:
    """A backbone file's description, without its tensors.

    Raises:
        ZooError: the file is not a backbone file; the sentence says what to do.
    """
    with _open(Path(path)) as file:
        return _read_metadata(file)


def read_backbone(path: str | Path) -> tuple[dict[str, Tensor], BackboneInfo]:
    """A backbone file's tensors, float32 on the CPU, and its description.

    Raises:
        ZooError: the file is not a backbone file, lacks tensors, or has shapes that are not its
            architecture's, or values that are not finite; the sentence says what to do.
    """
    with _open(Path(path)) as file:
        info = _read_metadata(file)
        names = [name for name in file.keys() if not _is_counter(name)]  # noqa: SIM118 (no dict)
        # Shapes are in the header: a wrong file is refused before its tensors take memory.
        check_shapes({name: tuple(file.get_slice(name).get_shape()) for name in names}, info)
        for name in names:
            kind = file.get_slice(name).get_dtype()
            require(kind in _FLOATS, f"{name} must be one of {', '.join(_FLOATS)}", kind)
        state = {name: file.get_tensor(name).float() for name in names}
        _check_finite(state, "a value that is not finite; take another copy of the file")
        return state, info


def check_shapes(shapes: Mapping[str, tuple[int, ...]], info: BackboneInfo) -> None:
    """Compare names and shapes with torchvision's own network of that architecture.

    ``fc`` may be absent and may have any number of classes. A deep stem, and the shortcuts of such
    a network, are not compared.

    Raises:
        ZooError: a tensor is missing, unknown or has another shape.
    """
    shapes = _without_deep(shapes, info)
    # Names are compared first: a wrong architecture is told by what is missing, not by a shape.
    wanted = dict(_without_deep(_torchvision_shapes(info.architecture), info))
    if "fc.weight" in shapes or "fc.bias" in shapes:
        classes = shapes.get("fc.bias", (0,))[:1]
        wanted |= {"fc.weight": (*classes, *wanted["fc.weight"][1:]), "fc.bias": (*classes,)}
    else:
        del wanted["fc.weight"], wanted["fc.bias"]
    if missing := [name for name in wanted if name not in shapes]:
        raise ZooError(
            f"{len(missing)} tensors of {info.architecture} are missing, such as {missing[0]!r}; "
            "the names must be torchvision's"
        )
    for name, shape in shapes.items():
        if name not in wanted:
            raise ZooError(
                f"the tensor {to_printable(name)} is not one of {info.architecture}; "
                "the names must be torchvision's"
            )
        if tuple(shape) != wanted[name]:
            raise ZooError(
                f"{name} has shape {tuple(shape)}, {info.architecture}'s is {wanted[name]}; "
                "correct the architecture in the description or take another file"
            )


@contextmanager
def _open(path: Path) -> Iterator[safe_open]:
    """An open safetensors file; whatever is wrong with it is told with its path."""
    try:
        if not path.is_file():
            raise ZooError("there is no such file; `gradaug-det zoo list` names the zoo's")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ZooError(f"{size} bytes; a backbone has at most {MAX_FILE_BYTES}")
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from None
    except SafetensorError as error:
        raise ZooError(
            f"{path}: not a safetensors file, or a damaged one ({to_printable(str(error))}); "
            "remove it and fetch it again, or convert a checkpoint with `gradaug-det zoo convert`"
        ) from None


def _read_metadata(file: safe_open) -> BackboneInfo:
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise ZooError(f"no metadata {METADATA_KEY!r}, so its input is unknown; {_WAY_OUT}")
    if len(text) > MAX_METADATA_CHARS:
        raise ZooError(f"metadata of {len(text)} characters; at most {MAX_METADATA_CHARS}")
    try:
        return BackboneInfo.from_dict(json.loads(text))
    except ZooError as error:
        problem = f": {error}"
    except (ValueError, RecursionError) as error:
        problem = f" is not JSON ({error})"
    raise ZooError(f"metadata {METADATA_KEY!r}{problem}; {_WAY_OUT}")


@cache
def _torchvision_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    from torchvision import models

    with torch.device("meta"):  # shapes alone: no memory, no random numbers
        state = getattr(models, architecture)().state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not _is_counter(name)}


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _without_deep(shapes: Mapping[str, Any], info: BackboneInfo) -> Mapping[str, Any]:
    # torchvision has neither a deep stem nor the shortcuts that a ResNet-D has with it.
    if info.stem != "deep":
        return shapes
    starts = ("conv1.", "bn1.")
    return {n: s for n, s in shapes.items() if not (n.startswith(starts) or ".downsample." in n)}


def _check_finite(state: Mapping[str, Tensor], problem: str) -> None:
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ZooError(f"{name} has {problem}")
