"""Checks of the data of MMDetection, before the first step of a training.

Datasets are found through wrappers (ConcatDataset, RepeatDataset and their kin, nested ones too),
as configs and as objects. Files are looked at if a dataset reads them as CocoDataset does; LVIS,
VOC and the like are left to MMDetection.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.datasets import BaseDetDataset, CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import list_from_file
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from gradaug_det.check_data.agreement import check_kept, check_same_classes
from gradaug_det.check_data.check import check_before_training
from gradaug_det.check_data.kinds import CheckResult
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco_data import CocoData
from gradaug_det.mmdet.values import type_name, walk
from gradaug_det.utils.seeding import temporary_seed

SPLITS = ("train", "val", "test")
_WRAPPED = ("dataset", "datasets", "_dataset")  # attributes and keys of wrappers
_COUNTED = 100  # detections of an image that COCO's mAP sees, whatever proposal_nums are
_METRICS = ("bbox", "segm", "proposal", "proposal_fast")
_FOR_SCORES = ("iscrowd-missing", "iscrowd-invalid", "annotation-id-text")  # trains without
_SAMPLES = 8  # images that go through the training pipeline
_LOST = (
    "MMDetection does not learn crowds, objects with ignore set, boxes below one pixel, without "
    "area or outside the image, and classes that metainfo does not name"
)


class _Part(NamedTuple):
    """A dataset that reads a file in COCO's format, and what it is read for."""

    annotations: Path
    images: Path | None
    classes: tuple[str, ...]
    masks: bool = False  # learned or scored
    trains: bool = False
    alone: bool = True  # no other dataset trains beside it
    scored: bool = False  # CocoMetric reads this very file


class _Scorer(NamedTuple):
    key: str
    annotations: Path | None
    masks: bool


