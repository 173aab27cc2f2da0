"""The zoo in Detectron2: ``MODEL.WEIGHTS: "gradaug://NAME"`` with any DetectionCheckpointer."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from gradaug_det.errors import ZooError
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.download import CACHE_VARIABLE, cache_dir, compute_sha256
from gradaug_det.zoo.url import SCHEME, ZooURL, parse_url

USUAL_ORDER = "BGR"  # cfg.INPUT.FORMAT's default
_REVISION = 1  # of the converted files' content


def zoo_url(text: object) -> ZooURL | None:
    """The zoo's URL in a config's value; None if it is none. Raises ConfigError if it is wrong."""
    return parse_url(text, USUAL_ORDER)


def converted_file(url: ZooURL) -> Path:
    """A file with the weights for Detectron2, made once and kept beside the downloads.

    It holds tensors only, so any checkpointer reads it safely, and asks Detectron2 to match names
    by their ends: ``res2.0.conv1.weight`` fills ``backbone.bottom_up.res2...`` and
    ``backbone.res2...``.

    Raises:
        ZooError: there is no such backbone, or the cache cannot be written.
    """
    source = url.path()
    key = f"{compute_sha256(source)[:16]}-{url.order}-{_REVISION}"
    target = cache_dir() / "detectron2" / f"{source.stem}-{key}.pth"
    if target.is_file():
        return target
    content = {
        "model": url.load("detectron2"),
        "__author__": "gradaug_det",
        "matching_heuristics": True,
    }
    try:
        with atomic_path(target) as temporary:
            torch.save(content, temporary)
    except OSError as error:
        raise ZooError(
            f"cannot write {target}: {error.strerror or error}; make the folder writable, or name "
            f"another in {CACHE_VARIABLE}"
        ) from None
    return target


class GradAugZooHandler(PathHandler):
    """Resolves ``gradaug://`` for Detectron2's PathManager."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return str(converted_file(zoo_url(path)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)


PathManager.register_handler(GradAugZooHandler(), allow_override=True)
