"""The zoo in Detectron2: ``MODEL.WEIGHTS: "gradaug://NAME"`` with any DetectionCheckpointer."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from gradaug_det.errors import ZooError
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.convert import for_detectron2
from gradaug_det.zoo.download import CACHE_VARIABLE, cache_dir, compute_sha256
from gradaug_det.zoo.url import SCHEME, ZooURL, parse_url

_REVISION = 1  # of the converted files' content


def zoo_url(text: object) -> ZooURL | None:
    """The zoo's URL in a config's value; None if it is none. Raises ConfigError if it is wrong."""
    return parse_url(text, "BGR")  # the default of cfg.INPUT.FORMAT


class GradAugZooHandler(PathHandler):
    """Resolves ``gradaug://`` for Detectron2's PathManager."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """A file of tensors for any checkpointer, made once and kept beside the downloads."""
        self._check_kwargs(kwargs)
        url = zoo_url(path)
        source = url.path()
        # Another file of the same name is another conversion, and so is another order.
        key = f"{compute_sha256(source)[:16]}-{url.order}-{_REVISION}"
        target = cache_dir() / "detectron2" / f"{source.stem}-{key}.pth"
        if not target.is_file():
            _write(for_detectron2(url.load("detectron2")), target)
        return str(target)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)


def _write(content: dict[str, Any], target: Path) -> None:
    try:
        with atomic_path(target) as temporary:
            torch.save(content, temporary)
    except OSError as error:
        raise ZooError(
            f"cannot write {target}: {error.strerror or error}; make the folder writable, or name "
            f"another in {CACHE_VARIABLE}"
        ) from None


PathManager.register_handler(GradAugZooHandler(), allow_override=True)
