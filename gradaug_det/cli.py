"""The ``gradaug-det`` command.

A subcommand is a module with ``add_arguments(parser)`` and ``run(args) -> int`` (the exit code),
named in `COMMANDS`. It is imported when it is chosen, so that ``gradaug-det --help`` needs none
of the frameworks. What a command has to say goes through ``logging`` and lands on stdout; an
error that the user can act on is one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradaug_det import __version__
from gradaug_det.errors import GradAugError


class Command(NamedTuple):
    """A subcommand: the module that implements it and its line in the help."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "build-mini-coco": Command(
        "gradaug_det.datasets.commands.mini_coco",
        "build the embedded detection data set in COCO format",
    ),
    "build-garments": Command(
        "gradaug_det.datasets.commands.garments",
        "regenerate the embedded subset of Fashion-MNIST from its idx files",
    ),
    "benchmark": Command(
        "gradaug_det.benchmark.commands.benchmark",
        "AP, cost and robustness of detectors on a COCO-format data set",
    ),
    "export": Command(
        "gradaug_det.export.commands.export",
        "write a sub-network as an ordinary detector of its framework",
    ),
    "replay": Command(
        "gradaug_det.replay.commands.replay",
        "run a training step again whose losses were not finite",
    ),
    "check-data": Command(
        "gradaug_det.datasets.commands.check_data",
        "find what is wrong with a COCO-format data set or class folders",
    ),
    "zoo": Command(
        "gradaug_det.zoo.commands.zoo",
        "list, download, verify and convert pretrained backbones",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the arguments after the program's name; None: `sys.argv`.

    Returns:
        The exit code: the command's own, 2 for an error that the user can act on, 130 after
        Ctrl-C. Wrong arguments leave through argparse's ``SystemExit``, code 2 as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The program's own options take no value: the first other word is the subcommand.
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    with _log_to_stdout():
        try:
            args = _parser(chosen).parse_args(arguments)
            return args.run(args)
        except (GradAugError, OSError) as error:
            message = " ".join(str(error).split())
            print(f"gradaug-det: error: {message}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("gradaug-det: interrupted", file=sys.stderr)
            return 130


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of all subcommands' names, and of the chosen one's arguments."""
    parser = argparse.ArgumentParser(
        prog="gradaug-det", description="GradAug for Detectron2 and MMDetection."
    )
    parser.add_argument("--version", action="version", version=f"gradaug-det {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


@contextlib.contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Show the package's messages while a command runs, and leave logging as it was."""
    logger = logging.getLogger("gradaug_det")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
