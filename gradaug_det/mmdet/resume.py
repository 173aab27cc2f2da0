"""Exact resume in MMEngine: the same images, random numbers and schedules as without a break.

MMEngine repeats an epoch's order of images from its seed, but a training that ended within an epoch
begins that epoch anew, and files are written in place. Here a step's random numbers depend on
(seed, iteration, rank), an image's on (seed, rank, iteration, place in the batch), batches are
taken up where they were left, and checkpoints are whole or not there. See
:mod:`gradaug_det.core.resumed`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset, Sampler

from gradaug_det.core.preemption import EXIT_CODE, TerminationNotice
from gradaug_det.core.resumed import (
    PlacedDataset,
    PlacedIndex,
    Proxy,
    SettingsRecord,
    draw_seeded,
    last_checkpoint,
    optimizer_settings,
)
from gradaug_det.core.step import check_alone
from gradaug_det.errors import ConfigError
from gradaug_det.utils.files import atomic_path, explain_write_errors, remove_partial_files
from gradaug_det.utils.seeding import seed_everything, stable_seed

_SETTINGS_KEY = "gradaug_settings"


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a resumed training the one that was not interrupted, in MMEngine's epoch-based and
    iteration-based loops. On SIGTERM the step is finished, ``iter_<n>.pth`` is saved, and the
    process ends with :data:`gradaug_det.core.preemption.EXIT_CODE`.

    Raises:
        ConfigError: before training, if the data has no order to take up again.
        GradAugError: a checkpoint could not be written; the one before it is intact.
    """

    priority = "LOWEST"  # a checkpoint on SIGTERM comes after all that belongs to the step

    def __init__(self) -> None:
        self._notice = TerminationNotice()
        self._seed = 0
        # Optimizer and schedules come from the checkpoint. MMEngine itself warns of seeds.
        self._record = SettingsRecord(
            watched=r"(model|train_dataloader|train_cfg|optim_wrapper|param_scheduler"
            r"|custom_hooks)\.",
            harmless=(
                r"train_cfg\.(val_|dynamic_intervals)|model\.(\w+\.)*init_cfg"
                r"|train_dataloader\.(num_workers|persistent_workers|prefetch_factor|pin_memory"
                r"|timeout|(dataset\.)*(data_root|backend_args))|custom_hooks\.\d+\.log_period"
            ),
            restored=r"optim_wrapper\.optimizer\.|param_scheduler\.|optimizer\.",
        )

    def before_run(self, runner: Runner) -> None:
        # Checkpoints are written whole from here on.
        if "save_checkpoint" not in vars(runner):
            runner.save_checkpoint = functools.partial(_save_whole, runner.save_checkpoint)
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
                # A process may have died while it wrote the note, which MMEngine reads next: it
                # takes an empty one for a name.
                _write_note(work_dir, found)
        barrier()

    def before_train(self, runner: Runner) -> None:
        check_alone(runner.hooks, ExactResumeHook, "SIGTERM saves a training once")
        self._seed = runner.seed
        barrier()  # who listens later than others would die of what they note
        self._notice.listen()
        loop = runner.train_loop
        loader = _continue_loader(loop.dataloader, loop, self._seed)
        if isinstance(loop, IterBasedTrainLoop):
            # On a resume newer loops call skip_iter; MMEngine's up to 0.10.7 take so many batches
            # and drop them.
            newer = hasattr(loop.dataloader_iterator, "skip_iter")
            loop.dataloader_iterator = _Batches(loader, 0 if newer else loop.iter)
        loop.dataloader = loader

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"][_SETTINGS_KEY] = self._record.to_save(self._settings(runner))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        then = checkpoint.get("meta", {}).get(_SETTINGS_KEY)
        if then and runner._resume:  # the logger is the first process' alone
            self._record.compare(then, self._settings(runner), runner.logger.warning)

    def _settings(self, runner: Runner) -> dict[str, str]:
        # Before the optimizer's state is loaded, these are the config's own.
        loader = runner.train_dataloader
        batches = getattr(loader, "batch_sampler", None)
        settings = {
            "processes": str(get_world_size()),
            "training images": str(len(loader.dataset)),
            "images a step and process": str(getattr(batches, "batch_size", None)),
        } | self._record.select(dict(runner.cfg.items()))
        if not any(key.startswith("optim_wrapper.") for key in settings):  # made without a config
            settings |= optimizer_settings(runner.optim_wrapper.optimizer)
        return settings

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        seed_everything(stable_seed("step", self._seed, runner.iter, get_rank()))

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Raises SystemExit once the checkpoint is written."""
        if not self._notice.received():
            return
        name = f"iter_{runner.iter + 1}.pth"
        runner.save_checkpoint(runner.work_dir, name, by_epoch=False)
        if is_main_process():
            _write_note(Path(runner.work_dir), Path(runner.work_dir) / name)
        barrier()
        raise SystemExit(EXIT_CODE)

    def before_val(self, runner: Runner) -> None:
        # The last evaluation may be broken off: all is saved.
        if runner.iter >= getattr(runner, "max_iters", math.inf):  # loops of users may have none
            self._notice.close()

    def after_train(self, runner: Runner) -> None:
        self._notice.close()


def _save_whole(
    save: Callable[..., None], out_dir: str, filename: str, *args: Any, **kwargs: Any
) -> None:
    """``Runner.save_checkpoint`` under a temporary name, renamed when it is whole."""
    if "://" in str(out_dir) or not is_main_process():
        save(out_dir, filename, *args, **kwargs)
        return
    path = Path(out_dir) / filename
    with explain_write_errors("the checkpoint", path), atomic_path(path) as temporary:
        save(out_dir, temporary.name, *args, **kwargs)


def _write_note(work_dir: Path, checkpoint: Path | str | None) -> None:
    note = work_dir / "last_checkpoint"
    if checkpoint is None:
        note.unlink(missing_ok=True)
        return
    with atomic_path(note) as temporary:
        temporary.write_text(str(checkpoint))


def _continue_loader(
    loader: DataLoader, loop: EpochBasedTrainLoop | IterBasedTrainLoop, seed: int
) -> DataLoader:
    """The loader, from the loop's iteration on, with each image's random numbers its own."""
    batches = loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset) or batches is None:
        raise ConfigError(
            "train_dataloader",
            "has no batch sampler whose order could be taken up again; remove ExactResumeHook from "
            "custom_hooks for such data",
        )
    endless = isinstance(loop, IterBasedTrainLoop)
    # A training begun without a seed goes on with the one that it drew. MMEngine's runner takes it
    # from the checkpoint after samplers are made.
    sampler = getattr(batches, "sampler", batches)
    if hasattr(sampler, "seed"):
        sampler.seed = seed
    # OpenMMLab's MMEngine has workers draw ahead when the loop is made: all begins anew.
    if hasattr(sampler, "indices"):  # of an InfiniteSampler
        sampler.indices = sampler._indices_of_rank()
    for name in ("_aspect_ratio_buckets", "_buckets"):  # of batch samplers of MMDetection
        for bucket in getattr(batches, name, ()):
            bucket.clear()
    continued = copy.copy(loader)  # of its kind, with all that it was given
    # A loader refuses other ways to set these.
    vars(continued).update(
        dataset=PlacedDataset(loader.dataset, stable_seed("images", seed, get_rank())),
        batch_sampler=PlacedBatches(batches, seed, loop.iter, loop.epoch, endless),
        _iterator=None,
    )
    return continued


class PlacedBatches(Proxy, Sampler):
    """A batch sampler that leaves out what was trained on, and gives the rest places: (iteration,
    number in the batch).

    Args:
        seed: of the generators of the process, from which samplers may draw.
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
            _skip=skip,  # of the next epoch
            _left_out=skip,  # of this epoch
        )

    def __len__(self) -> int:
        # MMEngine knows an epoch's last iteration by it: less after a resume within the epoch.
        return len(self._original) - (0 if self._endless else self._left_out)

    def __iter__(self) -> Iterator[list[PlacedIndex]]:
        self._left_out, self._skip = self._skip, 0
        # Batches are numbered, and seeded, from the epoch's first, which a resumed training has not
        # seen: what it leaves out is drawn too, and so leaves samplers in the state they had.
        first = self._iteration - self._left_out
        stream = self._epochs() if self._endless else self._original
        batches = enumerate(draw_seeded(stream, self._order_seed, first), first)
        for iteration, batch in itertools.islice(batches, self._left_out, None):
            self._iteration = iteration + 1
            yield [PlacedIndex(index, (iteration, slot)) for slot, index in enumerate(batch)]

    def _epochs(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            sampler = getattr(self, "sampler", self)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            yield from self._original


class _Batches:
    """An iteration-based loop's source of batches; the loader leaves out what was trained on."""

    def __init__(self, loader: DataLoader, dropped: int) -> None:
        # Some loops ask for what they had, and drop it: None will do. A chain begins with the
        # loader, and so starts its workers, only when it gets there.
        self._batches = itertools.chain([None] * dropped, loader)

    def __next__(self) -> Any:
        return next(self._batches)

    def skip_iter(self, count: int) -> None:
        """Does nothing: the loader has left them out."""
