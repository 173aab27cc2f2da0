"""A whole Detectron2 detector as something to trace, by Detectron2's own adapter."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn

from gradaug_det.export.programs import Traceable


def traceable_detector(model: nn.Module) -> Traceable:
    """The detector as a function of one image of any size, without resizing and mask pasting.

    Raises:
        RuntimeError, ValueError, TypeError, AttributeError: Detectron2's adapter fails.
    """
    inference = _inference if isinstance(model, GeneralizedRCNN) else None
    generator = torch.Generator().manual_seed(0)
    image, other = (
        torch.randint(0, 256, (3, *size), generator=generator).float()
        for size in ((192, 256), (224, 160))
    )
    adapter = _adapter()(model, [{"image": image}], inference).eval()
    adapter(image)  # outputs_schema is known after it
    names = _names(adapter.outputs_schema)
    return Traceable(
        name="model",
        module=adapter,
        example=image,
        other=other,
        sizes={1: "height", 2: "width"},
        outputs=tuple(name.replace(" ", "_") for name in names),
        note="the whole detector: one image (3, H, W) as float32, 0 to 255, resized and in the "
        f"config's channel order -> {', '.join(names)}, in pixels of that image"
        + ("; masks are of their boxes, not pasted" if "pred_masks" in names else ""),
    )


def _inference(model: nn.Module, inputs: list[dict]) -> list[dict]:
    """As Detectron2's own tools/deploy/export_model.py calls it."""
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


def _adapter() -> Any:
    """``detectron2.export.TracingAdapter``, also where the package needs Caffe2, as in 0.6."""
    try:
        from detectron2.export import TracingAdapter
    except ImportError:
        # The adapter's own modules need nothing but PyTorch; the package's __init__ does.
        name = "detectron2.export"
        package = types.ModuleType(name)
        package.__path__ = importlib.util.find_spec(name).submodule_search_locations
        before = {key for key in sys.modules if key.startswith(name)}
        sys.modules[name] = package
        try:
            TracingAdapter = importlib.import_module(f"{name}.flatten").TracingAdapter
        finally:
            for key in {key for key in sys.modules if key.startswith(name)} - before:
                del sys.modules[key]
    return TracingAdapter


def _names(schema: Any) -> list[str]:
    """Names of the fields of the Instances in the outputs, and the image's size after them."""
    while hasattr(schema, "schemas") and not any(
        isinstance(key, str) and key != "instances" for key in getattr(schema, "keys", ())
    ):
        schema = schema.schemas[0]
    return [*schema.keys, "image size"]
