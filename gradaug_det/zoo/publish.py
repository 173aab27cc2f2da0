"""Checks backbone files, adds them to an index, and writes what MODEL_ZOO.md shows of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gradaug_det.errors import ZooError
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.backbone import read_backbone
from gradaug_det.zoo.download import compute_sha256, is_file_of, local_path
from gradaug_det.zoo.index import Entry, find, load_index
from gradaug_det.zoo.info import CHECKPOINT_KEY, require

_COLUMNS = "| name | architecture | MB | top-1 | other metrics | sha256 | licence |"


def verify(name: str) -> str:
    """Check a file: an entry's on this machine, or the ``.safetensors`` of that path.

    Returns:
        One line of what was found good; anything else is a ZooError.
    """
    entry = None if name.endswith(".safetensors") else find(name)
    path = Path(name) if entry is None else local_path(entry)
    if entry is not None and not path.is_file():
        raise ZooError(
            f"{name} is not on this machine ({path} is missing): `gradaug-det zoo download {name}`"
        )
    # A file that was converted on this machine is in no index: its checkpoint is.
    is_indexed = entry is not None and path.name == entry.file
    if is_indexed and not is_file_of(entry, path):
        raise ZooError(
            f"{path} is not the index's file ({entry.size} bytes, sha256 {entry.sha256}); remove "
            f"it and run `gradaug-det zoo download {name}`"
        )
    state, info = read_backbone(path)
    recipe = {key: value for key, value in info.recipe.items() if key != CHECKPOINT_KEY}
    if entry is not None and replace(info, recipe=recipe) != entry.info:
        raise ZooError(f"{path} describes itself otherwise than the index describes {name}")
    origin = "as in the index" if is_indexed and entry.sha256 else "no index has it to compare"
    return (
        f"{path}: good: {len(state)} tensors of {info.architecture}, all finite, "
        f"sha256 {compute_sha256(path)} ({origin})"
    )


def add_file(
    file: str | Path,
    description: str,
    *,
    index: str | Path | None = None,
    kind: str = "packaged",
    measured: bool = True,
) -> Entry:
    """Add a backbone file to an index, or replace the entry of its name.

    Args:
        file: what ``save_backbone`` wrote; it names the entry and describes it.
        index: an index.json; made if it is missing. By default the index in use.
        kind: ``packaged``: the file is copied beside the index; ``url``: it stays where it is, to
            be served as ``NAME.safetensors``.
        measured: False if the metrics are somebody else's claim.

    Raises:
        ZooError: something in the file, the index or the arguments is wrong; nothing was written.
    """
    file = Path(file)
    require(kind in ("packaged", "url"), "kind must be packaged or url", kind)
    _, info = read_backbone(file)  # also refuses a file that is damaged or not finite
    if index is None or Path(index).exists():
        old = load_index(index)
        path, base_url, entries = old.path, old.base_url, dict(old.entries)
    else:
        path, base_url, entries = Path(index), None, {}
    entry = Entry(
        description=description,
        file=f"{info.name}.safetensors",
        kind=kind,
        size=file.stat().st_size,
        sha256=compute_sha256(file),
        gdrive_id=None,
        measured=measured,
        info=info,
        folder=path.parent,
    )
    # The file goes before the index: an index never names a file that is not there.
    target = entry.packaged_path
    if kind == "packaged" and not (target.exists() and target.samefile(file)):
        with atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)
    write_index(path, base_url, entries | {entry.name: entry})
    return entry


def write_index(path: Path, base_url: str | None, entries: Mapping[str, Entry]) -> None:
    """Write an index.json, entries and fields in the alphabet's order."""
    data = {"base_url": base_url, "entries": {name: e.to_dict() for name, e in entries.items()}}
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def backbone_table(entries: Mapping[str, Entry]) -> str:
    """The backbones as a table in Markdown; ``*`` marks metrics that were not measured here."""
    lines = [_COLUMNS, "|:--|:--|--:|--:|:--|:--|:--|"]
    for _, entry in sorted(entries.items()):
        mark = "" if entry.measured else "*"
        metrics = {name: f"{value:.2f}{mark}" for name, value in entry.info.metrics.items()}
        cells = (
            f"`{entry.name}`",
            entry.info.architecture,
            f"{entry.size / 1e6:.1f}" if entry.size else "",
            metrics.pop("top1", ""),
            ", ".join(f"{name} {value}" for name, value in sorted(metrics.items())),
            f"`{entry.sha256[:12]}`" if entry.sha256 else "none published",
            entry.info.licence,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
