"""``gradaug-det zoo``: list, describe, download, verify, convert, export and publish backbones.

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
from gradaug_det.zoo.download import URL_VARIABLE, local_path
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.index import Entry
from gradaug_det.zoo.info import METRICS, SOURCES, TARGETS, BackboneInfo
from gradaug_det.zoo.sources import find, load_indexes

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
    add = action("publish", _publish, "make a zoo of a folder: files, index.json, model card")
    add("out", type=Path, metavar="OUT", help="the folder; what it has stays")
    text = "files to publish, and names of entries; none: those that OUT has, checked anew"
    add("sources", nargs="*", metavar="FILE|NAME", help=text)
    add("--description", help="one line, of the one source")
    add("--claimed", action="store_true", help="you did not measure the files' metrics")


def run(args: argparse.Namespace) -> int:
    """Runs the action that was asked for."""
    args.action(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    first: dict[str, Entry] = {}
    hidden = []
    for entry in (entry for index in load_indexes() for entry in index.entries.values()):
        if first.setdefault(entry.name, entry) is not entry:
            hidden.append(f"{entry.name} of {entry.index}: hidden by {first[entry.name].index}")
    if args.json:
        logger.info("%s", json.dumps([_flatten(entry) for entry in first.values()], indent=2))
        return
    shown = {key: title.upper() for key, title in METRICS.items() if key != "loss"}
    rows = [("NAME", "ARCHITECTURE", "MB", *shown.values(), "WHERE", "ZOO")]
    for name, entry in first.items():
        size = f"{entry.size / 1e6:.1f}" if entry.size else "?"
        mark, metrics = "*" * (not entry.measured), entry.info.metrics
        numbers = (f"{metrics[key]:.2f}{mark}" if key in metrics else "" for key in shown)
        rows.append((name, entry.info.architecture, size, *numbers, _where(entry), entry.index))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        logger.info("%s", "  ".join(cells).rstrip())
    if not all(entry.measured for entry in first.values()):
        logger.info("* a claim, not measured by who published it")
    for line in hidden:
        logger.info("%s", line)


def _where(entry: Entry) -> str:
    if local_path(entry).is_file():
        return "here"
    if entry.gdrive_id is not None:
        return "drive"
    return "server" if isinstance(entry.home, str) else "missing"


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
    values["zoo"] = entry.index
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


def _publish(args: argparse.Namespace) -> None:
    from gradaug_det.zoo.publish import publish

    options = {"description": args.description, "claimed": args.claimed}
    for entry in publish(args.out, args.sources, **options):
        logger.info("%s: %s bytes, sha256 %s", entry.name, entry.size, entry.sha256)
    logger.info("%s is a zoo: serve it, or name it in %s", args.out, URL_VARIABLE)
