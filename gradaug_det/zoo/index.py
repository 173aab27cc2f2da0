"""The zoo's entries: ``index.json``, the only place where they are written down.

An index has its packaged files in the folder ``weights`` beside it. A lab hosts a zoo of its own
with an index anywhere, named by the environment variable ``GRADAUG_ZOO_INDEX``.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradaug_det.errors import ZooError
from gradaug_det.zoo.info import BackboneInfo, check_fields, is_line, is_match, one_of, require

INDEX = Path(__file__).parent / "index.json"
INDEX_VARIABLE = "GRADAUG_ZOO_INDEX"
MAX_INDEX_BYTES = 2**20
_FIELDS = ("description", "file", "kind", "size", "sha256", "gdrive_id", "measured", "info")


@dataclass(frozen=True)
class Entry:
    """One backbone of the zoo.

    Args:
        file: its name, without folders; ``.pth`` only for the authors' checkpoints (``gdrive``).
        kind: ``packaged`` in ``folder / "weights"``, ``url`` under the base URL, or ``gdrive``.
        size, sha256: bytes and 64 hex digits; None if unknown (``gdrive``, ``.pth`` only).
        measured: whether this project measured ``info.metrics``; else they are the authors' claim.
        folder: of the index.
    """

    description: str
    file: str
    kind: str
    size: int | None
    sha256: str | None
    gdrive_id: str | None
    measured: bool
    info: BackboneInfo
    folder: Path

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def packaged_path(self) -> Path:
        return self.folder / "weights" / self.file

    def __post_init__(self) -> None:
        # Who publishes on Google Drive may have told neither size nor sha256.
        on_drive = self.kind == "gdrive"
        rules = {
            "description": (lambda v: is_line(v, 300), "be one line of at most 300 characters"),
            "kind": one_of(("packaged", "url", "gdrive")),
            "file": (
                lambda v: is_match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(safetensors|pth)", v),
                "be a name without folders, ending in .safetensors or .pth",
            ),
            "size": (
                lambda v: on_drive if v is None else type(v) is int and 0 < v < 2**31,
                "be a number of bytes below 2 GiB (null only if kind is gdrive)",
            ),
            "sha256": (
                lambda v: self.file.endswith(".pth") if v is None else is_match("[0-9a-f]{64}", v),
                "be 64 lower-case hex digits (null only for a .pth)",
            ),
            "gdrive_id": (
                lambda v: is_match("[A-Za-z0-9_-]{10,100}", v) if on_drive else v is None,
                "be Google Drive's id if kind is gdrive, else null",
            ),
            "measured": (lambda v: type(v) is bool, "be true or false"),
        }
        check_fields(vars(self), rules)
        if self.file.endswith(".pth") and not on_drive:
            raise ZooError(f"file must end in .safetensors unless kind is gdrive, got {self.file}")

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON values."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return values | {"info": self.info.to_dict()}


@dataclass(frozen=True)
class Index:
    """All entries, and where files of kind ``url`` are unless GRADAUG_ZOO_URL says otherwise."""

    path: Path
    base_url: str | None
    entries: Mapping[str, Entry]

    def find(self, name: str) -> Entry:
        """The entry of that name; if there is none, a ZooError names those that there are."""
        if name in self.entries:
            return self.entries[name]
        near = difflib.get_close_matches(name, self.entries, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ZooError(
            f"the zoo has no backbone {name!r}: {hint}it has {', '.join(self.entries) or 'none'} "
            f"(index {self.path}; {INDEX_VARIABLE} names another)"
        )


def load_index(path: str | Path | None = None) -> Index:
    """Read and check an index: by default GRADAUG_ZOO_INDEX's, else the package's own.

    Raises:
        ZooError: the file is missing or something in it is wrong; names the file and the entry.
    """
    path = Path(path or os.environ.get(INDEX_VARIABLE) or INDEX)
    try:
        return _parse(path)
    except OSError as error:
        raise ZooError(
            f"cannot read the zoo's index {path}: {error.strerror}; {INDEX_VARIABLE} must name "
            "an index.json, or not be set"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ZooError(f"the zoo's index {path} is not JSON: {error}") from None
    except ZooError as error:
        raise ZooError(f"the zoo's index {path}: {error}; correct that file") from None


def find(name: str) -> Entry:
    """The entry of that name in the index in use. Raises ZooError if there is none."""
    return load_index().find(name)


def is_base_url(value: object) -> bool:
    """Returns whether file names can be joined to it."""
    return is_line(value, 500) and is_match(r"https?://[^\s?#]+", value)


def _parse(path: Path) -> Index:
    # An index may come from anywhere: no more of it is read than an index can have.
    with path.open("rb") as file:
        text = file.read(MAX_INDEX_BYTES + 1)
    if len(text) > MAX_INDEX_BYTES:
        raise ZooError(f"more than {MAX_INDEX_BYTES} bytes")
    data = json.loads(text)
    require(
        isinstance(data, dict) and set(data) == {"base_url", "entries"},
        "must be an object of base_url and entries",
        data if not isinstance(data, dict) else sorted(data),
    )
    url, raw = data["base_url"], data["entries"]
    require(url is None or is_base_url(url), "base_url must be null or http(s)://...", url)
    require(isinstance(raw, dict), "entries must be an object", raw)
    entries = {name: _parse_entry(name, raw[name], path.parent) for name in sorted(raw)}
    return Index(path, url, entries)


def _parse_entry(name: str, value: Any, folder: Path) -> Entry:
    try:
        require(isinstance(value, dict), "must be an object", value)
        require(set(value) == set(_FIELDS), f"must have {', '.join(_FIELDS)}", sorted(value))
        info = BackboneInfo.from_dict(value["info"])
        require(info.name == name, f"info's name must be {name!r}", info.name)
        return Entry(**value | {"info": info, "folder": folder})
    except ZooError as error:
        raise ZooError(f"entry {name!r}: {error}") from None
