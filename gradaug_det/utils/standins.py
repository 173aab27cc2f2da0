"""The one list of what a pickle may name, for every reader of checkpoints.

What a checkpoint names is looked up here and nowhere else: not in its modules, not in PyTorch's
list for ``weights_only`` and not in MMEngine's. All that is found is a function or class of this
file, or a number's type. numpy's own functions are not among them: an array's pickled state can
make them take any bytes for pointers.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

RUNS = "which loading would run"


class ForbiddenError(Exception):
    """A pickle names something that is not on the list, or does with it what it may not."""


@dataclass(frozen=True)
class _Name:
    # Not callable itself: only REDUCE and NEWOBJ of the Unpickler reach the function in it.
    make: Callable


def _check_type(value: Any, *kinds: type, what: str = "a state for") -> None:
    if type(value) not in kinds:
        kind = "function" if type(value) is _Name else type(value).__name__
        raise ForbiddenError(f"{what} a {kind}")


# ---- numpy ------------------------------------------------------------------------------------


class _Type:
    """Stands for a numpy dtype of plain numbers."""

    def __init__(self, code: str = "", align: object = False, copy: object = True) -> None:
        if re.fullmatch(r"[biufc]\d{1,2}", code) is None:
            raise ForbiddenError(f"an array of type {code!r:.40}, not of numbers")
        self.dtype = np.dtype(code)

    def build(self, state: tuple, _unpickler: Unpickler) -> _Type:
        # Byte order is all that matters of the state: fields and metadata are of other types.
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])
        return self


class _Unfinished:
    """Stands for an object until BUILD brings its state; then ``made`` is the object."""

    made: Any = None


class _Array(_Unfinished):
    """Stands for a numpy array."""

    def build(self, state: tuple, _unpickler: Unpickler) -> np.ndarray:
        _version, shape, kind, fortran, data = state
        self.made = _array(data, kind, shape, "F" if fortran else "C")
        return self.made


def _array(data: Any, kind: Any, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    # Of its own memory, so that it can be written to; reshape compares the sizes.
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    _check_type(data, bytes, bytearray, what="an array made of")
    _check_type(kind, _Type, what="an array typed by")
    return np.frombuffer(bytearray(data), kind.dtype).reshape(shape, order=order)


def _scalar(kind: Any, data: Any = b"") -> np.generic:
    return _array(data, kind, ())[()]


# ---- torch ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    numbers: Tensor  # shape (N,), the whole of it


def _tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    *_hooks: object,
    dtype: torch.dtype | None = None,
) -> Tensor:
    _check_type(storage, _Storage, what="a tensor made of")
    numbers = storage.numbers if dtype is None else storage.numbers.view(dtype)
    # PyTorch compares the sizes with the storage's.
    return numbers.as_strided(size, stride, offset).requires_grad_(requires_grad)


def _tensor_v3(*arguments: Any) -> Tensor:
    *usual, dtype = arguments[:7]  # of numbers that have no kind of storage of their own
    return _tensor(*usual, dtype=dtype)


def _parameter(data: Any, requires_grad: bool, *_hooks_and_state: object) -> torch.nn.Parameter:
    _check_type(data, Tensor, what="a parameter made of")
    return torch.nn.Parameter(data, requires_grad)


def _with_attributes(name: Any, _type: object, arguments: tuple, _state: object) -> Tensor:
    # A tensor that had attributes, without them: they may be anything.
    if type(name) is not _Name or name.make not in (_tensor, _tensor_v3, _parameter):
        raise ForbiddenError(f"a tensor made by a {type(name).__name__}")
    return name.make(*arguments)


def _size(numbers: tuple[int, ...] | list[int] = ()) -> torch.Size:
    return torch.Size([int(number) for number in _sequence(numbers)])


# ---- Python -----------------------------------------------------------------------------------

_HASHED = (float, bool, type(None), np.integer, np.bool_, torch.dtype)
_MOST_TEXT = 10_000


def check_key(value: Any) -> Any:
    """The value, if hashing it takes no time, and not many others have its hash."""
    # Tuples and long numbers are hashed each time anew: a file of a hundred bytes can nest tuples
    # so that one key takes years. Of texts alone nobody can choose the hash; tuples of short
    # numbers are the nearest to that.
    if type(value) is not tuple:
        short = _is_short(value, 60) or isinstance(value, _HASHED)
    else:
        short = len(value) < 9 and all(part is None or _is_short(part, 31) for part in value)
    if not short:
        raise ForbiddenError(f"a long or nested {type(value).__name__} as a key of a dict or set")
    return value


def _is_short(value: Any, bits: int) -> bool:
    if type(value) is int:
        return value.bit_length() <= bits
    return type(value) in (str, bytes) and len(value) <= _MOST_TEXT


def _sequence(items: Any) -> Any:
    # A tensor of one number can be as long as it likes.
    _check_type(items, list, tuple, what="a list made of")
    return items


def _set(items: list[Any] | tuple[Any, ...] = ()) -> set:
    return set(map(check_key, _sequence(items)))


def _dict(items: Any = ()) -> dict:
    return dict(items) if type(items) is dict else dict(_ordered(items))


def _ordered(pairs: Any = ()) -> OrderedDict:  # Python 2 gives it a list of lists
    return OrderedDict((check_key(key), value) for key, value in map(_sequence, _sequence(pairs)))


def _encode(text: str = "", encoding: str = "latin1") -> bytes:
    # Python 3 writes bytes so in protocols 0 to 2.
    if encoding not in ("latin1", "latin-1"):
        named = f"{encoding!r:.40}" if isinstance(encoding, str) else type(encoding).__name__
        raise ForbiddenError(f"the encoding {named}")
    return text.encode("latin1")


def _bytearray(*text: Any) -> bytearray:
    return bytearray(text[0] if text and type(text[0]) is bytes else _encode(*text))


# ---- MMEngine ---------------------------------------------------------------------------------


class _History(_Unfinished):
    """Stands for MMEngine's HistoryBuffer, whose own state may replace its class's methods."""

    def build(self, state: dict, unpickler: Unpickler) -> Any:
        log, count, most = (state[k] for k in ("_log_history", "_count_history", "max_length"))
        if not all(type(a) is np.ndarray and a.ndim == 1 for a in (log, count)):
            raise ForbiddenError("a history of something but numbers")
        self.made = unpickler.history(log_history=log, count_history=count, max_length=int(most))
        return self.made


def _method(owner: Any, name: Any) -> str:
    # A HistoryBuffer's state has its statistics' methods, which pickle gets by name. The name is
    # all that comes of it here: no attribute of anything is ever looked up.
    if type(owner) is not _Name or owner.make is not _History or name[:1] == "_":
        raise ForbiddenError(f"builtins.getattr, {RUNS}")
    return name


# ---- the list ---------------------------------------------------------------------------------

_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _Name(_encode),
    ("collections", "Counter"): _Name(lambda counts=(): Counter(_dict(counts))),
    ("collections", "OrderedDict"): _Name(_ordered),
    ("mmengine.config.config", "ConfigDict"): _Name(_dict),
    ("mmengine.logging.history_buffer", "HistoryBuffer"): _Name(_History),
    ("numpy", "dtype"): _Name(_Type),
    ("numpy", "ndarray"): _Name(lambda *_: _Array()),
    ("torch", "Size"): _Name(_size),
    ("torch", "device"): _Name(torch.device),
    ("torch", "Tensor"): Tensor,  # as a value: it cannot be called
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch._utils", "_rebuild_tensor"): _Name(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Name(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Name(_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Name(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Name(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Name(_with_attributes),
    ("torch.storage", "UntypedStorage"): torch.uint8,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Name(lambda *_: _Array())
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _Name(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _Name(_array)
for _builtins in ("builtins", "__builtin__"):  # of Python 3 and 2
    _ALLOWED[_builtins, "bytearray"] = _Name(_bytearray)
    _ALLOWED[_builtins, "bytes"] = _Name(_encode)  # of nothing
    _ALLOWED[_builtins, "complex"] = _Name(complex)
    _ALLOWED[_builtins, "frozenset"] = _Name(lambda items=(): frozenset(_set(items)))
    _ALLOWED[_builtins, "getattr"] = _Name(_method)
    _ALLOWED[_builtins, "set"] = _Name(_set)
    _ALLOWED[_builtins, "slice"] = _Name(slice)
_ALLOWED |= {("torch", n): v for n, v in vars(torch).items() if isinstance(v, torch.dtype)}
for _number, _dtype in {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8},
    **{"Byte": torch.uint8, "Bool": torch.bool, "BFloat16": torch.bfloat16},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}.items():
    for _module in ("torch", "torch.cuda"):
        _ALLOWED[_module, f"{_number}Storage"] = _dtype


# ---- the unpickler ----------------------------------------------------------------------------


class StrictReader:
    """A file that gives what is asked for or nothing: half a string is no string.

    Args:
        file: open for bytes.
        size: of the file.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.size + 1))
        if len(data) < size:
            raise EOFError("it ends too early")
        return data

    def readline(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends too early")
        return line


_SIZED = (str, bytes, bytearray, list, tuple, dict, set, np.ndarray)
_FREE = 2**24


class _Memo(dict):
    # Gives an object in the place of what stood for it.
    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        return value if not isinstance(value, _Unfinished) or value.made is None else value.made


def count_unfolded(value: Any) -> float:
    """The number of values that a walk through a value's containers reads, one within another; the
    same container can be in many. Infinite if one is within itself."""
    # Each container twice on a stack of our own, before and after its parts: a file can nest them
    # deeper than Python's calls go.
    counts: dict[int, float] = {}
    waiting = [(value, False)]
    while waiting:
        one, parts_are_counted = waiting.pop()
        if parts_are_counted:
            own = len(one) if isinstance(one, _SIZED) else 1
            counts[id(one)] = own + sum((counts[id(part)] for part in _parts(one)), 0.0)
        elif id(one) not in counts:
            counts[id(one)] = math.inf  # what is within itself stays so
            waiting.append((one, True))
            waiting += [(part, False) for part in _parts(one)]
    return counts[id(value)]


def _parts(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value
    for part in inside if isinstance(value, (dict, list, tuple)) else ():
        if isinstance(part, (dict, list, tuple)):
            yield part


class Unpickler(pickle._Unpickler):
    """Knows the names above and no others, and calls nothing that is not in this file.

    Python's own unpickler in Python, not the one in C: that believes a file's sizes and indices (a
    memo index takes gigabytes) and hashes any key. Arrays are read as fast.

    Args:
        file: the pickle; read to its end and no further.
        storage: (key, type, count, view) of a storage -> its numbers; None if there are none.
        history: makes what is given for a HistoryBuffer of MMEngine, from the keyword arguments
            ``log_history``, ``count_history`` (numpy arrays) and ``max_length``.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)
    # Extensions, instances of named classes, and buffers from outside: no checkpoint has them.
    for _code in (
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ),
        *(pickle.NEWOBJ_EX, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        del dispatch[_code[0]]

    def __init__(
        self,
        file: StrictReader,
        storage: Callable[..., Tensor] | None = None,
        history: Callable[..., Any] = dict,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.memo = _Memo()
        self.history = history
        self._size = file.size
        self._storage = storage
        self._unfinished = 0  # objects whose state has not come yet
        # What may be copied and looked through: each byte of the file a few times, and some more.
        self._left = 4 * file.size + _FREE

    def load(self) -> Any:
        value = super().load()
        # A stand-in must not leave this class: it could be taken for the object.
        if self._unfinished:
            raise pickle.UnpicklingError("it has objects without a state")
        if count_unfolded(value) > 4 * self._size + _FREE:
            raise ForbiddenError("contents that unfold to many times its size")
        return value

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise ForbiddenError(f"{module}.{name}, {RUNS}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storage is None or type(pid) is not tuple or pid[:1] != ("storage",):
            raise ForbiddenError("a reference to something outside of the file")
        _, dtype, key, _location, count, *view = pid
        if not isinstance(dtype, torch.dtype) or type(count) is not int or count < 0:
            raise ForbiddenError("a storage of something but numbers")
        return _Storage(self._storage(check_key(key), dtype, count, *view))

    def _load_reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        _check_type(name, _Name, what="a call of")
        _check_type(arguments, tuple, what="a call with")
        self._pay(arguments, *arguments)
        value = name.make(*arguments)
        if isinstance(value, Tensor):  # of stride 0, it is as large as it likes
            self._left -= max(0, value.numel() - value.untyped_storage().nbytes())
            self._pay()
        self.append(value)
        self._unfinished += isinstance(value, _Unfinished)

    def _pay(self, *parts: Any) -> None:
        # For what is copied or looked through: a file has it once and could name it often.
        self._left -= sum(len(part) for part in parts if isinstance(part, _SIZED))
        if self._left < 0:
            raise ForbiddenError("contents that unfold to many times its size")

    def _load_build(self) -> None:
        state, value = self.stack.pop(), self.stack.pop()
        if type(value) is OrderedDict:
            # A state_dict's own attribute is the only one that an OrderedDict may get.
            metadata = state.get("_metadata")  # versions of a state_dict's modules
            self._pay(metadata)
            if metadata and all(type(part) is dict for part in metadata.values()):
                value._metadata = metadata
            self.append(value)
            return
        # Functions would take attributes.
        _check_type(value, _Type, _Array, _History)
        self._pay(*(state.values() if type(state) is dict else state))
        self.append(value.build(state, self))
        self._unfinished -= isinstance(value, _Unfinished)

    def _load_dict(self) -> None:
        items = self.pop_mark()  # key, value, key, value, ...
        keys = map(check_key, items[::2])
        self.append(dict(zip(keys, items[1::2], strict=True)))

    def _load_setitem(self) -> None:
        _check_type(self.stack[-3], dict, OrderedDict, Counter)
        check_key(self.stack[-2])
        self.load_setitem()

    def _load_setitems(self) -> None:
        _check_type(self.metastack[-1][-1], dict, OrderedDict, Counter)
        for key in self.stack[::2]:  # since the mark
            check_key(key)
        self.load_setitems()

    def _load_append(self) -> None:
        _check_type(self.stack[-2], list)
        self.load_append()

    def _load_appends(self) -> None:
        _check_type(self.metastack[-1][-1], list)
        self.load_appends()

    def _load_additems(self) -> None:
        _check_type(self.metastack[-1][-1], set)
        for item in self.stack:
            check_key(item)
        self.load_additems()

    def _load_frozenset(self) -> None:
        self.append(frozenset(_set(self.pop_mark())))

    def _load_bytearray8(self) -> None:
        # Python's own takes memory for as many bytes as the file promises.
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError(f"it promises {size} bytes and has {self._size}")
        self.append(bytearray(self.read(size)))

    dispatch |= {
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_reduce,
        pickle.BUILD[0]: _load_build,
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.APPEND[0]: _load_append,
        pickle.APPENDS[0]: _load_appends,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.BYTEARRAY8[0]: _load_bytearray8,
    }
