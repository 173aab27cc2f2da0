"""Detectron2's COCO evaluator with the scoring of faster-coco-eval.

Detectron2's fast scoring is C++ that a pure-Python install does not have, and pycocotools takes
minutes on COCO. Only the scoring is replaced; for Detectron2's own, use ``COCOEvaluator``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.d2.data import DataUse, is_coco_evaluator, max_detections
from gradaug_det.errors import DataError
from gradaug_det.evaluation.coco import Scoring, run_evaluator
from gradaug_det.evaluation.coco_data import CocoData

_OTHERS = {
    "cityscapes_instance": CityscapesInstanceEvaluator,
    "cityscapes_sem_seg": CityscapesSemSegEvaluator,
    "pascal_voc": PascalVOCDetectionEvaluator,
}


class FasterCOCOEvaluator(COCOEvaluator):
    """``COCOEvaluator`` whose AP of boxes, masks and keypoints comes from faster-coco-eval.

    Takes the arguments of :class:`detectron2.evaluation.COCOEvaluator` and returns what it returns;
    ``use_fast_impl`` has no effect. Box proposals are scored by Detectron2 as before.
    ``max_dets_per_image`` may be COCO's list, ``[1, 10, 200]``, too, of which the last counts.

    Raises (from :meth:`evaluate`):
        DataError: predictions that cannot be scored: NaN boxes, unknown classes or images.
    """

    def __init__(
        self, *args: Any, max_dets_per_image: int | Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        if isinstance(max_dets_per_image, Sequence):
            max_dets_per_image = max(max_dets_per_image)
        super().__init__(*args, max_dets_per_image=max_dets_per_image, **kwargs)

    def _eval_predictions(self, predictions: list[dict], img_ids: Sequence[int] | None = None):
        # Detectron2 looks its scoring function up in its own module, so replacing it without
        # patching that module means to repeat the three steps around it: ids, file, tasks.
        results = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        tasks = sorted(self._tasks or self._tasks_from_predictions(results))
        self._restore_category_ids(results)
        if self._output_dir:
            path = str(Path(self._output_dir) / "coco_instances_results.json")
            self._logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as file:
                json.dump(results, file)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return

        self._logger.info("Evaluating predictions with faster-coco-eval...")
        truth = CocoData.read(self._coco_api).truth
        for task in tasks:
            evaluator = None  # what `_derive_coco_results` wants when nothing was detected
            if results:
                evaluator = run_evaluator(
                    truth,
                    results,
                    task,
                    image_ids=img_ids,
                    max_detections=max(self._max_dets_per_image),
                    sigmas=self._kpt_oks_sigmas or None,
                )
                evaluator.summarize()
            self._results[task] = self._derive_coco_results(
                evaluator, task, class_names=self._metadata.get("thing_classes")
            )

    def _restore_category_ids(self, results: list[dict]) -> None:
        """Turn the model's class indices into the dataset's category ids, in place."""
        to_index = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_index is None:
            return
        to_id = {index: category_id for category_id, index in to_index.items()}
        unknown = sorted({r["category_id"] for r in results} - set(to_id))
        if unknown:
            raise DataError(
                f"the model predicted class {unknown[0]}, but dataset {self._metadata.name!r} has "
                f"only the classes 0 to {max(to_id)}; does MODEL.ROI_HEADS.NUM_CLASSES (or "
                "MODEL.RETINANET.NUM_CLASSES) agree with it?"
            )
        for result in results:
            result["category_id"] = to_id[result["category_id"]]


def read_scoring(cfg: CfgNode | DictConfig, model: nn.Module | None = None) -> Scoring:
    """Reads how a config has its detections scored.

    Args:
        cfg: a yaml config or a LazyConfig.
        model: the LazyConfig's detector, whose limit of detections is the evaluator's if that has
            none of its own.
    """
    use = DataUse.read(cfg)
    if isinstance(cfg, DictConfig):
        tasks = OmegaConf.select(cfg, "dataloader.evaluator.tasks")
        limit = use.max_detections or detections_per_image(model)
    else:
        tasks = ["bbox"] + ["segm"] * bool(use.masks) + ["keypoints"] * (use.keypoints is not None)
        # Without a head of Detectron2's own, what is predicted says what is to be scored.
        tasks, limit = None if use.masks is None else tasks, use.max_detections
    return Scoring(tasks and tuple(tasks), limit, use.sigmas or None)


def build_evaluator(cfg: CfgNode, name: str) -> DatasetEvaluator:
    """Builds the evaluator that a registered dataset's ``evaluator_type`` asks for, or COCO's, with
    the settings of a yaml config."""
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    folder = str(Path(cfg.OUTPUT_DIR) / "inference" / name)
    if kind == "lvis":
        return LVISEvaluator(name, output_dir=folder)
    if kind in _OTHERS:
        return _OTHERS[kind](name)
    found: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg"):
        found.append(SemSegEvaluator(name, output_dir=folder))
    if kind != "sem_seg":
        settings = read_scoring(cfg)
        evaluator = FasterCOCOEvaluator(
            name,
            tasks=settings.tasks,
            output_dir=folder,
            max_dets_per_image=settings.max_detections,
            kpt_oks_sigmas=settings.sigmas or (),
        )
        found.append(evaluator)
    if kind == "coco_panoptic_seg":
        found.append(COCOPanopticEvaluator(name, folder))
    return found[0] if len(found) == 1 else DatasetEvaluators(found)


def build_lazy_evaluator(cfg: DictConfig, model: nn.Module) -> Any:
    """Builds the evaluator of a LazyConfig; one of COCO without a limit of its own counts as many
    detections of an image as the detector gives."""
    node = cfg.dataloader.evaluator
    if is_coco_evaluator(node) and node.get("max_dets_per_image") is None:
        limit = detections_per_image(model)
        return instantiate({**node, "max_dets_per_image": None if limit == 100 else limit})
    return instantiate(node)


def detections_per_image(model: nn.Module) -> int:
    """Returns what COCO's evaluators have to count for an image of this detector; see
    :func:`gradaug_det.d2.data.max_detections`."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    limits = [
        getattr(module, name)
        for module in model.modules()
        for name in ("test_topk_per_image", "max_detections_per_image")
        if isinstance(getattr(module, name, None), int)
    ]
    return max(map(max_detections, limits), default=100)
