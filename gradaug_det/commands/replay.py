"""``gradaug-det replay``: a step whose losses were not finite, run again."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gradaug_det.core.dump import read_dump
from gradaug_det.frameworks import load_replay
from gradaug_det.replay import Replay, replay

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dump", type=Path, help="file in the training's folder 'nonfinite'")
    text = "the training's; for LazyConfigs and MMDetection"
    add("--config", type=Path, metavar="FILE", help=text)
    text = "run the Python config in an MMDetection step's file, because the file is your own"
    add("--trust-config", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    found = replay_file(args.dump, args.config, args.trust_config)
    for line in found.lines:
        logger.info("%s", line if line.isprintable() else repr(line))  # it may steer a terminal
    return 1 if found.is_bad else 0


def replay_file(
    path: str | Path, config: str | Path | None = None, trust_config: bool = False
) -> Replay:
    """Runs the step in a file again; see :func:`gradaug_det.replay.replay`."""
    dump = read_dump(path)
    return replay(dump, load_replay(dump.framework), config, trust_config)
