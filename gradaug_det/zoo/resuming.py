"""pooch's HTTP download, with patience: retries with growing pauses, and resumes by Range."""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path
from typing import Any

import pooch
import requests

from gradaug_det.errors import ZooError

ATTEMPTS = 4
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each further one
TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 2**16
_log = logging.getLogger(__name__)


class PatientDownloader(pooch.HTTPDownloader):
    """Downloads one file of known size (see `pooch.HTTPDownloader`).

    pooch itself would retry a 404 and start from the first byte each time. Here an attempt goes on
    where the last one broke off if the server answers 206, and begins again if it answers 200.
    Whether the pieces fit is not judged here: the caller compares the sha256.

    Args:
        size: bytes of the file; a server that sends more is cut off.
        progressbar: draw one on stderr.

    Raises:
        ZooError: at the last attempt's failure, or at once at one that would not pass (a 404).
    """

    def __init__(self, size: int, progressbar: bool = False) -> None:
        super().__init__(progressbar, chunk_size=_CHUNK_BYTES, timeout=TIMEOUT_SECONDS)
        self.size = size

    def __call__(
        self, url: str, output_file: str, pooch: Any = None, check_only: bool = False
    ) -> None:
        """Write what ``url`` delivers to the path ``output_file``."""
        with _Part(output_file, self.size) as part:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._attempt(url, part, pooch)
                    break
                except requests.RequestException as error:
                    if attempt == ATTEMPTS or not _may_pass(error):
                        tries = f"{attempt} attempts" if attempt > 1 else "1 attempt"
                        raise ZooError(f"cannot download {url} ({tries}): {error}") from None
                    pause = PAUSE_SECONDS * 2 ** (attempt - 1)
                    _log.warning(
                        "%s; attempt %d of %d in %g s, from byte %d",
                        *(error, attempt + 1, ATTEMPTS, pause, part.tell()),
                    )
                    time.sleep(pause)
        Path(output_file).chmod(0o644)  # pooch's temporary files are the user's alone

    def _attempt(self, url: str, part: _Part, pooch: Any) -> None:
        start = part.tell()
        self.kwargs["hooks"] = {"response": part.begin}
        # A compressed answer would have another length and other ranges.
        self.kwargs["headers"] = {"Accept-Encoding": "identity"}
        if start:
            self.kwargs["headers"]["Range"] = f"bytes={start}-"
        try:
            super().__call__(url, part, pooch)
        finally:
            part.hang_up()  # pooch leaves that to the garbage collector, and a server waiting
        if part.tell() < self.size:  # a body without Content-Length ends like a whole one
            raise requests.ConnectionError(f"{part.tell()} of {self.size} bytes arrived")


class _Part(io.BufferedWriter):
    """The file being downloaded; never longer than ``limit`` bytes."""

    def __init__(self, path: str, limit: int) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.limit = limit
        self._response: requests.Response | None = None

    def begin(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Go where the body that follows belongs: its range's start, or the file's."""
        self._response = response
        if 200 <= response.status_code < 300:
            span = re.match(r"bytes (\d{1,12})-", response.headers.get("Content-Range", ""))
            self.seek(int(span[1]) if span and response.status_code == 206 else 0)
            self.truncate()

    def hang_up(self) -> None:
        """Close the connection."""
        if self._response is not None:
            self._response.close()

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self.limit:
            raise ZooError(f"the server sends more than the {self.limit} bytes of the file")
        return super().write(data)


def _may_pass(error: requests.RequestException) -> bool:
    """Whether another attempt can succeed."""
    if error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)
