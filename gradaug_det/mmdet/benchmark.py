"""An MMDetection detector for the benchmark (see :mod:`gradaug_det.benchmark.detector`)."""

from __future__ import annotations

import copy
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmcv.transforms import BaseTransform, Compose
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.structures.mask import encode_mask_results
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from gradaug_det.benchmark.changes import FGSM, Change, Corruption
from gradaug_det.benchmark.detector import category_id, check_num_classes, training_losses
from gradaug_det.check_data.agreement import check_same_classes
from gradaug_det.core.slimming import Overrides, no_traces
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import Scoring
from gradaug_det.evaluation.coco_data import CocoData
from gradaug_det.export.calibration import read_batches
from gradaug_det.mmdet.backbone import slimmed_part
from gradaug_det.mmdet.checkpoint import load_files_safely
from gradaug_det.mmdet.config import load_config, trained_options
from gradaug_det.mmdet.data import find_leaves, find_metrics, read_part
from gradaug_det.mmdet.values import type_name
from gradaug_det.utils.detector_files import DetectorFiles


class MMDetectionDetector:
    """A config with weights; without them, with the config's ``load_from``."""

    framework = "MMDetection"

    def __init__(self, files: DetectorFiles, data: CocoData, device: str) -> None:
        self.files, self.data, self.device = files, data, device
        self.config = load_config(files.config, options(files.overrides))
        init_default_scope("mmdet")
        weights = files.weights or self.config.get("load_from")
        if not weights:
            raise ConfigError("--weights", f"is missing and {files.config} has no load_from")
        self.description = f"{self.config.pretty_text}\n{weights}"
        load_files_safely()
        self.model = MODELS.build(self.config.model).to(device)
        load_checkpoint(self.model, str(weights), map_location=device)
        self.model.eval()
        self._options = trained_options(self.config)
        self.divisor, self.trained_width = self._options.divisor, self._options.trained_width
        self.statistics = {}
        self.scoring = _scoring(self.config)
        self._ids = _category_ids(self.config, data)
        head = getattr(getattr(self.model, "roi_head", self.model), "bbox_head", None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        check_num_classes(getattr(head, "num_classes", None), data, "num_classes of the heads")

    @property
    def backbone(self) -> nn.Module:
        return slimmed_part(self.model)

    @cached_property
    def slimmed(self) -> nn.Module:
        return slimmed_part(self.model, self._options.slim, self._options.keep_whole)

    def dataset(self, image_ids: Sequence[int], change: Change) -> Dataset:
        settings = copy.deepcopy(next(find_leaves(self.config.test_dataloader.dataset, ""))[1])
        pipeline = list(settings.pipeline)
        if isinstance(change, FGSM):
            pipeline = _with_ground_truth(pipeline, getattr(self.model, "with_mask", False))
        if isinstance(change, Corruption):
            pipeline.insert(_loading(pipeline) + 1, {"type": "GradAugCorruption", "change": change})
        settings.update(
            type="CocoDataset",
            data_root="",
            ann_file=str(self.data.path),
            data_prefix={"img": str(self.data.folder)},
            metainfo={"classes": [name for _, name in self.data.classes]},
            pipeline=pipeline,
            test_mode=True,
            indices=None,
        )
        dataset = DATASETS.build(settings)
        # The order of images is MMDetection's own; the ids say which is which.
        index = {dataset.get_data_info(i)["img_id"]: i for i in range(len(dataset))}
        return Subset(dataset, [index[image_id] for image_id in image_ids])

    def batches(self, images: Sequence[Path]) -> Iterator[Tensor]:
        return prepared_batches(self.model, self.config, images)

    def attack(self, sample: dict, change: FGSM) -> dict:
        pixels = sample["inputs"].to(torch.float32).requires_grad_()
        batch = pseudo_collate([{**sample, "inputs": pixels}])
        batch["data_samples"] = copy.deepcopy(batch["data_samples"])  # padded in place
        preprocessor = self.model.data_preprocessor
        losses_of = training_losses(self.model, change.seed, self.device)
        with losses_of, no_traces(self.model), Overrides() as overrides:
            # Ground truth masks are padded as in training; random resizing is left out.
            overrides.set(preprocessor.__dict__, "batch_augments", None)
            data = preprocessor(batch, training=True)
            loss, _ = self.model.parse_losses(self.model(**data, mode="loss"))
        return {**sample, "inputs": change.step(pixels, loss)}

    @torch.no_grad()
    def detect(self, sample: dict) -> list[dict]:
        batch = pseudo_collate([{**sample, "data_samples": copy.deepcopy(sample["data_samples"])}])
        (found,) = self.model.test_step(batch)
        predicted = found.pred_instances
        if "mask_scores" in predicted:
            raise DataError(
                "this detector scores masks otherwise than boxes (Mask Scoring R-CNN), for which "
                "COCO results have no place; use MMDetection's own test.py"
            )
        boxes = predicted.bboxes.cpu().double()  # XYXY, and XYWH after the next line
        boxes[:, 2:] -= boxes[:, :2]
        results = [
            {
                "image_id": found.img_id,
                "category_id": self._ids[label] if self._ids else category_id(label, self.data),
                "bbox": box,
                "score": score,
            }
            for label, box, score in zip(
                predicted.labels.tolist(), boxes.tolist(), predicted.scores.tolist(), strict=True
            )
        ]
        if "masks" in predicted:
            for result, mask in zip(
                results, encode_mask_results(predicted.masks.cpu().numpy()), strict=True
            ):
                result["segmentation"] = {**mask, "counts": mask["counts"].decode()}
        return results


def prepared_batches(model: nn.Module, config: Config, images: Sequence[Path]) -> Iterator[Tensor]:
    """Yields images (N, 3, H, W) as a backbone sees them."""
    steps = get_test_pipeline_cfg(config)
    pipeline = Compose([step for step in steps if not _loads_annotations(step)])
    for samples in read_batches(
        images, lambda file: pipeline({"img_path": str(file), "img_id": 0})
    ):
        yield model.data_preprocessor(pseudo_collate(samples), False)["inputs"]


def _loads_annotations(step: dict) -> bool:
    return type_name(step) == "LoadAnnotations"


@TRANSFORMS.register_module()
class GradAugCorruption(BaseTransform):
    """A corruption of the image just read (BGR, as MMCV reads it).

    Args:
        change: which one.
    """

    def __init__(self, change: Corruption) -> None:
        self.change = change

    def transform(self, results: dict) -> dict:
        file_name = Path(results["img_path"]).name
        results["img"] = self.change.apply(results["img"], file_name, "BGR")
        return results


def _with_ground_truth(pipeline: list[dict], masks: bool) -> list[dict]:
    # The test pipeline loads the ground truth after it resizes, where it would keep its old size.
    kept = [step for step in pipeline if not _loads_annotations(step)]
    load = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks}
    place = _loading(kept) + 1
    return [*kept[:place], load, *kept[place:]]


