"""Datasets for Detectron2: registration by name, and a look at them before training starts."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_few_keypoints
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from gradaug_det.check_data.agreement import check_kept, check_same_classes, shorten
from gradaug_det.check_data.check import check_before_training
from gradaug_det.check_data.images import Names
from gradaug_det.check_data.masks import is_numbers
from gradaug_det.core import processes
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco_data import CocoData

logger = logging.getLogger("detectron2.gradaug")
MINI_COCO = {"mini_coco_train": "train", "mini_coco_val": "val"}


def register_mini_coco(root: str | Path | None = None) -> None:
    """Registers ``mini_coco_train`` and ``mini_coco_val``.

    Args:
        root: folder that ``gradaug-det build-mini-coco`` made; by default ``mini_coco`` in the
            folder that Detectron2's DETECTRON2_DATASETS names (``datasets`` if it is not set).
    """
    root = Path(root or Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "mini_coco")
    for name, split in MINI_COCO.items():
        register_coco(name, root / "annotations" / f"instances_{split}.json", root / split)


def register_coco(name: str, annotations: str | Path, images: str | Path) -> None:
    """Registers a COCO-format dataset; registering the same one again does nothing.

    Names, mirror images and skeleton of keypoints are those of the file's categories.

    Raises:
        DataError: the name stands for other files already.
    """
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog.list():
        known = metadata.get("json_file"), metadata.get("image_root")
        if known != (str(annotations), str(images)):
            problem = f"is registered with {known} already; use another name"
            raise DataError(f"dataset {name!r} {problem}")
        return
    DatasetCatalog.register(name, _CocoFile(name, str(annotations), str(images)))
    metadata.set(json_file=str(annotations), image_root=str(images), evaluator_type="coco")
    name_keypoints(name)


class _CocoFile:
    """Loads a COCO file, or hands on once what a check has loaded."""

    def __init__(self, name: str, annotations: str, images: str) -> None:
        self.name, self.annotations, self.images = name, annotations, images
        self.ready: list[dict] | None = None

    def __call__(self) -> list[dict]:
        records, self.ready = self.ready, None
        return records or load_coco_json(self.annotations, self.images, self.name)


def name_keypoints(name: str) -> None:
    """Tells Detectron2 the keypoints that a COCO file's categories name, which of them change
    places when an image is mirrored, and the skeleton, unless kinds of them differ."""
    metadata = MetadataCatalog.get(name)
    file = Path(metadata.get("json_file") or "")
    # Most files have none, and need not be parsed to see it.
    if not file.is_file() or not re.search(rb'"keypoints"\s*:\s*\[\s*"', file.read_bytes()):
        return
    with suppress(DataError):  # said by check_datasets
        metadata.set(**_keypoint_metadata(name, CocoData.read(file).categories))


def _keypoint_metadata(name: str, categories: Sequence[Any]) -> dict[str, list]:
    # Detectron2 has one list of keypoints for all classes.
    kinds = [c for c in categories if isinstance(c, dict) and c.get("keypoints")]
    names = kinds[0]["keypoints"] if kinds else None
    usable = isinstance(names, list) and all(isinstance(n, str) for n in names)
    alike = usable and all(c["keypoints"] == names for c in kinds)
    if MetadataCatalog.get(name).get("keypoint_names") or not alike:
        return {}
    pairs = [(left, _mirror(left)) for left in names]
    joints, ends = kinds[0].get("skeleton"), range(1, len(names) + 1)
    joints = [j for j in joints if is_numbers(j, 2)] if isinstance(joints, list) else []
    sound = [j for j in joints if all(type(k) is int and k in ends for k in j)]
    return {
        "keypoint_names": list(names),
        "keypoint_flip_map": [
            (a, b) for a, b in pairs if b in names and names.index(a) < names.index(b)
        ],
        "keypoint_connection_rules": [
            (names[a - 1], names[b - 1], (102, 204, 255)) for a, b in sound
        ],
    }


_SIDES = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def _mirror(name: str) -> str:
    """``left_ear`` -> ``right_ear``, ``Ear R`` -> ``Ear L``."""

    def swap(found: re.Match) -> str:
        side, other = found[0], _OTHER_SIDE[found[0].lower()]
        return other.upper() if side.isupper() else other.title() if side[0].isupper() else other

    return _SIDES.sub(swap, name, count=1)


@dataclass(frozen=True)
class DataUse:
    """The use that a config makes of its data sets; None is what it does not say or have."""

    train: tuple[str, ...]  # registered names
    test: tuple[str, ...]
    num_classes: int | None = None
    num_classes_key: str = "the detector's num_classes"
    masks: bool | None = None  # needs masks; None: may
    mask_format: str = "bitmask"
    keypoints: int | None = None  # of each object
    min_keypoints: int = 0  # visible ones of an image, else it is left out
    max_detections: int | None = None  # that the evaluator counts for an image
    sigmas: tuple[float, ...] = ()  # of the keypoints' score; empty: COCO's 17
    stuff_classes: int | None = None  # of the head for semantic segmentation
    lazy: bool = False  # a lazy config calls everything otherwise

    @classmethod
    def read(cls, cfg: CfgNode | DictConfig, eval_only: bool = False) -> DataUse:
        """Reads a yaml config or a LazyConfig; with ``eval_only``, nothing is trained."""
        use = (_read_lazy if isinstance(cfg, DictConfig) else _read_yaml)(cfg)
        return replace(use, train=()) if eval_only else use

    def key(self, yaml: str, lazy: str) -> str:
        return lazy if self.lazy else yaml


def _read_yaml(cfg: CfgNode) -> DataUse:
    model, kind = cfg.MODEL, cfg.MODEL.META_ARCHITECTURE
    rcnn = kind in ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork")
    counted = {
        "GeneralizedRCNN": ("MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES),
        "PanopticFPN": ("MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES),
        "RetinaNet": ("MODEL.RETINANET.NUM_CLASSES", model.RETINANET.NUM_CLASSES),
    }
    key, count = counted.get(kind, (DataUse.num_classes_key, None))
    stuff = kind in ("PanopticFPN", "SemanticSegmentor")
    head = model.ROI_KEYPOINT_HEAD
    return DataUse(
        train=tuple(cfg.DATASETS.TRAIN),
        test=tuple(cfg.DATASETS.TEST),
        num_classes=count,
        num_classes_key=key,
        masks=model.MASK_ON if rcnn else (None if model.MASK_ON else False),
        mask_format=cfg.INPUT.MASK_FORMAT,
        keypoints=head.NUM_KEYPOINTS if model.KEYPOINT_ON and rcnn else None,
        min_keypoints=head.MIN_KEYPOINTS_PER_IMAGE if model.KEYPOINT_ON else 0,
        max_detections=max_detections(cfg.TEST.DETECTIONS_PER_IMAGE),
        sigmas=tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS),
        stuff_classes=model.SEM_SEG_HEAD.NUM_CLASSES if stuff else None,
    )


def _read_lazy(cfg: DictConfig) -> DataUse:
    def select(key: str, default: Any = None) -> Any:
        value = OmegaConf.select(cfg, key)
        return default if value is None else value

    def names(key: str) -> tuple[str, ...]:
        value = select(key, ())
        return (value,) if isinstance(value, str) else tuple(value)

    dataset, mapper = "dataloader.train.dataset", "dataloader.train.mapper"
    evaluator = "dataloader.evaluator"
    own = _find_target(select(dataset)) is get_detection_dataset_dicts
    keypoints = select("model.roi_heads.keypoint_head.num_keypoints")
    tasks = select(f"{evaluator}.tasks", ("bbox", "segm", "keypoints"))
    limit = select(f"{evaluator}.max_dets_per_image")
    masks = bool(select(f"{mapper}.use_instance_mask", False))
    return DataUse(
        train=names(f"{dataset}.names") if own else (),
        test=names(f"{evaluator}.dataset_name") if is_coco_evaluator(select(evaluator)) else (),
        masks=masks and ("segm" in tasks or None),
        mask_format=select(f"{mapper}.instance_mask_format", "polygon"),
        keypoints=keypoints if select(f"{mapper}.use_keypoint") else None,
        min_keypoints=select(f"{dataset}.min_keypoints", 0),
        max_detections=limit if limit is None or isinstance(limit, int) else max(limit),
        sigmas=tuple(select(f"{evaluator}.kpt_oks_sigmas", ())),
        lazy=True,
    )


def _find_target(node: Any) -> Any:
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    return locate(target) if isinstance(target, str) else target


def is_coco_evaluator(node: Any) -> bool:
    """Returns whether a LazyConfig's node makes a COCOEvaluator."""
    target = _find_target(node)
    return isinstance(target, type) and issubclass(target, COCOEvaluator)


