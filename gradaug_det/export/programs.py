"""Traced programs of a detector: TorchScript and ONNX, checked before they are written."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradaug_det.errors import ConfigError

OPSET = 17
"""Of ONNX: RoIAlign with Detectron2's half-pixel grid is in 16."""


@dataclass(frozen=True)
class Traceable:
    """What of a detector a program can be made of.

    Args:
        name: of the files, without suffix.
        module: from one tensor to several; in evaluation mode.
        example: an input of the program, which is traced with it.
        other: an input of another size, on which program and module must agree.
        sizes: names of the axes of the input that may have another size.
        outputs: names.
        note: for readers: what goes in and what comes out.
    """

    name: str
    module: nn.Module
    example: Tensor
    other: Tensor
    sizes: dict[int, str]
    outputs: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Program:
    """A checked program.

    Args:
        name: of its file.
        content: of its file.
        note: for readers: what goes in and what comes out.
    """

    name: str
    content: bytes
    note: str


def torchscript(traceable: Traceable) -> Program:
    """By ``torch.jit.trace``.

    Raises:
        RuntimeError, ValueError, TypeError, AttributeError: the module cannot be traced.
        ConfigError: the program finds something else on an input of another size.
    """
    program = torch.jit.trace(traceable.module, (traceable.example,), check_trace=False)
    _check("--torchscript", traceable, program)
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    note = traceable.note
    if any(name.startswith("torchvision::") for name in torch.jit.export_opnames(program)):
        note += (
            "; a Python program imports torchvision before it loads this, one in C++ links "
            "libtorchvision"
        )
    return Program(f"{traceable.name}.torchscript.pt", buffer.getvalue(), note)


def onnx(traceable: Traceable) -> Program:
    """By PyTorch's exporter from the traced module; ONNX Runtime runs it for the check.

    Raises:
        ConfigError: the program finds something else on an input of another size.
        RuntimeError, ValueError, TypeError, AttributeError: the module cannot be exported.
    """
    import onnxruntime

    buffer = io.BytesIO()
    torch.onnx.export(
        traceable.module,
        (traceable.example,),
        buffer,
        dynamo=False,  # the newer exporter captures no control flow of detectors
        opset_version=OPSET,
        input_names=["image"],
        output_names=list(traceable.outputs),
        dynamic_axes={"image": traceable.sizes},
    )
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> list[Tensor]:
        return [torch.as_tensor(v) for v in session.run(None, {"image": image.numpy()})]

    _check("--onnx", traceable, run)
    return Program(f"{traceable.name}.onnx", buffer.getvalue(), traceable.note)


FORMATS: dict[str, Callable[[Traceable], Program]] = {"torchscript": torchscript, "onnx": onnx}
_PACKAGES = {"torchscript": (), "onnx": ("onnx", "onnxruntime")}


def check_format(format_: str) -> None:
    """Before any work for a program is done.

    Raises:
        ConfigError: not one of :data:`FORMATS`, or a package that it needs is missing.
    """
    if format_ not in FORMATS:
        raise ConfigError("program", f"must be one of {list(FORMATS)}, got {format_!r}")
    for package in _PACKAGES[format_]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"--{format_}",
                f"needs {package}: pip install 'gradaug_det[{format_}]'; its runtime checks the "
                "program",
            ) from error


def make_program(format_: str, traceable: Callable[[], Traceable]) -> Program:
    """A program of one of :data:`FORMATS`.

    Args:
        format_: key of :data:`FORMATS`.
        traceable: makes what is traced; may fail as tracing may.

    Raises:
        ConfigError: :func:`check_format` refuses, or there is no such program of this detector:
            says why.
    """
    check_format(format_)
    try:
        # Sizes that become constants where they matter are found by the check.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FORMATS[format_](traceable())
    except ConfigError:  # which is a ValueError
        raise
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _refused(f"--{format_}", f"tracing fails: {reason}") from error


def _check(option: str, traceable: Traceable, run: Callable[[Tensor], Sequence[Tensor]]) -> None:
    for image in (traceable.other, traceable.example):
        found, expected = run(image), traceable.module(image)
        if not all(map(_close, found, expected)):
            raise _refused(option, "the program finds something else on an image of another size")


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found.float(), expected.float(), rtol=1e-4, atol=1e-4
    )


def _refused(option: str, why: str) -> ConfigError:
    return ConfigError(option, f"is not possible for this detector: {why}; export without it")
