"""What a training goes on from, and whether it is the one that was begun."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from torch.optim import Optimizer

from gradaug_det.errors import GradAugError


def last_checkpoint(folder: str | Path) -> str | None:
    """What the file ``last_checkpoint`` in a training's output folder names, in both frameworks.

    A checkpoint of that name in the folder itself goes first: the folder may have been moved or
    copied. If the file is empty, as a process that dies while writing it leaves it, the newest
    checkpoint counts.

    Returns:
        Path or address; None if there is nothing to go on from.

    Raises:
        GradAugError: that checkpoint is not there, or not whole; names those that are.
    """
    folder = Path(folder)
    note, there = folder / "last_checkpoint", whole_checkpoints(folder)
    try:
        named = note.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    else:
        if not named:
            return str(there[0]) if there else None
        if "://" in named:
            return named
        # The name alone is also that of a path of another system.
        places = [folder / PureWindowsPath(named).name, folder / named, Path(named)]
        path = next((place for place in places if place.is_file()), None)
        if path is not None and _is_whole(path):
            return str(path)
        state = "is not there" if path is None else "is empty or cut off"
        problem = f"names {named}, which {state}"
    names = ", ".join(path.name for path in there) or "none"
    raise GradAugError(
        f"{note} {problem}; whole checkpoints in that folder, the newest first: {names}. Write the "
        "name of one into last_checkpoint, or remove that file to begin anew"
    )


def whole_checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    found = [path for path in folder.glob("*.pth") if path.name[0] != "." and _is_whole(path)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _is_whole(path: Path) -> bool:
    """As far as its two ends tell; older files of PyTorch are not archives."""
    with path.open("rb") as file:
        start = file.read(2)
    return zipfile.is_zipfile(path) if start == b"PK" else bool(start)


def plain_settings(config: Mapping[str, Any], keys: str) -> dict[str, str]:
    """The numbers, texts and truth values of a nested config, by dotted key, as texts.

    Args:
        keys: regular expression; keys that do not start with it are left out.
    """
    return {key: _text(value) for key, value in _leaves(config, "") if re.match(keys, key)}


def optimizer_settings(optimizer: Optimizer) -> dict[str, str]:
    """What an optimizer was made with, by name; learning rates before any schedule."""
    values: dict[str, list[Any]] = {}
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params" and not (key == "lr" and "initial_lr" in group):
                values.setdefault(f"optimizer.{key.removeprefix('initial_')}", []).append(value)
    return {key: ", ".join(dict.fromkeys(map(_text, own))) for key, own in values.items()}


def changed_settings(
    then: Mapping[str, str], now: Mapping[str, str], restored: str, harmless: str
) -> str | None:
    """A sentence about a training that is resumed with other settings; None if it is not.

    Args:
        then, now: see :func:`plain_settings`; of the checkpoint and of the training.
        restored: regular expression of the keys whose values come from the checkpoint.
        harmless: of keys that may change.
    """
    changed = [
        key
        for key in dict.fromkeys([*now, *then])
        if now.get(key) != then.get(key) and not re.match(harmless, key)
    ]
    if not changed:
        return None

    def listed(keys: list[str]) -> str:
        said = [f"{k} {now.get(k, 'not set')} (was {then.get(k, 'not set')})" for k in keys[:6]]
        return ", ".join(said) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")

    ignored = [key for key in changed if re.match(restored, key)]
    used = [key for key in changed if key not in ignored]
    parts = ["resumed with other settings than it was begun with"]
    parts += [f"not used, the checkpoint's hold: {listed(ignored)}"] if ignored else []
    parts += [f"used, so that it is another training from here on: {listed(used)}"] if used else []
    return (
        "; ".join(parts) + ". To train on with new settings, begin from the checkpoint's weights "
        "without resuming"
    )


def restored_settings(then: Mapping[str, str], restored: str) -> dict[str, str]:
    """Those of a checkpoint that hold in the training that is resumed from it."""
    return {key: value for key, value in then.items() if re.match(restored, key)}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and not _plain(value):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{key}.{number}")
    elif _plain(value):
        yield key, value


def _text(value: Any) -> str:
    """The same for 1 and 1.0, and for a list and a tuple."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    whole = isinstance(value, float) and value.is_integer()
    return repr(int(value) if whole else value)


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
