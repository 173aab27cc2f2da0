"""Detections of images on disk as they come, so that an interrupted benchmark goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)


class DetectionStore:
    """One line of JSON an image; a process has a file of its own.

    Args:
        folder: of one detector, width and change.
        rank: of this process.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.file = self.folder / f"rank{rank}.jsonl"

    def read(self) -> dict[int, list[dict]]:
        """Returns COCO results by image id, of all processes of this and earlier runs.

        A line that was cut off, by a kill or a full disk, counts as not there.
        """
        found: dict[int, list[dict]] = {}
        for file in sorted(self.folder.glob("rank*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    found[entry["image_id"]] = entry["results"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    logger.warning("%s has an incomplete line, which counts as not there", file)
        return found

    def write(self, results: Iterable[tuple[int, list[dict]]]) -> None:
        """Appends (image id, its COCO results), each before the next one is asked for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            if file.tell() and not self.file.read_bytes().endswith(b"\n"):
                file.write("\n")  # ends what an interrupted process left unfinished
            for image_id, found in results:
                file.write(json.dumps({"image_id": image_id, "results": found}) + "\n")
                file.flush()  # a kill costs one image
