"""Whether a backbone file is what it should be: the index's file, whole, of its architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gradaug_det.errors import ZooError
from gradaug_det.zoo.backbone import read_backbone
from gradaug_det.zoo.download import compute_sha256, is_file_of, local_path
from gradaug_det.zoo.index import find
from gradaug_det.zoo.info import CHECKPOINT_KEY, BackboneInfo


def verify(name: str) -> str:
    """Check an entry's file on this machine, or a backbone file that is in no index.

    Args:
        name: of an entry, or the path of a ``.safetensors`` file.

    Returns:
        One line of what was found good.

    Raises:
        ZooError: the file is missing, or has another sha256 or description than the index says, or
            lacks tensors, or has shapes that are not the architecture's, or NaN.
    """
    entry = None if name.endswith(".safetensors") else find(name)
    path = Path(name) if entry is None else local_path(entry)
    if entry is not None and not path.is_file():
        raise ZooError(
            f"{name} is not on this machine ({path} is missing): `gradaug-det zoo download {name}`"
        )
    described = entry is not None and path.name == entry.file
    if described and not is_file_of(entry, path):
        raise ZooError(
            f"{path} is not the index's file ({entry.size} bytes, sha256 {entry.sha256}); remove "
            f"it and run `gradaug-det zoo download {name}`"
        )
    state, info = read_backbone(path)
    if entry is not None and _without_checkpoint(info) != entry.info:
        raise ZooError(f"{path} describes itself otherwise than the index describes {name}")
    digest = compute_sha256(path)
    origin = "as in the index" if described and entry.sha256 else "no index has it to compare"
    return (
        f"{path}: good: {len(state)} tensors of {info.architecture}, all finite, "
        f"sha256 {digest} ({origin})"
    )


def _without_checkpoint(info: BackboneInfo) -> BackboneInfo:
    recipe = {key: value for key, value in info.recipe.items() if key != CHECKPOINT_KEY}
    return replace(info, recipe=recipe)