def max_detections(limit: int) -> int:
    """Returns what COCO's evaluators count for an image, given TEST.DETECTIONS_PER_IMAGE."""
    # Fewer than COCO's 100 would change no number, but the names of those that are reported.
    return 10_000 if limit < 0 else max(limit, 100)  # -1 stands for no limit


def once_a_machine(check: Callable[[], Any]) -> Any:
    """See :func:`gradaug_det.core.processes.run_once_a_machine`."""
    return processes.run_once_a_machine(check, comm.get_local_rank() == 0, comm.all_gather)


_checked: dict[DataUse, tuple[str, ...]] = {}


def check_datasets(
    cfg: CfgNode | DictConfig, *, eval_only: bool = False, again: bool = True
) -> tuple[str, ...]:
    """Fails before training if a dataset of the config cannot be read, learned from or scored.

    One process of each machine looks, at COCO files with
    :func:`gradaug_det.check_data.check.check_before_training`.

    Args:
        cfg: a yaml config or a LazyConfig; of the latter, datasets are found that Detectron2's
            ``get_detection_dataset_dicts`` loads and its ``COCOEvaluator`` scores.
        eval_only: whether nothing is trained.
        again: also if it was done in this process before.

    Returns:
        The names of the classes by class index; empty if they are not known.

    Raises:
        DataError: names the dataset, what is missing or wrong and what to do.
        ConfigError: the config and a dataset do not agree.
    """
    use = DataUse.read(cfg, eval_only)
    if again or use not in _checked:
        _checked[use], keypoints = once_a_machine(lambda: _check(use))
        for name, values in keypoints.items():  # to the processes that have not looked
            MetadataCatalog.get(name).set(**values)
    return _checked[use]


