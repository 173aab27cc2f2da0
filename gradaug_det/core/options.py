"""GradAug's settings for a detector, one set for both frameworks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gradaug_det.core.checks import check_bool, check_integer, check_number, check_width
from gradaug_det.core.plan import NORM_POLICIES
from gradaug_det.errors import ConfigError

DEFAULT_WIDTHS = (0.875, 0.75, 0.5)
ITERATION_KEYS = ("start", "stop", "soft_warmup")
"""Settings that count iterations of a training, and are scaled with its length."""
_CHOICES = {
    "passes": ("added", "alternating"),
    "supervision": ("soft", "labels", "both"),
    "slim": ("backbone", "detector"),
    "subnet_norm": NORM_POLICIES,
    "nonfinite": ("raise", "skip"),
}
# What says nothing about the passes of that kind, and why.
_MEANINGLESS = {
    "added": (("full_share", "smallest_share"), "in which every step has a full pass"),
    "alternating": (
        (
            *("num_subnets", "min_width", "scales", "flip_prob", "block_survival", "supervision"),
            *("soft_weight", "labels_weight", "soft_warmup", "not_in_pixels"),
        ),
        "in which a step is one ordinary pass at one of `widths`",
    ),
}


@dataclass(frozen=True)
class GradAugOptions:
    """Settings of GradAug in a detector's training.

    Args:
        num_subnets: n, sub-networks a step. 0 leaves plain training.
        min_width: alpha, the smallest width multiplier, in (0, 1].
        scales: image scales that sub-networks choose from, relative to the batch, in (0, 4]; those
            of the authors' 224, 192, 160 and 128 pixels if none are given.
        flip_prob: probability of mirroring a sub-network's batch, in [0, 1].
        block_survival: probability that a sub-network keeps the backbone's last residual branch,
            in [0, 1]; 1 keeps all. See :mod:`gradaug_det.core.depth`.
        passes: ``added``: sub-networks' passes follow each step's full pass (GradAug, Algorithm 1);
            ``alternating``: each step is one pass, at full width or at one of ``widths``, for no
            more than plain training's time. What describes the other kind alone must be left out.
        widths: a fixed set of width multipliers below 1. Sub-networks have one of these in place
            of any from ``min_width`` to 1; for alternating passes, 0.875, 0.75 and 0.5 if none
            are given.
        full_share: share of the alternating passes at full width, in [0, 1]; 1 leaves plain
            training, 0 with one of `widths` trains a detector of that width alone.
        smallest_share: share of the smallest width among the narrow ones of the alternating passes,
            in [0, 1]; the other widths share the rest evenly.
        start: the first iteration, counted from 0, with sub-networks, added or in a narrow step.
        stop: the first iteration without them again; 0: they stay to the end.
        divisor: channel counts of sub-networks are multiples of this; 1 is the authors' rule, 16 is
            faster. See :func:`gradaug_det.core.slimming.at_width`.
        supervision: what sub-networks learn from: ``labels`` (the detector's own losses on the
            transformed batch), ``soft`` (the full network's outputs, as in the paper's
            classification) or ``both``. ``labels`` won where it was measured; see RESULTS.md.
        soft_weight: factor of the losses against soft targets, at least 0.
        labels_weight: factor of the losses against ground truth, at least 0.
        soft_warmup: iterations in which ``soft_weight`` rises from 0, in equal steps. What a new
            head gives at first is no target for anything.
        subnet_norm: statistics of BatchNorm in sub-networks: ``auto``, ``batch`` or ``frozen``; see
            :func:`gradaug_det.core.slimming.at_width`.
        seed: of widths, transforms and the sub-networks' own random numbers.
        log_period: iterations between the log lines that name widths and scales; 0 for none.
        channels_last: convolutions keep their weights, and so their outputs, as (N, H, W, C) in
            memory. On CPUs narrow layers are faster then; results differ by rounding.
        nonfinite: what a NaN or an infinity in a sub-network's loss, or in the step's gradient,
            does: ``raise`` stops and leaves a file for ``gradaug-det replay``; ``skip`` leaves that
            sub-network out (for a gradient: the whole step), counts it and goes on.
        not_in_pixels: names of further fields of the batch that do not live in the image's pixels,
            so that sub-networks get them as they are. A field of unknown meaning that looks like
            boxes, points or a map is an error without.
        slim: what is narrow in a sub-network: the ``backbone``, whose outputs are filled up with
            zeros, or the whole ``detector``: neck and heads too, up to their predictions.
        keep_whole: with ``detector``, names of parts that stay as they are, and so do the channels
            that they read; as ``["roi_heads.mask_head"]``.

    Raises:
        ConfigError: names the setting, its value and the values allowed.
    """

    num_subnets: int = 3
    min_width: float = 0.9
    scales: Sequence[float] = (1.0, 0.857, 0.714, 0.571)
    flip_prob: float = 0.0
    block_survival: float = 1.0
    passes: str = "added"
    widths: Sequence[float] = ()
    full_share: float = 0.75
    smallest_share: float = 0.5
    start: int = 0
    stop: int = 0
    divisor: int = 1
    supervision: str = "labels"
    soft_weight: float = 1.0
    labels_weight: float = 1.0
    soft_warmup: int = 0
    subnet_norm: str = "auto"
    seed: int = 0
    log_period: int = 20
    channels_last: bool = False
    nonfinite: str = "raise"
    not_in_pixels: Sequence[str] = ()
    slim: str = "backbone"
    keep_whole: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_integer("num_subnets", self.num_subnets, low=0)
        check_width(self.min_width, "min_width")
        if not _is_list(self.scales) or not self.scales:
            problem = f"must list at least one number, got {self.scales!r}; [1.0] never rescales"
            raise ConfigError("scales", problem)
        for scale in self.scales:
            check_number("scales", scale, high=4.0, above=0.0)
        for key in ("flip_prob", "block_survival", "full_share", "smallest_share"):
            check_number(key, getattr(self, key), high=1.0)
        check_integer("divisor", self.divisor, low=1)
        for key, allowed in _CHOICES.items():
            value = getattr(self, key)
            if value not in allowed:
                raise ConfigError(key, f"must be one of {allowed}, got {value!r}")
        for key in ("soft_weight", "labels_weight"):
            check_number(key, getattr(self, key))
        for key in (*ITERATION_KEYS, "log_period"):
            check_integer(key, getattr(self, key), low=0)
        check_integer("seed", self.seed)
        check_bool("channels_last", self.channels_last)
        for key, example in (("not_in_pixels", "gt_depth"), ("keep_whole", "neck")):
            named = getattr(self, key)
            if not _is_list(named) or not all(name and isinstance(name, str) for name in named):
                raise ConfigError(key, f'must be a list of names as ["{example}"], got {named!r}')
        if not _is_list(self.widths):
            problem = f"must list numbers in (0, 1) as [0.9, 0.5], got {self.widths!r}"
            raise ConfigError("widths", problem)
        for width in self.widths:
            if check_width(width, "widths") == 1:
                raise ConfigError("widths", f"must be below 1, got {width!r}: 1 is trained anyway")
        # Whatever kind of list a config has.
        for key in ("scales", "not_in_pixels", "keep_whole"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        self._check_meaning()
        default = DEFAULT_WIDTHS if self.passes == "alternating" else ()
        widths = tuple(sorted(set(self.widths or default), reverse=True))
        object.__setattr__(self, "widths", widths)

    def _check_meaning(self) -> None:
        """Raises ConfigError for a setting that would silently do nothing."""
        if 0 < self.stop <= self.start:
            raise ConfigError("stop", f"must be above start, {self.start}, or 0, got {self.stop}")
        if self.keep_whole and self.slim != "detector":
            raise ConfigError("keep_whole", f"needs slim to be 'detector', got {self.slim!r}")
        keys, reason = _MEANINGLESS[self.passes]
        reason = f"passes are {self.passes!r}, {reason}"
        if self.passes == "added" and self.widths:
            keys, reason = ("min_width", *keys), "`widths` says which there are"
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in keys and value != field.default:
                problem = f"must be left at its default, {field.default!r}, got {value!r}: {reason}"
                raise ConfigError(field.name, problem)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> GradAugOptions:
        """Returns options; an unknown key is a ConfigError that names the nearest one."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(key, f"is not a GradAug setting; {hint}")
        return cls(**values)

    @classmethod
    def widths_of(cls, hook: Mapping[str, Any] | None) -> GradAugOptions:
        """Returns the options of a hook's config that say which sub-networks a training has; of no
        hook, that there are none."""
        keys = ("num_subnets", "min_width", "passes", "widths", "full_share")
        keys += ("divisor", "slim", "keep_whole")
        return cls(**{k: hook[k] for k in keys if k in hook}) if hook else cls(num_subnets=0)

    def has_sub_networks(self, iteration: int) -> bool:
        """Returns whether an iteration, counted from 0, is one of those from `start` to `stop`."""
        return self.start <= iteration and (iteration < self.stop or not self.stop)

    @property
    def moves_pixels(self) -> bool:
        """Returns whether a sub-network may see an image of another size or mirrored."""
        return self.flip_prob > 0 or any(scale != 1 for scale in self.scales)

    @property
    def uses_soft(self) -> bool:
        """Returns whether soft targets are needed."""
        return self.supervision in ("soft", "both") and self.soft_weight > 0

    def soft_weight_at(self, iteration: int) -> float:
        """Returns the factor of the losses against soft targets in a step, counted from 0."""
        if iteration + 1 >= self.soft_warmup:
            return self.soft_weight
        return self.soft_weight * (iteration + 1) / self.soft_warmup

    @property
    def uses_labels(self) -> bool:
        """Returns whether sub-networks need the detector's own losses."""
        return self.supervision in ("labels", "both") and self.labels_weight > 0

    @property
    def smallest_width(self) -> float:
        """Returns the smallest width multiplier that is trained."""
        return min(self.widths, default=self.min_width)

    @property
    def trained_width(self) -> float:
        """Returns the smallest width that there is in such a training: 1 without sub-networks."""
        if self.passes == "alternating":
            return min(width for width, share in self.shares.items() if share)
        return self.smallest_width if self.active else 1.0

    @property
    def shares(self) -> dict[float, float]:
        """Returns the share of each width among alternating passes, the largest width first."""
        narrow, (*others, smallest) = 1 - self.full_share, self.widths
        least = self.smallest_share if others else 1.0
        between = {width: narrow * (1 - least) / len(others) for width in others}
        return {1.0: self.full_share, **between, smallest: narrow * least}

    @property
    def active(self) -> bool:
        """Returns whether there is anything to do; else training is the framework's own."""
        if self.passes == "alternating":
            return self.full_share < 1
        return self.num_subnets > 0 and (self.uses_soft or self.uses_labels)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
