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
import os
import select
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from gradaug_det import __version__
from gradaug_det.errors import GradAugError

PIPE_CLOSED = 141  # the reader of stdout or stderr is gone: 128 + SIGPIPE, as of other programs

_EXTRAS = (
    "`pip install 'gradaug-det[coco]'` brings what the programs need beside your Detectron2 or "
    "MMDetection, 'gradaug-det[corruptions]' what --corruptions needs"
)


class Command(NamedTuple):
    """A subcommand: its module in this package and its line in the help."""

    module: str
    help: str


COMMANDS = {
    "build-mini-coco": Command("mini_coco", "build the embedded detection data set in COCO format"),
    "benchmark": Command(
        "benchmark", "AP, cost and robustness of detectors on a COCO-format data set"
    ),
    "export": Command("export", "write a sub-network as an ordinary detector of its framework"),
    "replay": Command("replay", "run a training step again whose losses were not finite"),
    "check-data": Command(
        "check_data", "find what is wrong with a COCO-format data set or class folders"
    ),
    "zoo": Command("zoo", "list, download, verify and convert pretrained backbones"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments after the program's name; None: `sys.argv`.

    Returns:
        The exit code: the command's own, 2 for an error that the user can act on, 130 after
        Ctrl-C, :data:`PIPE_CLOSED` when nobody reads on (``gradaug-det ... | head``). Wrong
        arguments leave through argparse's ``SystemExit``, code 2 as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nobody,
        # Python calls a stream None that was closed from the start (``2>&-``).
        contextlib.redirect_stdout(sys.stdout or nobody),
        contextlib.redirect_stderr(sys.stderr or nobody),
        _log_to_stdout(),
    ):
        try:
            try:
                # The program's own options take no value: the first other word is the subcommand.
                chosen = next((word for word in arguments if not word.startswith("-")), None)
                args = _parser(chosen).parse_args(arguments)
                return args.run(args)
            finally:
                # A full disk or a gone reader may show here only; argparse swallows it.
                sys.stdout.flush()
                sys.stderr.flush()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("gradaug_det"):
                raise  # of a broken install, which no extra mends
            return _end(GradAugError(f"{error.name} is not installed; {_EXTRAS}"))
        except (GradAugError, OSError, KeyboardInterrupt) as error:
            return _end(error)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Returns the parser of all subcommands' names, and of the chosen one's arguments."""
    parser = argparse.ArgumentParser(
        prog="gradaug-det", description="GradAug for Detectron2 and MMDetection."
    )
    parser.add_argument("--version", action="version", version=f"gradaug-det {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            module = importlib.import_module(f"gradaug_det.commands.{command.module}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _end(error: BaseException) -> int:
    """Says what stopped the command, if there is somebody to read it; returns the exit code."""
    message, code = f"error: {' '.join(str(error).split())}", 2
    if isinstance(error, KeyboardInterrupt):
        message, code = "interrupted", 130
    streams = sys.stdout, sys.stderr
    # Pipes of a command's own break as well; those are errors like others.
    if isinstance(error, BrokenPipeError) and any(map(_is_deserted, streams)):
        code = PIPE_CLOSED
    else:
        with contextlib.suppress(OSError):
            print(f"gradaug-det: {message}", file=sys.stderr)
    for stream in streams:
        # Logging, argparse and tqdm may have left text in its buffer.
        try:
            stream.flush()
        except OSError:
            # Python would try to write the rest again at the exit: it goes nowhere instead.
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, stream.fileno())
            os.close(nobody)
    return code


def _is_deserted(stream: TextIO) -> bool:
    """Returns whether a stream is a pipe that nobody reads."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no file of the system, or no poll there
        return False


class _ToStdout(logging.StreamHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ends who logs when the stream takes no more, where logging would go on."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


@contextlib.contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Shows the package's messages while a command runs, and leaves logging as it was."""
    logger = logging.getLogger("gradaug_det")
    handler = _ToStdout(sys.stdout)
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