def find_leaves(dataset: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The datasets that a config or an object wraps, with their keys; itself if it wraps none.

    Raises:
        ConfigError: a value is neither a dataset nor the config of one.
    """
    if isinstance(dataset, (list, tuple)):
        problem = "must be a dict, got a list: write dict(type='ConcatDataset', datasets=[...])"
        raise ConfigError(key, problem)
    if not isinstance(dataset, Mapping) and not hasattr(dataset, "__dict__"):
        raise ConfigError(key, f"must be a dict, got {dataset!r}")
    content = dataset if isinstance(dataset, Mapping) else vars(dataset)
    for name in _WRAPPED:
        inner = content.get(name)
        if isinstance(inner, (list, tuple)) and inner and name == "datasets":
            for index, one in enumerate(inner):
                yield from find_leaves(one, f"{key}.{name}.{index}")
            return
        if isinstance(inner, Mapping) or hasattr(inner, "get_data_info"):
            yield from find_leaves(inner, f"{key}.{name}")
            return
    yield key, dataset


def check_data(config: Mapping[str, Any]) -> dict[str, CheckResult]:
    """Fails before a training if data is missing, cannot be learned from or does not agree.

    A split's files are parsed once, besides by MMDetection itself; warnings are logged.

    Args:
        config: its ``train_dataloader`` and the like may hold configs of datasets or built ones.

    Returns:
        What was found in the files that train, by file.

    Raises:
        ConfigError: the classes are not those of the file in its order, or a value cannot be used.
        DataError: names the file, the dataset's key in the config and what is wrong or to do.
    """
    done: dict[_Part, CheckResult] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        loader = config.get(f"{split}_dataloader")
        if loader is None:
            continue
        read = cache(CocoData.read)  # of a split: COCO's files take gigabytes
        given = loader.get("dataset") if isinstance(loader, Mapping) else loader.dataset
        found = list(find_leaves(given, f"{split}_dataloader.dataset"))
        scorers = [] if split == "train" else list(_read_scorers(config, split))
        for key, leaf in found:
            _check_paths(key, leaf)
            part = read_part(key, leaf)
            if part is None:
                continue
            trained = next(iter(classes.values()), None)
            for scorer in scorers:
                if scorer.annotations is None:
                    _check_ground_truth(scorer, key, leaf)
            own = [s for s in scorers if s.annotations and _is_same(s.annotations, part)]
            part = part._replace(
                masks=part.masks or any(scorer.masks for scorer in own),
                trains=split == "train",
                alone=len(found) == 1,
                scored=bool(own),
            )
            if part not in done:
                done[part] = _check_part(key, part, trained, read)
            for scorer in scorers:
                if scorer.annotations and scorer not in own:
                    _check_scorer(scorer, key, part, read)
            classes[key] = part.classes
    check_same_classes(classes)
    return {str(part.annotations): result for part, result in done.items() if part.trains}


def check_learned(runner: Runner, results: Mapping[str, CheckResult]) -> None:
    """Counts the objects that the built datasets keep, and tries the training's pipeline.

    Args:
        runner: whose training data is built.
        results: of :func:`check_data`.

    Raises:
        DataError: nothing is left to learn from, or nothing leaves the pipeline.
    """
    whole = runner.train_dataloader.dataset
    found = list(find_leaves(whole, "train_dataloader.dataset"))
    if not all(isinstance(leaf, BaseDetDataset) for _, leaf in found):
        return
    all_kept, all_given = Counter(), Counter()
    for key, leaf in found:
        names, kept = leaf.metainfo.get("classes") or (), Counter()
        for index in range(len(leaf)):
            objects = leaf.get_data_info(index).get("instances")
            if objects is None:
                return  # learns from something else
            kept.update(names[one["bbox_label"]] for one in objects if not one.get("ignore_flag"))
        result, reason = results.get(str(Path(leaf.ann_file))), _LOST
        given = Counter(result.objects if result else kept)
        if result and len(leaf) < result.counts["images"]:
            images = f"{len(leaf)} of {result.counts['images']} images"
            reason = f"filter_cfg and indices keep {images}; {_LOST}"
        if len(found) > 1 and given.total():
            check_kept(key, kept, given, reason)
        all_kept, all_given = all_kept + kept, all_given + given
    check_kept("train_dataloader.dataset", all_kept, all_given, reason)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    _check_pipeline(whole, any(hasattr(model, head) for head in ("bbox_head", "rpn_head")))


def _check_paths(key: str, leaf: Any) -> None:
    if not isinstance(leaf, Mapping):
        return
    root = Path(leaf.get("data_root") or "")
    for path in (leaf.get("ann_file"), (leaf.get("data_prefix") or {}).get("img")):
        path = path and root / path
        if path and "://" not in str(path) and not leaf.get("backend_args") and not path.exists():
            hint = f"correct {key}.data_root"
            if root.name == "mini_coco":
                hint = f"build it with: gradaug-det build-mini-coco --out {root}"
            raise DataError(f"{key.removesuffix('.dataset')}: {path} is missing; {hint}")


def read_part(key: str, leaf: Any) -> _Part | None:
    """Reads what a dataset, or its config, is made of; None if it reads something else than
    CocoDataset does, or from elsewhere than a disk."""
    kind, get = type(leaf), vars(leaf).get
    if isinstance(leaf, Mapping):
        kind, get = leaf.get("type"), leaf.get
        kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (
        isinstance(kind, type)
        and issubclass(kind, CocoDataset)
        and kind.load_data_list is CocoDataset.load_data_list
        and kind.COCOAPI is COCO
        and get("ann_file")
    ):
        return None
    annotations, images = get("ann_file"), (get("data_prefix") or {}).get("img")
    if isinstance(leaf, Mapping):
        root = get("data_root") or ""
        annotations, images = Path(root, annotations), images and Path(root, images)
        metainfo = {**kind.METAINFO, **(get("metainfo") or {})}
        masks = any(name == "with_mask" and value for _, name, value in walk(get("pipeline") or []))
    else:  # paths of a built one are joined
        metainfo = leaf.metainfo
        masks = any(getattr(step, "with_mask", False) for step in leaf.pipeline.transforms)
    if "://" in f"{annotations}{images}" or get("backend_args"):
        return None
    classes = _read_classes(key, metainfo["classes"])
    return _Part(Path(annotations), Path(images) if images else None, classes, masks)


def _read_classes(key: str, given: Any) -> tuple[str, ...]:
    """The names; a text is a file of them, as MMEngine has it."""
    if isinstance(given, str):
        if not Path(given).is_file():
            raise ConfigError(
                f"{key}.metainfo.classes",
                f"is the text {given!r}, not a tuple of names; write ({given!r},) with a comma, or "
                "the path of a file with a name in each line",
            )
        given = list_from_file(given)
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
        problem = f"must be a tuple of names such as ('bolt', 'nut'), got {given!r}"
        raise ConfigError(f"{key}.metainfo.classes", problem)
    return tuple(given)


def _check_part(
    key: str, part: _Part, trained: tuple[str, ...] | None, read: Callable[[Path], CocoData]
) -> CheckResult:
    result = check_before_training(
        read(part.annotations),
        part.images,
        name=key,
        masks=part.masks,
        trains=part.trains and part.alone,
        handled=("ignore-set", *(() if part.scored else _FOR_SCORES)),
        max_detections=None if part.trains else _COUNTED,
        framework="MMDetection",
    )
    _check_order(f"{key}.metainfo.classes", part, result.file_order, trained)
    return result


def _check_order(
    key: str, part: _Part, in_file: tuple[str, ...], trained: tuple[str, ...] | None
) -> None:
    """Compares the classes with the categories of a file."""
    # MMDetection numbers by the file's order the categories that the classes name: in another
    # order, or with a gap before the end, an index would stand for another class.
    order = tuple(name for name in in_file if name in part.classes)
    lacking = set(in_file) < set(part.classes)
    if order == part.classes or (part.trains and lacking and part.classes[: len(order)] == order):
        return  # a class at the end that this file has no example of shifts no other
    unknown = next((name for name in part.classes if name not in in_file), None)
    if unknown is None:
        problem = f"is {part.classes}, but MMDetection numbers classes in the order of"
    elif part.classes == CocoDataset.METAINFO["classes"]:
        problem = "is not given, and COCO's 80 are not the categories of"
    else:
        problem = f"names {unknown!r}, which is no category of"
    way_out = f"write metainfo=dict(classes={order if unknown is None else in_file})"
    if lacking or (unknown is None and trained not in (None, order)):
        way_out = f"give that file all categories, in the order {part.classes}"
    raise ConfigError(key, f"{problem} {part.annotations}; {way_out}")


def find_metrics(config: Mapping[str, Any], split: str) -> Iterator[tuple[str, Mapping]]:
    """The settings of CocoMetric, with their keys, that are in ``val_evaluator`` or the like."""
    given = config.get(f"{split}_evaluator")
    given = given.get("metrics", given) if isinstance(given, Mapping) else given
    several = isinstance(given, (list, tuple))
    for index, one in enumerate(given if several else [given]):
        kind = one.get("type") if isinstance(one, Mapping) else None
        kind = METRICS.get(kind) if isinstance(kind, str) else kind
        if isinstance(kind, type) and issubclass(kind, CocoMetric):
            yield f"{split}_evaluator" + (f".{index}" if several else ""), one


def _read_scorers(config: Mapping[str, Any], split: str) -> Iterator[_Scorer]:
    for key, one in find_metrics(config, split):
        metrics = one.get("metric", "bbox")
        metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
        for name in metrics:
            if name not in _METRICS:
                problem = f"must be some of {', '.join(_METRICS)}, got {name!r}"
                raise ConfigError(f"{key}.metric", problem)
        limits = one.get("proposal_nums", (100, 300, 1000))
        fit = isinstance(limits, (list, tuple)) and len(limits) == 3 and _COUNTED in limits
        if not fit and {"bbox", "segm"} & set(metrics):
            problem = f"must be three numbers with {_COUNTED} among them, which mAP is of; got"
            raise ConfigError(f"{key}.proposal_nums", f"{problem} {limits!r}")
        file = one.get("ann_file")
        if file is not None and not isinstance(file, (str, os.PathLike)):
            raise ConfigError(f"{key}.ann_file", f"must be one path, got {file!r}")
        if one.get("format_only") or one.get("backend_args") or "://" in str(file):
            continue
        if file and not Path(file).exists():
            raise DataError(f"{key}: {file} is missing; correct {key}.ann_file")
        yield _Scorer(key, Path(file) if file else None, "segm" in metrics)


def _check_ground_truth(scorer: _Scorer, key: str, leaf: Any) -> None:
    """Without a file of its own, CocoMetric needs the objects beside the predictions."""
    steps = leaf.get("pipeline") or [] if isinstance(leaf, Mapping) else []
    kept = [value for _, name, value in walk(steps) if name == "meta_keys"]
    packs = any(type_name(step) == "PackDetInputs" for step in steps)
    if packs and not any("instances" in keys for keys in kept):
        problem = f"is missing; give it the annotation file of {key}"
        raise ConfigError(f"{scorer.key}.ann_file", problem)


def _check_scorer(scorer: _Scorer, key: str, part: _Part, read: Callable[[Path], CocoData]) -> None:
    """Compares the evaluator's file, which is another one, with the dataset's."""
    other = _Part(scorer.annotations, None, part.classes, scorer.masks, scored=True)
    _check_part(scorer.key, other, part.classes, read)
    mine, theirs = (
        {one["id"]: str(one.get("file_name")) for one in read(file).images}
        for file in (part.annotations, other.annotations)
    )
    for image, name in mine.items():
        if image not in theirs or Path(theirs[image]).name != Path(name).name:
            said = f"is {theirs[image]!r}" if image in theirs else "is missing"
            raise DataError(
                f"{scorer.key}: image {image} ({name!r} in {part.annotations}) {said} in "
                f"{other.annotations}; give {scorer.key}.ann_file the file of {key}"
            )


def _is_same(file: Path, part: _Part) -> bool:
    return file.exists() and part.annotations.exists() and file.samefile(part.annotations)


def _check_pipeline(whole: Any, boxes: bool) -> None:
    """Sends some images that have objects through a copy of all pipelines, wrappers' too."""
    whole = vars(whole).get("_dataset", whole)  # of num_batch_per_epoch
    if not hasattr(whole, "get_data_info"):
        return
    with temporary_seed(0):
        copied = _copy(whole)
        count, left, tried = len(whole), 0, 0
        # Spread over the data: it may be sorted by class, and the first images alike.
        for index in range(0, count, max(1, count // (8 * _SAMPLES))):
            objects = whole.get_data_info(index)["instances"]
            if all(one.get("ignore_flag") for one in objects):
                continue
            try:
                sample = copied[index]["data_samples"].gt_instances
            except (AttributeError, KeyError, TypeError):
                return  # packed in a form that is not known here
            except Exception as error:
                if not any(said in str(error) for said in ("Cannot find valid", "return None")):
                    raise
                sample = ()
            left += len(sample) if not boxes or "bboxes" in sample else 0
            tried += 1
            if left or tried == _SAMPLES:
                break
    if tried and not left:
        raise DataError(
            f"train_dataloader.dataset.pipeline leaves no box of the objects of {tried} images; "
            "look at LoadAnnotations, FilterAnnotations, crops and the polygons"
        )


def _copy(dataset: Any) -> Any:
    """Returns a dataset that shares the annotations, and runs its pipelines without a trace."""
    copied = copy.copy(dataset)
    for name in _WRAPPED:
        inner = vars(copied).get(name)
        if isinstance(inner, list):
            setattr(copied, name, [_copy(one) for one in inner])
        elif hasattr(inner, "get_data_info"):
            setattr(copied, name, _copy(inner))
    if "pipeline" in vars(copied):
        copied.pipeline = copy.deepcopy(copied.pipeline)
    if "max_refetch" in vars(copied):
        copied.max_refetch = 1
    return copied


def count_training_classes(dataset: Any) -> int | None:
    """Returns how many classes the heads must have; None for data of which that cannot be said:
    panoptic data, open vocabularies, datasets that are not MMDetection's."""
    numbers = set()
    for _, leaf in find_leaves(dataset, "train_dataloader.dataset"):
        metainfo = getattr(leaf, "metainfo", {})
        if not isinstance(leaf, BaseDetDataset) or leaf.return_classes:
            return None
        names = metainfo.get("thing_classes", metainfo.get("classes"))
        if not isinstance(names, (list, tuple)):
            return None
        numbers.add(len(names))
    return numbers.pop() if len(numbers) == 1 else None
