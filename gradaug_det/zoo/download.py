"""Downloads into the zoo's cache: a file is in it whole and verified, or not at all."""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import pooch
import requests
from tqdm import tqdm

from gradaug_det.errors import ZooError
from gradaug_det.zoo.index import Entry

CACHE_VARIABLE = "GRADAUG_CACHE"
URL_VARIABLE = "GRADAUG_ZOO_URL"
OFFLINE_VARIABLE = "GRADAUG_OFFLINE"
ATTEMPTS = 4
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each further one
TIMEOUT_SECONDS = 30
_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The folder of downloaded files: GRADAUG_CACHE, or the system's folder for caches."""
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("gradaug_det")).expanduser()


def is_offline() -> bool:
    """Returns whether GRADAUG_OFFLINE forbids downloads."""
    return os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0")


def without_secrets(text: object) -> str:
    """A message about URLs without the passwords in them, and the signatures after a ``?``."""
    return re.sub(r"(?<=://)[^\s/?#]*@|\?\S+", "", str(text))


def file_path(entry: Entry) -> Path:
    """The place of the entry's file on this machine: in the zoo's folder or in the cache."""
    if isinstance(entry.home, Path) and entry.gdrive_id is None:
        return entry.home / entry.file
    # Zoos may have different files of one name, and a zoo may replace one.
    return cache_dir() / (entry.sha256 or entry.gdrive_id)[:40] / entry.file


def local_path(entry: Entry) -> Path:
    """Where the entry's backbone is on this machine, if it is."""
    # Trained weights of others are .pth: read once, without running them, and kept as a backbone.
    return file_path(entry).with_suffix(".safetensors")


def compute_sha256(path: Path) -> str:
    """The sha256 of a file, read once a process as long as the file stays the same."""
    # A start asks for the same file several times. Whatever replaces or changes it changes one of
    # these numbers, unless within a tick of the file system's clock, which can last 2 s.
    status = path.stat()
    if time.time() - status.st_ctime < 3:
        return pooch.file_hash(str(path))
    identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return _compute_sha256(str(path), identity)


@lru_cache(maxsize=64)
def _compute_sha256(path: str, _identity: tuple[int, ...]) -> str:
    return pooch.file_hash(path)


def is_file_of(entry: Entry, path: Path) -> bool:
    """Returns whether a file has the entry's size and sha256, as far as the index knows them."""
    return (
        path.is_file()
        and entry.size in (None, path.stat().st_size)
        and entry.sha256 in (None, compute_sha256(path))
    )


def download(entry: Entry, url: str | None, downloader: pooch.typing.Downloader) -> Path:
    """The entry's file in the cache, downloaded if it is not there.

    pooch downloads to a temporary name, compares the sha256 and renames: two processes that
    download at once both end with a good file. After a wrong sha256 it tries once more, from the
    first byte.

    Args:
        url: what to download, for messages, or None if no address is known.
        downloader: for that URL.

    Raises:
        ZooError: the file cannot be had, or the cache cannot be written; says what to do.
    """
    target = file_path(entry)
    try:
        if is_file_of(entry, target):
            return target
        if url is None:
            raise ZooError(
                f"{entry.name} is not in the cache, and {entry.index} names no address of it: "
                "a release of gradaug_det has it among its files, a checkout in its folder zoo"
            )
        if is_offline():
            state = "has another sha256" if target.exists() else "is missing"
            raise ZooError(f"{OFFLINE_VARIABLE} is set and {target} {state}; the file is at {url}")
        # With no sha256 pooch takes what arrives; the caller has asked for that.
        known = f"sha256:{entry.sha256}" if entry.sha256 else None
        store = pooch.create(target.parent, "", registry={entry.file: known}, retry_if_failed=1)
        store.urls[entry.file] = url
        return Path(store.fetch(entry.file, downloader=downloader))
    except (ZooError, ValueError) as error:  # ValueError: pooch's, for the hash
        mirror = f"set {URL_VARIABLE} to the URL or folder of a zoo that has it, or "
        problem = str(error) if isinstance(error, ZooError) else f"{url}: {error}"
        raise ZooError(
            f"{problem.rstrip('.')}; {'' if entry.gdrive_id else mirror}put the file at {target} "
            f"yourself ({entry.size or 'unknown'} bytes, sha256 {entry.sha256 or 'unknown'})"
        ) from None
    except OSError as error:
        # pooch writes a longer sentence around the system's.
        reason = error.strerror or getattr(error.__cause__, "strerror", None) or error
        raise ZooError(
            f"cannot write to the cache folder {cache_dir()}: {reason}; make it writable, with "
            f"{entry.size or 'enough'} bytes free, or name another in {CACHE_VARIABLE}"
        ) from None


