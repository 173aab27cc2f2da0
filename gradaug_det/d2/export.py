"""A Detectron2 detector for the export (see :class:`gradaug_det.export.run.Exporter`)."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetMapper
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from gradaug_det.d2.backbone import slimmed_part
from gradaug_det.d2.benchmark import prepared_batches
from gradaug_det.d2.checkpoint import SafeCheckpointer
from gradaug_det.d2.config import load_config, trained_options
from gradaug_det.d2.export_config import lazy_config
from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.export.programs import Traceable
from gradaug_det.export.widths import scale_channels
from gradaug_det.utils.detector_files import DetectorFiles

_NAME = "MODEL.BACKBONE.NAME"
# Channels of what follows the ResNet; not positive where they are those that a layer reads.
_HEADS = (
    ("FPN", "OUT_CHANNELS"),
    ("RPN", "CONV_DIMS"),
    ("ROI_BOX_HEAD", "CONV_DIM"),
    ("ROI_BOX_HEAD", "FC_DIM"),
    ("ROI_MASK_HEAD", "CONV_DIM"),
    ("ROI_KEYPOINT_HEAD", "CONV_DIMS"),
    ("SEM_SEG_HEAD", "CONVS_DIM"),
)
# The registered builders of a ResNet under an FPN -> Detectron2's own.
_BUILDERS = {
    name.replace("build_", prefix): name
    for name in ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")
    for prefix in ("build_", "build_slimmable_")
}


class Detectron2Exporter:
    """A yaml config with weights."""

    framework = "Detectron2"
    backbone_of = staticmethod(slimmed_part)

    def __init__(self, files: DetectorFiles) -> None:
        self.files = files
        if files.config.suffix == ".py":
            raise ConfigError(
                "--config",
                f"{files.config} is a LazyConfig, which this command does not rewrite; give the "
                "yaml config of the same detector",
            )
        self.cfg = load_config(files.config, list(files.overrides))
        self.cfg.MODEL.DEVICE = "cpu"
        if self.cfg.MODEL.BACKBONE.NAME not in _BUILDERS:
            raise ConfigError(
                _NAME,
                f"is {self.cfg.MODEL.BACKBONE.NAME}; exported are {', '.join(_BUILDERS)}: with "
                "others it is not known what follows the ResNet and reads its channels",
            )
        self.model = build_model(self.cfg).eval()
        if type(self.model.backbone) is not FPN or type(self.backbone_of(self.model)) is not ResNet:
            raise ConfigError(_NAME, "must make Detectron2's own FPN over its own ResNet")
        _StrictCheckpointer(self.model).load(str(files.weights))
        self._options = trained_options(self.cfg)
        self.slimmed = slimmed_part(self.model, self._options.slim, self._options.keep_whole)
        self.divisor = self._options.divisor

    def config(self, share: Fraction, weights: str) -> tuple[str, str]:
        cfg = self.cfg.clone()
        # Keys that plain Detectron2 has not got.
        cfg.pop("GRADAUG", None)
        for key in ("EXACT_RESUME", "OPTIMIZER"):
            cfg.SOLVER.pop(key, None)
        cfg.MODEL.BACKBONE.NAME = _BUILDERS[cfg.MODEL.BACKBONE.NAME]
        cfg.MODEL.WEIGHTS = weights
        resnets = cfg.MODEL.RESNETS
        normed = ["RESNETS"]
        if self._options.slim == "detector":
            normed += ["FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"]
            if cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor"):
                normed.append("SEM_SEG_HEAD")
        for part in normed:
            if share != 1 and cfg.MODEL[part].NORM == "GN":
                raise ConfigError(
                    f"MODEL.{part}.NORM",
                    "is GN, whose 32 groups no key of Detectron2 changes, and a sub-network has "
                    "fewer; only --width 1 can be exported",
                )
        keys = ["STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"]
        keys.append("NUM_GROUPS" if resnets.NUM_GROUPS > 1 else "WIDTH_PER_GROUP")
        narrow = {key: scale_channels(f"MODEL.RESNETS.{key}", resnets[key], share) for key in keys}
        if self._options.slim == "detector":
            _narrow_heads(cfg, share)
        if resnets.DEPTH in (18, 34) and share != 1:
            # Detectron2 builds these from a yaml config with 64 channels only.
            return "config.py", lazy_config(cfg, narrow["RES2_OUT_CHANNELS"])
        resnets.update(narrow)
        return "config.yaml", cfg.dump()

    def build(self, config: Path) -> nn.Module:
        if config.suffix == ".py":
            return instantiate(LazyConfig.load(str(config)).model).eval()
        cfg = get_cfg()
        cfg.merge_from_file(str(config), allow_unsafe=False)
        return build_model(cfg).eval()

    @torch.no_grad()
    def run(self, model: nn.Module, image: Tensor) -> None:
        item = {"image": 128 + 64 * image[0]}
        if isinstance(model, GeneralizedRCNN):
            images = model.preprocess_image([item])
            features = model.backbone(images.tensor)
            box = Boxes(image.new_tensor([[0.0, 0.0, 48.0, 48.0]]))
            # Masks and keypoints before boxes, from which come as many as are found.
            found = Instances(images.image_sizes[0], pred_boxes=box)
            found.pred_classes = torch.zeros(1, dtype=torch.long)
            model.roi_heads.forward_with_given_boxes(features, [found])
            proposal = Instances(images.image_sizes[0], proposal_boxes=box)
            proposal.objectness_logits = image.new_zeros(1)
            model.roi_heads(images, features, [proposal])
        model([item])

    def checkpoint(self, state: dict[str, Tensor], config: str) -> dict[str, Any]:
        return {"model": state}

    def batches(self, model: nn.Module, images: Sequence[Path]) -> Iterator[Tensor]:
        return prepared_batches(model, DatasetMapper(self.cfg, is_train=False), images)

    def traceable(self, model: nn.Module) -> Traceable:
        """Returns the detector as a function of one image of any size, without mask pasting."""
        generator = torch.Generator().manual_seed(0)
        image, other = (
            torch.randint(0, 256, (len(model.pixel_mean), *size), generator=generator).float()
            for size in ((192, 256), (224, 160))
        )
        inputs = [{"image": image}]
        # In this order the adapter returns them, the image's size last.
        names = [*sorted(_detect(model, inputs)[0]["instances"].get_fields()), "image size"]
        return Traceable(
            name="model",
            module=_tracing_adapter()(model, inputs, _detect).eval(),
            example=image,
            other=other,
            sizes={1: "height", 2: "width"},
            outputs=tuple(name.replace(" ", "_") for name in names),
            note="the whole detector: one image (3, H, W) as float32, 0 to 255, resized and in the "
            f"config's channel order -> {', '.join(names)}, in pixels of that image"
            + ("; masks are of their boxes, not pasted" if "pred_masks" in names else ""),
        )


def _narrow_heads(cfg: CfgNode, share: Fraction) -> None:
    for node, key in _HEADS:
        given = cfg.MODEL[node][key]
        counts = [given] if isinstance(given, int) else given
        name = f"MODEL.{node}.{key}"
        narrow = [scale_channels(name, count, share) if count > 0 else count for count in counts]
        cfg.MODEL[node][key] = narrow[0] if isinstance(given, int) else type(given)(narrow)


def _detect(model: nn.Module, inputs: list[dict]) -> list[dict]:
    if not isinstance(model, GeneralizedRCNN):
        return model(inputs)
    # As Detectron2's own tools/deploy/export_model.py calls it.
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


def _tracing_adapter() -> Any:
    """Returns ``detectron2.export.TracingAdapter``, also in 0.6, whose package needs Caffe2."""
    try:
        from detectron2.export import TracingAdapter
    except ImportError:
        # The adapter's own modules need nothing but PyTorch: they are imported under a package
        # without an __init__, of which nothing stays.
        name, before = "detectron2.export", set(sys.modules)
        package = types.ModuleType(name)
        package.__path__ = [f"{folder}/export" for folder in detectron2.__path__]
        sys.modules[name] = package
        try:
            TracingAdapter = importlib.import_module(f"{name}.flatten").TracingAdapter
        finally:
            for key in set(sys.modules) - before:
                if key.startswith(name):
                    del sys.modules[key]
    return TracingAdapter


class _StrictCheckpointer(SafeCheckpointer):
    """Refuses weights that leave a part of the detector as it was initialized."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        wrong = [*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)]
        if wrong:
            raise ZooError(
                f"--weights: {len(wrong)} of the detector's tensors are not in the checkpoint or "
                f"have another shape there, the first is '{wrong[0]}'; give the weights of this "
                "--config (with its --opts)"
            )
        super()._log_incompatible_keys(incompatible)
