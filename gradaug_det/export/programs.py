"""Traced programs of a detector: TorchScript and ONNX, checked before they are written."""

from __future__ import annotations

import importlib
import inspect
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradaug_det.errors import ConfigError

OPSET = 17  # of ONNX: RoIAlign with Detectron2's half-pixel grid is in 16
# Format -> packages that it needs.
FORMATS = {"torchscript": (), "onnx": ("onnx", "onnxruntime")}


@dataclass(frozen=True)
class Traceable:
    """The part of a detector that a program can be made of."""

    name: str  # of the files, without suffix
    module: nn.Module  # from one tensor to several; in evaluation mode
    example: Tensor  # an input of the program, which is traced with it
    other: Tensor  # an input of another size, on which program and module must agree
    sizes: dict[int, str]  # names of the axes of the input that may have another size
    outputs: tuple[str, ...]  # names
    note: str  # for readers: what goes in and what comes out


class Program(NamedTuple):
    """A checked program: name and content of its file, and a note for readers."""

    name: str
    content: bytes
    note: str


def check_format(format_: str) -> None:
    """Checks, before any work for a program is done, that it can be made here.

    Raises:
        ConfigError: not one of :data:`FORMATS`, or a package that it needs is missing.
    """
    if format_ not in FORMATS:
        raise ConfigError("program", f"must be one of {list(FORMATS)}, got {format_!r}")
    for package in FORMATS[format_]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"--{format_}",
                f"needs {package}: pip install 'gradaug_det[{format_}]'; its runtime checks the "
                "program",
            ) from error


def make_program(format_: str, make_traceable: Callable[[], Traceable]) -> Program:
    """Traces a program and compares what it finds with what the detector finds.

    Args:
        format_: one of :data:`FORMATS`.
        make_traceable: makes what is traced; may fail as tracing may.

    Raises:
        ConfigError: :func:`check_format` refuses, or there is no such program of this detector:
            says why.
    """
    check_format(format_)
    try:
        # The tracer warns of sizes that become constants; where they matter, the check finds them.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traceable = make_traceable()
            program, run = (_trace if format_ == "torchscript" else _export_onnx)(traceable)
            images = (traceable.other, traceable.example)
            same = all(_agree(run(image), traceable.module(image)) for image in images)
        problem = "the program finds something else on an image of another size"
    except (RuntimeError, ValueError, AttributeError, TypeError, KeyError) as error:
        same, problem = False, f"tracing fails: {' '.join(str(error).split())[:200]}"
    if not same:
        raise ConfigError(
            f"--{format_}", f"is not possible for this detector: {problem}; export without it"
        )
    return program


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        one.shape == other.shape
        and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-4)
        for one, other in zip(found, expected, strict=True)
    )


def _trace(traceable: Traceable) -> tuple[Program, Callable[[Tensor], Sequence[Tensor]]]:
    """Returns the program and what runs it."""
    program = torch.jit.trace(traceable.module, (traceable.example,), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    note = traceable.note
    if any(name.startswith("torchvision::") for name in torch.jit.export_opnames(program)):
        note += (
            "; a Python program imports torchvision before it loads this, one in C++ links "
            "libtorchvision"
        )
    return Program(f"{traceable.name}.torchscript.pt", buffer.getvalue(), note), program


def _export_onnx(traceable: Traceable) -> tuple[Program, Callable[[Tensor], Sequence[Tensor]]]:
    """Returns the program and what runs it in ONNX Runtime."""
    import onnxruntime

    buffer = io.BytesIO()
    # The newer exporter captures no control flow of detectors; before torch 2.5 there is none.
    newer = "dynamo" in inspect.signature(torch.onnx.export).parameters
    torch.onnx.export(
        traceable.module,
        (traceable.example,),
        buffer,
        opset_version=OPSET,
        input_names=["image"],
        output_names=list(traceable.outputs),
        dynamic_axes={"image": traceable.sizes},
        **({"dynamo": False} if newer else {}),
    )
    content = buffer.getvalue()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> list[Tensor]:
        return [torch.as_tensor(v) for v in session.run(None, {"image": image.numpy()})]

    return Program(f"{traceable.name}.onnx", content, traceable.note), run
