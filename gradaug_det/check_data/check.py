"""Checks of data sets before training: COCO annotation files with their images, class folders.

Everything that is wrong is a finding with a kind, a severity, a count and examples. Nothing in a
broken file makes the check fail, unless it is no COCO file at all: that is a DataError.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gradaug_det.check_data.agreement import check_same_classes
from gradaug_det.check_data.annotations import (
    Images,
    check_annotations,
    check_categories,
)
from gradaug_det.check_data.images import (
    File,
    Look,
    Names,
    exists,
    look_at_all,
    look_at_header,
    look_at_pixels,
)
from gradaug_det.check_data.kinds import (
    KINDS,
    MAX_EXAMPLES,
    SEVERITIES,
    CheckResult,
    Finding,
    Findings,
    describe_example,
)
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco_data import CocoData

logger = logging.getLogger(__name__)
FRAMEWORKS = ("Detectron2", "MMDetection")
MAX_DETECTIONS = 100
"""COCO's evaluation counts so many detections of an image."""
HEADER_IMAGES = 20_000
"""Data sets of up to so many images have the headers of all looked at before a training."""

__all__ = [
    "KINDS",
    "SEVERITIES",
    "CheckResult",
    "Finding",
    "check_before_training",
    "check_coco",
    "check_imagefolder",
    "compare",
]


def check_coco(
    annotations: str | Path | CocoData,
    images: str | Path | None,
    *,
    decode: bool = True,
    num_classes: int | None = None,
    masks: bool = True,
    jobs: int = 1,
    progress: bool = False,
) -> CheckResult:
    """Check an annotation file in COCO's format, and its images.

    Args:
        annotations: the JSON file, or what was parsed of it.
        images: the folder that the images' ``file_name`` starts from; None: the annotation file
            alone.
        decode: decode the images; False: read their headers only, which sees wrong sizes and
            missing files, not damaged pixels.
        num_classes: the model's classes, to compare with the categories.
        masks: look at segmentations; False for detectors of boxes.
        jobs: threads that open images.
        progress: show a bar on a terminal.

    Raises:
        ConfigError: ``jobs`` or ``num_classes`` is out of range.
        DataError: the annotation file cannot be read as a whole, or the folder does not exist.
    """
    _check_positive(jobs=jobs, num_classes=num_classes)
    look = look_at_pixels if decode else look_at_header
    return _check(
        annotations,
        images,
        lambda _: look,
        num_classes,
        masks,
        jobs=jobs,
        progress=progress,
    )


