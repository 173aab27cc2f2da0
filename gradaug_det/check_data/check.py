"""Checks of data sets before training: COCO annotation files with their images, class folders.

Everything that is wrong is a finding with a kind, a severity, a count and examples. Nothing in a
broken file makes the check fail, unless it is no COCO file at all: that is a DataError.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gradaug_det.check_data.agreement import check_same_classes
from gradaug_det.check_data.annotations import Images, check_annotations, check_categories
from gradaug_det.check_data.images import Check, File, Names, check_image, check_images, exists
from gradaug_det.check_data.kinds import MAX_EXAMPLES, CheckResult, Findings
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco_data import CocoData

logger = logging.getLogger(__name__)
FRAMEWORKS = ("Detectron2", "MMDetection")
MAX_DETECTIONS = 100
"""COCO's evaluation counts so many detections of an image."""
HEADER_IMAGES = 20_000
"""Data sets of up to so many images have the headers of all looked at before a training."""


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
    """Checks an annotation file in COCO's format, and its images.

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
    check = partial(check_image, decode=decode)
    return _check(annotations, images, check, jobs, progress, num_classes=num_classes, masks=masks)


def check_before_training(
    annotations: str | Path | CocoData,
    images: str | Path | None = None,
    *,
    name: str,
    masks: bool | None = True,
    keypoints: int | None = None,
    trains: bool = True,
    scored: bool | None = None,
    handled: Collection[str] = (),
    refused: Mapping[str, str] | None = None,
    max_detections: int | None = None,
    framework: str | None = None,
) -> CheckResult:
    """Checks what takes seconds: the annotation file, and whether images exist.

    Of up to `HEADER_IMAGES` images it reads the headers, too: a size that differs or an Exif
    orientation makes a framework learn wrong boxes without a word. Warnings are logged.

    Args:
        annotations, images: see `check_coco`.
        name: what the framework calls the data set.
        masks: look at segmentations; True: the detector needs them, None: it may.
        keypoints: how many the detector wants of each object; None: it has none.
        trains: whether the detector learns from these objects; False: they are scored only.
        scored: whether an evaluator reads the file; None: if it does not train.
        handled: kinds of error that the framework at hand copes with; logged as warnings are.
        refused: kinds of warning or note that stop the framework as it is set up -> the way out.
        max_detections: what the evaluator counts of an image; None: not known.
        framework: the one at hand, "Detectron2" or "MMDetection"; None: either.

    Raises:
        DataError: an error was found; names the count, the first example, and the command that
            shows them all.
    """
    result = _check(
        annotations,
        images,
        masks=masks is not False,
        keypoints=False if keypoints is None else keypoints,
        frameworks=FRAMEWORKS if framework is None else (framework,),
        max_detections=max_detections or MAX_DETECTIONS,
    )
    # The evaluators of both frameworks are pycocotools', which reads keys that training does
    # without: what is only a warning to the command stops here.
    scored = not trains if scored is None else scored
    stops = {"no-annotations": "add annotations"} if trains else {}
    if scored:
        stops |= dict.fromkeys(("iscrowd-missing", "iscrowd-invalid", "annotation-id-text"), "")
    if masks:
        stops["no-segmentations"] = "add them, or take a detector of boxes"
        stops["segmentation-missing"] = "add it, or take out these annotations"
    if keypoints is not None:
        stops |= dict.fromkeys(("keypoints-missing", "keypoint-names-missing"), "")
        stops |= {"num-keypoints-missing": ""} if scored else {}
    stops |= refused or {}
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
        problem = str(errors[0]) + (f"; {way_out}" if way_out else "")
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
        logger.warning("%s: %s", name, finding)
    if warnings:
        logger.warning("%s: to see all: %s", name, command)
    return result


def compare(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The results, with a finding at each whose classes are not those of the first."""
    compared = []
    for result in results:
        findings = Findings(result.findings)
        for framework, attribute in zip(FRAMEWORKS, ("classes", "file_order"), strict=True):
            try:
                check_same_classes({r.source: getattr(r, attribute) for r in (results[0], result)})
            except DataError as error:
                findings.add("classes-differ", framework=framework, problem=str(error))
                break
        compared.append(replace(result, findings=findings.sorted()))
    return compared


