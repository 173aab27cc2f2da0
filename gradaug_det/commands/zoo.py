"""``gradaug-det zoo``: list, describe, download, verify, convert, export and add backbones.

Listing and downloading need no torch, which takes seconds to import: what needs it is imported
where it is used.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradaug_det.errors import ZooError
from gradaug_det.zoo.download import local_path
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.index import Entry, find, load_index
from gradaug_det.zoo.info import SOURCES, TARGETS, BackboneInfo

logger = logging.getLogger(__name__)
_NAME = "an entry's name, or the path of a backbone file (.safetensors)"
_ORDERS = ("RGB", "BGR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's actions and their arguments."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        subparser = actions.add_parser(name, help=text, description=text)
        subparser.set_defaults(action=run)
        return subparser.add_argument

    def add_output(add: Callable[..., Any]) -> None:
        add("out", type=Path, metavar="OUT", help=".safetensors or .pth")
        add("--to", dest="target", choices=TARGETS, required=True)
        add("--format", choices=_ORDERS, help="channel order; default: the framework's usual")
        add("--classifier", action="store_true", help="keep the classifier")

    add = action("list", _list, "the backbones that there are")
    add("--json", action="store_true")
    add = action("info", _describe, "what a backbone is and what its input must look like")
    add("name", metavar="NAME", help=_NAME)
    add("--json", action="store_true")
    add = action("download", _download, "bring backbones to this machine, verified")
    add("names", nargs="+", metavar="NAME")
    text = "accept a file for which no sha256 was published; shows what arrived"
    add("--allow-unverified", action="store_true", help=text)
    add = action("verify", _verify, "check files: sha256, description, shapes, no NaN")
    add("names", nargs="+", metavar="NAME", help=_NAME)
    add = action("convert", _convert, "write a checkpoint under another framework's names")
    add("source", type=Path, metavar="IN", help="a backbone file, or a checkpoint (--from)")
    add_output(add)
    add("--from", dest="framework", choices=SOURCES, help="whose names IN has")
    add("--source-format", choices=_ORDERS, help="channel order that IN expects")
    add("--info", type=Path, metavar="JSON", help="describe OUT by this: makes a backbone file")
    add = action("export", _export, "write a backbone of the zoo for a framework")
    add("name", metavar="NAME")
    add_output(add)
    add = action("add", _add, "add a backbone file to an index, or replace it there")
    add("file", type=Path, metavar="FILE")
    add("--description", required=True, help="one line")
    add("--index", type=Path, help="index.json to change; default: the one in use")
    add("--kind", choices=("packaged", "url"), default="packaged")
    add("--claimed", action="store_true", help="its metrics were not measured by this project")


def run(args: argparse.Namespace) -> int:
    """Runs the action that was asked for."""
    args.action(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    entries = load_index().entries.values()
    if args.json:
        logger.info("%s", json.dumps([_flatten(entry) for entry in entries], indent=2))
        return
    rows = [("NAME", "ARCHITECTURE", "MB", "TOP-1", "WHERE")]
    for entry in entries:
        size = f"{entry.size / 1e6:.1f}" if entry.size else "?"
        top1 = f"{entry.info.metrics.get('top1', float('nan')):.2f}" + "*" * (not entry.measured)
        where = "here" if local_path(entry).is_file() else entry.kind
        rows.append((entry.name, entry.info.architecture, size, top1, where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        logger.info("%s", "  ".join(cells).rstrip())
    if not all(entry.measured for entry in entries):
        logger.info("* its authors' claim, not measured here")


def _describe(args: argparse.Namespace) -> None:
    if args.name.endswith(".safetensors"):
        from gradaug_det.zoo.backbone import read_info

        values = read_info(args.name).to_dict()
    else:
        values = _flatten(find(args.name))
    if args.json:
        logger.info("%s", json.dumps(values, indent=2))
        return
    for key, value in values.items():
        logger.info("%-14s %s", key, value if isinstance(value, str) else json.dumps(value))


def _flatten(entry: Entry) -> dict[str, Any]:
    """The entry as one flat object, with where its file is on this machine or null."""
    values = entry.to_dict()
    path = local_path(entry)
    return values.pop("info") | values | {"path": str(path) if path.is_file() else None}


def _download(args: argparse.Namespace) -> None:
    for name in args.names:
        logger.info("%s", fetch(name, allow_unverified=args.allow_unverified))


def _verify(args: argparse.Namespace) -> None:
    from gradaug_det.zoo.publish import verify

    for name in args.names:
        logger.info("%s", verify(name))


def _convert(args: argparse.Namespace) -> None:
    info = None
    if args.info is not None:
        try:
            info = BackboneInfo.from_dict(json.loads(args.info.read_text("utf-8")))
        except (ValueError, ZooError) as error:
            raise ZooError(f"{args.info}: {error}") from None
    _write(args, args.source, framework=args.framework, source_format=args.source_format, info=info)


def _export(args: argparse.Namespace) -> None:
    _write(args, fetch(args.name))


def _write(args: argparse.Namespace, source: Path, **more: Any) -> None:
    from gradaug_det.zoo.convert import convert_file

    more |= {"target_format": args.format, "classifier": args.classifier}
    logger.info("%s", convert_file(source, args.out, args.target, **more))


def _add(args: argparse.Namespace) -> None:
    from gradaug_det.zoo.publish import add_file

    options = {"index": args.index, "kind": args.kind, "measured": not args.claimed}
    entry = add_file(args.file, args.description, **options)
    logger.info("%s: %d bytes, sha256 %s", entry.name, entry.size, entry.sha256)
