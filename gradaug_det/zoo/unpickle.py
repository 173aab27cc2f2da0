"""Reads checkpoints that may come from anyone, without running what may be in them.

``.safetensors`` files hold no code. PyTorch's files are read with ``weights_only=True``. For
Detectron2's ``.pkl`` files, pickled dicts of numpy arrays, there is an unpickler that knows
nothing but plain containers and arrays of numbers. numpy's own functions are not among them: an
array's pickled state can make them take any bytes for pointers.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gradaug_det.errors import ZooError

_RUNS = "which loading would run"
_WAY_OUT = (
    "If you trust where it comes from, load it there with your own code and save its tensors with "
    "safetensors.torch.save_file; if not, delete it"
)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint; no code in it runs.

    Args:
        path: a ``.safetensors`` file, a ``.pkl`` of Detectron2's model zoo or Detectron's (numpy
            arrays), or a file of ``torch.save`` under any other name.

    Returns:
        The dict in the file: tensors on the CPU, or numpy arrays from a ``.pkl``.

    Raises:
        ZooError: the file is missing, empty, damaged or no dict, or wants to run code (which has
            not run): names what it wanted, and the way out.
    """
    path = Path(path)
    if not path.is_file():
        raise ZooError(f"the checkpoint {path} does not exist")
    if path.stat().st_size == 0:
        raise ZooError(f"the checkpoint {path} is empty; copy or download it again")
    readers = {".safetensors": _read_safetensors, ".pkl": _read_pickle}
    content = readers.get(path.suffix, _read_torch)(path)
    if not isinstance(content, dict):
        raise ZooError(f"the checkpoint {path} holds a {type(content).__name__}, not a dict")
    return content


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _read_torch(path: Path) -> Any:
    if tarfile.is_tarfile(path):
        # PyTorch's format before 0.1.10; some releases read it without weights_only.
        raise ZooError(
            f"the checkpoint {path} is a tar archive; unpack it if a checkpoint is in it"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+) w", str(error))
        if wanted is None:
            raise _damaged(path, error) from None
        raise _refused(path, f"{wanted[1]}, {_RUNS}") from None
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise _refused(path, f"a TorchScript program, {_RUNS}") from None
        raise _damaged(path, error) from None
    except Exception as error:  # a damaged file can make the reader fail anywhere
        raise _damaged(path, error) from None


def _read_pickle(path: Path) -> Any:
    try:
        return _plain(_ArrayUnpickler(path.read_bytes()).load())
    except _ForbiddenError as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # a damaged file can make the unpickler fail anywhere
        raise _damaged(path, error) from None


def _refused(path: Path, wanted: str) -> ZooError:
    return ZooError(
        f"the checkpoint {path} is refused: besides weights it holds {wanted}; nothing of it has "
        f"run. {_WAY_OUT}"
    )


def _damaged(path: Path, error: Exception) -> ZooError:
    # PyTorch puts advice before its reason.
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    reason = (text.splitlines() or [""])[0][:200]
    kind = type(error).__name__
    return ZooError(
        f"the checkpoint {path} cannot be read ({kind}: {reason}): it is damaged or not a "
        "checkpoint; copy or download it again"
    )


# ---- pickles of numpy arrays ------------------------------------------------------------------


class _ForbiddenError(Exception):
    """A pickle names something that is not on the list."""


class _Type:
    """Stands for a numpy dtype of plain numbers."""

    def __init__(self, code: str = "", align: object = False, copy: object = True) -> None:
        if re.fullmatch(r"[biufc]\d{1,2}", code) is None:
            raise _ForbiddenError(f"an array of type {code!r:.40}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for a numpy array until its state has come."""

    array: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _version, shape, kind, fortran, data = state
        self.array = _array(data, kind, shape, "F" if fortran else "C")


def _array(data: Any, kind: _Type, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """An array of its own memory; the sizes must fit."""
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise _ForbiddenError(f"an array made of a {type(data).__name__}")
    return np.frombuffer(bytearray(data), _number(kind)).reshape(shape, order=order)


def _number(kind: object) -> np.dtype:
    if type(kind) is not _Type:
        raise _ForbiddenError("an array without a type of numbers")
    return kind.dtype


def _empty_array(*_arguments: object) -> _Array:
    return _Array()


def _buffer_array(data: Any, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    result = _Array()
    result.array = _array(data, kind, shape, order)
    return result


def _scalar(kind: _Type, data: Any = b"") -> np.generic:
    return _array(data, kind, ())[()]


def _no_bytes() -> bytes:
    """Python 3 writes ``b""`` so in protocols 0 to 2."""
    return b""


def _encode(text: str, encoding: str) -> bytes:
    """Python 3 writes other bytes so in protocols 0 to 2."""
    if encoding != "latin1":
        raise _ForbiddenError(f"the encoding {encoding!r:.40}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _empty_array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _buffer_array
for _builtins in ("builtins", "__builtin__"):  # of Python 3 and 2
    _ALLOWED[_builtins, "bytes"] = _no_bytes
    for _type in (complex, frozenset, set):
        _ALLOWED[_builtins, _type.__name__] = _type


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the names above and no others; what it calls for numpy's is in this file."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}, {_RUNS}") from None


def _plain(value: Any) -> Any:
    """The unpickled value with arrays in the place of what stands for them."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value