def check_imagefolder(
    root: str | Path, *, decode: bool = True, jobs: int = 1, progress: bool = False
) -> CheckResult:
    """Checks folders of images by class, as torchvision's ImageFolder reads them.

    Args:
        root: a folder that holds CLASS/..., or train/CLASS/... and val/CLASS/... as ImageNet's.
        decode, jobs, progress: see `check_coco`.

    Raises:
        ConfigError: ``jobs`` is out of range.
        DataError: there is no folder, or no class folder in it.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS  # seconds that COCO's check saves

    _check_positive(jobs=jobs)
    root, findings = Path(root), Findings()
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the one that holds the class folders")
    splits = [root / split for split in ("train", "val") if (root / split).is_dir()] or [root]
    classes = {split: sorted(p.name for p in split.iterdir() if p.is_dir()) for split in splits}
    everywhere = set().union(*classes.values())
    files: list[File] = []
    for split, names in classes.items():
        if not names:
            raise DataError(f"{split} holds no class folder; expected {split}/CLASS/*.jpg")
        for name in sorted(everywhere - set(names)):
            findings.add("class-sets-differ", split=split.name, has_no_class=name)
        for name in names:
            before = len(files)
            for path in sorted(_walk_files(split / name)):
                place = {"file_name": path.relative_to(root).as_posix()}
                if path.name.lower().endswith(IMG_EXTENSIONS):
                    files.append(File(path, None, (), place))
                else:
                    findings.add("file-ignored", **place)
            if len(files) == before:
                findings.add("class-empty", class_folder=f"{split.name}/{name}")
    check = partial(check_image, decode=decode)
    _add_images(files, check, findings, jobs, progress)
    counts = {"images": len(files), "classes": len(everywhere)}
    return CheckResult(str(root), str(root), counts, findings.sorted())


def _walk_files(folder: Path) -> Iterable[Path]:
    for inner, _, names in os.walk(folder, followlinks=True):
        yield from (Path(inner) / name for name in names)


def _check(
    annotations: str | Path | CocoData,
    images: str | Path | None,
    check: Check | None = None,
    jobs: int = 1,
    progress: bool = False,
    *,
    num_classes: int | None = None,
    masks: bool,
    keypoints: int | bool | None = None,
    frameworks: Collection[str] = FRAMEWORKS,
    max_detections: int = MAX_DETECTIONS,
) -> CheckResult:
    data, findings = CocoData.read(annotations), Findings()
    if images is not None and not Path(images).is_dir():
        raise DataError(f"the images' folder {images} does not exist")
    known = Images(data.images, findings)
    categories = check_categories(data.categories, num_classes, findings)
    instances = check_annotations(
        data.annotations,
        known,
        categories,
        findings,
        masks=masks,
        keypoints=keypoints,
        frameworks=frameworks,
        max_detections=max_detections,
    )
    files: list[File] = []
    for row, (record, size) in enumerate(zip(known.records, known.sizes.tolist(), strict=True)):
        if images is not None and isinstance(record.get("file_name"), str):
            sides = tuple(map(int, size)) if all(side == side for side in size) else None
            path = Path(images) / record["file_name"]
            files.append(File(path, sides, frameworks, known.place(row)))
    if check is None:
        check = check_image if len(files) <= HEADER_IMAGES else exists
    _add_images(files, check, findings, jobs, progress, images)
    names = {key: str(category.get("name")) for key, category in categories.items()}
    return CheckResult(
        data.origin,
        None if images is None else str(images),
        {key: len(getattr(data, key)) for key in ("images", "annotations", "categories")},
        findings.sorted(),
        classes=tuple(names[key] for key in _sort_ids(names)),
        file_order=tuple(names.values()),
        objects=dict(zip(names.values(), instances, strict=True)),
    )


def _sort_ids(ids: Iterable[Any]) -> list:
    """As Detectron2 sorts them, if they can be."""
    try:
        return sorted(ids)
    except TypeError:  # texts among numbers
        return list(ids)


def _add_images(
    files: Sequence[File],
    check: Check,
    findings: Findings,
    jobs: int,
    progress: bool,
    folder: str | Path | None = None,
) -> None:
    """Looks at image files; of the first that are missing, says what the ``folder`` has instead."""
    names = None if folder is None else Names(Path(folder))
    missing = 0
    for file, problems in check_images(files, check, jobs, progress):
        for kind, values in problems:
            if kind == "missing-image" and names is not None and missing < MAX_EXAMPLES:
                missing += 1
                values = {"cause": names.explain(file.place["file_name"]), **values}
            findings.add(kind, **file.place, **values)


def _check_positive(**values: int | None) -> None:
    for key, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(key, f"{value} is out of range; use 1 or more")