def check_own_records(cfg: DictConfig, records: Sequence[dict]) -> None:
    """Checks a LazyConfig's training data that a function of the user's own has loaded.

    Raises:
        DataError: Detectron2 would learn from none of the ``records``.
    """
    use = DataUse.read(cfg)
    if not use.train:
        once_a_machine(lambda: _check_records("dataloader.train.dataset", list(records), 0, use))


def _check(use: DataUse) -> tuple[tuple[str, ...], dict[str, dict]]:
    """Returns the classes, and metadata of keypoints by the data set's name."""
    classes: dict[str, Sequence[str]] = {}
    keypoints: dict[str, dict] = {}
    for name in dict.fromkeys((*use.train, *use.test)):
        data, metadata = _read(name), MetadataCatalog.get(name)
        if data is not None:
            if use.keypoints is not None:
                keypoints[name] = _keypoint_metadata(name, data.categories)
                metadata.set(**keypoints[name])  # for files that Detectron2's functions registered
                _check_keypoints(name, use)
            _check_file(name, data, use)
        in_file = len(data.annotations) if data else 0
        del data  # Detectron2 parses the file again: COCO's takes gigabytes each time
        records = _load(name)
        stuff = metadata.get("stuff_classes") or ()
        if use.stuff_classes is not None and use.stuff_classes < len(stuff):
            problem = f"is {use.stuff_classes}, but dataset {name!r} has {len(stuff)} classes"
            raise ConfigError("MODEL.SEM_SEG_HEAD.NUM_CLASSES", f"{problem}; set it to that")
        # Of panoptic data sets, the classes are those of two heads.
        if metadata.get("thing_classes") and not stuff:
            classes[f"dataset {name!r}"] = tuple(metadata.thing_classes)
        if name in use.train:
            _check_records(name, records, in_file, use)
            if isinstance(DatasetCatalog[name], _CocoFile):
                DatasetCatalog[name].ready = records
    check_same_classes(classes)
    found = next(iter(classes.values()), ())
    if found and use.num_classes is not None:
        check_num_classes(use.num_classes_key, use.num_classes, found, scored=bool(use.test))
    return found, keypoints


