"""An MMDetection detector for the export (see :class:`gradaug_det.export.run.Exporter`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from gradaug_det.core.dump import to_plain
from gradaug_det.core.tracing import example_image
from gradaug_det.errors import ZooError
from gradaug_det.export.programs import Traceable
from gradaug_det.mmdet.backbone import run_layers, slimmed_part
from gradaug_det.mmdet.benchmark import options, prepared_batches
from gradaug_det.mmdet.checkpoint import load_files_safely
from gradaug_det.mmdet.config import load_config, trained_options
from gradaug_det.mmdet.export_config import plain_config
from gradaug_det.utils.detector_files import DetectorFiles


class MMDetectionExporter:
    """A config with weights."""

    framework = "MMDetection"
    backbone_of = staticmethod(slimmed_part)

    def __init__(self, files: DetectorFiles) -> None:
        self.files = files
        self.config_file = load_config(files.config, options(files.overrides))
        init_default_scope("mmdet")
        load_files_safely()
        self.model = _build(self.config_file)
        try:
            checkpoint = load_checkpoint(self.model, str(files.weights), "cpu", strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ZooError(
                f"--weights: the checkpoint does not fit {files.config.name} (give the weights of "
                f"this --config, with its --opts): {reason}"
            ) from None
        self._options = trained_options(self.config_file)
        self.slimmed = slimmed_part(self.model, self._options.slim, self._options.keep_whole)
        self.divisor = self._options.divisor
        # Without the arrays that torch.load(weights_only=True) would refuse.
        self.dataset_meta = to_plain((checkpoint.get("meta") or {}).get("dataset_meta"))

    def config(self, share: Fraction, weights: str) -> tuple[str, str]:
        heads = share if self._options.slim == "detector" else Fraction(1)
        config = plain_config(self.config_file, share, heads)
        config.load_from = weights
        return "config.py", config.pretty_text

    def build(self, config: Path) -> nn.Module:
        return _build(Config.fromfile(config))

    @torch.no_grad()
    def run(self, model: nn.Module, image: Tensor) -> None:
        run_layers(model, image)
        size = dict.fromkeys(("img_shape", "ori_shape"), tuple(image.shape[-2:]))
        sample = DetDataSample(metainfo={"img_id": 0, "scale_factor": (1.0, 1.0), **size})
        model.test_step({"inputs": [image[0]], "data_samples": [sample]})

    def checkpoint(self, state: dict[str, Tensor], config: str) -> dict[str, Any]:
        meta = {"dataset_meta": self.dataset_meta} if self.dataset_meta else {}
        return {"state_dict": state, "meta": {**meta, "cfg": config}}

    def batches(self, model: nn.Module, images: Sequence[Path]) -> Iterator[Tensor]:
        return prepared_batches(model, self.config_file, images)

    def traceable(self, model: nn.Module) -> Traceable:
        """Backbone and neck: MMCV's own operations, which the heads use, cannot be traced."""
        generator = torch.Generator().manual_seed(0)
        module = _Features(model).eval()
        channels = example_image(model.backbone).shape[1]
        example, other = (
            torch.randn(images, channels, *size, generator=generator)
            for images, size in ((1, (64, 96)), (2, (128, 64)))
        )
        with torch.no_grad():
            levels = len(module(example))
        return Traceable(
            name="features",
            module=module,
            example=example,
            other=other,
            sizes={0: "images", 2: "height", 3: "width"},
            outputs=tuple(f"level_{level}" for level in range(levels)),
            note="backbone and neck only (MMCV's NMS and RoIAlign leave no trace): prepared images "
            "(N, 3, H, W) as float32 -> the neck's feature maps",
        )


class _Features(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.extract_feat(images))


def _build(config: Config) -> nn.Module:
    init_default_scope("mmdet")
    model = copy.deepcopy(config.model)
    model.backbone.init_cfg = None  # the checkpoint's weights replace it anyway
    return MODELS.build(model).eval()
