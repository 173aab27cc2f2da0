"""MMDetection's training step for the benchmark (see :mod:`benchmarks.training.workload`)."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

from __future__ import annotations

import copy
import tempfile
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

from benchmarks.training.scenes import Scene, polygons, random_scenes
from benchmarks.training.workload import Variant, Workload, sample_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.export.calibration import recalibrate
from gradaug_det.mmdet.config import load_config
from gradaug_det.mmdet.hook import GradAugHook

_CONFIGS = {False: "mask-rcnn_r50_fpn_1x_coco_plain.py", True: "mini_mask-rcnn_r18_fpn_plain.py"}
_numbers = count()


class MMDetTraining:
    """MMEngine's loop with the GradAug hook, on Mask R-CNN with random weights.

    BatchNorm's statistics are those of the batch, as in Detectron2's.
    """

    def __init__(self, workload: Workload, variant: Variant) -> None:
        config = load_config(workload.configs / "mmdet" / _CONFIGS[workload.small])
        config.model.backbone.init_cfg = None
        config.optim_wrapper.optimizer.lr = 0.0
        options = variant.detector_options(workload.options)
        self._options = options
        classes = config.model.roi_head.bbox_head.num_classes
        items = [make_item(scene) for scene in random_scenes(workload, classes)]
        self._batch = pseudo_collate(items)
        with tempfile.TemporaryDirectory() as folder:
            self._runner = _runner(config, items, folder, GradAugHook(**vars(options)))
        self._runner.model.init_weights()
        self.model = workload.to_memory_format(self._runner.model.to(workload.device)).eval()
        prepared = self.model.data_preprocessor(copy.deepcopy(self._batch))
        recalibrate(self.model.backbone, [prepared["inputs"]])
        self.model.train()
        if dist.is_available() and dist.is_initialized():
            # MMEngine's wrap_model wants a GPU for each process.
            self._runner.model = MMDistributedDataParallel(self.model, broadcast_buffers=False)
        self._runner.optim_wrapper = self._runner.build_optim_wrapper(config.optim_wrapper)
        self.optimizer = self._runner.optim_wrapper.optimizer
        self._runner.call_hook("before_train")

    def sub_networks(self, iteration: int) -> list[SubNetwork]:
        return sample_passes(self._options, iteration)

    def step(self, iteration: int) -> None:
        loop = self._runner.train_loop
        loop._iter = iteration  # which only the loop itself counts
        # A detector changes the data samples that it is given.
        loop.run_iter(copy.deepcopy(self._batch))


def _runner(config: Any, items: list[dict], folder: str, hook: GradAugHook) -> Runner:
    """A runner that writes nothing after this."""
    return Runner(
        model=MODELS.build(config.model),
        work_dir=folder,
        train_dataloader=DataLoader(items, len(items), collate_fn=pseudo_collate),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=2**31),
        optim_wrapper=config.optim_wrapper,
        default_hooks=dict(checkpoint=None, logger=None, timer=None),
        custom_hooks=[hook],
        default_scope="mmdet",
        randomness=dict(seed=0),
        experiment_name=f"gradaug_speed_{next(_numbers)}",
        log_level="ERROR",
    )


def make_item(scene: Scene) -> dict[str, Any]:
    """Returns a scene as MMDetection's pipeline delivers it, with bitmaps for masks."""
    height, width = size = tuple(scene.image.shape[1:])
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_shape=size,
            ori_shape=size,
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
        )
    )
    masks = PolygonMasks([[p.astype(np.float64)] for p in polygons(scene)], height, width)
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(scene.boxes),
        labels=scene.classes,
        masks=BitmapMasks(masks.to_ndarray(), height, width),
    )
    sample.ignored_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long)
    )
    return dict(inputs=scene.image, data_samples=sample)
