"""Reads checkpoints that may come from anyone, without running what may be in them.

``.safetensors`` files hold no code. All others are zips of ``torch.save``, its files of before
PyTorch 1.6, or pickles (Detectron2's ``.pkl``), whatever their names end with. Their pickles are
read by :mod:`gradaug_det.utils.standins`, never by PyTorch, so its version does not matter here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from gradaug_det.errors import ZooError
from gradaug_det.utils.standins import RUNS, ForbiddenError, StrictReader, Unpickler, check_key
from gradaug_det.utils.text import describe_error, to_printable

_WAY_OUT = (
    "If you trust where it comes from, load it there with your own code and save its tensors with "
    "safetensors.torch.save_file; if not, delete it"
)
_LEGACY = 0x1950A86A20F9469CFC6C  # the first number of a file of PyTorch before 1.6
_CHUNK = 2**24  # bytes that are read at a time
_RATIO = 64  # a zip whose parts are together larger by more than that is none of weights


def load_checkpoint(path: str | Path, history: Callable[..., Any] = dict) -> dict[str, Any]:
    """The content of a checkpoint; no code in it runs.

    Args:
        path: a ``.safetensors`` file, or one of ``torch.save`` or a pickle of numpy arrays
            (Detectron2's model zoo, Detectron) under any other name.
        history: makes the HistoryBuffers of MMEngine's checkpoints, see ``Unpickler``.

    Returns:
        The dict in the file: tensors on the CPU, or numpy arrays.

    Raises:
        ZooError: the file is missing, empty, damaged or no dict, or wants to run code (which has
            not run): names what it wanted, and the way out.
    """
    path = Path(path)
    if not path.is_file():
        raise ZooError(f"the checkpoint {path} does not exist")
    if path.stat().st_size == 0:
        raise ZooError(f"the checkpoint {path} is empty; copy or download it again")
    if _is_tar(path):  # PyTorch's format before 0.1.10
        raise ZooError(
            f"the checkpoint {path} is an archive of tar or gzip; unpack it if one is in it"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read(path, history)
    except ForbiddenError as error:
        raise ZooError(
            f"the checkpoint {path} is refused: besides weights it holds "
            f"{to_printable(str(error))}; nothing of it has run. {_WAY_OUT}"
        ) from None
    except Exception as error:  # a damaged file can make its reader fail anywhere
        raise ZooError(
            f"the checkpoint {path} cannot be read ({describe_error(error)}): it is damaged or "
            "not a checkpoint; copy or download it again"
        ) from None
    if not isinstance(content, dict):
        raise ZooError(f"the checkpoint {path} holds a {type(content).__name__}, not a dict")
    return content


def _is_tar(path: Path) -> bool:
    # Or a compressed one; tarfile would unpack as much of it as its first entry promises.
    with path.open("rb") as file:
        start = file.read(262)
    return start[257:] == b"ustar" or start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))


def _read(path: Path, history: Callable[..., Any]) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            return _read_zip(file, size, history)
        file.seek(0)
        whole = StrictReader(file, size)
        # A plain pickle is read to its end here; an old file of PyTorch begins with a number.
        first = Unpickler(whole, history=history).load()
        if type(first) is not int or first != _LEGACY:
            return first
        return _read_legacy(whole, history)


def _read_zip(file: BinaryIO, size: int, history: Callable[..., Any]) -> Any:
    # A file of torch.save has a pickle and a part for each storage, in one folder.
    with zipfile.ZipFile(file) as archive:
        parts = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type > zipfile.ZIP_DEFLATED for info in parts.values()):
            raise ValueError("its parts are packed otherwise than stored or deflated")
        if sum(info.file_size for info in parts.values()) > _RATIO * size:
            raise ValueError(f"its parts are more than {_RATIO} times its size")
        folder = next(iter(parts), "").partition("/")[0]
        if f"{folder}/constants.pkl" in parts:
            raise ForbiddenError(f"a TorchScript program, {RUNS}")

        def part(name: str) -> BinaryIO:
            info = parts[f"{folder}/{name}"]
            info.CRC = None  # PyTorch compares none, and can be told to write none
            return archive.open(info)

        if f"{folder}/byteorder" in parts and part("byteorder").read() != b"little":
            raise ValueError("its numbers are of a big-endian machine")
        storages: dict[Any, Tensor] = {}

        def storage(key: Any, dtype: torch.dtype, count: int) -> Tensor:
            # The directory knows a part's size: it is compared before memory is taken.
            if key not in storages:
                name = f"data/{key}"
                _same_size(count * dtype.itemsize, parts[f"{folder}/{name}"].file_size)
                storages[key] = _empty(count, dtype)
                with part(name) as content:
                    _fill(storages[key], content)
            return storages[key]

        # The pickle's own size bounds what it may unfold to, not that of the weights beside it.
        pickle = part("data.pkl").read()
        return Unpickler(StrictReader(BytesIO(pickle), len(pickle)), storage, history).load()


def _read_legacy(file: StrictReader, history: Callable[..., Any]) -> Any:
    # A file of PyTorch before 1.6 has pickles, then the storages' numbers one after another.
    storages: dict[Any, Tensor] = {}
    promised = 0  # bytes of storages that the pickle speaks of; memory is taken as it goes

    def storage(key: Any, dtype: torch.dtype, count: int, view: Any = None) -> Tensor:
        nonlocal promised
        if key not in storages:
            promised += count * dtype.itemsize
            if promised > file.size:
                raise EOFError("it ends too early")
            storages[key] = _empty(count, dtype)
        if view is None:
            return storages[key]
        _, start, length = view
        return storages[key].narrow(0, start, length)

    Unpickler(file).load()  # version
    if Unpickler(file).load().get("little_endian") is False:
        raise ValueError("its numbers are of a big-endian machine")
    content = Unpickler(file, storage, history).load()
    for key in Unpickler(file).load():
        numbers = storages.pop(check_key(key))
        _same_size(int.from_bytes(file.read(8), "little"), numbers.numel())
        _fill(numbers, file.file)
    if storages:
        raise EOFError("it ends too early")
    return content


def _empty(count: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(count * dtype.itemsize, dtype=torch.uint8).view(dtype)


def _fill(numbers: Tensor, file: BinaryIO) -> None:
    # In pieces, so that a large storage is not in memory twice.
    for place in numbers.view(torch.uint8).split(_CHUNK):
        content = bytearray(file.read(len(place)))
        if len(content) != len(place):
            raise EOFError("it ends too early")
        if content:
            place.copy_(torch.frombuffer(content, dtype=torch.uint8))


def _same_size(promised: int, found: int) -> None:
    if promised != found:
        raise ValueError(f"a storage is of {promised}, not of {found}")
