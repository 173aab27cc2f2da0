"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradaug_det.errors import DataError, GradAugError

_PARTIAL = ".partial."


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``: renamed to it at the end of the block, removed on error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{_PARTIAL}{path.name}."
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file)  # else a power failure can leave the new name with no content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial_files(folder: str | Path) -> None:
    """Removes what processes that were killed have left of :func:`atomic_path`.

    Args:
        folder: in which nobody is writing now; it need not be there.
    """
    for path in Path(folder).glob(f"{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Makes a training's output folder, before anything that takes long.

    Raises:
        GradAugError: it cannot be made, or nothing can be written into it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise GradAugError(
            f"nothing can be written to the output folder {folder}: {error.strerror or error}; "
            "choose another one or correct its rights"
        ) from None


@contextmanager
def explain_write_errors(what: str, path: str | Path) -> Iterator[None]:
    """Makes a sentence of a write that fails within the block (disk full, folder not writable).

    Args:
        what: is written, for the sentence.
        path: of the file; nothing of it is there afterwards, an older one is as it was.

    Raises:
        GradAugError: names the file, the cause and the space that is left.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises the latter
        folder = Path(path).parent
        try:
            free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there"
        except OSError:
            free = f"the folder {folder} is not there"
        raise GradAugError(
            f"{what} {path} could not be written: {_cause(error)}; {free}. "
            "What was saved before is intact: make room or correct the rights, then resume"
        ) from error


def _cause(error: BaseException) -> str:
    while isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "inline_container" in str(error):  # torch's own writer, whose words name no cause
        return "the file system took only a part of it"
    return str(error).split("\n")[0]


_OTHER_FILES = {
    b"\x1f\x8b": "packed with gzip: unpack it with gunzip",
    b"PK\x03\x04": "a zip archive: unpack it with unzip",
    b"<": "a page of HTML or XML: was it an error page that was downloaded?",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
}


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        DataError: it is no JSON in UTF-8; says what it is instead.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    for start, what in _OTHER_FILES.items():
        if data[:64].lstrip().startswith(start):
            raise DataError(f"{path} is not valid JSON, it is {what}")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise DataError(f"{path} is not valid JSON: its lists are nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise DataError(f"{path} is not valid JSON ({error}); {_why_no_json(data)}") from None


def _why_no_json(data: bytes) -> str:
    encoding = json.detect_encoding(data)  # by the byte order mark, or the zeros
    if encoding != "utf-8":
        name = encoding.upper().replace("-SIG", " with a byte order mark (BOM)")
        return f"its encoding is {name}: save it as UTF-8 without a mark"
    first, _, rest = data.partition(b"\n")
    try:
        data.decode("utf-8")
        json.loads(first)
    except UnicodeDecodeError:
        return "its encoding is not UTF-8, but Latin-1 or another one: save it as UTF-8"
    except (ValueError, RecursionError):
        return "was its writing cut off?"
    if rest.lstrip().startswith(b"{"):
        return "is it JSON lines, an object in each line? write one object with three lists"
    return "something follows the JSON text: remove it"
