"""Exact resume in MMEngine: the same images, random numbers and schedules as without a break.

MMEngine repeats an epoch's order of images from its seed, but workers draw from generators whose
state no checkpoint has, a training that ended within an epoch begins that epoch anew, and files are
written in place. Here an image's augmentation depends on (seed, iteration, place in the batch), a
step's random numbers on (seed, iteration, rank), batches are taken up where they were left, and
checkpoints are whole or not there.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from gradaug_det.core.preemption import EXIT_CODE, TerminationNotice
from gradaug_det.core.resumed import (
    changed_settings,
    last_checkpoint,
    optimizer_settings,
    plain_settings,
    restored_settings,
)
from gradaug_det.core.step import check_alone
from gradaug_det.errors import ConfigError
from gradaug_det.utils.files import atomic_path, explain_write_errors, remove_partial_files
from gradaug_det.utils.seeding import seed_everything, seeded, stable_seed


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a training that is resumed the one that was not interrupted, and SIGTERM a checkpoint.

    For MMEngine's epoch-based and iteration-based loops, with any sampler, batch sampler and number
    of workers. On SIGTERM the step is finished, ``iter_<n>.pth`` is saved, and the process ends
    with :data:`gradaug_det.core.preemption.EXIT_CODE`; resume as usual.

    Raises:
        ConfigError: before training, if the data has no order to take up again.
        GradAugError: a checkpoint could not be written; the one before it is intact.
    """

    priority = "LOWEST"  # a checkpoint on SIGTERM comes after all that belongs to the step

    def __init__(self) -> None:
        self._notice = TerminationNotice()
        self._seed = 0
        self._restored: dict[str, str] = {}

    def before_run(self, runner: Runner) -> None:
        """From here on checkpoints are written whole; what names the last one is mended if a
        process died while writing it."""
        if "save_checkpoint" not in vars(runner):
            runner.save_checkpoint = _Saving(runner)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.max_keep_ckpts == 1:
                runner.logger.warning(
                    "max_keep_ckpts is 2 instead of 1: MMEngine removes the old checkpoint before "
                    "it writes the new one, and a training that ends in between would have none"
                )
                hook.max_keep_ckpts = 2
        work_dir = Path(runner.work_dir)
        # MMEngine looks for the last checkpoint by itself only where no file is given.
        search = runner._resume and runner._load_from is None
        found = last_checkpoint(work_dir) if search else None
        barrier()  # all have read it
        if is_main_process():
            remove_partial_files(work_dir)
            if search:
                _mend_note(work_dir, found)
        barrier()

    def before_train(self, runner: Runner) -> None:
        check_alone(runner.hooks, ExactResumeHook, "SIGTERM saves a training once")
        self._seed = runner.seed
        barrier()  # who listens later than others would die of what they note
        self._notice.listen()
        loop = runner.train_loop
        loader = _continued(loop.dataloader, loop, self._seed)
        if isinstance(loop, IterBasedTrainLoop):
            given = hasattr(loop.dataloader_iterator, "skip_iter")
            loop.dataloader_iterator = _Batches(loader, 0 if given else loop.iter)
        loop.dataloader = loader

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"][_SETTINGS_KEY] = _settings(runner) | self._restored

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Warns of settings that are not those that the training was begun with."""
        then = checkpoint.get("meta", {}).get(_SETTINGS_KEY)
        if not then or not runner._resume:
            return
        said = changed_settings(then, _settings(runner), _RESTORED, _HARMLESS)
        if said:
            runner.logger.warning(said)  # which is the first process' alone
        self._restored = restored_settings(then, _RESTORED)

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        seed_everything(stable_seed("step", self._seed, runner.iter, get_rank()))

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Raises SystemExit once the checkpoint is written."""
        if not self._notice.received(next(runner.model.parameters()).device):
            return
        name = f"iter_{runner.iter + 1}.pth"
        runner.save_checkpoint(runner.work_dir, name, by_epoch=False)
        if is_main_process():
            _note_last(Path(runner.work_dir), Path(runner.work_dir) / name)
        barrier()
        raise SystemExit(EXIT_CODE)

    def before_val(self, runner: Runner) -> None:
        """The last one may be broken off: all is saved."""
        if runner.iter >= getattr(runner, "max_iters", math.inf):  # loops of users may have none
            self._notice.close()

    def after_train(self, runner: Runner) -> None:
        self._notice.close()


_SETTINGS_KEY = "gradaug_settings"
_SETTINGS = r"(model|train_dataloader|train_cfg|optim_wrapper|param_scheduler|custom_hooks)\."
_HARMLESS = (
    r"train_cfg\.(val_|dynamic_intervals)|model\.(\w+\.)*init_cfg|custom_hooks\.\d+\.log_period"
    r"|train_dataloader\.(num_workers|persistent_workers|prefetch_factor|pin_memory|timeout)"
    r"|train_dataloader\.(dataset\.)*(data_root|backend_args)"
)
_RESTORED = r"optim_wrapper\.optimizer\.|param_scheduler\.|optimizer\."
"""Keys of a config: all that are looked at, that may change, and that have no effect after a
resume, because optimizer and schedules come from the checkpoint. MMEngine itself warns of seeds."""


def _settings(runner: Runner) -> dict[str, str]:
    """By which a resumed training is known; before its states are loaded, the config's own."""
    loader = runner.train_dataloader
    batches = getattr(loader, "batch_sampler", None)
    settings = {
        "processes": str(get_world_size()),
        "training images": str(len(loader.dataset)),
        "images a step and process": str(getattr(batches, "batch_size", None)),
    }
    config = plain_settings(dict(runner.cfg.items()), _SETTINGS)
    if not any(key.startswith("optim_wrapper.") for key in config):  # made without a config
        config |= optimizer_settings(runner.optim_wrapper.optimizer)
    return settings | config


