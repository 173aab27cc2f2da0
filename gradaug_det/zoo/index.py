"""A zoo's ``index.json``: its backbones with sizes and sha256, read as what comes from anywhere.

A zoo is a folder, on a disk or behind a web server, of an index, the files that it names and a
README.md. ``publish.py`` makes one, ``sources.py`` knows which ones are in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradaug_det.errors import ZooError
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.info import BackboneInfo, check_fields, is_line, is_match, require

INDEX_NAME = "index.json"
MAX_INDEX_BYTES = 2**20
_FIELDS = ("description", "file", "size", "sha256", "gdrive_id", "measured", "info")


@dataclass(frozen=True)
class Entry:
    """One backbone of a zoo.

    Args:
        file: its name, without folders; ``.pth`` only for checkpoints on Google Drive.
        size, sha256: bytes and 64 hex digits; None if unknown (on Google Drive, ``.pth`` only).
        gdrive_id: of a file that is on Google Drive, not beside the index; else None.
        measured: whether who published it measured ``info.metrics``; else they are a claim.
        index: path or URL of the index, without credentials.
        home: the folder or base URL of the zoo's files; None if nobody knows one.
    """

    description: str
    file: str
    size: int | None
    sha256: str | None
    gdrive_id: str | None
    measured: bool
    info: BackboneInfo
    index: str
    home: Path | str | None

    @property
    def name(self) -> str:
        return self.info.name

    def __post_init__(self) -> None:
        # Who publishes on Google Drive may have told neither size nor sha256.
        on_drive = self.gdrive_id is not None
        rules = {
            "description": (lambda v: is_line(v, 300), "be one line of at most 300 characters"),
            "gdrive_id": (
                lambda v: v is None or is_match("[A-Za-z0-9_-]{10,100}", v),
                "be Google Drive's id, or null",
            ),
            "file": (
                lambda v: is_match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(safetensors|pth)", v),
                "be a name without folders, ending in .safetensors or .pth",
            ),
            "size": (
                lambda v: on_drive if v is None else type(v) is int and 0 < v < 2**31,
                "be a number of bytes below 2 GiB (null only with a gdrive_id)",
            ),
            "sha256": (
                lambda v: self.file.endswith(".pth") if v is None else is_match("[0-9a-f]{64}", v),
                "be 64 lower-case hex digits (null only for a .pth)",
            ),
            "measured": (lambda v: type(v) is bool, "be true or false"),
        }
        check_fields(vars(self), rules)
        if self.file.endswith(".pth") and not on_drive:
            raise ZooError(f"file must end in .safetensors without a gdrive_id, got {self.file}")

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON values."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return values | {"info": self.info.to_dict()}


@dataclass(frozen=True)
class Index:
    """A zoo's entries.

    Args:
        address: path or URL of the index, without credentials.
        base_url: of the files, if they are not beside the index.
    """

    address: str
    base_url: str | None
    entries: Mapping[str, Entry]


def is_base_url(value: object) -> bool:
    """Returns whether file names can be joined to it."""
    return is_line(value, 500) and is_match(r"https?://[^\s?#]+", value)


def parse_index(text: bytes, address: str, beside: Path | str | None) -> Index:
    """The index in an untrusted text.

    Args:
        address: path or URL of the index, for messages: without credentials.
        beside: the folder or base URL of the index.

    Raises:
        ZooError: names what is wrong with it.
    """
    try:
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
        places = {"index": address, "home": beside if url is None else url}
        entries = {name: _parse_entry(name, raw[name], places) for name in sorted(raw)}
        return Index(address, url, entries)
    except ZooError as error:
        raise ZooError(f"the zoo's index {address}: {error}; correct that file") from None
    except (ValueError, RecursionError) as error:
        raise ZooError(f"the zoo's index {address} is not JSON: {error}") from None


def read_index(path: Path) -> Index:
    """The index in a file. Raises ZooError if it cannot be read or is wrong."""
    try:
        # It may come from anywhere: no more of it is read than an index can have.
        with path.open("rb") as file:
            text = file.read(MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise ZooError(f"cannot read the zoo's index {path}: {error.strerror}") from None
    return parse_index(text, str(path), path.parent)


def write_index(path: Path, base_url: str | None, entries: Mapping[str, Entry]) -> None:
    """Write an index.json, entries and fields in the alphabet's order."""
    data = {"base_url": base_url, "entries": {name: e.to_dict() for name, e in entries.items()}}
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _parse_entry(name: str, value: Any, places: Mapping[str, Any]) -> Entry:
    try:
        require(isinstance(value, dict), "must be an object", value)
        require(set(value) == set(_FIELDS), f"must have {', '.join(_FIELDS)}", sorted(value))
        info = BackboneInfo.from_dict(value["info"])
        require(info.name == name, f"info's name must be {name!r}", info.name)
        return Entry(**value | {"info": info} | places)
    except ZooError as error:
        raise ZooError(f"entry {name!r}: {error}") from None