def check_before_training(
    annotations: str | Path | CocoData,
    images: str | Path | None = None,
    *,
    name: str,
    num_classes: int | None = None,
    masks: bool | None = True,
    keypoints: int | None = None,
    trains: bool = True,
    handled: Collection[str] = (),
    refused: Mapping[str, str] | None = None,
    max_detections: int | None = None,
    framework: str | None = None,
    scored: bool | None = None,
) -> CheckResult:
    """The part of `check_coco` that takes seconds: the annotation file, and whether images exist.

    Of up to `HEADER_IMAGES` images it reads the headers, too: a size that differs or an Exif
    orientation makes a framework learn wrong boxes without a word.

    It parses the file once more than the framework does: 3 s for 100,000 annotations with
    polygons, 2.5 s of them for the JSON. Every process of a distributed training does so, at the
    same time. Warnings are logged.

    Args:
        annotations, images, num_classes: see `check_coco`.
        masks: look at segmentations; True: the detector needs them, None: it may.
        name: what the framework calls the data set.
        handled: kinds of error that the framework at hand copes with; logged as warnings are.
        keypoints: how many the detector wants of each object; None: it has none.
        trains: whether the detector learns from these objects; False: they are scored only.
        refused: kinds of warning or note that stop the framework as it is set up -> the way out.
        max_detections: what the evaluator counts of an image; None: not known.
        framework: the one at hand, "Detectron2" or "MMDetection"; None: either.
        scored: whether an evaluator reads the file; None: if it does not train.

    Raises:
        DataError: an error was found; names the count, the first example, and the command that
            shows them all.
    """
    result = _check(
        annotations,
        images,
        lambda count: look_at_header if count <= HEADER_IMAGES else exists,
        num_classes,
        masks is not False,
        keypoints=False if keypoints is None else keypoints,
        frameworks=FRAMEWORKS if framework is None else (framework,),
        max_detections=max_detections or MAX_DETECTIONS,
    )
    stops = {
        **_stopping(
            bool(masks), keypoints is not None, trains, not trains if scored is None else scored
        ),
        **(refused or {}),
    }
    copes = {*handled, *(() if trains else ("no-objects-left",))}
    command = f"gradaug-det check-data --annotations {result.source}"
    command += f" --images {images}" if images is not None else ""
    errors = [
        finding
        for finding in result.findings
        if finding.kind.name not in copes
        and (finding.kind.name in stops or finding.kind.severity == "error")
    ]
    if errors:
        way_out = stops.get(errors[0].kind.name)
        problem = _sentence(errors[0]) + (f"; {way_out}" if way_out else "")
        more = f", and {len(errors) - 1} more kinds of error" if len(errors) > 1 else ""
        raise DataError(f"{name}: {problem}{more}; to see all: {command}")
    warnings = [
        finding
        for finding in result.findings
        # Adapters count what their framework keeps of all that trains: see `check_kept`.
        if (finding.kind.severity != "note" and finding.kind.name != "most-objects-lost")
        or (finding.kind.name == "many-objects" and max_detections is not None)
    ]
    for finding in warnings:
        logger.warning("%s: %s", name, _sentence(finding))
    if warnings:
        logger.warning("%s: to see all: %s", name, command)
    return result


def _stopping(masks: bool, keypoints: bool, trains: bool, scored: bool) -> dict[str, str]:
    """Kinds of warning or note that stop both frameworks -> the way out, where the kind has none.

    The evaluators of both are pycocotools', which reads keys that training does without.
    """
    stops = {}
    if trains:
        stops["no-annotations"] = "add annotations"
    if scored:
        stops |= dict.fromkeys(("iscrowd-missing", "iscrowd-invalid", "annotation-id-text"), "")
    if masks:
        stops["no-segmentations"] = "add them, or take a detector of boxes"
        stops["segmentation-missing"] = "add it, or take out these annotations"
    if keypoints:
        stops |= dict.fromkeys(("keypoints-missing", "keypoint-names-missing"), "")
        if scored:
            stops["num-keypoints-missing"] = ""
    return stops