def _loading(pipeline: list[dict]) -> int:
    for position, step in enumerate(pipeline):
        if type_name(step) == "LoadImageFromFile":
            return position
    raise ConfigError(
        "test_dataloader.dataset.pipeline", "has no LoadImageFromFile, after which images change"
    )


def _category_ids(config: Config, data: CocoData) -> list[int] | None:
    # By name: MMDetection's order of classes need not be that of the ids. None if the config's test
    # data is not read as CocoDataset reads it.
    key, leaf = next(find_leaves(config.test_dataloader.dataset, "test_dataloader.dataset"))
    part = read_part(key, leaf)
    if part is None:
        return None
    ids = {name: number for number, name in data.classes}
    if set(part.classes) != set(ids):
        check_same_classes({key: part.classes, str(data.path): list(ids)})
    return [ids[name] for name in part.classes]


def _scoring(config: Config) -> Scoring:
    # As the config's CocoMetric has it, with as many detections of an image as it lets through.
    _, metric = next(find_metrics(config, "test"), ("", {"metric": ()}))
    tasks = metric.get("metric", "bbox")
    tasks = [tasks] if isinstance(tasks, str) else tasks
    tasks = tuple(task for task in ("bbox", "segm") if task in tasks) or None
    test_cfg = config.model.get("test_cfg") or {}
    detections = (test_cfg.get("rcnn") or test_cfg).get("max_per_img") or 100
    counted = max(metric.get("proposal_nums", (100, 300, 1000)))
    return Scoring(tasks=tasks, max_detections=max(100, min(detections, counted)))


def options(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides as MMEngine's own ``--cfg-options`` reads them."""
    for override in overrides:
        if "=" not in override:
            raise ConfigError("--opts", f"must be key=value for {override!r}")
    parser = ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction, default={})
    return parser.parse_args(["--cfg-options", *overrides]).cfg_options
