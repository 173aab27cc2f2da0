"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradaug_det.errors import GradAugError

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
        _to_disk(temporary)  # else a power failure can leave the new name with no content
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


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def said_if_it_fails(what: str, path: str | Path) -> Iterator[None]:
    """A write that fails within the block (disk full, folder not writable) becomes a sentence.

    Args:
        what: is written, for the sentence.
        path: of the file; nothing of it is there afterwards, an older one is as it was.

    Raises:
        GradAugError: names the file, the cause and the space that is left.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises the latter
        raise GradAugError(
            f"{what} {path} could not be written: {_cause(error)}; {_free(Path(path).parent)}. "
            "What was saved before is intact: make room or correct the rights, then resume"
        ) from error


def _cause(error: Exception) -> str:
    while isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "inline_container" in str(error):  # torch's own writer, whose words name no cause
        return "the file system took only a part of it"
    return str(error).split("\n")[0]


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there"
    except OSError:
        return f"the folder {folder} is not there"
