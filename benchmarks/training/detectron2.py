"""Detectron2's training step for the benchmark (see :mod:`benchmarks.training.workload`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.data import DatasetMapper
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms.v2 import functional

from benchmarks.training.scenes import Scene, polygons, random_scenes
from benchmarks.training.workload import Variant, Workload, sample_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.d2.batch import Batch
from gradaug_det.d2.config import load_config
from gradaug_det.d2.hook import GradAugHook
from gradaug_det.export.calibration import recalibrate

_CONFIGS = {False: "mask_rcnn_R_50_FPN_1x_plain.yaml", True: "mini_mask_rcnn_R_18_FPN_plain.yaml"}


class Detectron2Training:
    """Detectron2's SimpleTrainer with the GradAug hook, on Mask R-CNN with random weights.

    BatchNorm's statistics are those of the batch: else the random backbone's outputs are so large
    that hardly a proposal is left, and the plain step has almost no heads.

    Args:
        overrides: of the config, by key.
        precision: of autocast, e.g. ``torch.bfloat16``; None trains without.
        scaled: whether a GradScaler scales its losses.
    """

    def __init__(
        self,
        workload: Workload,
        variant: Variant,
        overrides: Mapping[str, Any] | None = None,
        precision: torch.dtype | None = None,
        scaled: bool = False,
    ) -> None:
        fixed = {"MODEL.WEIGHTS": "", "MODEL.DEVICE": workload.device, "SOLVER.BASE_LR": 0.0}
        overrides = {**fixed, **(overrides or {})}
        cfg = load_config(
            workload.configs / "detectron2" / _CONFIGS[workload.small],
            [part for pair in overrides.items() for part in pair],
        )
        torch.manual_seed(0)
        self.model = workload.to_memory_format(build_model(cfg))
        self.optimizer = build_optimizer(cfg, self.model)
        scenes = random_scenes(workload, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        batch = make_batch(scenes, cfg.INPUT.MASK_FORMAT)
        with torch.no_grad():
            images = self.model.eval().preprocess_image(batch).tensor
        recalibrate(self.model.backbone.bottom_up, [images])
        self.model.train()
        trained = self.model
        if dist.is_available() and dist.is_initialized():
            # Detectron2's create_ddp_model wants a GPU for each process.
            trained = DistributedDataParallel(self.model, broadcast_buffers=False)
        self._trainer = SimpleTrainer(trained, repeat(batch), self.optimizer)
        if precision is not None:
            autocast = torch.autocast(torch.device(workload.device).type, precision)
            self._trainer = AutocastTrainer(
                trained, repeat(batch), self.optimizer, autocast, scaled
            )
        options = variant.detector_options(workload.options)
        self._options = options
        if options.active:
            self._trainer.register_hooks([GradAugHook(**vars(options))])
        self._trainer.before_train()

    def sub_networks(self, iteration: int) -> list[SubNetwork]:
        return sample_passes(self._options, iteration)

    def step(self, iteration: int) -> None:
        trainer = self._trainer
        trainer.iter = iteration
        with EventStorage(iteration) as trainer.storage:
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()


class AutocastTrainer(AMPTrainer):
    """Detectron2's AMPTrainer, and its step where that has none: 0.6's is float16 on CUDA alone."""

    def __init__(
        self, model: Any, loader: Any, optimizer: Any, autocast: torch.autocast, scaled: bool
    ) -> None:
        self._autocast = autocast
        if hasattr(torch.amp, "GradScaler"):  # since torch 2.3
            scaler = torch.amp.GradScaler(autocast.device, enabled=scaled)
        else:
            scaler = torch.cuda.amp.GradScaler(enabled=scaled)
        super().__init__(model, loader, optimizer, scaler)

    def run_step(self) -> None:
        if (self._autocast.device, self._autocast.fast_dtype) == ("cuda", torch.float16):
            super().run_step()
            return
        with self._autocast:
            losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self._write_metrics(losses, 0.0)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def make_batch(scenes: list[Scene], mask_format: str) -> Batch:
    """Returns the scenes as Detectron2's mapper and loader deliver them."""
    batch = []
    for scene in scenes:
        size = tuple(scene.image.shape[1:])
        instances = Instances(size)
        instances.gt_boxes = Boxes(scene.boxes)
        instances.gt_classes = scene.classes
        drawn = [[polygon.astype(np.float64)] for polygon in polygons(scene)]
        instances.gt_masks = (
            PolygonMasks(drawn)
            if mask_format == "polygon"
            else BitMasks.from_polygon_masks(drawn, *size)
        )
        batch.append(
            {"image": scene.image, "height": size[0], "width": size[1], "instances": instances}
        )
    return batch


def loading_seconds(configs: Path, images: int) -> float:
    """Processor time to load and augment an image of COCO's kind for training: a JPEG of 480 x 640
    pixels with the objects of a scene, resized and flipped as the 1x config says. Median."""
    size = (480, 640)
    workload = Workload("detectron2", configs, size, batch_size=1)
    cfg = load_config(configs / "detectron2" / _CONFIGS[False])
    mapper = DatasetMapper(cfg, is_train=True)
    (scene,) = random_scenes(workload, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    # Noise is hard to decode; photographs are smoother.
    pixels = functional.gaussian_blur(scene.image, [9, 9]).permute(1, 2, 0).numpy()
    annotations = [
        {
            "bbox": box.tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": int(category),
            "segmentation": [polygon.tolist()],
            "iscrowd": 0,
        }
        for box, category, polygon in zip(scene.boxes, scene.classes, polygons(scene), strict=True)
    ]
    times = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.jpg"
        Image.fromarray(pixels).save(file, quality=90)
        entry = {"file_name": str(file), "image_id": 0, "annotations": annotations}
        entry |= {"height": size[0], "width": size[1]}
        for _ in range(images):
            start = time.process_time()
            mapper(entry)
            times.append(time.process_time() - start)
    return median(times)
