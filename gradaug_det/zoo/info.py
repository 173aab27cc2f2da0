"""The description of a backbone in files and index: what it is, what its input must look like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gradaug_det.errors import ZooError
from gradaug_det.utils.text import to_printable

_ARCHITECTURES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
DEPTHS = {name: int(re.search(r"\d+", name)[0]) for name in _ARCHITECTURES}
# Whose checkpoints can be written and read; here, so that the command line needs no torch.
TARGETS = ("torchvision", "detectron2", "mmdet", "timm")
SOURCES = (*TARGETS, "authors")
# In the recipe of a file made on this machine: of the checkpoint that it was made from.
CHECKPOINT_KEY = "checkpoint_sha256"
# The metrics that tables have columns for; others may stand beside them.
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "loss": "loss",
    "fgsm1": "FGSM 1/255",
    "fgsm2": "FGSM 2/255",
    "fgsm4": "FGSM 4/255",
    "corruption": "corrupted",
}
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

# A check of a field's value, and how its sentence goes on after "KEY must".
Rule = tuple[Callable[[Any], object], str]


def require(condition: object, rule: str, given: object) -> None:
    """Raise a ZooError with the rule and what was given, unless the condition holds."""
    if not condition:
        raise ZooError(f"{rule}, got {to_printable(given)}")


def check_fields(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise a ZooError for the first value that its rule does not allow."""
    for key, (is_allowed, rule) in rules.items():
        require(is_allowed(values[key]), f"{key} must {rule}", values[key])


def one_of(allowed: Iterable[str]) -> Rule:
    """The rule for one of several words."""
    *first, last = allowed
    return lambda value: value in (*first, last), f"be {', '.join(first)} or {last}"


def is_number(value: object) -> bool:
    # A bool is none, and comparing leaves out NaN, inf and integers of 400 digits.
    return type(value) in (int, float) and abs(value) < 1e300


def is_line(value: object, most: int) -> bool:
    # Terminals and MODEL_ZOO.md show it.
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def is_match(pattern: str | re.Pattern, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_triple(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(is_number, value))


_RULES: dict[str, Rule] = {
    "name": (
        lambda value: is_match(NAME, value) and len(value) <= 100,
        "be lower-case letters, digits and single hyphens (at most 100)",
    ),
    "architecture": one_of(DEPTHS),
    "min_width": (
        lambda value: is_number(value) and 0 < value <= 1,
        "be in (0, 1], 1 if the backbone is not slimmable",
    ),
    "stem": one_of(("7x7", "deep")),
    "stride_in": one_of(("3x3", "1x1")),
    "channel_order": one_of(("RGB", "BGR")),
    "pixel_mean": (_is_triple, "be 3 finite numbers on the 0-255 scale"),
    "pixel_std": (_is_triple, "be 3 finite numbers on the 0-255 scale"),
    "recipe": (lambda value: isinstance(value, dict), "be an object"),
    "metrics": (
        lambda v: isinstance(v, dict) and all(is_line(k, 40) and is_number(v[k]) for k in v),
        "be an object of finite numbers under names of at most 40 characters",
    ),
    "licence": (lambda value: is_line(value, 500), "be one line of at most 500 characters"),
    "source": (lambda value: is_line(value, 500), "be one line of at most 500 characters"),
}


@dataclass(frozen=True)
class BackboneInfo:
    """The description of a backbone.

    Args:
        architecture: torchvision's builder, such as ``resnet18``.
        depth: the architecture's number of layers.
        min_width: smallest width multiplier trained; 1.0 if the network is not slimmable.
        stem: ``7x7``, or ``deep`` for three 3x3 convolutions.
        stride_in: the convolution of a bottleneck that has the stride: ``3x3`` (torchvision) or
            ``1x1`` (Caffe, MSRA).
        channel_order: ``RGB`` or ``BGR``: what the file's tensors expect.
        pixel_mean, pixel_std: 3 numbers on the 0-255 scale, in ``channel_order``.
        recipe: how it was trained; JSON values.
        metrics: name -> finite number. Those of METRICS are accuracies in percent of test images,
            but for ``loss``: clean, after one step of FGSM, and ``corruption``, the mean over
            ImageNet-C's 15 corruptions and 5 severities.
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
        check_fields(vars(self), _RULES)
        mean, std = (tuple(map(float, values)) for values in (self.pixel_mean, self.pixel_std))
        depth = DEPTHS[self.architecture]
        rule = f"depth must be {depth}, which is {self.architecture}'s"
        require(type(self.depth) is int and self.depth == depth, rule, self.depth)
        rule = "pixel_mean must be on the 0-255 scale (multiply a mean of 0-1 by 255)"
        is_scaled = max(mean) > 1 or max(mean) == 0
        require(is_scaled and all(0 <= value <= 255 for value in mean), rule, mean)
        rule = "pixel_std must be on the 0-255 scale, at least 1 (multiply a std of 0-1 by 255)"
        require(all(1 <= value <= 255 for value in std), rule, std)
        # As they will be after a round trip through JSON, so that infos compare equal.
        changed: dict[str, Any] = {"pixel_mean": mean, "pixel_std": std}
        for key in ("recipe", "metrics"):
            try:
                changed[key] = json.loads(json.dumps(getattr(self, key), allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise ZooError(f"{key} must hold JSON values only: {error}") from None
        vars(self).update(changed)  # past the dataclass's own __setattr__, which is frozen

    @property
    def is_bottleneck(self) -> bool:
        return self.depth >= 50

    @property
    def groups(self) -> tuple[int, int]:
        """The groups of a bottleneck's 3x3 convolution, and each one's width (64 in a ResNet)."""
        if match := re.fullmatch(r"resnext\d+_(\d+)x(\d+)d", self.architecture):
            return int(match[1]), int(match[2])
        return 1, 128 if self.architecture.startswith("wide_") else 64

    @property
    def framework(self) -> str:
        """Whose names the tensors have: torchvision has no deep stem."""
        return "timm" if self.stem == "deep" else "torchvision"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Any) -> BackboneInfo:
        """The info in an untrusted JSON value; a ZooError names what is wrong with it."""
        require(isinstance(data, dict), "a backbone's description must be a JSON object", data)
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(data)):
            raise ZooError(f"the backbone's description lacks {', '.join(missing)}")
        if unknown := sorted(set(data) - names):
            raise ZooError(f"the backbone's description has unknown fields {to_printable(unknown)}")
        return cls(**data)
