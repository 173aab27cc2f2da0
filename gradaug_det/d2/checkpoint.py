"""Detectron2's checkpointer, reading files without running what may be in them."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer

from gradaug_det.d2.zoo import zoo_url
from gradaug_det.errors import GradAugError, ZooError
from gradaug_det.zoo.unpickle import load_checkpoint
from gradaug_det.zoo.url import refuse_bare_backbone


class _SafeFiles(Checkpointer):
    """Below DetectionCheckpointer in the order of classes: reads PyTorch's files for it."""

    def _load_file(self, f: str) -> dict[str, Any]:
        return load_checkpoint(f)


class SafeCheckpointer(DetectionCheckpointer, _SafeFiles):
    """A DetectionCheckpointer for files from anywhere.

    Raises:
        ZooError: a file holds more than weights and states, or cannot be read.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Here, because Detectron2's main branch takes what follows the ? for its own.
        if zoo_url(path) is not None:
            path = PathManager.get_local_path(path)
        refuse_bare_backbone(path)
        try:
            return super().load(path, *args, **kwargs)
        # Of Detectron2, where names or values are not what a detector's are, or a file is missing.
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
            if isinstance(e, GradAugError):
                raise
            reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
            raise ZooError(
                f"the checkpoint {path} cannot be loaded ({reason}); is it Detectron2's, of this "
                "detector?"
            ) from e

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return _with_author(load_checkpoint(filename))
        if filename.endswith(".pyth"):
            load_checkpoint(filename)  # refused here; before torch 2.6 Detectron2 would run it
        return super()._load_file(filename)


def _with_author(data: dict[str, Any]) -> dict[str, Any]:
    """A pickle's content as DetectionCheckpointer returns it: Detectron2's own, or Detectron's."""
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    model = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
