"""Detectron2's COCO evaluator with the scoring of faster-coco-eval.

Detectron2's fast scoring is C++ that a pure-Python install does not have, and pycocotools takes
minutes on COCO. Only the scoring is replaced; for Detectron2's own, use ``COCOEvaluator``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager

from gradaug_det.errors import DataError
from gradaug_det.evaluation.coco import run_evaluator
from gradaug_det.evaluation.coco_data import load_ground_truth


class FasterCOCOEvaluator(COCOEvaluator):
    """``COCOEvaluator`` whose box and mask AP come from faster-coco-eval.

    Takes the arguments of :class:`detectron2.evaluation.COCOEvaluator` and returns what it returns;
    ``use_fast_impl`` has no effect. Keypoints and box proposals are scored by Detectron2 as before.

    Raises (from :meth:`evaluate`):
        DataError: predictions that cannot be scored: NaN boxes, unknown classes or images.
    """

    def _eval_predictions(self, predictions: list[dict], img_ids: Sequence[int] | None = None):
        # Detectron2 looks its scoring function up in its own module, so replacing it without
        # patching that module means to repeat the three steps around it: ids, file, tasks.
        results = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        tasks = sorted(self._tasks or self._tasks_from_predictions(results))
        if "keypoints" in tasks:
            super()._eval_predictions(predictions, img_ids=img_ids)
            return

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
        ground_truth = load_ground_truth(self._coco_api)
        for task in tasks:
            evaluator = None  # what `_derive_coco_results` wants when nothing was detected
            if results:
                evaluator = run_evaluator(
                    ground_truth,
                    results,
                    task,
                    image_ids=img_ids,
                    max_detections=self._max_dets_per_image[-1],
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