def compare(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The results, with a finding at each whose classes are not those of the first."""
    compared = []
    for result in results:
        findings = Findings(result.findings)
        for framework, attribute in zip(FRAMEWORKS, ("classes", "file_order"), strict=True):
            names = {other.source: getattr(other, attribute) for other in (results[0], result)}
            try:
                check_same_classes(names)
            except DataError as error:
                findings.add("classes-differ", framework=framework, problem=str(error))
                break
        compared.append(replace(result, findings=findings.sorted()))
    return compared


def check_imagefolder(
    root: str | Path, *, decode: bool = True, jobs: int = 1, progress: bool = False
) -> CheckResult:
    """Check folders of images by class, as torchvision's ImageFolder reads them.

    Args:
        root: a folder that holds CLASS/..., or train/CLASS/... and val/CLASS/... as ImageNet's.
        decode, jobs, progress: see `check_coco`.

    Raises:
        ConfigError: ``jobs`` is out of range.
        DataError: there is no folder, or no class folder in it.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS  # seconds that COCO's check saves

    _check_positive(jobs=jobs)
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the one that holds the class folders")
    findings = Findings()
    splits = [root / split for split in ("train", "val") if (root / split).is_dir()] or [root]
    classes = {split: sorted(p.name for p in split.iterdir() if p.is_dir()) for split in splits}
    files: list[File] = []
    for split, names in classes.items():
        if not names:
            raise DataError(f"{split} holds no class folder; expected {split}/CLASS/*.jpg")
        others = set().union(*(classes[s] for s in splits)) - set(names)
        for name in sorted(others):
            findings.add("class-sets-differ", split=split.name, has_no_class=name)
        for name in names:
            paths = sorted(
                Path(folder) / file
                for folder, _, found in os.walk(split / name, followlinks=True)
                for file in found
            )
            images = [path for path in paths if path.name.lower().endswith(IMG_EXTENSIONS)]
            if not images:
                findings.add("class-empty", class_folder=f"{split.name}/{name}")
            for path in paths:
                if path not in images:
                    findings.add("file-ignored", file_name=path.relative_to(root).as_posix())
            files += [
                File(path, None, (), {"file_name": path.relative_to(root).as_posix()})
                for path in images
            ]
    look = look_at_pixels if decode else look_at_header
    _add_images(files, look, jobs, progress, findings)
    counts = {"images": len(files), "classes": len(set().union(*classes.values()))}
    return CheckResult(str(root), str(root), counts, findings.sorted())


def _check(
    annotations: str | Path | CocoData,
    images: str | Path | None,
    look: Callable[[int], Look],  # of the number of images
    num_classes: int | None,
    masks: bool,
    *,
    keypoints: int | bool | None = None,
    frameworks: Collection[str] = FRAMEWORKS,
    max_detections: int = MAX_DETECTIONS,
    jobs: int = 1,
    progress: bool = False,
) -> CheckResult:
    data = CocoData.read(annotations)
    if images is not None and not Path(images).is_dir():
        raise DataError(f"the images' folder {images} does not exist")
    findings = Findings()
    records = Images(data.images, findings)
    categories = check_categories(data.categories, num_classes, findings)
    instances = check_annotations(
        data.annotations,
        records,
        categories,
        findings,
        masks=masks,
        keypoints=keypoints,
        frameworks=frameworks,
        max_detections=max_detections,
    )
    if images is not None:
        files = []
        for record, size in zip(records.records, records.sizes.tolist(), strict=True):
            if isinstance(record.get("file_name"), str):
                known = tuple(map(int, size)) if all(side == side for side in size) else None
                place = {"image_id": record["id"], "file_name": record["file_name"]}
                files.append(File(Path(images) / record["file_name"], known, frameworks, place))
        _add_images(files, look(len(files)), jobs, progress, findings, Names(Path(images)))
    names = tuple(str(category.get("name")) for category in categories.values())
    counts = {key: len(getattr(data, key)) for key in ("images", "annotations", "categories")}
    return CheckResult(
        data.origin,
        None if images is None else str(images),
        counts,
        findings.sorted(),
        tuple(str(categories[key].get("name")) for key in _in_order(categories)),
        names,
        dict(zip(names, instances, strict=True)),
    )


def _in_order(ids: Iterable) -> list:
    """Sorted if they can be, as Detectron2 sorts them."""
    try:
        return sorted(ids)
    except TypeError:  # texts among numbers
        return list(ids)


def _add_images(
    files: Sequence[File],
    look: Look,
    jobs: int,
    progress: bool,
    findings: Findings,
    names: Names | None = None,
) -> None:
    missing = 0
    for file, problems in look_at_all(files, look, jobs, progress):
        for kind, values in problems:
            if kind == "missing-image" and names is not None and missing < MAX_EXAMPLES:
                missing += 1
                values = {"cause": names.cause(file.place["file_name"]), **values}
            findings.add(kind, **file.place, **values)


def _sentence(finding: Finding) -> str:
    """``3 x box-malformed: bbox is ... (first: image_id 1, ...)``."""
    first = describe_example(finding.examples[0])
    return f"{finding.count} x {finding.kind.name}: {finding.kind.meaning}" + (
        f" (first: {first})" if first else ""
    )


def _check_positive(**values: int | None) -> None:
    for key, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(key, f"{value} is out of range; use 1 or more")
