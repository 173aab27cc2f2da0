"""MMEngine's loading of local checkpoints, without its second try that runs what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader, checkpoint

from gradaug_det.errors import ZooError
from gradaug_det.zoo.unpickle import load_checkpoint
from gradaug_det.zoo.url import refuse_bare_backbone


def load_files_safely() -> None:
    """From now on, MMEngine refuses local checkpoints with code in them (in this process).

    MMEngine reads a checkpoint with PyTorch's ``weights_only=True``, and if that refuses it, once
    more without. Not done where MMEngine or PyTorch (before 2.5) cannot name the few harmless
    classes that a training's own checkpoints hold.
    """
    if hasattr(checkpoint, "get_torch_safe_globals") and hasattr(
        torch.serialization, "safe_globals"
    ):
        CheckpointLoader.register_scheme("", load_from_local, force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint of this machine, for MMEngine's CheckpointLoader.

    Args:
        filename: its path.
        map_location: not used: tensors are on the CPU, and are copied to where they belong.

    Raises:
        ZooError: the file is missing, holds more than weights and states, or cannot be read.
    """
    path = Path(filename).expanduser()
    refuse_bare_backbone(path)
    with torch.serialization.safe_globals(checkpoint.get_torch_safe_globals()):
        content = load_checkpoint(path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ZooError(
            f"the checkpoint {path} holds no state_dict of tensors by name; is it MMDetection's?"
        )
    return content
