"""A Detectron2 detector for the benchmark (see :mod:`gradaug_det.benchmark.detector`)."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.common import MapDataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils.data import Dataset

from gradaug_det.benchmark.changes import FGSM, Change, Corruption
from gradaug_det.benchmark.detector import category_id, check_num_classes, training_losses
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.slimming import no_traces
from gradaug_det.d2.backbone import slimmed_part
from gradaug_det.d2.checkpoint import SafeCheckpointer
from gradaug_det.d2.checks import check_detector, check_device
from gradaug_det.d2.config import load_config, load_lazy_config, trained_options
from gradaug_det.d2.data import register_coco
from gradaug_det.d2.evaluation import read_scoring
from gradaug_det.d2.preprocessing import check_preprocessing
from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.coco_data import CocoData
from gradaug_det.export.calibration import read_batches
from gradaug_det.utils.detector_files import DetectorFiles

# Config, detector, mapper, what its sub-networks are, and the config as text.
_Loaded = tuple[Any, nn.Module, DatasetMapper, GradAugOptions, str]


class Detectron2Detector:
    """A yaml config or LazyConfig with weights."""

    framework = "Detectron2"

    def __init__(self, files: DetectorFiles, data: CocoData, device: str) -> None:
        self.files, self.data = files, data
        check_device("--device", device)
        load = _load_lazy if files.config.suffix == ".py" else _load_yaml
        cfg, self.model, self.mapper, self._options, self.description = load(files, device)
        head = getattr(self.model, "roi_heads", self.model)
        check_num_classes(getattr(head, "num_classes", None), data, "num_classes of the heads")
        check_detector(self.model, [name for _, name in data.classes], scored=True)
        self.model.eval()
        self.divisor, self.trained_width = self._options.divisor, self._options.trained_width
        self.statistics = {}
        self.scoring = read_scoring(cfg, self.model)
        # Detectron2's catalog wants a name for each dataset.
        name = f"gradaug_{zlib.crc32(f'{data.path}:{data.folder}'.encode()):08x}"
        register_coco(name, data.path, data.folder)
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(name)}

    @property
    def backbone(self) -> nn.Module:
        return slimmed_part(self.model)

    @cached_property
    def slimmed(self) -> nn.Module:
        return slimmed_part(self.model, self._options.slim, self._options.keep_whole)

    def dataset(self, image_ids: Sequence[int], change: Change) -> Dataset:
        mapper = copy.copy(self.mapper)
        mapper.is_train = isinstance(change, FGSM)  # keeps the annotations, nothing else
        if isinstance(change, Corruption):
            mapper = _CorruptingMapper(mapper, change)
        return MapDataset([self._records[image_id] for image_id in image_ids], mapper)

    def batches(self, images: Sequence[Path]) -> Iterator[Tensor]:
        return prepared_batches(self.model, self.mapper, images)

    def attack(self, sample: dict, change: FGSM) -> dict:
        pixels = sample["image"].to(torch.float32).requires_grad_()
        losses_of = training_losses(self.model, change.seed, self.model.device)
        # Models write scalars into a storage, and some count what they have seen.
        with losses_of, EventStorage(), no_traces(self.model):
            losses = self.model([{**sample, "image": pixels}])
        return {**sample, "image": change.step(pixels, sum(losses.values()))}

    @torch.no_grad()
    def detect(self, sample: dict) -> list[dict]:
        (output,) = self.model([sample])
        results = instances_to_coco_json(output["instances"].to("cpu"), sample["image_id"])
        for result in results:
            result["category_id"] = category_id(result["category_id"], self.data)
        return results


def prepared_batches(
    model: nn.Module, mapper: DatasetMapper, images: Sequence[Path]
) -> Iterator[Tensor]:
    """Yields images (N, 3, H, W) as a backbone sees them."""
    for samples in read_batches(images, lambda file: mapper({"file_name": str(file)})):
        yield model.preprocess_image(samples).tensor


class _CorruptingMapper:
    """The mapper reads the image itself, so the corruption goes in as its first augmentation."""

    def __init__(self, mapper: DatasetMapper, change: Corruption) -> None:
        self.order = mapper.image_format
        if self.order not in ("RGB", "BGR"):
            raise ConfigError(
                "INPUT.FORMAT", f"must be RGB or BGR for corruptions, got {self.order}"
            )
        self.mapper, self.change = mapper, change

    def __call__(self, record: dict) -> dict:
        def corrupt(image: np.ndarray) -> np.ndarray:
            return self.change.apply(image, Path(record["file_name"]).name, self.order)

        # A mapper for this image alone: a transform is not told which file it gets.
        mapper = copy.copy(self.mapper)
        first = T.ColorTransform(corrupt)
        mapper.augmentations = T.AugmentationList([first, self.mapper.augmentations])
        return mapper(record)


def _load_yaml(files: DetectorFiles, device: str) -> _Loaded:
    cfg = load_config(files.config, list(files.overrides))
    if files.weights is not None:
        cfg.MODEL.WEIGHTS = files.weights
    cfg.MODEL.DEVICE = device
    check_preprocessing(cfg)
    model = build_model(cfg)
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return cfg, model, DatasetMapper(cfg, is_train=False), trained_options(cfg), cfg.dump()


def _load_lazy(files: DetectorFiles, device: str) -> _Loaded:
    cfg = load_lazy_config(files.config, list(files.overrides))
    if files.weights is not None:
        cfg.train.init_checkpoint = files.weights
    check_preprocessing(cfg)
    model = instantiate(cfg.model).to(device)
    SafeCheckpointer(model).load(cfg.train.init_checkpoint)
    mapper = instantiate(cfg.dataloader.test.mapper)
    # For attacks, whose losses need the masks that only the config's training mapper reads.
    training = cfg.dataloader.train.mapper
    mapper.use_instance_mask = training.get("use_instance_mask", mapper.use_instance_mask)
    mapper.instance_mask_format = training.get("instance_mask_format", mapper.instance_mask_format)
    trained = GradAugOptions.widths_of(cfg.get("gradaug"))  # a lazy GradAugHook
    return cfg, model, mapper, trained, LazyConfig.to_py(cfg)
