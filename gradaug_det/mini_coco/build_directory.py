"""A directory that is built whole or not at all, and that knows what it was built from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradaug_det.errors import DataError

BUILD_FILE = "build.json"

_BUILDER = "gradaug-det build-mini-coco"
_FOLDERS = ("annotations", "train", "val")
_OWN_ENTRIES = frozenset({*_FOLDERS, "contact_sheet.png", BUILD_FILE})


def write_build_file(folder: Path, arguments: dict[str, Any]) -> None:
    """Writes ``build.json``: the arguments, and a hash of all files that are in ``folder``."""
    build = {"builder": _BUILDER, "arguments": arguments, "content_sha256": _hash_content(folder)}
    (folder / BUILD_FILE).write_text(json.dumps(build, indent=1) + "\n", encoding="utf-8")


def is_finished(out: Path, arguments: dict[str, Any], force: bool) -> bool:
    """Returns whether ``out`` holds the build of these arguments; ``force`` replaces any build.

    Raises:
        DataError: something is in the way; it says what, and what to do.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    build = _read_build_file(out)
    if build is None:
        raise DataError(
            f"{out} exists and was not made by build-mini-coco; choose another directory, "
            "or remove it yourself (--force does not replace it)"
        )
    if force:
        strangers = sorted({path.name for path in out.iterdir()} - _OWN_ENTRIES)
        if strangers:
            raise DataError(
                f"{out} holds files that build-mini-coco did not make ({', '.join(strangers)}); "
                "move them away before --force replaces the directory"
            )
        return False
    found = build["arguments"]
    different = [
        f"{key} {found.get(key)!r} instead of {value!r}"
        for key, value in arguments.items()
        if found.get(key) != value
    ]
    if different:
        raise DataError(
            f"{out} holds another build ({'; '.join(different)}); choose another directory, "
            "or replace it with --force"
        )
    if build.get("content_sha256") != _hash_content(out):
        raise DataError(
            f"{out} was built with these arguments, but its files have changed since; "
            "rebuild it with --force"
        )
    return True


@contextlib.contextmanager
def new_directory(out: Path, replace: bool) -> Iterator[Path]:
    """Yields a directory that becomes ``out``, or with ``replace`` takes its place, at the end.

    If the block fails, nothing is left of it and ``out`` is as it was.

    Raises:
        DataError: ``out`` appeared during the block and ``replace`` is False.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, since a rename does not cross file systems.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.building-") as scratch:
        building, replaced = Path(scratch, "new"), Path(scratch, "replaced")
        building.mkdir()
        try:
            yield building
            if out.is_dir() and not any(out.iterdir()):
                out.rmdir()
            if out.exists() and not replace:
                raise DataError(f"{out} appeared while it was being built; run the command again")
            if out.exists():
                out.rename(replaced)
            building.rename(out)
        finally:
            if replaced.exists() and not out.exists():
                replaced.rename(out)  # interrupted between the two renames


def _read_build_file(out: Path) -> dict[str, Any] | None:
    """Returns the content of ``build.json``, None if this builder did not write one."""
    try:
        build = json.loads((out / BUILD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(build, dict) and build.get("builder") == _BUILDER
    return build if ours and isinstance(build.get("arguments"), dict) else None


def _hash_content(folder: Path) -> str:
    """Returns a hash of the names and bytes of everything built, in a fixed order."""
    digest = hashlib.sha256()
    paths = [folder / "contact_sheet.png"]
    for name in _FOLDERS:
        paths += sorted((folder / name).glob("*"))
    for path in filter(Path.is_file, paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
