"""Datasets for Detectron2: registration by name, and a look at them before training starts."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from gradaug_det.datasets.check import check_before_training
from gradaug_det.errors import DataError

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

    Raises:
        DataError: the name stands for other files already.
    """
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        known = metadata.get("json_file"), metadata.get("image_root")
        if known != (str(annotations), str(images)):
            raise DataError(
                f"dataset {name!r} is registered with {known} already; use another name"
            )
        return
    register_coco_instances(name, {}, str(annotations), str(images))


def check_datasets(cfg: CfgNode) -> None:
    """Fails before training if a dataset of the config cannot be read or learned from.

    Datasets in COCO format are looked at by
    :func:`gradaug_det.datasets.check.check_before_training`, which parses the annotation file
    once more than Detectron2 does, and logs warnings.

    Raises:
        DataError: names the dataset, what is missing or wrong and what to do.
    """
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        if name not in DatasetCatalog.list():
            raise DataError(
                f"dataset {name!r} is not registered; pass --register {name} ANNOTATIONS.json "
                "IMAGES_DIR, or use one of Detectron2's own names"
            )
        json_file = MetadataCatalog.get(name).get("json_file")
        if json_file is None:
            continue  # not in COCO format: Detectron2's loader has the last word
        if not Path(json_file).is_file():
            hint = (
                "build it with: gradaug-det build-mini-coco --out "
                + str(Path(json_file).parents[1])
                if name in MINI_COCO
                else "set DETECTRON2_DATASETS to the folder that holds it, or correct --register"
            )
            raise DataError(f"dataset {name!r}: the annotation file {json_file} is missing; {hint}")
        # LVIS' and other files that have json_file are not of the same format.
        if MetadataCatalog.get(name).get("evaluator_type") == "coco":
            root = Path(MetadataCatalog.get(name).image_root)
            polygons = cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
            check_before_training(
                json_file,
                root if root.is_dir() else None,
                name=f"dataset {name!r}",
                num_classes=_num_classes(cfg),
                masks=cfg.MODEL.MASK_ON,
                handled=("missing-image",),  # named below, with what Detectron2 takes for the path
                # Detectron2 cannot draw run lengths then, and stops when the image's turn comes.
                refused={"rle-instance": "set INPUT.MASK_FORMAT bitmask"}
                if polygons and name in cfg.DATASETS.TRAIN
                else {},
            )
        try:
            files = [record["file_name"] for record in DatasetCatalog.get(name)]
        except Exception as error:  # of whatever loads the data set
            raise DataError(
                f"dataset {name!r}: Detectron2 cannot load it ({type(error).__name__}: {error}); "
                "correct its annotations"
            ) from error
        missing = [file for file in files if not Path(file).is_file()]
        if missing:
            raise DataError(
                f"dataset {name!r}: {len(missing)} of {len(files)} image files are missing, the "
                f"first is {missing[0]}; correct the images folder or the annotations"
            )


def _num_classes(cfg: CfgNode) -> int | None:
    """The classes of the config's detector; None if it is not one of Detectron2's usual ones."""
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        return cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return cfg.MODEL.RETINANET.NUM_CLASSES
    return None