def _read(name: str) -> CocoData | None:
    """Parses a data set's file; None if it is not in COCO's format."""
    if name not in DatasetCatalog.list():
        raise DataError(
            f"dataset {name!r} is not registered; pass --register {name} ANNOTATIONS.json "
            "IMAGES_DIR, or use one of Detectron2's own names"
        )
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is None:
        return None  # Detectron2's loader has the last word
    if not Path(json_file).is_file():
        hint = "set DETECTRON2_DATASETS to the folder that holds it, or correct --register"
        if name in MINI_COCO:
            hint = f"build it with: gradaug-det build-mini-coco --out {Path(json_file).parents[1]}"
        raise DataError(f"dataset {name!r}: the annotation file {json_file} is missing; {hint}")
    if metadata.get("evaluator_type") != "coco":
        return None  # LVIS' and other files that have json_file are not of the same format
    return CocoData.read(json_file)


def _check_file(name: str, data: CocoData, use: DataUse) -> None:
    root = Path(MetadataCatalog.get(name).image_root)
    refused = {}
    if use.masks and name in use.train and use.mask_format == "polygon":
        # Detectron2 cannot draw run lengths then, and stops when the image's turn comes.
        key = use.key("INPUT.MASK_FORMAT", "dataloader.train.mapper.instance_mask_format")
        refused["rle-instance"] = f"set {key} bitmask"
    if use.masks:
        off = use.key("MODEL.MASK_ON False", "dataloader.train.mapper.use_instance_mask=False")
        refused["no-segmentations"] = f"add masks, or set {off} for a detector of boxes"
    check_before_training(
        data,
        root if root.is_dir() else None,
        name=f"dataset {name!r}",
        masks=use.masks,
        keypoints=use.keypoints,
        # Of several, one may hold nothing but background; what they hold together is counted.
        trains=use.train == (name,),
        scored=name in use.test,
        framework="Detectron2",
        handled=("missing-image",),  # named by _load, with what Detectron2 takes for the path
        refused=refused,
        max_detections=use.max_detections if name in use.test else None,
    )


def _load(name: str) -> list[dict]:
    """Loads the data set as Detectron2 does, and looks for its images on the disk."""
    try:
        records = DatasetCatalog.get(name)
        files = [record["file_name"] for record in records]
    except Exception as error:  # of whatever loads the data set
        raise DataError(
            f"dataset {name!r}: Detectron2 cannot load it ({type(error).__name__}: {error}); "
            "correct its annotations"
        ) from error
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        root = MetadataCatalog.get(name).get("image_root")
        cause = root and Names(Path(root)).explain(missing[0].removeprefix(f"{root}/"))
        raise DataError(
            f"dataset {name!r}: {len(missing)} of {len(files)} image files are missing, the "
            f"first is {missing[0]}{f' ({cause})' if cause else ''}; correct the images folder or "
            "the annotations"
        )
    return records


def _check_keypoints(name: str, use: DataUse) -> None:
    names = MetadataCatalog.get(name).get("keypoint_names")
    if not names:
        raise DataError(
            f"dataset {name!r}: its categories do not name keypoints, or not the same; Detectron2 "
            'has one list for all classes: give each category in the file the same "keypoints": '
            "[names], in the order of the annotations"
        )
    count, said = len(names), f"dataset {name!r} names {len(names)}"
    if count != use.keypoints:
        key = "roi_heads.keypoint_head.num_keypoints"
        raise ConfigError(
            use.key("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", f"model.{key}"),
            f"is {use.keypoints}, but {said} {shorten(names)}; set it to {count}",
        )
    if name in use.test and (len(use.sigmas) or 17) != count:
        given = f"has {len(use.sigmas)} numbers" if use.sigmas else "is empty: COCO's 17"
        example = ", ".join(["0.05"] * count) + ("," if count == 1 else "")
        raise ConfigError(
            use.key("TEST.KEYPOINT_OKS_SIGMAS", "dataloader.evaluator.kpt_oks_sigmas"),
            f"{given}, but {said} keypoints {shorten(names)}; give one for each: how far, relative "
            f"to the object's size, people place it apart, for example ({example})",
        )


