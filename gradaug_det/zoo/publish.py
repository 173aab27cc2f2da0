"""Checks backbone files, and makes zoos of them: folders that any server serves as they are."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gradaug_det.errors import ZooError
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.backbone import read_backbone
from gradaug_det.zoo.card import model_card
from gradaug_det.zoo.download import compute_sha256, is_file_of, local_path
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.index import INDEX_NAME, Entry, read_index, write_index
from gradaug_det.zoo.info import CHECKPOINT_KEY, require
from gradaug_det.zoo.sources import find


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


def publish(
    out: str | Path,
    sources: Iterable[str],
    *,
    description: str | None = None,
    claimed: bool = False,
) -> list[Entry]:
    """Makes a zoo of a folder, or brings one up to date: files, index.json and README.md.

    Args:
        out: the folder. What its index has stays in it; an entry of a source's name is replaced.
        sources: paths of files that ``save_backbone`` wrote, and names of entries of zoos in use.
        description: one line, of the one source that there is then; a file's own is, without it,
            that of the entry that it replaces, or architecture and source.
        claimed: the files' metrics are somebody's claim, which you did not measure.

    Returns:
        The sources' entries.

    Raises:
        ZooError: something in a source, the folder or the arguments is wrong; nothing was written.
    """
    out, sources = Path(out), list(sources)
    rule = "a description belongs to one file or name; publish them one by one"
    require(description is None or len(sources) == 1, rule, len(sources))
    old = read_index(out / INDEX_NAME) if (out / INDEX_NAME).exists() else None
    require(old or sources, f"{out} is no zoo yet: name the files that it is to have", sources)
    known = dict(old.entries) if old else {}
    new, files = {}, {}
    for source in sources:
        if source.endswith(".safetensors"):
            file = Path(source)
            _, info = read_backbone(file)  # also refuses a file that is damaged or not finite
            was = known.get(info.name)
            entry = Entry(
                description=was.description if was else f"{info.architecture}, {info.source}"[:300],
                file=f"{info.name}.safetensors",
                size=file.stat().st_size,
                sha256=compute_sha256(file),
                gdrive_id=None,
                measured=not claimed,
                info=info,
                index=str(out / INDEX_NAME),
                home=out,
            )
        else:
            entry = replace(find(source), index=str(out / INDEX_NAME), home=out)
            file = None if entry.gdrive_id else fetch(source)
        if description is not None:
            entry = replace(entry, description=description)
        new[entry.name] = entry
        if file is not None:
            files[entry.file] = file
    entries = dict(sorted((known | new).items()))
    for entry in entries.values():
        path = files.get(entry.file, out / entry.file)
        rule = f"{path} must be the index's file of sha256 {entry.sha256}; put it there again"
        is_right = entry.gdrive_id is not None or is_file_of(entry, path)
        require(is_right, rule, "another one" if path.exists() else "nothing")
    # Files go before the index: it never names one that is not there.
    for name, file in files.items():
        target = out / name
        if not (target.exists() and target.samefile(file)):
            with atomic_path(target) as temporary:
                shutil.copyfile(file, temporary)
    write_index(out / INDEX_NAME, old.base_url if old else None, entries)
    with atomic_path(out / "README.md") as temporary:
        temporary.write_text(model_card(entries), encoding="utf-8")
    return list(new.values())
