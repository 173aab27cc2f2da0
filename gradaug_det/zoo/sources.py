"""The zoos in use: those that GRADAUG_ZOO_URL names, in its order, then the built-in one."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
import re
from collections import ChainMap
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from gradaug_det.errors import ZooError
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.download import (
    OFFLINE_VARIABLE,
    URL_VARIABLE,
    cache_dir,
    download_text,
    is_offline,
    without_secrets,
)
from gradaug_det.zoo.index import (
    INDEX_NAME,
    MAX_INDEX_BYTES,
    Entry,
    Index,
    is_base_url,
    parse_index,
    read_index,
)

BUILT_IN = Path(__file__).parent / INDEX_NAME
# What the package's index names lies in this folder of the repository; a wheel has no such folder.
CHECKOUT = Path(__file__).parents[2] / "zoo"
_log = logging.getLogger(__name__)


def find(name: str) -> Entry:
    """The first zoo's entry of that name. Raises ZooError if no zoo has it."""
    indexes = load_indexes()
    entries = ChainMap(*(dict(index.entries) for index in indexes))
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(name, entries, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ZooError(
        f"the zoo has no backbone {name!r}: {hint}it has {', '.join(sorted(entries)) or 'none'} "
        f"(of {', '.join(index.address for index in indexes)}; {URL_VARIABLE} names more zoos)"
    )


def load_indexes() -> list[Index]:
    """The indexes of all zoos in use; of one name, the first zoo's entry is the one in force.

    A zoo whose server cannot be reached is left out, with a warning, if no copy of its index is
    in the cache.

    Raises:
        ZooError: an index is wrong, or a folder has none.
    """
    places = _split(os.environ.get(URL_VARIABLE, ""))
    named = [_load_remote(place) if "://" in place else _load_folder(place) for place in places]
    return [index for index in (*named, load_built_in()) if index is not None]


def load_built_in() -> Index:
    """The package's own index; its files are in the checkout, if this is one."""
    index = read_index(BUILT_IN)
    home = CHECKOUT if (CHECKOUT / INDEX_NAME).is_file() else index.base_url
    entries = {name: replace(entry, home=home) for name, entry in index.entries.items()}
    return replace(index, entries=entries)


def _split(text: str) -> list[str]:
    # Paths may have blanks in them: one ends a place only where another begins.
    return [place for place in re.split(r"\s*,\s*|\s+(?=https?://|[/~.])", text.strip()) if place]


def _load_folder(place: str) -> Index:
    path = Path(place).expanduser().absolute()  # whatever folder the process changes to
    return read_index(path if path.name == INDEX_NAME else path / INDEX_NAME)


def _load_remote(place: str) -> Index | None:
    base = place.rstrip("/").removesuffix(f"/{INDEX_NAME}")
    if not is_base_url(base):
        raise ZooError(
            f"{URL_VARIABLE} must name folders and http(s)://... without a ?, with commas between "
            f"them, got {without_secrets(place)!r}; correct or unset it"
        )
    key = hashlib.sha256(without_secrets(base).encode()).hexdigest()[:16]
    return _load_remote_once(base, cache_dir() / "indexes" / f"{key}.json", is_offline())


@lru_cache(maxsize=64)  # a training asks for it several times
def _load_remote_once(base: str, copy: Path, offline: bool) -> Index | None:
    url = f"{base}/{INDEX_NAME}"
    address, text = without_secrets(url), None
    try:
        if offline:
            raise ZooError(f"{OFFLINE_VARIABLE} is set")
        text = download_text(url, MAX_INDEX_BYTES)
    except ZooError as error:
        if not copy.is_file():
            _log.warning("%s; the zoo %s is left out: no copy of its index is here", error, address)
            return None
        if not offline:
            _log.warning("%s; the index is the one of an earlier time", error)
    index = parse_index(copy.read_bytes() if text is None else text, address, base)
    if text is not None:
        # Where nothing can be written, the download of a file will say so.
        with contextlib.suppress(OSError), atomic_path(copy) as temporary:
            temporary.write_bytes(text)
    return index
