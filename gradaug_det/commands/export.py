"""``gradaug-det export``: a sub-network as an ordinary detector of its framework."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gradaug_det.errors import ConfigError
from gradaug_det.export.calibration import find_images
from gradaug_det.export.programs import check_format
from gradaug_det.export.run import export_detector
from gradaug_det.frameworks import FRAMEWORKS, load_exporter
from gradaug_det.utils.detector_files import DetectorFiles

logger = logging.getLogger(__name__)
IMAGES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="as trained")
    add("--weights", required=True, metavar="FILE", help="as trained")
    text = "e.g. 0.875; 1: the full network"
    add("--width", type=float, required=True, metavar="W", help=text)
    add("--out", type=Path, required=True, metavar="FOLDER")
    text = (
        "measure BatchNorm statistics on a folder of images or a COCO-format json; without it, "
        "they are the full network's, cut"
    )
    add("--calibrate", type=Path, metavar="IMAGES", help=text)
    count = parser.add_mutually_exclusive_group()
    text = f"the first N of --calibrate; default {IMAGES}"
    count.add_argument("--images", type=int, metavar="N", help=text)
    text = (
        "instead, give the norms' outputs the full network's moments on the first N of "
        "--calibrate: for a detector that was not trained at that width"
    )
    count.add_argument("--match", type=int, metavar="N", help=text)
    formats = parser.add_mutually_exclusive_group()
    for name, text in (("torchscript", "a traced program"), ("onnx", "the same as ONNX")):
        formats.add_argument(
            f"--{name}", action="store_const", dest="program", const=name, help=f"also write {text}"
        )
    add("--framework", choices=list(FRAMEWORKS), help="if not obvious")
    text = "overrides of the config: KEY VALUE pairs for yaml, key=value for Python configs"
    add("--opts", nargs="+", default=[], metavar="X", help=text)


def run(args: argparse.Namespace) -> int:
    count = args.images if args.match is None else args.match
    option = "--images" if args.match is None else "--match"
    if count is not None and args.calibrate is None:
        raise ConfigError(option, "says how many of --calibrate are used, which is missing")
    # What is wrong with other arguments is found before a detector is built.
    if args.program is not None:
        check_format(args.program)
    images = []
    if args.calibrate is not None:
        images = find_images(args.calibrate, IMAGES if count is None else count, option)
    files = DetectorFiles(
        args.config, args.weights, args.config.stem, args.framework, tuple(args.opts)
    )
    exported = export_detector(
        load_exporter(files),
        args.width,
        args.out,
        images=images,
        match=args.match is not None,
        program=args.program,
    )
    record = exported.record
    channels, parameters = record["channels"], record["parameters"]
    logger.info(
        f"{exported.weights}: channels {channels['exported']}, {parameters['exported']} parameters "
        f"(full: {channels['full']}, {parameters['full']})"
    )
    logger.info("config: %s", exported.config)
    if exported.program is not None:
        logger.info("%s: %s", exported.program, record["program"]["note"])
    return 0
