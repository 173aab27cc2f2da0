"""The ``GRADAUG`` keys of a Detectron2 config."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from gradaug_det.core.checks import check_bool, check_integer
from gradaug_det.core.options import GradAugOptions
from gradaug_det.errors import ConfigError


def add_gradaug_config(cfg: CN) -> None:
    """Adds the ``GRADAUG`` node with its defaults: the same settings as
    :class:`gradaug_det.core.options.GradAugOptions`, in upper case, and ``ENABLED``; and
    ``SOLVER.EXACT_RESUME``.

    The node accepts any key so that :func:`gradaug_options` can name the one that was meant.
    """
    # A resumed training sees the images and random numbers that it would have seen without the
    # break; see gradaug_det.d2.resume. False: as Detectron2 does.
    cfg.SOLVER.EXACT_RESUME = True
    defaults = GradAugOptions()
    cfg.GRADAUG = CN(new_allowed=True)
    # Train with GradAug. Everything below is ignored without it.
    cfg.GRADAUG.ENABLED = False
    # n of Algorithm 1: sub-networks a step.
    cfg.GRADAUG.NUM_SUBNETS = defaults.num_subnets
    # alpha: the smallest width multiplier, in (0, 1]; one sub-network of a step always has it.
    cfg.GRADAUG.MIN_WIDTH = defaults.min_width
    # Image scales that sub-networks choose from, relative to the batch, in (0, 4].
    cfg.GRADAUG.SCALES = list(defaults.scales)
    # Probability that a sub-network sees the batch mirrored left to right.
    cfg.GRADAUG.FLIP_PROB = defaults.flip_prob
    # Probability that a sub-network keeps the last residual branch; 1: sub-networks by width alone.
    cfg.GRADAUG.BLOCK_SURVIVAL = defaults.block_survival
    # Channel counts of sub-networks are multiples of this: 1 as the authors', 16 is faster.
    cfg.GRADAUG.DIVISOR = defaults.divisor
    # What sub-networks learn from: "labels", "soft" (the full network's outputs) or "both".
    cfg.GRADAUG.SUPERVISION = defaults.supervision
    # Factor of the losses against soft targets.
    cfg.GRADAUG.SOFT_WEIGHT = defaults.soft_weight
    # Iterations in which that factor rises from 0: new heads are no targets at first.
    cfg.GRADAUG.SOFT_WARMUP = defaults.soft_warmup
    # Factor of the losses against labels.
    cfg.GRADAUG.LABELS_WEIGHT = defaults.labels_weight
    # BatchNorm statistics in sub-networks: "batch", "frozen", or "auto" (as the full network).
    cfg.GRADAUG.SUBNET_NORM = defaults.subnet_norm
    # Seed of widths, transforms and the sub-networks' own random numbers.
    cfg.GRADAUG.SEED = defaults.seed
    # Iterations between log lines that name widths and scales; 0 for none.
    cfg.GRADAUG.LOG_PERIOD = defaults.log_period
    # Convolutions keep (N, H, W, C) in memory: faster on CPUs.
    cfg.GRADAUG.CHANNELS_LAST = defaults.channels_last
    # A NaN or infinity in a sub-network: "raise" (and leave a file to replay) or "skip" it.
    cfg.GRADAUG.NONFINITE = defaults.nonfinite
    # Further fields of the batch that do not live in the image's pixels, as ["gt_embedding"].
    cfg.GRADAUG.NOT_IN_PIXELS = defaults.not_in_pixels


def gradaug_options(cfg: CN) -> GradAugOptions:
    """The validated settings of ``cfg.GRADAUG``.

    Raises:
        ConfigError: names the key, the value given and the values allowed.
    """
    if "GRADAUG" not in cfg:
        raise ConfigError("GRADAUG", "is missing; call add_gradaug_config(cfg) before merging")
    for key in cfg.GRADAUG:
        if not key.isupper():
            raise ConfigError(f"GRADAUG.{key}", f"is unknown; write keys as {key.upper()}")
    values = {key.lower(): v for key, v in cfg.GRADAUG.items() if key != "ENABLED"}
    check_bool("GRADAUG.ENABLED", cfg.GRADAUG.get("ENABLED"))
    try:
        # The hook takes n = 0 as a control; a config says ENABLED: False for plain training.
        count = check_integer("num_subnets", values.get("num_subnets", 1))
        if count < 1:
            problem = f"must be at least 1, got {count}; for plain training set GRADAUG.ENABLED"
            raise ConfigError("num_subnets", f"{problem} to False")
        return GradAugOptions.from_mapping(values)
    except ConfigError as error:
        raise ConfigError(f"GRADAUG.{error.key.upper()}", error.problem) from None