class _Saving:
    """``Runner.save_checkpoint`` under a temporary name, renamed when it is whole."""

    def __init__(self, runner: Runner) -> None:
        self._save = runner.save_checkpoint

    def __call__(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if "://" in str(out_dir) or not is_main_process():
            self._save(out_dir, filename, *args, **kwargs)
            return
        path = Path(out_dir) / filename
        with explain_write_errors("the checkpoint", path), atomic_path(path) as temporary:
            self._save(out_dir, temporary.name, *args, **kwargs)


def _note_last(work_dir: Path, checkpoint: Path | str) -> None:
    with atomic_path(work_dir / "last_checkpoint") as temporary:
        temporary.write_text(str(checkpoint))


def _mend_note(work_dir: Path, found: str | None) -> None:
    """Has ``last_checkpoint`` name what it means, where MMEngine reads it."""
    if found is not None:
        _note_last(work_dir, found)
    else:
        (work_dir / "last_checkpoint").unlink(missing_ok=True)  # empty: taken for a name


def _continued(
    loader: DataLoader, loop: EpochBasedTrainLoop | IterBasedTrainLoop, seed: int
) -> DataLoader:
    """The loader, from the loop's iteration on, with each image's random numbers its own."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        raise ConfigError(
            "train_dataloader",
            "has no batch sampler whose order could be taken up again; remove ExactResumeHook from "
            "custom_hooks for such data",
        )
    endless = isinstance(loop, IterBasedTrainLoop)
    _reseed(loader.batch_sampler, seed)
    batches = _Places(loader.batch_sampler, seed, loop.iter, loop.epoch, endless)
    numbered = _Numbered(loader.dataset, stable_seed("images", seed, get_rank()))
    continued = copy.copy(loader)  # of its kind, with all that it was given
    # A loader refuses other ways to set these.
    vars(continued).update(dataset=numbered, batch_sampler=batches, _iterator=None)
    return continued


def _reseed(batch_sampler: Sampler, seed: int) -> None:
    """A training begun without a seed goes on with the one that it drew, which MMEngine's runner
    takes from the checkpoint after samplers are made."""
    sampler = getattr(batch_sampler, "sampler", batch_sampler)
    if getattr(sampler, "seed", seed) == seed:
        return
    sampler.seed = seed
    if hasattr(sampler, "indices"):  # of an InfiniteSampler, begun when it was made
        sampler.indices = sampler._indices_of_rank()


class _Place(int):
    """An index of the dataset that knows where in the training it is asked for."""

    def __new__(cls, index: int, place: tuple[int, int]) -> _Place:
        self = super().__new__(cls, index)
        self.place = place
        return self

    def __getnewargs__(self) -> tuple[int, tuple[int, int]]:
        return int(self), self.place


class _StandIn:
    """Passes what hooks ask of it, and what they set, on to the object that it stands for. Its own
    attributes are those that it is made with."""

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


class _Places(_StandIn, Sampler):
    """A batch sampler that leaves out what was trained on already, and numbers the rest.

    Args:
        batches: the batch sampler of the config.
        seed: of the random numbers that a sampler draws from the generators of its process.
        iteration, epoch: of the loop, from which to go on.
        endless: whether the loop takes its batches without asking for epochs.
    """

    def __init__(
        self, batches: Sampler, seed: int, iteration: int, epoch: int, endless: bool
    ) -> None:
        skip = iteration if endless else max(0, iteration - epoch * len(batches))
        super().__init__(
            batches,
            _order_seed=seed,
            _endless=endless,
            _iteration=iteration,
            _skip=skip,
            _left_out=skip,
        )

    def __len__(self) -> int:
        """Of this epoch: less than the others after a resume within it."""
        return len(self._original) - (0 if self._endless else self._left_out)

    def __iter__(self) -> Iterator[list[_Place]]:
        self._left_out, self._skip = self._skip, 0
        first = self._iteration - self._left_out
        stream = iter(self._epochs() if self._endless else self._original)
        for iteration in itertools.count(first):
            with seeded(stable_seed("order", self._order_seed, iteration)):
                batch = next(stream, None)
            if batch is None:
                return
            if iteration >= first + self._left_out:
                self._iteration = iteration + 1
                yield [_Place(index, (iteration, slot)) for slot, index in enumerate(batch)]

    def _epochs(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            sampler = getattr(self, "sampler", self)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            yield from self._original


class _Numbered(_StandIn, Dataset):
    """A dataset whose images' random numbers depend on where in the training they are."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(dataset, _image_seed=seed)

    def __reduce__(self) -> tuple:  # to a worker that is not a fork
        return _Numbered, (self._original, self._image_seed)

    def __len__(self) -> int:
        return len(self._original)

    def __getitem__(self, index: int) -> Any:
        with seeded(stable_seed(self._image_seed, *getattr(index, "place", (index,)))):
            return self._original[int(index)]


class _Batches:
    """What an iteration-based loop takes its batches from.

    Args:
        loader: which leaves out itself what was trained on.
        ignored: calls that ask for such batches (MMEngine up to 0.10.7 does on resume).
    """

    def __init__(self, loader: DataLoader, ignored: int) -> None:
        self._loader, self._ignored = loader, ignored
        self._iterator: Iterator[Any] | None = None

    def skip_iter(self, count: int) -> None:
        """Nothing: it is done."""

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Any:
        if self._ignored:
            self._ignored -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        return next(self._iterator)
