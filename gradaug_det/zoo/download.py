"""From an entry's name to a verified file: packaged, cached, downloaded, or a sentence why not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pooch

from gradaug_det.errors import ZooError
from gradaug_det.zoo.index import Entry, is_base_url, load_index
from gradaug_det.zoo.resuming import PatientDownloader

CACHE_VARIABLE = "GRADAUG_CACHE"
URL_VARIABLE = "GRADAUG_ZOO_URL"
OFFLINE_VARIABLE = "GRADAUG_OFFLINE"


def fetch(name: str, *, allow_unverified: bool = False, progress: bool | None = None) -> Path:
    """A backbone's safetensors file on this machine, its sha256 compared with the index's.

    Args:
        name: of an entry.
        allow_unverified: accept a file for which nobody published a sha256; what arrives is
            logged with its sha256. Needed once: what was accepted stays in the cache.
        progress: draw a progress bar on stderr; None: if that is a terminal.

    Raises:
        ZooError: there is no such entry, or no way to its file; the sentence says what to do.
    """
    index = load_index()
    entry = index.find(name)
    if progress is None:
        progress = sys.stderr.isatty()
    if entry.kind == "packaged":
        return _packaged(entry)
    if entry.kind == "gdrive":
        from gradaug_det.zoo.gdrive import fetch_from_drive  # which imports this module

        return fetch_from_drive(entry, allow_unverified, progress)
    base = os.environ.get(URL_VARIABLE) or index.base_url
    if base is not None and not is_base_url(base):
        raise ZooError(f"{URL_VARIABLE} must be http(s)://..., got {base!r}; correct or unset it")
    url = f"{base.rstrip('/')}/{entry.file}" if base else None
    return download(entry, url, PatientDownloader(entry.size or 0, progressbar=progress))


def cache_dir() -> Path:
    """The folder of downloaded files: GRADAUG_CACHE, or the system's folder for caches."""
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("gradaug_det")).expanduser()


def local_path(entry: Entry) -> Path:
    """Where the entry's backbone file is on this machine, if it is."""
    if entry.kind == "packaged":
        return entry.packaged_path
    return cache_dir() / Path(entry.file).with_suffix(".safetensors").name


def matches(path: Path, entry: Entry) -> bool:
    """Whether a file is the entry's, by size and sha256; any file, if those are unknown."""
    return (
        path.is_file()
        and entry.size in (None, path.stat().st_size)
        and entry.sha256 in (None, pooch.file_hash(str(path)))
    )


def download(entry: Entry, url: str | None, downloader: pooch.typing.Downloader) -> Path:
    """The entry's file in the cache; whole and verified, or not there.

    pooch downloads to a temporary name, compares the sha256 and renames: two processes that
    download at once both end with a good file. After a wrong sha256 it tries once more, from the
    first byte.

    Args:
        url: what to download, or None if no base URL is known.
        downloader: for that URL.
    """
    folder = cache_dir()
    target = folder / entry.file
    try:
        if matches(target, entry):
            return target
        if url is None:
            raise ZooError(f"{entry.name} is not in the cache and no base URL is known")
        if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
            state = "has another sha256" if target.exists() else "is missing"
            raise ZooError(f"{OFFLINE_VARIABLE} is set and {target} {state}; the file is at {url}")
        known = f"sha256:{entry.sha256}" if entry.sha256 else None
        store = pooch.create(folder, "", registry={entry.file: known}, retry_if_failed=1)
        store.urls[entry.file] = url
        return Path(store.fetch(entry.file, downloader=downloader))
    except ZooError as error:
        raise ZooError(f"{error}; {_way_out(entry, target)}") from None
    except ValueError as error:  # pooch's, for the hash
        raise ZooError(f"{url}: {error} {_way_out(entry, target)}") from None
    except OSError as error:
        # pooch writes a longer sentence around the system's.
        reason = error.strerror or getattr(error.__cause__, "strerror", None) or error
        raise ZooError(
            f"cannot write to the cache folder {folder}: {reason}; make it writable, with "
            f"{entry.size or 'enough'} bytes free, or name another in {CACHE_VARIABLE}"
        ) from None


def _packaged(entry: Entry) -> Path:
    path = entry.packaged_path
    if matches(path, entry):
        return path
    state = "has another sha256 than the index says" if path.exists() else "is missing"
    raise ZooError(
        f"{path} {state}; install gradaug_det anew, or put the file there "
        f"({entry.size} bytes, sha256 {entry.sha256})"
    )


def _way_out(entry: Entry, target: Path) -> str:
    mirror = f"set {URL_VARIABLE} to a base URL that has {entry.file}, or "
    return (
        f"{mirror if entry.kind == 'url' else ''}put the file at {target} yourself "
        f"({entry.size or 'unknown'} bytes, sha256 {entry.sha256 or 'unknown'})"
    )
