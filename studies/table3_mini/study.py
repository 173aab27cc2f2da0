"""The study of table 3 in small: Mask R-CNN on mini-COCO from several backbones, over seeds.

A cell of its tables is a fine-tuning of :mod:`studies.runner.finetuning`; what it measured
is a small JSON file. The queue of cells goes on where it was stopped. A cell that was interrupted
starts from its beginning: Detectron2 would go on with other images than it would have drawn (0.6
also without momentum), and the result could not be reproduced to the digit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.mini_coco import build_mini_coco
from gradaug_det.pretrain.recipe import load_recipe
from gradaug_det.utils.environment import describe_environment
from gradaug_det.utils.files import atomic_path
from studies.mini_zoo.study import Run
from studies.report.records import RunRecord
from studies.runner.finetuning import Training, run_trainings
from studies.runner.frameworks import FRAMEWORKS, FineTuning
from studies.runner.tools import call_tool

logger = logging.getLogger(__name__)

BACKBONES = {
    "none": "None (random)",
    "baseline": "Baseline",
    "mixup": "Mixup",
    "cutmix": "CutMix",
    "gradaug": "GradAug",
}
"""Pretraining, as :data:`studies.mini_zoo.study.METHODS` calls it: all garments, seed 0."""
METHODS = {
    "plain": "plain",
    "rescaled": "plain, rescaled images",
    "soft": "GradAug, soft",
    "labels": "GradAug, labels",
    "both": "GradAug, both",
    "labels-rescaled": "GradAug, labels, rescaled images",
}
"""Fine-tuning: plain, or GradAug by what its sub-networks learn from; and with images that have the
sizes of sub-networks' already when the full network sees them."""
COMPUTE_RATIO = {"soft": 2.4, "labels": 2.7, "both": 3.1}
"""A GradAug step (n = 2) over a plain one, in processor time on one thread: 28 steps of 4 images of
each, in turns of 14 after 2 others (0.45 s plain; 1.09 s, 1.22 s and 1.37 s). Step times of the
study's own trainings are in the results; they are of different days, and of whatever ran beside."""
EQUAL_COMPUTE = ("labels", "both")
"""Supervisions that plain fine-tuning of the same compute is trained for. Not ``soft``, which loses
to plain fine-tuning of the same iterations already."""
BUDGETS = {"1x": 1.0, **{f"as-{method}": COMPUTE_RATIO[method] for method in EQUAL_COMPUTE}}
"""Length in 1x schedules. ``as-labels``: plain, and as long as GradAug ``labels`` at 1x takes."""
SPLITS = ("test", "dev")
PARTS = {
    "main": "Backbones and fine-tunings, same iterations",
    "compute": "Same compute",
    "controls": "Narrower networks or rescaled images",
    "low-data": "Fewer images",
    "sweep": "GradAug's settings",
}
SHARES = (0.1, 0.2, 0.5)
LOW_DATA = (("plain", "1x"), ("labels", "1x"), ("rescaled", "as-labels"))
"""Fine-tunings, and how long, whose need of images is compared; the last, a control, with the
fewest images and over one seed alone."""
SEEDS = (1, 2, 3)
FIRST_SEED = SEEDS[0]
"""The only one of trainings that need no interval: settings of the sweep, some controls."""
COMPARED = ("plain", "labels", "both")
"""Fine-tunings of which one becomes the default: on dev over all seeds, and their robustness."""
ROBUSTNESS = {"images": 100, "corruptions": [], "severities": [3], "fgsm": [2.0]}
"""Under which the finals are measured: the first images of the validation set under corruptions
(none named: all 15) at these severities, and under FGSM with these steps of 255."""
MEASURED = ("iterations", "metrics", "losses")
"""Keys of a result that the same cell must give again, to the last digit."""
CANDIDATE_SCALES = (1.25, 1.0, 0.8)
"""What the sweep's one seed shows to be best: over all seeds before it becomes a default, and
beside plain fine-tuning whose images have these sizes."""
_SWEEP: dict[str, tuple] = {
    "num_subnets": (1, 2, 3),
    "min_width": (0.8, 0.9),
    "scales": ((1.0, 0.857, 0.714, 0.571), (1.0, 0.75, 0.5), CANDIDATE_SCALES),
}
_SOFT_WARMUP = 300  # half of the 1x schedule
_SHORTER_SIDE, _LONGER_SIDE = 192, 256  # of mini-COCO's images, in pixels
_SCRATCH_NORM = ("MODEL.RESNETS.NORM", "BN")
_PRETRAINED = Path("output") / "mini_zoo"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the study.

    The defaults of GradAug's settings are those that all parts but the sweep use.

    Args:
        backbone: key of :data:`BACKBONES`.
        method: key of :data:`METHODS`.
        seed: of new layers (of all layers without a backbone), image order and sub-networks.
        budget: key of :data:`BUDGETS`.
        share: of the training images, in (0, 1].
        num_subnets, min_width: n and alpha of GradAug's sub-networks.
        scales: of sub-networks, or of the images of a method with rescaled images.
        soft_warmup: iterations in which the weight of the losses against soft targets rises.
        split: ``test``: what is reported; ``dev``: for choosing settings, with other garments.

    Raises:
        ConfigError: a value is not allowed, or the budget is not one of the method's.
    """

    backbone: str
    method: str
    seed: int
    budget: str = "1x"
    share: float = 1.0
    num_subnets: int = 2
    min_width: float = 0.9
    scales: tuple[float, ...] = (1.0, 0.857, 0.714, 0.571)
    soft_warmup: int = 0
    split: str = "test"

    def __post_init__(self) -> None:
        for key, known in (
            ("backbone", BACKBONES),
            ("method", METHODS),
            ("budget", BUDGETS),
            ("split", SPLITS),
        ):
            if getattr(self, key) not in known:
                raise ConfigError(key, f"must be one of {tuple(known)}, got {getattr(self, key)!r}")
        if not 0 < self.share <= 1:
            raise ConfigError("share", f"must be above 0 and at most 1, got {self.share}")
        if self.budget != "1x" and self.uses_gradaug:
            raise ConfigError("budget", f"of GradAug must be 1x, got {self.budget!r}")

    @property
    def uses_gradaug(self) -> bool:
        return self.supervision in COMPUTE_RATIO

    @property
    def supervision(self) -> str:
        """What sub-networks learn from, if there are any."""
        return self.method.removesuffix("-rescaled")

    @property
    def plain(self) -> Cell:
        """Plain 1x fine-tuning of the same backbone, with the same images and seed."""
        return Cell(self.backbone, "plain", self.seed, share=self.share, split=self.split)

    @property
    def control(self) -> Cell:
        """Plain fine-tuning, images having sub-networks' sizes, of the compute of ``labels``."""
        return replace(self, method="rescaled", budget="as-labels")

    @property
    def changed(self) -> dict[str, Any]:
        """GradAug's settings that are not the default."""
        settings = ("num_subnets", "min_width", "scales", "soft_warmup")
        default = Cell.__dataclass_fields__
        return {k: getattr(self, k) for k in settings if getattr(self, k) != default[k].default}

    @property
    def name(self) -> str:
        """E.g. ``gradaug-labels-1x-seed1``; what is not the default is spelled out."""
        short = {"num_subnets": "n", "min_width": "alpha", "scales": "scales"}
        parts = [self.backbone, self.method, self.budget]
        parts += [f"{100 * self.share:g}pct"] if self.share < 1 else []
        parts += [f"{short.get(k, 'warmup')}{_joined(v)}" for k, v in self.changed.items()]
        parts += ["dev"] if self.split == "dev" else []
        return "-".join([*parts, f"seed{self.seed}"])

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of the mini config, beside those of every fine-tuning."""
        # Of a cell that was interrupted nothing is left to go on with: see the module's docstring.
        opts = ["SOLVER.CHECKPOINT_PERIOD", "1000000"]
        if self.backbone == "none":
            opts += _SCRATCH_NORM  # the config's frozen BatchNorm would normalise nothing
        if self.method.endswith("rescaled"):
            sizes = tuple(round(scale * _SHORTER_SIDE) for scale in self.scales)
            opts += ["INPUT.MIN_SIZE_TRAIN", str(sizes)]
            # The config's limit is the images' longer side. Smaller ones keep it, and their hash.
            if max(sizes) > _SHORTER_SIDE:
                limit = round(max(self.scales) * _LONGER_SIDE)
                opts += ["INPUT.MAX_SIZE_TRAIN", str(limit)]
        if self.uses_gradaug:
            opts += ["GRADAUG.SUPERVISION", self.supervision]
            opts += ["GRADAUG.NUM_SUBNETS", str(self.num_subnets)]
            opts += ["GRADAUG.MIN_WIDTH", str(self.min_width)]
            opts += ["GRADAUG.SCALES", str(list(self.scales))]
        if self.method in ("soft", "both") and self.soft_warmup:
            opts += ["GRADAUG.SOFT_WARMUP", str(self.soft_warmup)]
        return tuple(opts)


def all_cells(seeds: Iterable[int] = SEEDS, parts: Iterable[str] = tuple(PARTS)) -> list[Cell]:
    """The cells of some parts in the order to run them: within a part seed by seed, so that what
    is there when the queue stops is balanced.

    Raises:
        ConfigError: an unknown part.
    """
    seeds, parts = list(seeds), list(parts)
    for part in parts:
        if part not in PARTS:
            raise ConfigError("parts", f"{part!r} is unknown; choose of {list(PARTS)}")
    return list(
        dict.fromkeys(
            cell
            for part in PARTS
            if part in parts
            for seed in seeds
            for cell in part_cells(part, seed)
        )
    )


def part_cells(part: str, seed: int) -> list[Cell]:
    """A part's own cells of one seed; its tables also show cells of earlier parts."""
    if part == "main":
        plain = [Cell(backbone, "plain", seed) for backbone in BACKBONES]
        return plain + [Cell("gradaug", method, seed) for method in COMPUTE_RATIO]
    if part == "compute":
        # First those to compare GradAug's fine-tunings with, which start from its backbone. Of the
        # other backbones one: Mixup's and CutMix's are no better at 1x.
        compared = [Cell("gradaug", "plain", seed, f"as-{m}") for m in EQUAL_COMPUTE]
        return [*compared, Cell("baseline", "plain", seed, "as-labels")]
    if part == "controls":
        labels = Cell("gradaug", "labels", seed)
        full_width = [replace(labels, min_width=1.0)] if seed == FIRST_SEED else []
        return [
            labels.control,
            Cell("gradaug", "rescaled", seed),
            Cell("gradaug", "labels-rescaled", seed),
            *full_width,
            replace(labels, scales=(1.0,)),
        ]
    if part == "low-data":
        return [
            Cell("gradaug", method, seed, budget, share)
            for share in SHARES
            for method, budget in LOW_DATA
            if method != "rescaled" or (seed, share) == (FIRST_SEED, min(SHARES))
        ]
    chosen = Cell("gradaug", "labels", seed, split="dev")
    compared = [replace(chosen, method=method) for method in COMPARED]
    candidate = replace(chosen, scales=CANDIDATE_SCALES)
    if seed != FIRST_SEED:
        return [*compared, candidate, candidate.control]
    soft = replace(chosen, method="soft")
    softs = [soft, replace(soft, soft_warmup=_SOFT_WARMUP)]
    varied = [replace(chosen, **{key: value}) for key, own in _SWEEP.items() for value in own]
    return list(dict.fromkeys([*compared, *softs, *varied, candidate.control]))


