"""``gradaug-det check-data``: what is wrong with a data set, before a training finds out."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections import Counter
from pathlib import Path

from gradaug_det.check_data.check import check_coco, check_imagefolder, compare
from gradaug_det.check_data.kinds import SEVERITIES, CheckResult, describe_example
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.utils.files import atomic_path

_log = logging.getLogger(__name__)
_SPLITS = ("train2017", "val2017", "train", "val")  # COCO's and mini-COCO's
_SHOWN = 3  # examples of a kind in the table; --json has more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--coco",
        type=Path,
        metavar="ROOT",
        help="folder with annotations/instances_SPLIT.json and SPLIT/",
    )
    source.add_argument(
        "--annotations",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="annotation files; the classes of several are compared",
    )
    source.add_argument(
        "--imagefolder",
        type=Path,
        metavar="ROOT",
        help="folder with CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg",
    )
    add = parser.add_argument
    add(
        "--images",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="images of --annotations, one folder for all or one for each; default: not checked",
    )
    add(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="splits of --coco; default: those of train2017, val2017, train, val that are there",
    )
    add("--no-decode", action="store_true", help="read image headers only")
    add("--boxes-only", action="store_true", help="for a detector without masks")
    add("--num-classes", type=int, metavar="N", help="the model's classes")
    add("--json", type=Path, metavar="OUT", help="write what was found as JSON")
    add("--jobs", type=int, default=os.cpu_count(), metavar="N", help="threads (all cores)")
    add(
        "--fail-on",
        choices=("error", "warning", "never"),
        default="error",
        help="the least severity that makes the exit code 1 (error)",
    )


def run(args: argparse.Namespace) -> int:
    results = _check(args)
    counts = Counter()
    for result in results:
        _log_findings(result)
        for finding in result.findings:
            counts[finding.kind.severity] += finding.count
    if args.json is not None:
        content = json.dumps([result.to_dict() for result in results], indent=1, allow_nan=False)
        with atomic_path(args.json) as path:
            path.write_text(content + "\n", encoding="utf-8")
    failed = args.fail_on != "never" and any(r.at_least(args.fail_on) for r in results)
    found = ", ".join(f"{counts[severity]} {severity}s" for severity in SEVERITIES)
    _log.info("%s: %s", "FAILED" if failed else "passed", found)
    return int(failed)


def _check(args: argparse.Namespace) -> list[CheckResult]:
    for option, source in (("images", "annotations"), ("split", "coco")):
        if getattr(args, option) is not None and getattr(args, source) is None:
            raise ConfigError(f"--{option}", f"goes with --{source} only")
    files = {"decode": not args.no_decode, "jobs": args.jobs, "progress": True}
    if args.imagefolder is not None:
        for option, given in (("num-classes", args.num_classes), ("boxes-only", args.boxes_only)):
            if given:
                raise ConfigError(f"--{option}", "does not go with --imagefolder")
        return [check_imagefolder(args.imagefolder, **files)]
    if args.annotations is not None:
        folders = args.images or [None]
        if len(folders) not in (1, len(args.annotations)):
            problem = f"has {len(folders)} folders for {len(args.annotations)} annotation files"
            raise ConfigError("--images", f"{problem}; give one for all, or one for each")
        folders = folders * len(args.annotations) if len(folders) == 1 else folders
        pairs = list(zip(args.annotations, folders, strict=True))
    else:
        names = args.split or _SPLITS
        pairs = [(args.coco / f"annotations/instances_{n}.json", args.coco / n) for n in names]
        if not args.split:
            pairs = [pair for pair in pairs if pair[0].is_file()]
        if not pairs:
            raise DataError(
                f"{args.coco} holds none of annotations/instances_SPLIT.json for SPLIT in "
                f"{', '.join(_SPLITS)}; name yours with --split, or use --annotations and --images"
            )
    options = {**files, "num_classes": args.num_classes, "masks": not args.boxes_only}
    return compare([check_coco(*pair, **options) for pair in pairs])


def _log_findings(result: CheckResult) -> None:
    counts = ", ".join(f"{count} {what}" for what, count in result.counts.items())
    where = "" if result.images in (None, result.source) else f", images in {result.images}"
    _log.info("%s%s: %s", result.source, where, counts)
    for finding in result.findings:
        kind = finding.kind
        _log.info("  %-8s%8d  %-27s%s", kind.severity, finding.count, kind.name, kind.meaning)
        for framework, does in (("Detectron2", kind.detectron2), ("MMDetection", kind.mmdetection)):
            if does != "-" and kind.severity != "note":
                _log.info("%20s%s: %s", "", framework, does)
        for example in finding.examples[:_SHOWN]:
            if example:
                _log.info("%20se.g. %s", "", describe_example(example))
