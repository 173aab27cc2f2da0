"""A whole Detectron2 detector as a traced program, by Detectron2's own adapter."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from gradaug_det.errors import ConfigError
from gradaug_det.export.exporter import TorchScriptFile


def trace_detector(model: nn.Module) -> TorchScriptFile:
    """The detector as a program of one image of any size, without resizing and mask pasting.

    Raises:
        ConfigError: the detector cannot be traced, or the program finds something else than it on
            an image of another size.
    """
    inference = _inference if isinstance(model, GeneralizedRCNN) else None
    generator = torch.Generator().manual_seed(0)
    image, other = (
        torch.randint(0, 256, (3, *size), generator=generator).float()
        for size in ((192, 256), (224, 160))
    )
    try:
        adapter = _adapter()(model, [{"image": image}], inference)
        # Sizes that become constants where they matter are found by the comparison below.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.jit.trace(adapter, (image,), check_trace=False)
            found, expected = program(other), adapter(other)
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _refused(f"Detectron2's TracingAdapter fails: {reason}") from error
    if not all(map(_close, found, expected)):
        raise _refused("the traced program finds something else on an image of another size")
    names = ", ".join(_names(adapter.outputs_schema))
    return TorchScriptFile(
        "model.torchscript.pt",
        program,
        f"the whole detector: one image (3, H, W) as float32, 0 to 255, resized and in the "
        f"config's channel order -> {names}, in pixels of that image"
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


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found.float(), expected.float(), rtol=1e-4, atol=1e-4
    )


def _refused(why: str) -> ConfigError:
    return ConfigError(
        "--torchscript",
        f"is not possible for this detector: {why}; export without it",
    )
