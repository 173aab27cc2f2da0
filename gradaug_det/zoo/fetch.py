"""From an entry's name to a verified file: in a folder, cached, downloaded, or a sentence why not.

torch, which takes seconds to import, is needed only once there is a checkpoint to convert.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import requests

from gradaug_det.errors import ZooError
from gradaug_det.zoo.download import (
    compute_sha256,
    download,
    download_resuming,
    file_path,
    is_file_of,
    local_path,
    without_secrets,
)
from gradaug_det.zoo.index import Entry
from gradaug_det.zoo.info import CHECKPOINT_KEY
from gradaug_det.zoo.sources import find

_log = logging.getLogger(__name__)


def fetch(name: str, *, allow_unverified: bool = False, progress: bool | None = None) -> Path:
    """A backbone's safetensors file on this machine, its sha256 compared with its index's.

    Args:
        name: of an entry.
        allow_unverified: accept a file for which nobody published a sha256; what arrives is
            logged with its sha256. Needed once: what was accepted stays in the cache.
        progress: draw a progress bar on stderr; None: if that is a terminal.

    Raises:
        ZooError: there is no such entry, or no way to its file; the sentence says what to do.
    """
    entry = find(name)
    progress = sys.stderr.isatty() if progress is None else progress
    if entry.gdrive_id is not None:
        return _fetch_from_drive(entry, allow_unverified, progress)
    if isinstance(entry.home, Path):
        return _find_in_folder(entry)
    url = f"{entry.home.rstrip('/')}/{entry.file}" if entry.home else None
    shown = without_secrets(url) if url else None
    return download(entry, shown, partial(download_resuming, entry.size, progress, url))


def _find_in_folder(entry: Entry) -> Path:
    path = file_path(entry)
    if is_file_of(entry, path):
        return path
    state = "has another sha256 than the index says" if path.exists() else "is missing"
    raise ZooError(
        f"{path} {state}; put the file there ({entry.size} bytes, sha256 {entry.sha256}), or "
        "publish it again"
    )


def _fetch_from_drive(entry: Entry, allow_unverified: bool, progress: bool) -> Path:
    """The entry's file in the cache: downloaded once, and converted if it is a ``.pth``."""
    made = local_path(entry)
    converts = made.name != entry.file
    if converts and made.is_file():
        return made  # its folder is of this checkpoint
    if entry.sha256 is None and not allow_unverified:
        raise ZooError(
            f"{entry.name} was published without a sha256, so nobody can tell whether Google Drive "
            "delivers the right file: to take it as it is, run `gradaug-det zoo download "
            f"{entry.name} --allow-unverified` once; it shows the sha256 to compare"
        )
    url = f"https://drive.google.com/uc?id={entry.gdrive_id}"
    file = download(entry, url, partial(_download_from_drive, entry, progress))
    return _convert(file, entry, made) if converts else file


def _download_from_drive(
    entry: Entry, progress: bool, url: str, output_file: str, _pooch: object
) -> None:
    """With its first two arguments given, a downloader for pooch, by gdown."""
    try:
        import gdown
    except ImportError:
        raise ZooError(
            f"{entry.name} is on Google Drive, which needs gdown: pip install 'gradaug-det[gdrive]'"
        ) from None
    options = {"quiet": not progress, "use_cookies": False, "timeout": 30, "retries": 3}
    # gdown may leave a partial file: in a folder that goes away.
    with tempfile.TemporaryDirectory(dir=Path(output_file).parent) as folder:
        part = Path(folder) / entry.file
        try:
            gdown.download(id=entry.gdrive_id, output=str(part), **options)
        except (gdown.exceptions.DownloadError, requests.RequestException) as error:
            raise ZooError(f"cannot download {url}: {error}") from None
        part.replace(output_file)
    Path(output_file).chmod(0o644)


def _convert(checkpoint: Path, entry: Entry, made: Path) -> Path:
    """Writes the backbone file ``made`` from an untrusted checkpoint of the authors."""
    import torch

    from gradaug_det.utils.checkpoints import load_checkpoint
    from gradaug_det.zoo.backbone import save_backbone
    from gradaug_det.zoo.convert import rename

    digest = compute_sha256(checkpoint)
    verdict = "as published" if entry.sha256 else "not verified"
    _log.warning("%s: sha256 %s (%s)", checkpoint, digest, verdict)
    # The file that is made has a sha256 of its own: it notes the checkpoint's.
    info = replace(entry.info, recipe=entry.info.recipe | {CHECKPOINT_KEY: digest})
    try:
        state = rename(load_checkpoint(checkpoint), "authors", "torchvision")
        return save_backbone(made, state, info, dtype=torch.float32)  # as they came
    except ZooError as error:
        raise ZooError(
            f"{error}. {checkpoint} is not the file that {entry.name} describes; remove it and "
            "download it again"
        ) from None
