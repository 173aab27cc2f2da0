"""The authors' published weights: from Google Drive, through gdown, made a backbone file here.

torch, which takes seconds to import, is needed only once there is something to convert.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch
import requests

from gradaug_det.errors import ZooError
from gradaug_det.zoo.download import download, local_path
from gradaug_det.zoo.index import Entry
from gradaug_det.zoo.info import CHECKPOINT_KEY
from gradaug_det.zoo.resuming import TIMEOUT_SECONDS

_RETRIES = 3
_log = logging.getLogger(__name__)


def fetch_from_drive(entry: Entry, allow_unverified: bool, progress: bool) -> Path:
    """The entry's file in the cache: downloaded once, and converted if it is a ``.pth``.

    Raises:
        ZooError: the file has no published sha256 and ``allow_unverified`` is not set, or gdown is
            missing or fails, or the file is not what the entry says; the sentence says what to do.
    """
    if entry.file.endswith(".safetensors"):
        return download(entry, _url(entry), _Drive(entry, progress))
    made = local_path(entry)
    if made.is_file():
        return _accepted(made, entry)
    if entry.sha256 is None and not allow_unverified:
        raise ZooError(
            f"{entry.name} was published without a sha256, so nobody can tell whether Google Drive "
            "delivers the right file: to take it as it is, run `gradaug-det zoo download "
            f"{entry.name} --allow-unverified` once; it shows the sha256 to compare"
        )
    return _converted(download(entry, _url(entry), _Drive(entry, progress)), entry, made)


def _converted(checkpoint: Path, entry: Entry, made: Path) -> Path:
    """The backbone file ``made``, from an untrusted checkpoint."""
    import torch

    from gradaug_det.utils.checkpoints import load_checkpoint
    from gradaug_det.zoo.backbone import save_backbone
    from gradaug_det.zoo.convert import authors_to_torchvision

    digest = pooch.file_hash(str(checkpoint))
    verdict = "as published" if entry.sha256 else "not verified"
    _log.warning("%s: sha256 %s (%s)", checkpoint, digest, verdict)
    info = replace(entry.info, recipe=entry.info.recipe | {CHECKPOINT_KEY: digest})
    try:
        state = authors_to_torchvision(load_checkpoint(checkpoint))
        return save_backbone(made, state, info, dtype=torch.float32)  # as they came
    except ZooError as error:
        raise ZooError(
            f"{error}. {checkpoint} is not the file that {entry.name} describes; remove it and "
            "download it again"
        ) from None


class _Drive:
    """gdown as pooch's downloader."""

    def __init__(self, entry: Entry, progress: bool) -> None:
        self.entry, self.progress = entry, progress

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Write the entry's file to the path ``output_file``."""
        try:
            import gdown
        except ImportError:
            raise ZooError(
                f"{self.entry.name} is on Google Drive, which needs gdown: "
                "pip install 'gradaug-det[gdrive]'"
            ) from None
        target = Path(output_file)
        # gdown may leave a partial file: in a folder that goes away.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            part = Path(folder) / self.entry.file
            try:
                gdown.download(
                    id=self.entry.gdrive_id,
                    output=str(part),
                    quiet=not self.progress,
                    use_cookies=False,
                    timeout=TIMEOUT_SECONDS,
                    retries=_RETRIES,
                )
            except (gdown.exceptions.DownloadError, requests.RequestException) as error:
                raise ZooError(f"cannot download {url}: {error}") from None
            part.replace(target)
        target.chmod(0o644)


def _url(entry: Entry) -> str:
    return f"https://drive.google.com/uc?id={entry.gdrive_id}"


def _accepted(path: Path, entry: Entry) -> Path:
    """The file made earlier, if it is of this entry's checkpoint."""
    from gradaug_det.zoo.backbone import read_info

    info = read_info(path)
    digest = info.recipe.get(CHECKPOINT_KEY)
    if info.name != entry.name or entry.sha256 not in (None, digest):
        raise ZooError(
            f"{path} was made from another checkpoint (sha256 {digest}) than the index's "
            f"{entry.name}; remove it and download it again"
        )
    return path
