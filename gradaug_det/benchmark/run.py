"""Detects, scores and measures: from configs and weights to the records of a report."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from gradaug_det.benchmark.changes import FGSM, Change, Clean, Corruption
from gradaug_det.benchmark.cost import at_detector_width, match_statistics, measure_costs
from gradaug_det.benchmark.detector import Detector
from gradaug_det.benchmark.processes import rank, wait_for_all, world_size
from gradaug_det.benchmark.records import Benchmark, DetectorResult, Metrics, WidthResult
from gradaug_det.benchmark.store import DetectionStore
from gradaug_det.check_data.check import check_before_training
from gradaug_det.core.checks import check_width
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import check_sigmas, evaluate_coco
from gradaug_det.evaluation.coco_data import CocoData, check_scorable
from gradaug_det.evaluation.corruptions import SEVERITIES
from gradaug_det.utils.environment import describe_environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkSettings:
    """The settings of a benchmark.

    Args:
        widths: width multipliers in (0, 1].
        corruptions: kinds; evaluated, like attacks, at the largest width.
        severities: of the corruptions, 1 to 5.
        epsilons: of FGSM, on the 0-255 scale.
        match: images on which norms get the full network's moments, at the widths below those
            that a detector's config trains.
        limit: evaluate only that many images, in the order of their ids.
        cost_images: images on which costs are measured.
        repeats: how often each of them is timed.
        workers: processes that read and prepare images.
        device: of the detectors.

    Raises:
        ConfigError: a value is out of range.
    """

    widths: Sequence[float] = (1.0,)
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = SEVERITIES
    epsilons: Sequence[float] = ()
    match: Sequence[Path] = ()
    limit: int | None = None
    cost_images: int = 5
    repeats: int = 3
    workers: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.widths or len(set(self.widths)) < len(self.widths):
            raise ConfigError("--widths", f"must be one or more, each once; got {self.widths}")
        for width in self.widths:
            check_width(width)
        if self.limit is not None and self.limit < 1:
            raise ConfigError("--limit", f"must be 1 or more, got {self.limit}")
        if self.cost_images < 1:
            raise ConfigError("--cost-images", f"must be 1 or more, got {self.cost_images}")
        self.changes()

    def changes(self) -> list[Corruption | FGSM]:
        """Returns what is done to the images besides leaving them as they are."""
        return [
            *(Corruption(kind, s) for kind in self.corruptions for s in self.severities),
            *(FGSM(epsilon) for epsilon in self.epsilons),
        ]


def load_data(annotations: str | Path, images: str | Path, name: str) -> CocoData:
    """Reads a dataset in COCO format.

    Raises:
        DataError: the annotations cannot be scored against, or there is no such folder.
    """
    data = CocoData.read(annotations, images, name)
    if not data.folder.is_dir():
        raise DataError(f"the images' folder {images} does not exist")
    # Finds at once what would stop, or count wrong, after hours. Masks are checked when scored.
    check_scorable([], data.truth, "bbox")
    check_before_training(data, name=name, masks=False, trains=False, handled=("ignore-set",))
    return data


def run_benchmark(
    detectors: Sequence[Detector],
    data: CocoData,
    out: str | Path,
    settings: BenchmarkSettings,
    *,
    resume: bool = False,
    command: str = "",
) -> Benchmark | None:
    """Detects on all images at all widths and under all changes, scores, and measures costs.

    With several processes (see :func:`gradaug_det.benchmark.processes.processes`) all call it, and
    each detects on its share of the images.

    Args:
        detectors: each with a label of its own.
        data: what the detectors were built for.
        out: detections are kept in its folder ``detections``, one line an image.
        resume: go on with what an interrupted run left there; else it is removed.
        command: for the report.

    Returns:
        The records in the first process, None in the others.

    Raises:
        ConfigError, DataError: the data do not fit the detectors or cannot be used.
    """
    for detector in detectors:
        _check_keypoints(detector, data)
    store = Path(out) / "detections"
    if rank() == 0 and not resume:
        shutil.rmtree(store, ignore_errors=True)
    wait_for_all()  # nobody writes before the old detections are gone
    image_ids = sorted(image["id"] for image in data.truth["images"])[: settings.limit]
    results = [_detect_and_score(one, data, image_ids, store, settings) for one in detectors]
    if rank():
        return None
    _measure(results, detectors, image_ids, settings)
    return Benchmark(
        title=f"Benchmark on {data.name}",
        detectors=results,
        data=data,
        image_ids=image_ids,
        environment=describe_environment(),
        command=command,
    )


def _check_keypoints(detector: Detector, data: CocoData) -> None:
    if "keypoints" in (detector.scoring.tasks or ()):
        check_scorable([], data.truth, "keypoints")
        check_sigmas(
            data.truth,
            detector.scoring.sigmas,
            "TEST.KEYPOINT_OKS_SIGMAS (in a LazyConfig the evaluator's kpt_oks_sigmas)",
        )


def _detect_and_score(
    detector: Detector,
    data: CocoData,
    image_ids: Sequence[int],
    store: Path,
    settings: BenchmarkSettings,
) -> DetectorResult:
    # All processes detect; scores, and records to be used, are in the first one alone.
    files, scoring = detector.files, detector.scoring
    logger.info("%s (%s)", files.label, detector.framework)
    if settings.match:
        match_statistics(detector, settings.widths, settings.match)
    folder = store / _folder_name(detector, data, settings.match if detector.statistics else ())

    def detect(width: float, change: Change) -> list[dict]:
        return _detect(detector, image_ids, folder, width, change, settings.workers)

    def score(found: list[dict]) -> Metrics:
        return evaluate_coco(data, found, tasks, image_ids=image_ids, **scoring.limits)

    clean = {width: detect(width, Clean()) for width in settings.widths}
    # Once for a detector: a change under which it finds nothing says nothing about its masks.
    tasks = scoring.tasks_of([result for found in clean.values() for result in found])
    widths = {
        width: WidthResult(width, {} if rank() else score(found), found)
        for width, found in clean.items()
    }
    for width in detector.statistics:
        widths[width].matched = True
    widest = widths[max(widths)]
    for change in settings.changes():
        # One change after the other: on COCO, all of their detections would not fit into memory.
        found = detect(widest.width, change)
        if rank() == 0:
            aps = {task: metrics["AP"] for task, metrics in score(found).items()}
            widest.add(change, aps)
    weights = _shorten(files.weights)
    return DetectorResult(
        files.label, detector.framework, files.config.name, weights, [*widths.values()], scoring
    )


def _detect(
    detector: Detector,
    image_ids: Sequence[int],
    folder: Path,
    width: float,
    change: Change,
    workers: int,
) -> list[dict]:
    # What the processes find meets in the store, and is read from it by the first one.
    store = DetectionStore(folder / f"width-{width:g}" / change.name, rank())
    done = store.read()
    wait_for_all()  # or one could read what another one has just written, and share out the rest
    mine = [image_id for image_id in image_ids if image_id not in done][rank() :: world_size()]
    store.write(_detect_each(detector, mine, width, change, workers))
    wait_for_all()
    if rank():
        return []
    done = store.read()
    if missing := set(image_ids) - done.keys():
        raise DataError(
            f"--out must be a folder that all processes share: of {len(missing)} images nothing "
            f"is in {store.folder}"
        )
    return [result for image_id in image_ids for result in done[image_id]]


def _detect_each(
    detector: Detector, image_ids: Sequence[int], width: float, change: Change, workers: int
) -> Iterator[tuple[int, list[dict]]]:
    if not image_ids:
        return
    loader = DataLoader(
        detector.dataset(image_ids, change),
        batch_size=None,
        num_workers=workers,
        collate_fn=_pass_on,  # PyTorch would turn arrays of the frameworks' own into tensors
    )
    bar = tqdm(loader, f"width {width:g}, {change.name}", disable=True if rank() else None)
    for image_id, sample in zip(image_ids, bar, strict=True):
        with at_detector_width(detector, width):
            if isinstance(change, FGSM):
                sample = detector.attack(sample, change)
            yield image_id, detector.detect(sample)


def _measure(
    results: Sequence[DetectorResult],
    detectors: Sequence[Detector],
    image_ids: Sequence[int],
    settings: BenchmarkSettings,
) -> None:
    chosen = image_ids[: settings.cost_images]
    logger.info("costs, on %d images", len(chosen))
    # Read and resized before the clock starts, the same images for all.
    datasets = [detector.dataset(chosen, Clean()) for detector in detectors]
    samples = [[dataset[i] for i in range(len(chosen))] for dataset in datasets]
    costs = measure_costs(detectors, settings.widths, samples, repeats=settings.repeats)
    for result, of_detector in zip(results, costs, strict=True):
        for at_width, cost in zip(result.widths, of_detector, strict=True):
            at_width.cost = cost


def _pass_on(sample: Any) -> Any:
    return sample  # a function of its own, because workers are sent it by name


def _folder_name(detector: Detector, data: CocoData, matched: Sequence[Path]) -> str:
    # All that detections depend on: another detector's are never taken for these.
    digest = hashlib.sha256(detector.description.encode())
    # The weights themselves: a file's name says nothing about what is in it today.
    for name, tensor in sorted(detector.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    for image in matched:  # not the statistics, which differ by rounding from process to process
        digest.update(image.read_bytes())
    digest.update(data.path.read_bytes())
    digest.update(str(data.folder.resolve()).encode())
    slug = re.sub(r"[^A-Za-z0-9]+", "-", detector.files.label).strip("-").lower()
    return f"{slug}-{digest.hexdigest()[:16]}"


def _shorten(weights: str | None) -> str:
    # Reports name no local folders.
    if weights is None:
        return "the config's"
    return weights if "://" in weights else "/".join(Path(weights).parts[-2:])
