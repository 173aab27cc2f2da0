"""What a backbone is and what its input must look like: the description in files and index."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any

from gradaug_det.errors import ZooError

DEPTHS = {
    "resnet18": 18,
    "resnet34": 34,
    "resnet50": 50,
    "resnet101": 101,
    "resnet152": 152,
    "resnext50_32x4d": 50,
    "resnext101_32x8d": 101,
    "resnext101_64x4d": 101,
    "wide_resnet50_2": 50,
    "wide_resnet101_2": 101,
}
# Whose checkpoints can be written and read; here, so that the command line needs no torch.
TARGETS = ("torchvision", "detectron2", "mmdet", "timm")
SOURCES = (*TARGETS, "authors")
# In the recipe of a file made on this machine: of the checkpoint that it was made from.
CHECKPOINT_KEY = "checkpoint_sha256"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class BackboneInfo:
    """What a backbone is and what its input must look like.

    Args:
        name: lower-case letters, digits and hyphens.
        architecture: torchvision's builder, such as ``resnet18``.
        depth: the architecture's number of layers.
        min_width: smallest width multiplier trained; 1.0 if the network is not slimmable.
        stem: ``7x7``, or ``deep`` for three 3x3 convolutions.
        stride_in: the convolution of a bottleneck that has the stride: ``3x3`` (torchvision) or
            ``1x1`` (Caffe, MSRA).
        channel_order: ``RGB`` or ``BGR``: what the file's tensors expect.
        pixel_mean, pixel_std: 3 numbers on the 0-255 scale, in ``channel_order``.
        recipe: how it was trained; JSON values.
        metrics: name -> finite number, such as ``{"top1": 78.78}`` in percent.
        licence, source: of the weights.

    Raises:
        ZooError: a field has the wrong type or value.
    """

    name: str
    architecture: str
    depth: int
    min_width: float
    stem: str
    stride_in: str
    channel_order: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    recipe: dict[str, Any]
    metrics: dict[str, float]
    licence: str
    source: str

    def __post_init__(self) -> None:
        require(
            isinstance(self.name, str) and len(self.name) <= 100 and NAME.fullmatch(self.name),
            "name must be lower-case letters, digits and single hyphens (at most 100)",
            self.name,
        )
        one_of("architecture", self.architecture, tuple(DEPTHS))
        depth = DEPTHS[self.architecture]
        require(
            type(self.depth) is int and self.depth == depth,
            f"depth must be {depth}, which is {self.architecture}'s",
            self.depth,
        )
        require(
            is_number(self.min_width) and 0 < self.min_width <= 1,
            "min_width must be in (0, 1], 1 if the backbone is not slimmable",
            self.min_width,
        )
        one_of("stem", self.stem, ("7x7", "deep"))
        one_of("stride_in", self.stride_in, ("3x3", "1x1"))
        one_of("channel_order", self.channel_order, ("RGB", "BGR"))
        mean, std = self._three("pixel_mean"), self._three("pixel_std")
        require(
            all(0 <= value <= 255 for value in mean) and (max(mean) > 1 or max(mean) == 0),
            "pixel_mean must be on the 0-255 scale (multiply a mean of 0-1 by 255)",
            self.pixel_mean,
        )
        require(
            all(1 <= value <= 255 for value in std),
            "pixel_std must be on the 0-255 scale, at least 1 (multiply a std of 0-1 by 255)",
            self.pixel_std,
        )
        require(
            isinstance(self.metrics, dict)
            and all(is_text(k, 40) and is_number(v) for k, v in self.metrics.items()),
            "metrics must be an object of finite numbers under names of at most 40 characters",
            self.metrics,
        )
        require(isinstance(self.recipe, dict), "recipe must be an object", self.recipe)
        for key in ("licence", "source"):
            text = getattr(self, key)
            require(is_text(text, 500), f"{key} must be one line of at most 500 characters", text)
        # As it will be after a round trip through JSON, so that infos compare equal.
        for key in ("recipe", "metrics"):
            try:
                value = json.loads(json.dumps(getattr(self, key), allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise ZooError(f"{key} must hold JSON values only: {error}") from None
            object.__setattr__(self, key, value)

    def _three(self, key: str) -> tuple[float, float, float]:
        """A field of 3 finite numbers, made a tuple of floats."""
        given = getattr(self, key)
        require(
            isinstance(given, (list, tuple)) and len(given) == 3 and all(map(is_number, given)),
            f"{key} must be 3 finite numbers on the 0-255 scale",
            given,
        )
        values = tuple(float(value) for value in given)
        object.__setattr__(self, key, values)
        return values

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, data: Any) -> BackboneInfo:
        """The info in an untrusted JSON value.

        Raises:
            ZooError: fields are missing, unknown or wrong.
        """
        require(isinstance(data, dict), "a backbone's description must be a JSON object", data)
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(data)):
            raise ZooError(f"the backbone's description lacks {', '.join(missing)}")
        if unknown := sorted(set(data) - names):
            raise ZooError(f"the backbone's description has unknown fields {shown(unknown)}")
        return cls(**data)


def is_number(value: object) -> bool:
    """A finite int or float, which in Python a bool is not meant to be."""
    return type(value) in (int, float) and abs(value) < 1e300  # no NaN, no inf, no 400 digits


def is_text(value: object, most: int) -> bool:
    """One line of printable characters: it is shown in terminals and in MODEL_ZOO.md."""
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise a ZooError that names the allowed values, unless the value is one of them."""
    choice = ", ".join(allowed[:-1]) + f" or {allowed[-1]}"
    require(isinstance(value, str) and value in allowed, f"{key} must be {choice}", value)


def require(condition: object, rule: str, given: object) -> None:
    """Raise a ZooError with the rule and what was given, unless the condition holds."""
    if not condition:
        raise ZooError(f"{rule}, got {shown(given)}")


def shown(value: object) -> str:
    """A value as text, cut and printable: it may be a whole file's worth, or steer a terminal."""
    readable = isinstance(value, str) and " " in value and value.isprintable()
    text = value if readable else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
