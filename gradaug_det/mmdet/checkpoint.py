"""MMEngine's loading of checkpoints, without running what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint

from gradaug_det.errors import ZooError
from gradaug_det.utils.checkpoints import load_checkpoint
from gradaug_det.zoo.url import refuse_bare_backbone


def load_files_safely() -> None:
    """From now on, MMEngine refuses checkpoints with code in them (in this process).

    Whatever MMEngine's and PyTorch's versions, and wherever they come from: all of MMEngine's
    loaders (local, http, torchvision, open-mmlab, mmcls, pavi, s3) end in the two functions that
    are replaced in its module here. Loaders that others registered are theirs.
    """
    # MMEngine's module looks both names up each time that it loads.
    checkpoint.torch = _Torch("torch")
    checkpoint.load_url = load_from_url
    CheckpointLoader.register_scheme("", load_from_local, force=True)


class _Torch(ModuleType):
    # PyTorch for MMEngine's loaders: it reads files as we do.
    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: Any, *_: Any, **__: Any) -> dict[str, Any]:
        if isinstance(file, (str, os.PathLike)):
            return load_checkpoint(file, HistoryBuffer)
        with TemporaryDirectory() as folder:  # what a storage sent, from memory
            path = Path(folder) / "checkpoint"
            path.write_bytes(file.read())
            return load_checkpoint(path, HistoryBuffer)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint of this machine, for MMEngine's CheckpointLoader.

    Args:
        map_location: not used: tensors are on the CPU, and are copied to where they belong.

    Raises:
        ZooError: the file is missing, holds more than weights and states, or cannot be read.
    """
    path = Path(filename).expanduser()
    refuse_bare_backbone(path)
    content = load_checkpoint(path, HistoryBuffer)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ZooError(
            f"the checkpoint {path} holds no state_dict of tensors by name; is it MMDetection's?"
        )
    return content


def load_from_url(
    url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True
) -> dict[str, Any]:
    """:func:`load_from_local` of the web, in place of ``torch.hub.load_state_dict_from_url``.

    Args:
        model_dir: the folder to keep the file in; None: PyTorch's own.
        progress: show how far the download is.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir()) / "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / Path(urlparse(url).path).name
    if not file.exists():
        torch.hub.download_url_to_file(url, str(file), progress=progress)
    return load_from_local(str(file))