def download_text(url: str, most: int) -> bytes:
    """A small file of a server. Raises ZooError if it has more bytes than ``most``, or fails."""
    file = io.BytesIO()
    _try(lambda: deque(_read_on(url, file, most), maxlen=0), url, attempts=2)
    return file.getvalue()


def download_resuming(
    size: int, progress: bool, url: str, _shown: str, output_file: str, _pooch: object = None
) -> None:
    """With its first three arguments given, a downloader for pooch with patience.

    Whether the pieces fit is not judged here: pooch compares the sha256.

    Args:
        size: bytes of the file; a server that sends more is cut off.
        progress: draw a bar on stderr.
        url: may have a password in it, unlike the one that pooch prints.

    Raises:
        ZooError: at the last attempt's failure, or at once at one that would not pass (a 404).
    """
    # No library does it: pooch retries a 404 and begins each time anew, and so does urllib3's Retry
    # with a body that breaks off. Hugging Face's http_get gives up after a 500 or a reset, and
    # writes what a server sends without end; resumable-urlretrieve tries nothing again.
    path = Path(output_file)
    path.chmod(0o644)  # pooch's temporary files are the user's alone
    with (
        path.open("wb") as file,
        tqdm(total=size, unit="B", unit_scale=True, disable=not progress) as bar,
    ):

        def read() -> None:
            for _ in _read_on(url, file, size):
                bar.update(file.tell() - bar.n)
            if file.tell() < size:  # a body without Content-Length ends like a whole one
                raise requests.ConnectionError(f"{file.tell()} of {size} bytes arrived")

        _try(read, url, ATTEMPTS)


def _try(read: Callable[[], object], url: str, attempts: int) -> None:
    """Calls ``read`` until the network lets it pass. Raises ZooError if it does not."""
    for attempt in range(1, attempts + 1):
        try:
            read()
            return
        except requests.RequestException as error:
            reason = without_secrets(error)
            if attempt == attempts or not _may_pass(error):
                tries = f"{attempt} attempts" if attempt > 1 else "1 attempt"
                problem = f"cannot download {without_secrets(url)} ({tries}): {reason}"
                raise ZooError(problem) from None
            pause = PAUSE_SECONDS * 2 ** (attempt - 1)
            _log.warning("%s; attempt %d of %d in %g s", reason, attempt + 1, attempts, pause)
            time.sleep(pause)


def _read_on(url: str, file: BinaryIO, most: int) -> Iterator[None]:
    """Appends to the file what it lacks, a chunk at a time, up to ``most`` bytes in all."""
    # A compressed answer would have another length and other ranges.
    headers = {"Accept-Encoding": "identity"}
    if start := file.tell():
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        response.raise_for_status()
        # A server that knows no ranges answers 200 and sends the file from its first byte.
        span = re.match(r"bytes (\d{1,12})-", response.headers.get("Content-Range", ""))
        file.seek(int(span[1]) if span and response.status_code == 206 else 0)
        file.truncate()
        for chunk in response.iter_content(2**16):
            if file.tell() + len(chunk) > most:
                raise ZooError(
                    f"the server sends more than {most} bytes for {without_secrets(url)}"
                )
            file.write(chunk)
            yield


def _may_pass(error: requests.RequestException) -> bool:
    # A server's overload passes, and so does a broken line; a wrong name or certificate does not.
    if error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)
