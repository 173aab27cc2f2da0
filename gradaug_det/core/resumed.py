"""Exact resume, for both frameworks: images by their place, the last checkpoint, the settings.

A generator of random numbers has a state that no checkpoint holds: each worker has its own. Here an
image's numbers come from the seed and the image's place in the training, a place is decided in the
training's own process, and workers only load what they are asked for. A training that is resumed at
a step then sees what it would have seen, with any number of workers.
"""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from torch.optim import Optimizer
from torch.utils.data import Dataset

from gradaug_det.errors import GradAugError
from gradaug_det.utils.seeding import stable_seed, temporary_seed

T = TypeVar("T")


class PlacedIndex(int):
    """An index of a dataset that knows its place in the training, as numbers of any meaning."""

    def __new__(cls, index: int, place: tuple[int, ...]) -> PlacedIndex:
        self = super().__new__(cls, index)
        self.place = place
        return self

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:
        return int(self), self.place  # else the place would be lost on the way to a worker


class Proxy:
    """Passes what is read, set and removed on to the object that it stands for, so that hooks may
    change that. Its own attributes are those that it is made with."""

    def __init__(self, original: Any, **own: Any) -> None:
        vars(self).update(_original=original, **own)

    @property
    def __class__(self) -> type:  # for isinstance()
        return type(self._original)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_original":
            raise AttributeError(name)
        return getattr(self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            vars(self)[name] = value
        else:
            setattr(self._original, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._original, name)


class PlacedDataset(Proxy, Dataset):
    """A dataset whose images' random numbers depend on ``seed``, parts of a stable seed, and on
    their places: those of a :class:`PlacedIndex`, else the index."""

    def __init__(self, dataset: Dataset, *seed: object) -> None:
        super().__init__(dataset, _image_seed=seed)

    def __reduce__(self) -> tuple:  # to a worker that is not a fork
        return PlacedDataset, (self._original, *self._image_seed)

    def __len__(self) -> int:
        return len(self._original)

    def __getitem__(self, index: int) -> Any:
        with temporary_seed(stable_seed(*self._image_seed, *getattr(index, "place", (index,)))):
            return self._original[int(index)]


def draw_seeded(source: Iterable[T], seed: int, first: int = 0, block: int = 1) -> Iterator[T]:
    """Items of a sampler, whose random numbers are not those of the step that asks for them.

    Args:
        source: may draw from the process' own generators: they are seeded for each block of
            ``block`` items, by ``seed`` and the block's number, from ``first`` on.
    """
    items = None
    for number in itertools.count(first):
        with temporary_seed(stable_seed("order", seed, number)):
            # Some samplers draw their whole order when they are asked for an iterator.
            items = iter(source) if items is None else items
            drawn = list(itertools.islice(items, block))
        yield from drawn
        if len(drawn) < block:
            return


def last_checkpoint(folder: str | Path) -> str | None:
    """Path or address of the checkpoint that a training's output folder goes on from, by its file
    ``last_checkpoint``; None if there is none.

    Raises:
        GradAugError: that checkpoint is not there, or not whole; names those that are.
    """
    folder = Path(folder)
    note, there = folder / "last_checkpoint", _whole_checkpoints(folder)
    try:
        named = note.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    else:
        if not named:  # as a process leaves it that dies while it writes: the newest counts
            return str(there[0]) if there else None
        if "://" in named:
            return named
        # The folder's own file of that name goes first: the folder may have been moved or copied,
        # from a system with other paths too.
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


def _whole_checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    found = [path for path in folder.glob("*.pth") if path.name[0] != "." and _is_whole(path)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _is_whole(path: Path) -> bool:
    # A zip's list of parts is at its end. Older files of PyTorch are pickles: only empty ones tell.
    with path.open("rb") as file:
        start = file.read(2)
    return zipfile.is_zipfile(path) if start == b"PK" else bool(start)


class SettingsRecord:
    """The settings of a training, which its checkpoints hold: a resumed one warns of others.

    Args:
        watched: regular expression of the dotted keys of a config that are compared.
        harmless: of those that may change.
        restored: of those whose values come from the checkpoint, whatever the config says.
    """

    def __init__(self, watched: str, harmless: str, restored: str) -> None:
        self.watched, self.harmless, self.restored = watched, harmless, restored
        self._kept: dict[str, str] = {}

    def select(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Numbers, texts and truth values of a nested config by dotted key, as texts."""
        leaves = _leaves(config, "")
        return {key: _to_text(value) for key, value in leaves if re.match(self.watched, key)}

    def to_save(self, now: Mapping[str, str]) -> dict[str, str]:
        """Returns the settings that are in effect, for the next checkpoint."""
        return {**now, **self._kept}

    def compare(
        self, then: Mapping[str, str], now: Mapping[str, str], warn: Callable[[str], None]
    ) -> None:
        """Warns, once, if the settings of a checkpoint are not those of now."""
        if message := self.describe_changes(then, now):
            warn(message)
        self._kept = {key: value for key, value in then.items() if re.match(self.restored, key)}

    def describe_changes(self, then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
        """A sentence about the settings that differ; None if none does."""
        keys = dict.fromkeys([*now, *then])  # in order, as a set is not
        changed = [k for k in keys if now.get(k) != then.get(k) and not re.match(self.harmless, k)]
        if not changed:
            return None

        def list_values(keys: list[str]) -> str:
            values = [f"{k} {now.get(k, 'not set')} (was {then.get(k, 'not set')})" for k in keys]
            more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
            return ", ".join(values[:6]) + more

        ignored = [key for key in changed if re.match(self.restored, key)]
        used = [key for key in changed if key not in ignored]
        parts = ["resumed with other settings than it was begun with"]
        if ignored:
            parts.append(f"not used, the checkpoint's hold: {list_values(ignored)}")
        if used:
            parts.append(f"used, so that it is another training from here on: {list_values(used)}")
        return (
            "; ".join(parts) + ". To train on with new settings, begin from the checkpoint's "
            "weights without resuming"
        )


def optimizer_settings(optimizer: Optimizer) -> dict[str, str]:
    """An optimizer's settings by name; learning rates before any schedule."""
    values: dict[str, list[Any]] = {}
    for group in optimizer.param_groups:
        for key, value in group.items():
            # A schedule changes lr, and leaves the first value in initial_lr.
            if key != "params" and not (key == "lr" and "initial_lr" in group):
                values.setdefault(f"optimizer.{key.removeprefix('initial_')}", []).append(value)
    return {key: ", ".join(dict.fromkeys(map(_to_text, own))) for key, own in values.items()}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    elif _is_plain(value):  # a list of numbers is one value, a list of dicts is many
        yield key, value
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{key}.{number}")


def _to_text(value: Any) -> str:
    # The same for 1 and 1.0, and for a list and a tuple: a config's file may say either.
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_to_text, value))}]"
    whole = isinstance(value, float) and value.is_integer()
    return repr(int(value) if whole else value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
