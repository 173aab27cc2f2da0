"""``gradaug-det benchmark``: detectors of either framework on a COCO-format dataset."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from gradaug_det.benchmark.processes import processes
from gradaug_det.benchmark.report import write_benchmark
from gradaug_det.benchmark.run import BenchmarkSettings, load_data, run_benchmark
from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.corruptions import SEVERITIES, corruption_names
from gradaug_det.export.calibration import find_images
from gradaug_det.frameworks import FRAMEWORKS, load_detector
from gradaug_det.utils.detector_files import DetectorFiles

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Several checkpoints of one config: --config C --weights A B. Of several, also of both\n"
        "frameworks: --config C1 C2 --weights A B. Several processes: torchrun\n"
        "--nproc_per_node 8 tools/benchmark.py ... The report says what the numbers mean."
    )
    detectors = parser.add_argument_group("detectors")
    detectors.add_argument("--config", type=Path, nargs="+", required=True, metavar="FILE")
    detectors.add_argument(
        "--weights", nargs="+", metavar="FILE", help="checkpoints or URLs; default: the config's"
    )
    detectors.add_argument("--label", nargs="+", metavar="TEXT", help="of each, for readers")
    detectors.add_argument("--framework", choices=list(FRAMEWORKS), help="if not obvious")
    text = "overrides of the config: KEY VALUE pairs for yaml, key=value for Python configs"
    detectors.add_argument("--opts", nargs="+", default=[], metavar="X", help=text)
    data = parser.add_argument_group("data: --coco, or --annotations with --images")
    data.add_argument("--coco", type=Path, metavar="FOLDER", help="annotations/ and SPLIT/ in it")
    data.add_argument("--split", default="val2017", help="of --coco; mini-COCO has val")
    data.add_argument("--annotations", type=Path, metavar="FILE", help="COCO-format json")
    data.add_argument("--images", type=Path, metavar="FOLDER")
    data.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--widths", type=float, nargs="+", default=(1.0,), metavar="W")
    text = "ImageNet-C's, at the largest width; without names all 15"
    what.add_argument("--corruptions", nargs="*", default=(), metavar="KIND", help=text)
    what.add_argument("--severities", type=int, nargs="+", default=SEVERITIES, metavar="S")
    text = "attack on the training loss, at the largest width; on the 0-255 scale"
    what.add_argument(
        "--fgsm", dest="epsilons", type=float, nargs="+", default=(), metavar="EPS", help=text
    )
    text = (
        "at widths below those that a config trains, give norms the full network's moments on the "
        "first N images of --calibrate"
    )
    what.add_argument("--match", type=int, metavar="N", help=text)
    text = "a folder of images or a COCO-format json, of training images"
    what.add_argument("--calibrate", type=Path, metavar="IMAGES", help=text)
    what.add_argument("--cost-images", type=int, default=5, metavar="N", help="for time and FLOPs")
    what.add_argument("--repeats", type=int, default=3, help="timings of each; 0: no timing")
    run = parser.add_argument_group("how")
    run.add_argument("--out", type=Path, default=Path("report/benchmark"), metavar="FOLDER")
    run.add_argument("--resume", action="store_true", help="go on where it was interrupted")
    run.add_argument("--workers", type=int, default=2, help="processes that read images")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    run.add_argument("--device", default=best, help="default: cuda if there is one, else cpu")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    # PyTorch's profiler, which counts memory, reports a missing GPU as an error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    command = _command(args)  # before anything in them is filled in
    data = load_data(*_dataset(args))
    if args.corruptions == []:  # the option without names
        args.corruptions = corruption_names()
    args.match = _images_to_match(args)
    settings = BenchmarkSettings(
        **{field.name: getattr(args, field.name) for field in fields(BenchmarkSettings)}
    )
    with processes():
        detectors = [load_detector(files, data, settings.device) for files in detector_files(args)]
        benchmark = run_benchmark(
            detectors, data, args.out, settings, resume=args.resume, command=command
        )
        if benchmark is not None:
            logger.info("report: %s", write_benchmark(args.out, benchmark))
    return 0


def _dataset(args: argparse.Namespace) -> tuple[Path, Path, str]:
    # Annotations, images and a name for readers.
    if args.coco and not (args.annotations or args.images):
        annotations = args.coco / "annotations" / f"instances_{args.split}.json"
        return annotations, args.coco / args.split, f"{args.coco.name} {args.split}"
    if args.annotations and args.images and not args.coco:
        return args.annotations, args.images, args.annotations.stem
    raise ConfigError(
        "--coco",
        "FOLDER (with annotations/instances_SPLIT.json and SPLIT/ in it), or else both "
        "--annotations FILE and --images FOLDER must be given",
    )


def _images_to_match(args: argparse.Namespace) -> list[Path]:
    if args.match is None and args.calibrate is None:
        return []
    if args.match is None or args.calibrate is None:
        raise ConfigError(
            "--match" if args.calibrate is None else "--calibrate",
            "is one of two that need each other: --match N --calibrate IMAGES",
        )
    return find_images(args.calibrate, args.match, "--match")


def detector_files(args: argparse.Namespace) -> list[DetectorFiles]:
    """Returns a detector for each of ``--weights``, or for each ``--config`` without them.

    Raises:
        ConfigError: the numbers of configs, weights and labels do not fit together.
    """
    weights = args.weights or [None] * len(args.config)
    configs = args.config * len(weights) if len(args.config) == 1 else args.config
    if len(configs) != len(weights):
        raise ConfigError(
            "--config", f"must be given once, or as often as --weights ({len(weights)} times)"
        )
    labels = args.label or _labels(configs, weights)
    if len(labels) != len(weights):
        raise ConfigError("--label", f"must be given for each of the {len(weights)} detectors")
    if len(set(labels)) < len(labels):
        raise ConfigError("--label", f"must tell the detectors apart; got {labels}")
    return [
        DetectorFiles(config, weight, label, args.framework, tuple(args.opts))
        for config, weight, label in zip(configs, weights, labels, strict=True)
    ]


def _labels(configs: Sequence[Path], weights: Sequence[str | None]) -> list[str]:
    """Returns names of config and weights.

    Raises:
        ConfigError: the same files are given twice.
    """
    columns = [[_parts(str(config)) for config in configs]]
    if weights[0] is not None:
        columns.append([_parts(weight) for weight in weights])
    detectors = list(zip(*columns, strict=True))
    for position, files in enumerate(detectors):
        if files in detectors[:position]:
            given = weights[position] or str(configs[position])
            option = "--config" if weights[position] is None else "--weights"
            raise ConfigError(
                option, f"has {given!r} twice; leave one out, or tell them apart with --label"
            )
    return [", ".join(names) for names in zip(*map(_shortest_names, columns), strict=True)]


def _parts(file: str) -> tuple[str, ...]:
    # A path, from the root on, or a URL, split at its slashes.
    if "://" in file:
        return tuple(filter(None, file.split("/")))
    return Path(os.path.normpath(Path(file).absolute())).parts


def _shortest_names(files: Sequence[tuple[str, ...]]) -> list[str]:
    # Each file's stem with as many folders, or else the suffix, as tell them apart.
    lengths = range(1, max(map(len, files)) + 1)
    # Names of all files, longer from level to level; the last ones have the suffix too.
    levels = [
        {parts: "/".join([*parts[:-1], last(parts[-1])][-length:]) for parts in files}
        for last in (lambda name: Path(name).stem, str)
        for length in lengths
    ]
    return [
        next(names[parts] for names in levels if list(names.values()).count(names[parts]) == 1)
        for parts in files
    ]


def _command(args: argparse.Namespace) -> str:
    # The command in one line, with what differs from the defaults; folders shortened.
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    parts = ["gradaug-det", "benchmark"]
    for action in parser._actions:
        value = getattr(args, action.dest)
        if value != action.default and action.dest not in ("resume", "out"):
            values = value if isinstance(value, list) else [value]
            parts += [action.option_strings[0], *map(_without_folder, values)]
    return shlex.join(parts)


def _without_folder(value: object) -> str:
    # Text, and a path relative to where the command ran: reports name no local folders.
    path, here = Path(str(value)), Path.cwd()
    if not path.is_absolute():
        return str(value)
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