def finals(seeds: Iterable[int]) -> list[Cell]:
    """The cells whose robustness is compared: fine-tunings of the GradAug backbone."""
    return [Cell("gradaug", method, seed) for seed in seeds for method in COMPARED]


@dataclass(frozen=True)
class Study:
    """Where the study is on the disk, and what all its cells share.

    Args:
        root: the project's folder, with ``tools`` and ``configs``.
        out: folder of data and trainings.
        results: folder of the results, one file a cell.
        iterations: of the 1x schedule, at 4 images a step.
        train, val: images of mini-COCO; cells with a smaller share have its first train images.
        data_seeds: of mini-COCO, by the cells' split.
        opts: further overrides of all cells.
    """

    root: Path
    out: Path
    results: Path
    iterations: int = 600
    train: int = 100
    val: int = 200
    data_seeds: tuple[tuple[str, int], ...] = (("test", 1), ("dev", 2))
    opts: tuple[str, ...] = ()

    def cell_iterations(self, cell: Cell) -> int:
        """Optimizer steps of a cell."""
        return round(self.iterations * BUDGETS[cell.budget])

    def hash(self, cell: Cell) -> str:
        """Of everything that decides a cell's result but the code: config files with those that
        they inherit from, overrides, data, and the backbone's recipe."""
        framework = FRAMEWORKS["detectron2"]
        job = self._job(cell, weights=cell.backbone)
        content = {
            "configs": _inherited(self.root / framework.config(job.method)),
            "arguments": framework.arguments(job, Path("OUT")),
            "data": self._data_arguments(cell),
            "backbone": self._recipe(cell.backbone),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's result; None if it is missing or was made with other settings."""
        file = self.results / f"{cell.name}.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text())
        return content if content["hash"] == self.hash(cell) else None

    def found(self, cells: Iterable[Cell]) -> dict[str, dict[str, Any]]:
        """The results that are there, by the cells' names."""
        return {cell.name: result for cell in cells if (result := self.result(cell))}

    def seeds(self) -> list[int]:
        """:data:`SEEDS`, and those of any other results that are there."""
        names = (file.stem.rpartition("-seed")[2] for file in self.results.glob("*-seed*.json"))
        return sorted({*SEEDS, *map(int, names)})

    def run(self, cells: Sequence[Cell], *, jobs: int = 2, threads: int | None = 1) -> None:
        """Trains the cells without a result; one's failure does not keep others from running.

        Args:
            jobs, threads: see :func:`studies.runner.finetuning.run_trainings`.

        Raises:
            GradAugError: a training failed; names its log.
        """
        missing = [cell for cell in cells if self.result(cell) is None]
        logger.info("%d cells, %d of them to train, %d at a time", len(cells), len(missing), jobs)
        for backbone in dict.fromkeys(cell.backbone for cell in missing):
            self._make_backbone(backbone)
        for folder, cell in {self._data(cell): cell for cell in missing}.items():
            build_mini_coco(folder, **self._data_arguments(cell))
        by_name = {cell.name: cell for cell in missing}

        def write(training: Training, record: RunRecord) -> None:
            self._write_result(by_name[training.name], training, record, threads)

        run_trainings(
            [self._training(cell) for cell in missing],
            self.root,
            jobs=jobs,
            threads=threads,
            keep_going=True,
            on_result=write,
        )

    def measure_robustness(self, cells: Iterable[Cell], *, jobs: int = 2) -> None:
        """Adds to the cells' results what is left of their AP under :data:`ROBUSTNESS`.

        Cells without a result are left out; so is what is measured already.

        Args:
            jobs: cells at a time.

        Raises:
            GradAugError: a measurement failed; names its log.
        """
        results = {cell: self.result(cell) for cell in cells}
        missing = [
            cell
            for cell, result in results.items()
            if result and result.get("robustness", {}).get("settings") != ROBUSTNESS
        ]
        logger.info("robustness of %d cells to measure", len(missing))
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self._measure_robustness, missing))

    def redo(self, cell: Cell) -> list[str]:
        """Trains a cell once more from nothing, its data built anew, as its result was made.

        Returns:
            What differs from the result, a line a number; empty if all agree to the last digit.

        Raises:
            ConfigError: there is no result of today's settings.
            GradAugError: the training failed.
        """
        before = self.result(cell)
        if before is None:
            raise ConfigError(cell.name, f"has no result of today's settings in {self.results}")
        with tempfile.TemporaryDirectory() as folder:
            own = replace(self, out=Path(folder), results=Path(folder) / "results")
            own.run([cell], jobs=1, threads=before["threads"])
            after = own.result(cell)
        first, second = (dict(_numbers({k: r[k] for k in MEASURED})) for r in (before, after))
        return [
            f"{key}: {first.get(key)} before, {second.get(key)} now"
            for key in sorted({*first, *second})
            if first.get(key) != second.get(key)
        ]

    # ---- what a cell is made of ---------------------------------------------------------------

    def _training(self, cell: Cell) -> Training:
        return Training(
            name=cell.name,
            method=cell.name.rpartition("-")[0],
            label=f"{METHODS[cell.method]}, {BACKBONES[cell.backbone]}",
            framework=FRAMEWORKS["detectron2"],
            job=self._as_measured(self._job(cell, weights=self._weights(cell.backbone))),
            folder=self.out / cell.name,
            data=self._data(cell),
            depends_on=self.hash(cell),
        )

    def _job(self, cell: Cell, weights: str) -> FineTuning:
        config = "gradaug" if cell.uses_gradaug else "plain"
        opts = (*cell.overrides, *self.opts)
        return FineTuning(config, weights, self.cell_iterations(cell), cell.seed, opts)

    @staticmethod
    def _as_measured(job: FineTuning) -> FineTuning:
        """With Detectron2's own order of images and random numbers, which the results have that
        were made before there was another. No cell is resumed. Not in the hash: it changes nothing
        about those results."""
        return replace(job, opts=(*job.opts, "SOLVER.EXACT_RESUME", "False"))

    def _data_arguments(self, cell: Cell) -> dict[str, Any]:
        return {
            "train": round(cell.share * self.train),
            "val": self.val,
            "seed": dict(self.data_seeds)[cell.split],
            "dev": cell.split == "dev",
        }

    def _data(self, cell: Cell) -> Path:
        images = self._data_arguments(cell)["train"]
        return self.out / "datasets" / f"{cell.split}-{images}-{self.val}" / "mini_coco"

    def _weights(self, backbone: str) -> str:
        """What ``MODEL.WEIGHTS`` says; no local folder in it."""
        if backbone == "none":
            return ""
        entry = _zoo_entry(backbone)
        return f"gradaug://{entry.name if entry else _backbone_file(backbone)}"

    def _recipe(self, backbone: str) -> dict[str, Any] | None:
        """A recipe decides its weights to the last bit: no file is needed to know them."""
        if backbone == "none":
            return None
        entry = _zoo_entry(backbone)
        if entry:
            return dict(entry.info.recipe)
        run = _pretraining(backbone)
        return load_recipe(self.root / run.config, run.overrides).as_dict()

    def _make_backbone(self, backbone: str) -> None:
        """Pretrains a backbone that neither the zoo nor the mini zoo's study has.

        Raises:
            GradAugError: that failed, or the study's file is of another recipe.
        """
        from gradaug_det.zoo.backbone import read_info

        if backbone == "none" or _zoo_entry(backbone):
            return
        run, file = _pretraining(backbone), self.root / _backbone_file(backbone)
        if not file.is_file():
            logger.info("pretraining %s", run.name)
            command = ["tools/pretrain.py", "--config", run.config, "--out", file.parent]
            call_tool([*command, *run.overrides], self.root, file.parent / "train.log")
        if dict(read_info(file).recipe) != self._recipe(backbone):
            raise GradAugError(
                f"{file} was trained by another recipe than {run.config} is today; remove its "
                "folder to have it trained anew"
            )

    # ---- what a cell leaves -------------------------------------------------------------------

    def _write_result(
        self, cell: Cell, training: Training, record: RunRecord, threads: int | None
    ) -> None:
        environment = describe_environment()
        content = {
            "cell": cell.name,
            "hash": training.depends_on,
            "commit": environment["git_commit"],
            "command": training.shell_line(self.out, "output/table3_mini"),
            "cpu": environment["cpu"],
            "torch": environment["versions"].get("torch"),
            "threads": threads,
            "weights_sha256": self._weights_sha256(cell.backbone),
            "iterations": record.iterations,
            "seconds": round(record.seconds, 1),
            "step_seconds": _rounded(record.seconds_per_iteration),
            "metrics": {
                task: {name: _rounded(value) for name, value in values.items()}
                for task, values in record.metrics.items()
            },
            "losses": {
                name: _rounded(points[-1][1])
                for name, points in sorted(record.curves.items())
                if "loss" in name
            },
        }
        self._write(cell, content)
        aps = ap_by_task(record.metrics)
        logger.info("%s: box AP %s, mask AP %s", cell.name, aps["bbox"], aps["segm"])

    def _measure_robustness(self, cell: Cell) -> None:
        training = self._training(cell)
        # Trains nothing where the detector of the result is still there.
        (record,) = run_trainings([training], self.root, threads=self.result(cell)["threads"])
        folder, report = training.folder, training.folder / "robustness"
        command = [
            *("tools/benchmark.py", "--resume", "--out", report),
            *("--config", folder / "config.yaml", "--weights", folder / "model_final.pth"),
            *("--coco", training.data, "--split", "val", "--limit", ROBUSTNESS["images"]),
            *("--corruptions", *ROBUSTNESS["corruptions"]),
            *("--severities", *ROBUSTNESS["severities"]),
            *("--fgsm", *ROBUSTNESS["fgsm"], "--repeats", 0, "--cost-images", 1, "--workers", 0),
        ]
        call_tool(command, self.root, folder / "robustness.log")
        (measured,) = json.loads((report / "report.json").read_text())["detectors"][0]["widths"]
        found = {
            "settings": ROBUSTNESS,
            "cpu": describe_environment()["cpu"],
            # Of this detector on all images: not the result's if it had to be trained again and
            # processors differ.
            "detector_AP": ap_by_task(record.metrics),
            "AP": ap_by_task(measured["metrics"]),
            "mPC": {task: _rounded(value) for task, value in measured["mPC"].items()},
            "fgsm": measured["fgsm"],
            "corruptions": measured["corruptions"],
        }
        content = self.result(cell) | {"robustness": found}
        self._write(cell, content)
        logger.info("%s: box AP %s, mPC %s", cell.name, found["AP"]["bbox"], found["mPC"]["bbox"])

    def _write(self, cell: Cell, content: dict[str, Any]) -> None:
        with atomic_path(self.results / f"{cell.name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _weights_sha256(self, backbone: str) -> str | None:
        if backbone == "none":
            return None
        entry = _zoo_entry(backbone)
        if entry:
            return entry.sha256
        return hashlib.sha256((self.root / _backbone_file(backbone)).read_bytes()).hexdigest()


def _pretraining(backbone: str) -> Run:
    return Run(backbone, "full", "epochs", seed=0)


def _backbone_file(backbone: str) -> Path:
    """From the project's folder, where the mini zoo's study leaves it."""
    return _PRETRAINED / _pretraining(backbone).name / "backbone.safetensors"


def _zoo_entry(backbone: str) -> Any:
    """The zoo's entry of a backbone, or None."""
    from gradaug_det.zoo.index import load_index

    return load_index().entries.get(f"mini-resnet18-{backbone}")


def _inherited(config: Path) -> list[dict[str, Any]]:
    """Values of a yaml config and of those that it inherits from, itself first."""
    import yaml

    content = yaml.safe_load(config.read_text())
    base = content.get("_BASE_")
    return [content, *(_inherited(config.parent / base) if base else [])]


def _joined(value: Any) -> str:
    """A setting in a file's name."""
    return "+".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"


def ap_by_task(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """AP of boxes and masks in per cent, as results have it."""
    return {task: _rounded(values["AP"]) for task, values in metrics.items()}


def _rounded(value: float | None) -> float | None:
    """To 4 digits; JSON has no NaN."""
    return round(value, 4) if value is not None and math.isfinite(value) else None


def _numbers(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """All values of a nested mapping, their keys joined."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value
