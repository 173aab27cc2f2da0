"""Finds fields of unknown meaning that may live in an image's pixels, by name and shape.

A sub-network sees a scaled or mirrored image. A field that stays as it is would then be a wrong
target without a word, and one that is refused for nothing stops a training: so what can be seen of
a field decides, and the setting ``not_in_pixels`` where that is wrong.
"""

from __future__ import annotations

import enum
import numbers
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradaug_det.core.options import GradAugOptions
from gradaug_det.errors import GradAugError

# Known fields whose shape alone could be that of boxes or points.
_HARMLESS = {"gt_classes", "gt_ids", "gt_attributes", "gt_point_labels", "labels", "scores"}
_HARMLESS |= {"objectness_logits", "annotations"}
_GEOMETRIC = re.compile(
    r"(^|_)(b?box(es)?|polygons?|contours?|landmarks?|keypoints?|kpts?|corners?|cent(er|re)s?|"
    r"points?|coord(inate)?s?|offsets?|joints?|vertices|beziers?|curves?|quads?|"
    r"xyxy|xywh|cxcywh|ellipses?|circles?|obbs?|rbox(es)?)$"
)
_MASK = re.compile(r"(^|_)masks?$")
_AREA = re.compile(r"(^|_)(areas?|radius|radii|perimeters?)$")
_PLAIN = (str, bytes, numbers.Number, os.PathLike, enum.Enum, type(None))
_DEPTH = 4


def is_masks(name: str, value: Tensor, sizes: Collection[tuple[int, int]]) -> bool:
    """Returns whether a tensor of one entry an object is surely (R, H, W) masks of such an image.

    Args:
        sizes: (height, width) of the image; several where it may be padded.
    """
    if value.dim() != 3 or tuple(value.shape[-2:]) not in sizes:
        return False
    return value.dtype in (torch.bool, torch.uint8) or _MASK.search(name) is not None


def check_not_in_pixels(
    name: str, value: Any, options: GradAugOptions, setting: str, *, per_object: bool
) -> None:
    """Refuses a field that may live in pixels, in a training that moves pixels.

    Numbers of one entry an object do not, nor do vectors of features, identities and texts.
    Points and boxes (floats, the last axis 2 or 4), maps, matrices and what is called like a shape
    may. Lists of numbers count as arrays; containers and objects are looked into.

    Args:
        name, value: the field.
        setting: how the framework spells ``not_in_pixels``.
        per_object: whether the field has one entry for each object.

    Raises:
        GradAugError: names the field, what it holds and the ways out.
    """
    if not options.moves_pixels or name in options.not_in_pixels or name in _HARMLESS:
        return
    found = _find(name, value, per_object, _DEPTH)
    if found is not None:
        raise refused(name, found, setting)


def refused(name: str, what: str, setting: str) -> GradAugError:
    """Returns the error about a field that cannot be moved with the image."""
    return GradAugError(
        f"cannot transform the field {name!r} ({what}), which may live in the image's pixels: if "
        f"it does not, name it in {setting}; else train with scales [1.0] and flip_prob 0"
    )


def _find(name: str, value: Any, per_object: bool, depth: int) -> str | None:
    """Returns, in words, what may live in pixels; None if nothing looks like it."""
    if depth == 0 or (isinstance(value, (*_PLAIN, Mapping)) and _is_record(value)):
        return None
    array = _as_array(value)
    if array is not None:
        shape, kind = array
        # A short list of numbers comes from the annotations; tensors are made for a detector.
        short = isinstance(value, (list, tuple)) and len(shape) == 1 and not per_object
        suspect = _GEOMETRIC.search(name) if short else _suspect(name, shape, kind, per_object)
        return f"{type(value).__name__} of {kind}, shape {shape}" if suspect else None
    if hasattr(value, "__array_interface__") and not hasattr(value, "dtype"):
        return type(value).__name__  # an image of Pillow's
    for key, item in _items(name, value):
        part = _as_array(item)
        if isinstance(value, (list, tuple)) and part and part[0] and part[1] == "float":
            # Lists of floats that are no array are ragged, as polygons are.
            inner = f"{type(item).__name__} of float, shape {part[0]}"
        else:
            inner = _find(key, item, False, depth - 1)
        if inner is not None:
            return f"{type(value).__name__} with {inner}"
    return None


def _is_record(value: Any) -> bool:
    # What an annotation file can hold: no detector takes that as it is.
    if isinstance(value, Mapping):
        return all(map(_is_record, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_record, value))
    return isinstance(value, _PLAIN)


def _items(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return ((str(key), item) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return ((name, item) for item in value)
    if hasattr(value, "dtype"):  # an array of objects, or of texts
        return ((name, item) for item in value.reshape(-1).tolist())
    return ((name, item) for item in getattr(value, "__dict__", {}).values())


def _as_array(value: Any) -> tuple[tuple[int, ...], str] | None:
    """Returns shape and kind of a number, tensor, array, or of lists that are one; else None."""
    if isinstance(value, bool):
        return (), "bool"
    if isinstance(value, numbers.Number) and not hasattr(value, "dtype"):
        return (), "int" if isinstance(value, numbers.Integral) else "float"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kinds = ("bool", "float", "int")
        kind = next((kind for kind in kinds if kind in str(value.dtype)), None)
        return (tuple(value.shape), kind) if kind else None
    if not isinstance(value, (list, tuple)) or not value:
        return None
    parts = [_as_array(item) for item in value]
    if None in parts or len({shape for shape, _ in parts}) > 1:
        return None
    # As NumPy would: one float among integers makes floats.
    kind = max((kind for _, kind in parts), key=("bool", "int", "float").index)
    return (len(value), *parts[0][0]), kind


def _suspect(name: str, shape: tuple[int, ...], kind: str, per_object: bool) -> bool:
    own = len(shape) - per_object  # axes of one object's entry, or of the field
    if own < 0 or not shape:
        return False
    if own >= 2:
        return True
    if own == 0:
        return kind == "float" and _AREA.search(name) is not None
    if kind == "bool":
        return False
    return (kind == "float" and shape[-1] in (2, 4)) or _GEOMETRIC.search(name) is not None
