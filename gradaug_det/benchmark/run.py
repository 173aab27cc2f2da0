"""Detects, scores and measures: from configs and weights to the records of a report."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from gradaug_det.benchmark.changes import FGSM, Change, Clean, Corruption
from gradaug_det.benchmark.cost import at_detector_width, measure_costs
from gradaug_det.benchmark.detector import CocoData, Detector, DetectorFiles
from gradaug_det.benchmark.processes import from_first, gather
from gradaug_det.benchmark.records import Benchmark, DetectorResult, Metrics, WidthResult
from gradaug_det.benchmark.store import DetectionStore
from gradaug_det.check_data.check import check_before_training
from gradaug_det.core.checks import check_width
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import Scoring, check_sigmas, evaluate_coco
from gradaug_det.evaluation.coco_data import check_scorable, load_ground_truth
from gradaug_det.utils.environment import describe_environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    Args:
        widths: width multipliers in (0, 1].
        corruptions: kinds; evaluated, like attacks, at the largest width.
        severities: of the corruptions, 1 to 5.
        epsilons: of FGSM, on the 0-255 scale.
        limit: evaluate only that many images, in the order of their ids.
        cost_images: images on which costs are measured.
        repeats: how often each of them is timed.
        workers: processes that read and prepare images.
        device: of the detectors.

    Raises:
        ConfigError: a value is out of range.
    """

    widths: tuple[float, ...] = (1.0,)
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    epsilons: tuple[float, ...] = ()
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

    def changes(self) -> list[Change]:
        """What is done to the images besides leaving them as they are."""
        return [
            *(Corruption(kind, s) for kind in self.corruptions for s in self.severities),
            *(FGSM(epsilon) for epsilon in self.epsilons),
        ]


def load_data(annotations: str | Path, images: str | Path, name: str) -> CocoData:
    """A dataset in COCO format.

    Raises:
        DataError: the annotations cannot be scored against, or there is no such folder.
    """
    annotations, images = Path(annotations), Path(images)
    for path, found in ((annotations, annotations.is_file()), (images, images.is_dir())):
        if not found:
            raise DataError(f"{str(path)!r} does not exist")
    truth = load_ground_truth(annotations)
    # What would stop, or count wrong, after hours. Masks are looked at when they are scored.
    check_before_training(
        annotations, name=name, masks=False, trains=False, handled=("ignore-set",)
    )
    categories = sorted((category["id"], category["name"]) for category in truth["categories"])
    return CocoData(annotations, images, name, tuple(categories))


def load_detector(files: DetectorFiles, data: CocoData, device: str) -> Detector:
    """Builds a detector with its framework, which is imported only now.

    Raises:
        ConfigError, ZooError: config or weights cannot be used.
    """
    framework = files.framework or guess_framework(files.config)
    if framework == "detectron2":
        from gradaug_det.d2.benchmark import Detectron2Detector as Adapter
    elif framework == "mmdet":
        from gradaug_det.mmdet.benchmark import MMDetectionDetector as Adapter
    else:
        raise ConfigError("--framework", f"must be detectron2 or mmdet, got {framework!r}")
    return Adapter(files, data, device)


def guess_framework(config: Path) -> str:
    """yaml is Detectron2's; Python is Detectron2's if it imports that, else MMDetection's.

    Raises:
        ConfigError: the file does not exist or is neither.
    """
    if not config.is_file():
        raise ConfigError("--config", f"names a file that does not exist: {str(config)!r}")
    if config.suffix in (".yaml", ".yml"):
        return "detectron2"
    if config.suffix == ".py":
        lazy = re.search(r"^(from|import) detectron2\b", config.read_text("utf-8"), re.MULTILINE)
        return "detectron2" if lazy else "mmdet"
    raise ConfigError("--config", f"must be a .yaml or .py file, got {str(config)!r}")


@dataclass
class _Run:
    """One benchmark under way."""

    data: CocoData
    settings: BenchmarkSettings
    out: Path
    rank: int
    world: int
    truth: dict = field(init=False)
    image_ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.truth = load_ground_truth(self.data.annotations)
        ids = sorted(image["id"] for image in self.truth["images"])
        self.image_ids = ids[: self.settings.limit]

    def detections(self, detector: Detector, folder: Path, width: float, change: Change) -> Any:
        """COCO results of all images, in the first process; an empty list in the others."""
        store = DetectionStore(folder / f"width-{width:g}" / change.name, self.rank)
        done = from_first(store.read() if self.rank == 0 else None)
        mine = [i for i in self.image_ids if i not in done][self.rank :: self.world]
        found = store.write(self._detect(detector, width, change, mine))
        parts = gather(found)
        if parts is None:
            return []
        for part in parts:
            done.update(part)
        return [result for image_id in self.image_ids for result in done[image_id]]

    def _detect(
        self, detector: Detector, width: float, change: Change, image_ids: Sequence[int]
    ) -> Iterator[tuple[int, list[dict]]]:
        if not image_ids:
            return
        loader = DataLoader(
            detector.dataset(image_ids, change),
            batch_size=None,
            num_workers=self.settings.workers,
            collate_fn=_as_it_is,  # PyTorch would turn arrays of the frameworks' own into tensors
        )
        bar = tqdm(loader, f"width {width:g}, {change.name}", disable=None if self.rank == 0 else 1)
        for image_id, sample in zip(image_ids, bar, strict=True):
            with at_detector_width(detector, width):
                if isinstance(change, FGSM):
                    sample = detector.attack(sample, change)
                yield image_id, detector.detect(sample)

    def score(self, results: list[dict], tasks: Sequence[str], scoring: Scoring) -> Metrics:
        """All of COCO's numbers, as the detector's config has them made."""
        return evaluate_coco(
            self.truth,
            results,
            tasks,
            image_ids=self.image_ids,
            max_detections=scoring.max_detections,
            sigmas=scoring.sigmas,
        )