def _check_records(name: str, records: Sequence[dict], in_file: int, use: DataUse) -> None:
    """Counts what Detectron2 learns from, of what it has loaded."""
    if not len(records) or not isinstance(records[0], dict) or "annotations" not in records[0]:
        return
    classes = MetadataCatalog.get(name).get("thing_classes") or ()

    def count(annotations: Iterable[dict]) -> Counter:
        found = Counter(a["category_id"] for a in annotations)
        names = {k: classes[k] if k < len(classes) else f"class {k}" for k in found}
        return Counter({names[k]: number for k, number in found.items()})

    loaded = [a for r in records for a in r["annotations"] if "category_id" in a]
    # Of users' own functions; of COCO files, each category has an index.
    highest = max((a["category_id"] for a in loaded), default=-1)
    said = f"dataset {name!r} has annotations of class {highest}"
    if classes and highest >= len(classes):
        raise DataError(f"{said}, but the metadata's thing_classes names {len(classes)}, from 0 on")
    if not classes and use.num_classes is not None and highest >= use.num_classes:
        problem = f"is {use.num_classes}, but {said}; set it to {highest + 1} or more"
        raise ConfigError(use.num_classes_key, problem)
    used = records
    if use.min_keypoints:
        used = filter_images_with_few_keypoints(records, use.min_keypoints)
    pairs = [(r, a) for r in used for a in r["annotations"] if "category_id" in a]
    crowd = np.array([bool(a.get("iscrowd", 0)) for _, a in pairs], bool)
    empty = _find_empty(pairs, use.masks is not False) & ~crowd
    reasons = {
        "not loaded: no polygon of 3 points, or no image of that id": in_file - len(loaded),
        "in images with too few visible keypoints": len(loaded) - len(pairs),
        "crowds (iscrowd 1)": int(crowd.sum()),
        "without area in the image": int(empty.sum()),
    }
    check_kept(
        f"dataset {name!r}",
        count(a for (_, a), lost in zip(pairs, crowd | empty, strict=True) if not lost),
        count(loaded) or ({"all classes": in_file} if in_file else {}),
        ", ".join(f"{number} {what}" for what, number in reasons.items() if number > 0),
    )


def _find_empty(pairs: Sequence[tuple[dict, dict]], masks: bool) -> np.ndarray:
    """Marks the annotations, (n,), without area once they are cut at the image's edges."""
    # By the rules of DatasetMapper: first the image cuts the box, then what is thinner than 1e-5
    # is dropped (Boxes.nonempty), and masks of no pixel. All boxes at once: COCO has 860,000.
    boxes = [a.get("bbox", ()) for _, a in pairs]
    found = np.zeros(len(pairs), bool)
    if all(len(box) == 4 for box in boxes) and boxes:
        array = np.array(boxes, np.float64)
        modes = np.array([a.get("bbox_mode", BoxMode.XYWH_ABS) for _, a in pairs])
        for mode in set(modes.tolist()):
            of_mode = modes == mode
            array[of_mode] = BoxMode.convert(array[of_mode], BoxMode(mode), BoxMode.XYXY_ABS)
        size = [(r.get("width", np.inf), r.get("height", np.inf)) for r, _ in pairs]
        array = np.clip(array, 0, np.array(size, np.float64)[:, [0, 1, 0, 1]])
        found = ((array[:, 2:] - array[:, :2]) <= 1e-5).any(axis=1)
    for index, (_, annotation) in enumerate(pairs if masks else ()):
        mask = annotation.get("segmentation")
        if isinstance(mask, dict) and isinstance(mask["counts"], str | bytes):
            found[index] |= not pycocotools.mask.area(mask)
    return found


def check_num_classes(key: str, count: int, classes: Sequence[str], *, scored: bool) -> None:
    """Raises ConfigError, with its ``key``, if a head's number of classes is not the data's."""
    problem = f"is {count}, but the data has {len(classes)} classes {shorten(classes)}"
    # Predictions of classes that the data does not have could not be scored.
    if count < len(classes) or (count > len(classes) and scored):
        raise ConfigError(key, f"{problem}; set it to {len(classes)}")
    if count > len(classes):
        logger.warning("%s %s: the others never occur", key, problem)
