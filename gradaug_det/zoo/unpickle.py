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
from typing import Any, ClassVar

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
        f"the checkpoint {path} is refused: besides weights it holds {_printable(wanted)}; "
        f"nothing of it has run. {_WAY_OUT}"
    )


def _printable(text: str) -> str:
    """The text as a terminal may have it: it can be a file's own."""
    return text if text.isprintable() else repr(text)


def _damaged(path: Path, error: Exception) -> ZooError:
    # PyTorch puts advice before its reason.
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    reason = _printable((text.splitlines() or [""])[0][:200])
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
        named = f"{encoding!r:.40}" if isinstance(encoding, str) else type(encoding).__name__
        raise _ForbiddenError(f"the encoding {named}")
    return text.encode("latin1")


_HASHED = (str, bytes, int, float, bool, complex, type(None))


def _key(value: Any) -> Any:
    """The value, if hashing it takes no time.

    Tuples have the hashes of what is in them, each time anew: a file of a hundred bytes can nest
    them so that one key takes years.
    """
    parts = value if type(value) is tuple else (value,)
    if not all(type(part) in _HASHED for part in parts):
        raise _ForbiddenError(f"a key of a dict or set that is a {type(value).__name__} of others")
    return value


def _set(items: list[Any]) -> set:
    return set(map(_key, items))


def _frozenset(items: list[Any]) -> frozenset:
    return frozenset(map(_key, items))


def _ordered(pairs: list[Any] = ()) -> OrderedDict:  # Python 2 gives it a list of lists
    return OrderedDict((_key(key), value) for key, value in pairs)


_ALLOWED: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _empty_array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _buffer_array
for _builtins in ("builtins", "__builtin__"):  # of Python 3 and 2
    _ALLOWED[_builtins, "bytes"] = _no_bytes
    _ALLOWED[_builtins, "complex"] = complex
    _ALLOWED[_builtins, "frozenset"] = _frozenset
    _ALLOWED[_builtins, "set"] = _set


class _Whole(io.BytesIO):
    """Bytes that give what is asked for or nothing: half a string is no string."""

    def read(self, size: int = -1) -> bytes:
        return self._asked(super().read(size), size)

    def readline(self, size: int = -1) -> bytes:
        line = super().readline(size)
        return self._asked(line, len(line) + (not line.endswith(b"\n")))

    @staticmethod
    def _asked(data: bytes, size: int) -> bytes:
        if len(data) < size:
            raise EOFError("it ends too early")
        return data


class _ArrayUnpickler(pickle._Unpickler):
    """Knows the names above and no others; what it calls for numpy's is in this file.

    Python's own unpickler in Python, not the one in C: that believes a file's sizes and indices (a
    memo index takes gigabytes) and hashes any key. Arrays are read as fast.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(_Whole(data), encoding="latin1")
        self._size = len(data)

    def _load_dict(self) -> None:
        items = self.pop_mark()
        keys = map(_key, items[::2])
        self.append(dict(zip(keys, items[1::2], strict=True)))

    def _load_setitem(self) -> None:
        _key(self.stack[-2])
        self.load_setitem()

    def _load_setitems(self) -> None:
        for key in self.stack[::2]:  # since the mark
            _key(key)
        self.load_setitems()

    def _load_additems(self) -> None:
        for item in self.stack:
            _key(item)
        self.load_additems()

    def _load_frozenset(self) -> None:
        self.append(_frozenset(self.pop_mark()))

    def _load_build(self) -> None:
        if type(self.stack[-2]) not in (_Type, _Array):  # functions would take attributes
            raise _ForbiddenError(f"a state for a {type(self.stack[-2]).__name__}")
        self.load_build()

    def _load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError(f"it promises {size} bytes and has {self._size}")
        self.append(bytearray(self.read(size)))

    for _code, _load in (
        (pickle.DICT, _load_dict),
        (pickle.SETITEM, _load_setitem),
        (pickle.SETITEMS, _load_setitems),
        (pickle.ADDITEMS, _load_additems),
        (pickle.FROZENSET, _load_frozenset),
        (pickle.BUILD, _load_build),
        (pickle.BYTEARRAY8, _load_bytearray8),
    ):
        dispatch[_code[0]] = _load

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}, {_RUNS}") from None


def _plain(value: Any, known: dict[int, Any] | None = None) -> Any:
    """The unpickled value with arrays in the place of what stands for them.

    What occurs many times is looked at once: else lists of lists of the same list take for ever.
    """
    known = {} if known is None else known
    if isinstance(value, _Array):
        return value.array
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in known:
        if isinstance(value, dict):
            new: Any = {key: _plain(item, known) for key, item in value.items()}
        else:
            new = type(value)(_plain(item, known) for item in value)
        known[id(value)] = new
    return known[id(value)]
