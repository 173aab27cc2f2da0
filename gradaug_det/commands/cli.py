"""The ``gradaug-det`` command.

A subcommand is a module with ``add_arguments(parser)`` and ``run(args) -> int`` (the exit code),
named in `COMMANDS`. It is imported when it is chosen, so that ``gradaug-det --help`` needs none
of the frameworks. What a command has to say goes through ``logging`` and lands on stdout; an
error that the user can act on is one sentence on stderr and exit code 2. When nobody reads what it
says any more (``gradaug-det ... | head``), a command ends without a word, with the shell's code for
that.
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

PIPE_CLOSED = 141
"""Exit code when the reader of stdout or stderr is gone: 128 + SIGPIPE, as of other programs."""


class Command(NamedTuple):
    """A subcommand: the module that implements it and its line in the help."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "build-mini-coco": Command(
        "gradaug_det.commands.mini_coco",
        "build the embedded detection data set in COCO format",
    ),
    "benchmark": Command(
        "gradaug_det.commands.benchmark",
        "AP, cost and robustness of detectors on a COCO-format data set",
    ),
    "export": Command(
        "gradaug_det.commands.export",
        "write a sub-network as an ordinary detector of its framework",
    ),
    "replay": Command(
        "gradaug_det.commands.replay",
        "run a training step again whose losses were not finite",
    ),
    "check-data": Command(
        "gradaug_det.commands.check_data",
        "find what is wrong with a COCO-format data set or class folders",
    ),
    "zoo": Command(
        "gradaug_det.commands.zoo",
        "list, download, verify and convert pretrained backbones",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the arguments after the program's name; None: `sys.argv`.

    Returns:
        The exit code: the command's own, 2 for an error that the user can act on, 130 after
        Ctrl-C, :data:`PIPE_CLOSED` when nobody reads on. Wrong arguments leave through argparse's
        ``SystemExit``, code 2 as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _streams_that_are_closed(), _log_to_stdout():
        try:
            try:
                return _run(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
        except OSError as error:  # of these two
            _let_go()
            if isinstance(error, BrokenPipeError):
                return PIPE_CLOSED
            print(f"gradaug-det: error: {error}", file=sys.stderr)
            return 2


def _run(arguments: list[str]) -> int:
    # The program's own options take no value: the first other word is the subcommand.
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    try:
        args = _parser(chosen).parse_args(arguments)
        return args.run(args)
    except (GradAugError, OSError) as error:
        if isinstance(error, BrokenPipeError) and any(map(_is_deserted, _streams())):
            raise
        _let_go()
        message = " ".join(str(error).split())
        print(f"gradaug-det: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gradaug-det: interrupted", file=sys.stderr)
        return 130


def _streams() -> tuple[TextIO, TextIO]:
    return sys.stdout, sys.stderr


def _is_deserted(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads; other pipes than ours break as well."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no file of the system, or no poll there
        return False


def _let_go() -> None:
    """What a stream does not take goes nowhere: Python would try it again at the exit."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, stream.fileno())
            os.close(nobody)


@contextlib.contextmanager
def _streams_that_are_closed() -> Iterator[None]:
    """Within the block, a closed stdout or stderr (``2>&-``), which Python calls None, is there."""
    with contextlib.ExitStack() as stack:
        for stream, redirect in (
            (sys.stdout, contextlib.redirect_stdout),
            (sys.stderr, contextlib.redirect_stderr),
        ):
            if stream is None:
                nobody = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect(nobody))
        yield


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


class _ToStdout(logging.StreamHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A stream that takes no more is no slip of one message: whoever logged has to end."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


@contextlib.contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Show the package's messages while a command runs, and leave logging as it was."""
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
