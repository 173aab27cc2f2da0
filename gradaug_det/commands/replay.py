"""``gradaug-det replay``: a step whose losses were not finite, run again."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gradaug_det.replay import replay

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("dump", type=Path, help="file in the training's folder 'nonfinite'")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the training's; for LazyConfigs and MMDetection",
    )
    parser.add_argument(
        "--trust-config",
        action="store_true",
        help="run the Python config in an MMDetection step's file, because the file is your own",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what each pass gives; the exit code is 1 if something is not finite again."""
    found = replay(args.dump, args.config, args.trust_config)
    for line in found.lines:
        logger.info("%s", line)
    return 1 if found.again else 0
