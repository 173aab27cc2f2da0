"""``gradaug-det benchmark``: detectors of either framework on a COCO-format dataset."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from gradaug_det.benchmark.detector import DetectorFiles
from gradaug_det.benchmark.processes import processes
from gradaug_det.benchmark.report import write_benchmark
from gradaug_det.benchmark.run import (
    BenchmarkSettings,
    load_data,
    run_benchmark,
)
from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.corruptions import SEVERITIES, corruption_names

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
    detectors.add_argument("--framework", choices=["detectron2", "mmdet"], help="if not obvious")
    detectors.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="X",
        help="overrides of the config: KEY VALUE pairs for yaml, key=value for Python configs",
    )
    data = parser.add_argument_group("data: --coco, or --annotations with --images")
    data.add_argument("--coco", type=Path, metavar="FOLDER", help="annotations/ and SPLIT/ in it")
    data.add_argument("--split", default="val2017", help="of --coco; mini-COCO has val")
    data.add_argument("--annotations", type=Path, metavar="FILE", help="COCO-format json")
    data.add_argument("--images", type=Path, metavar="FOLDER")
    data.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--widths", type=float, nargs="+", default=[1.0], metavar="W")
    what.add_argument(
        "--corruptions",
        nargs="*",
        metavar="KIND",
        help="ImageNet-C's, at the largest width; without names all 15",
    )
    what.add_argument("--severities", type=int, nargs="+", default=list(SEVERITIES), metavar="S")
    what.add_argument(
        "--fgsm",
        type=float,
        nargs="+",
        default=[],
        metavar="EPS",
        help="attack on the training loss, at the largest width; on the 0-255 scale",
    )
    what.add_argument("--cost-images", type=int, default=5, metavar="N", help="for time and FLOPs")
    what.add_argument("--repeats", type=int, default=3, help="timings of each; 0: no timing")
    run = parser.add_argument_group("how")
    run.add_argument("--out", type=Path, default=Path("report/benchmark"), metavar="FOLDER")
    run.add_argument("--resume", action="store_true", help="go on where it was interrupted")
    run.add_argument("--workers", type=int, default=2, help="processes that read images")
    run.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    # PyTorch's profiler, which counts memory, reports a missing GPU as an error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    data = load_data(*_dataset(args))
    settings = BenchmarkSettings(
        widths=tuple(args.widths),
        corruptions=_corruptions(args.corruptions),
        severities=tuple(args.severities),
        epsilons=tuple(args.fgsm),
        limit=args.limit,
        cost_images=args.cost_images,
        repeats=args.repeats,
        workers=args.workers,
        device=args.device or _best_device(),
    )
    with processes() as process:
        benchmark = run_benchmark(
            detector_files(args),
            data,
            args.out,
            settings,
            resume=args.resume,
            process=process,
            command=_command(args),
        )
        if benchmark is not None:
            logger.info("report: %s", write_benchmark(args.out, benchmark))
    return 0


def detector_files(args: argparse.Namespace) -> list[DetectorFiles]:
    """One detector for each of ``--weights``, or for each ``--config`` without them.

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
    """Names of config and weights; with as much of their folders as tells them apart.

    Raises:
        ConfigError: the same files are given twice.
    """
    files = [
        (_parts(str(c)), _parts(w) if w else None) for c, w in zip(configs, weights, strict=True)
    ]
    for position, (config, weight) in enumerate(zip(configs, weights, strict=True)):
        if files.index(files[position]) < position:
            option, given = ("--config", str(config)) if weight is None else ("--weights", weight)
            raise ConfigError(
                option, f"has {given!r} twice; leave one out, or tell them apart with --label"
            )

    def labels(of: Sequence[int], alike: bool) -> list[str]:
        columns = [[files[i][column] for i in of] for column in (0, 1)]
        named = [_shortest(column) if alike else _stems(column) for column in columns if column[0]]
        return [", ".join(row) for row in zip(*named, strict=True)]

    found = labels(range(len(files)), alike=False)
    for label in set(found):
        same = [i for i, other in enumerate(found) if other == label]
        if len(same) > 1:
            for i, longer in zip(same, labels(same, alike=True), strict=True):
                found[i] = longer
    return found


def _parts(file: str) -> tuple[str, ...]:
    """Of a path from the root on, or of a URL."""
    if "://" in file:
        return tuple(filter(None, file.split("/")))
    return Path(os.path.normpath(Path(file).absolute())).parts


def _stems(files: Sequence[tuple[str, ...]]) -> list[str]:
    return [Path(parts[-1]).stem for parts in files]


def _shortest(files: Sequence[tuple[str, ...]]) -> list[str]:
    """The last parts of each, as few as tell different files apart, with the suffix if need be."""
    stems = [(*parts[:-1], stem) for parts, stem in zip(files, _stems(files), strict=True)]
    ends: list[str] = []
    for named in (stems, files):
        for length in range(1, max(map(len, files)) + 1):
            ends = ["/".join(parts[-length:]) for parts in named]
            if len(set(ends)) == len(set(files)):
                return ends
    return ends


def _dataset(args: argparse.Namespace) -> tuple[Path, Path, str]:
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


def _corruptions(given: list[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return tuple(given or corruption_names())


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _command(args: argparse.Namespace) -> str:
    """The command in one line, with what differs from the defaults; folders shortened."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    parts = ["gradaug-det", "benchmark"]
    for action in parser._actions:
        value = getattr(args, action.dest)
        if value == action.default or action.dest in ("resume", "out"):
            continue
        values = value if isinstance(value, list) else [value]
        parts += [action.option_strings[0], *(_short(item) for item in values)]
    return shlex.join(parts)


def _short(value: object) -> str:
    """A path relative to where the command ran: reports name no local folders."""
    if isinstance(value, str) and "://" not in value and Path(value).is_absolute():
        value = Path(value)
    if isinstance(value, Path) and value.is_absolute():
        here = Path.cwd()
        return str(value.relative_to(here) if value.is_relative_to(here) else value.name)
    return str(value)