def run_benchmark(
    detectors: Sequence[DetectorFiles],
    data: CocoData,
    out: str | Path,
    settings: BenchmarkSettings,
    *,
    resume: bool = False,
    process: tuple[int, int] = (0, 1),
    command: str = "",
) -> Benchmark | None:
    """Detects on all images at all widths and under all changes, and scores.

    Args:
        out: detections are kept in its folder ``detections``, one line an image.
        resume: go on with what an interrupted run left there; else it is removed.
        process: rank and number of processes, from
            :func:`gradaug_det.benchmark.processes.processes`.
        command: for the report.

    Returns:
        The records in the first process, None in the others.

    Raises:
        ConfigError, DataError, ZooError: a config, the data or weights cannot be used.
    """
    rank, world = process
    run = _Run(data, settings, Path(out), rank, world)
    store = run.out / "detections"
    if rank == 0 and not resume:
        shutil.rmtree(store, ignore_errors=True)
    built = [load_detector(files, data, settings.device) for files in detectors]
    for detector in built:
        if "keypoints" in (detector.scoring.tasks or ()):
            check_scorable([], run.truth, "keypoints")
            check_sigmas(
                run.truth,
                detector.scoring.sigmas,
                "TEST.KEYPOINT_OKS_SIGMAS (in a LazyConfig the evaluator's kpt_oks_sigmas)",
            )
    from_first(None)  # nobody writes before the old detections are gone
    found = []
    for files, detector in zip(detectors, built, strict=True):
        logger.info("%s (%s)", files.label, detector.framework)
        folder = store / _folder_name(files, detector, data)
        results = {
            width: run.detections(detector, folder, width, Clean()) for width in settings.widths
        }
        # Once for a detector: a change under which it finds nothing says nothing about its masks.
        tasks = detector.scoring.tasks_of([r for of_width in results.values() for r in of_width])
        largest = max(settings.widths)
        changed = {}
        for change in settings.changes():
            detections = run.detections(detector, folder, largest, change)
            if rank == 0:
                changed[change] = {
                    task: metrics["AP"]
                    for task, metrics in run.score(detections, tasks, detector.scoring).items()
                }
        found.append((results, changed, tasks))
    if rank:
        return None
    measured = run.image_ids[: settings.cost_images]
    samples = [
        [dataset[position] for position in range(len(measured))]
        for dataset in (detector.dataset(measured, Clean()) for detector in built)
    ]
    logger.info("costs, on %d images", len(samples[0]))
    costs = measure_costs(built, settings.widths, samples, repeats=settings.repeats)
    return Benchmark(
        title=f"Benchmark on {data.name}",
        detectors=[
            DetectorResult(
                label=files.label,
                framework=detector.framework,
                config=files.config.name,
                weights=_shown(files.weights),
                scoring=detector.scoring,
                widths=[
                    WidthResult(
                        width=width,
                        metrics=run.score(results[width], tasks, detector.scoring),
                        predictions=results[width],
                        cost=cost,
                        **(_robustness(changed) if width == max(settings.widths) else {}),
                    )
                    for width, cost in zip(settings.widths, of_detector, strict=True)
                ],
            )
            for files, detector, (results, changed, tasks), of_detector in zip(
                detectors, built, found, costs, strict=True
            )
        ],
        gt_json=data.annotations,
        dataset=data.name,
        image_root=data.images,
        image_ids=run.image_ids if settings.limit else None,
        environment=describe_environment(),
        command=command,
    )


def _as_it_is(sample: Any) -> Any:
    return sample


def _robustness(changed: dict[Change, dict[str, float]]) -> dict[str, dict]:
    corruptions: dict[str, dict[int, dict[str, float]]] = {}
    fgsm = {}
    for change, found in changed.items():
        if isinstance(change, Corruption):
            corruptions.setdefault(change.kind, {})[change.severity] = found
        elif isinstance(change, FGSM):
            fgsm[change.epsilon] = found
    return {"corruptions": corruptions, "fgsm": fgsm}


def _folder_name(files: DetectorFiles, detector: Detector, data: CocoData) -> str:
    """Of what the detections depend on: others' are never taken for this detector's."""
    digest = hashlib.sha256(detector.description().encode())
    for name, tensor in sorted(detector.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(data.annotations.read_bytes())
    digest.update(str(data.images.resolve()).encode())
    slug = re.sub(r"[^A-Za-z0-9]+", "-", files.label).strip("-").lower()
    return f"{slug}-{digest.hexdigest()[:16]}"


def _shown(weights: str | None) -> str:
    if weights is None:
        return "the config's"
    if "://" in weights:
        return weights
    return "/".join(Path(weights).parts[-2:])
