"""Exact resume in Detectron2: the same images, random numbers and momentum as without a break.

Detectron2 starts its stream of images anew when it resumes, and workers draw from generators whose
state no checkpoint has. Here an image's augmentation depends on (seed, place in the stream) and a
step's random numbers on (seed, iteration, rank); the stream is taken up where it was left.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from gradaug_det.core.preemption import EXIT_CODE, TerminationNotice
from gradaug_det.core.resumed import (
    changed_settings,
    optimizer_settings,
    plain_settings,
    restored_settings,
)
from gradaug_det.core.step import check_alone
from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.utils.seeding import seed_everything, seeded, stable_seed

logger = logging.getLogger("detectron2.gradaug")


class ResumableLoader:
    """Batches of Detectron2's training loader from any step on.

    Which images come when is decided in the training's own process, whatever Detectron2's version
    and the number of workers, which only load them.

    Args:
        dataset: dataset dicts, as a list or a map-style dataset.
        mapper: from a dataset dict to what the detector takes.
        make_sampler: makes Detectron2's endless sampler. Numpy's and torch's generators are seeded
            when it is made and while it is asked for images, so that samplers without a seed of
            their own repeat too.
        seed: of order and augmentation; the same on all processes.
        total_batch_size, single_gpu_batch_size: of all processes together, or of each.
        aspect_ratio_grouping, num_workers, collate_fn: see Detectron2's
            ``build_detection_train_loader``.
        drop_last: whether to leave out what is less than a batch at the end of a sampler that has
            one.
        options: of torch's ``DataLoader`` where they do not change which images come:
            ``prefetch_factor``, ``persistent_workers``, ``pin_memory``, ``timeout``,
            ``worker_init_fn``, ``multiprocessing_context``.

    Raises:
        ConfigError: an argument cannot be used.
        GradAugError: ``dataset`` is an iterable one, which has no places.
    """

    def __init__(
        self,
        dataset: Sequence[dict] | Dataset,
        mapper: Callable[[dict], Any] | None,
        make_sampler: Callable[[], Sampler],
        seed: int,
        *,
        total_batch_size: int | None = None,
        single_gpu_batch_size: int | None = None,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        drop_last: bool = True,
        **options: Any,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise GradAugError(
                "exact resume needs a dataset with a length; for an iterable dataset set "
                "SOLVER.EXACT_RESUME False (train.exact_resume = False)"
            )
        self.dataset = (
            DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
        )
        self.mapper, self.make_sampler, self.seed = mapper, make_sampler, seed
        self.batch_size = _batch_size(total_batch_size, single_gpu_batch_size)
        """Images a step of this process."""
        self.aspect_ratio_grouping, self.collate_fn = aspect_ratio_grouping, collate_fn
        self.drop_last = drop_last
        if unknown := sorted(set(options) - set(_LOADER_OPTIONS)):
            raise ConfigError(
                f"dataloader.train.{unknown[0]}",
                f"is not among what exact resume can pass on ({', '.join(_LOADER_OPTIONS)}); "
                "remove it, or set train.exact_resume = False",
            )
        ahead = options.get("prefetch_factor")
        if ahead is not None and not (isinstance(ahead, int) and ahead >= 1):
            raise ConfigError(
                "dataloader.train.prefetch_factor", f"must be at least 1, got {ahead!r}"
            )
        self.num_workers = num_workers
        self.options = options if num_workers else _without_workers(options)
        self.first = 0
        """Batches to leave out, without loading their images. Set it before the first batch."""
        try:
            self._images(())
        except (TypeError, ValueError) as error:
            raise ConfigError("dataloader.train", f"cannot be used: {error}") from None

    def __iter__(self) -> Iterator[list[Any]]:
        """Nothing happens before the first batch is asked for: a trainer calls this when it is
        made, and hears later where it goes on."""
        images = self._images(self._places())
        with seeded(stable_seed("workers", self.seed)):
            images = iter(images)  # which draws a number of the step that comes first
        batches = self._grouped(images)
        yield from map(self.collate_fn, batches) if self.collate_fn else batches

    def _images(self, places: Iterable[tuple[int, int]]) -> DataLoader:
        """One image at a time, in the order of their places."""
        mapped = MapDataset(self.dataset, self.mapper) if self.mapper else self.dataset
        return DataLoader(
            _Numbered(mapped, self.seed),
            batch_size=None,
            sampler=places,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            **self.options,
        )

    def _grouped(self, images: Iterable[dict]) -> Iterable[list[dict]]:
        if self.aspect_ratio_grouping:
            return AspectRatioGroupedDataset(images, self.batch_size)
        return _in_order(images, self.batch_size, self.drop_last)

    def _places(self) -> _Places:
        """This process' images, from the first that is in none of the batches left out."""
        with seeded(stable_seed("sampler", self.seed)):
            sampler = self.make_sampler()
        places = _Places(sampler, self.seed, comm.get_rank(), comm.get_world_size())
        if not self.first:
            return places
        waiting: dict[tuple[int, int], None] = {}  # in the order in which they came
        sizes: dict[int, dict] = {}
        count = 0

        def shapes() -> Iterator[dict]:
            nonlocal count
            for place in places:
                count += 1
                waiting[place] = None
                index = place[1]
                if index not in sizes:
                    sizes[index] = _shape(self.dataset[index], self.aspect_ratio_grouping)
                yield {**sizes[index], "place": place}

        for batch in itertools.islice(self._grouped(shapes()), self.first):
            for image in batch:
                del waiting[image["place"]]
        # A group that is not full yet waits for its batch: such images come first again.
        return replace(places, waiting=tuple(waiting), first=count)


_LOADER_OPTIONS = (
    *("prefetch_factor", "persistent_workers", "pin_memory", "pin_memory_device", "timeout"),
    *("worker_init_fn", "multiprocessing_context"),
)


def _without_workers(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of the options where the training's own process loads the images."""
    return {key: options[key] for key in ("pin_memory", "pin_memory_device") if key in options}


def _batch_size(total: int | None, single: int | None) -> int:
    """Images a step of one process."""
    world = comm.get_world_size()
    if total and single:
        raise ConfigError(
            "single_gpu_batch_size", f"must not be given beside total_batch_size {total}"
        )
    size = single or total
    if not isinstance(size, int) or size < 1 or (total and total % world):
        raise ConfigError(
            "SOLVER.IMS_PER_BATCH (total_batch_size)",
            f"must be a multiple of the {world} processes and at least that, got {size!r}",
        )
    return single or total // world


class ExactResume(HookBase):
    """Random numbers by iteration, and the place in the stream of images after a resume.

    Register it with any of Detectron2's trainers, before hooks that draw random numbers. The
    trainer's own checkpoint must hold its optimizer: that of ``SimpleTrainer`` does, 0.6's
    ``DefaultTrainer`` does not (:class:`gradaug_det.d2.train.Trainer` does).

    Args:
        loader: of the trainer; None if it is not a :class:`ResumableLoader`.
        seed: of the random numbers of steps; the same on all processes.
        config: of the training, whose changes a resumed training warns of.
    """

    def __init__(
        self,
        loader: ResumableLoader | None,
        seed: int,
        config: CfgNode | DictConfig | None = None,
    ) -> None:
        self.loader, self.seed, self.config = loader, seed, config
        self._restored: dict[str, str] = {}

    def before_train(self) -> None:
        if self.loader is not None:
            self.loader.first = self.trainer.start_iter
        elif self.trainer.start_iter:
            logger.warning(
                "the training's loader is not gradaug_det.d2.resume.ResumableLoader: its images "
                "begin anew, so that this is not the training without a break"
            )

    def before_step(self) -> None:
        seed_everything(stable_seed("step", self.seed, self.trainer.iter, comm.get_rank()))

    def state_dict(self) -> dict[str, Any]:
        images = self.seed if self.loader is None else self.loader.seed
        return {"seed": self.seed, "images": images, "settings": self._settings() | self._restored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A training begun without a seed goes on with the one that it drew."""
        then = state.get("settings")  # not in checkpoints of older versions
        if then:
            said = changed_settings(then, self._settings(), _RESTORED, _HARMLESS)
            if said and comm.is_main_process():
                logger.warning(said)
            self._restored = restored_settings(then, _RESTORED)
        self.seed = state["seed"]
        if self.loader is not None:
            self.loader.seed = state.get("images", self.seed)

    def _settings(self) -> dict[str, str]:
        """By which a resumed training is known; before its states are loaded, the config's own."""
        settings = {"processes": str(comm.get_world_size())}
        if self.loader is not None:
            settings["training images"] = str(len(self.loader.dataset))
            settings["images a step and process"] = str(self.loader.batch_size)
        if self.config is None:
            optimizer = getattr(self.trainer, "_trainer", self.trainer).optimizer
            return settings | optimizer_settings(optimizer)
        config = self.config
        if isinstance(config, DictConfig):
            config = OmegaConf.to_container(config)
        return settings | plain_settings(config, _SETTINGS)


_SETTINGS = (
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|GRADAUG)\.|SEED"
    r"|(model|train|dataloader\.train|optimizer|lr_multiplier|gradaug)\."
)
_HARMLESS = (
    r"MODEL\.(WEIGHTS|DEVICE)$|INPUT\.\w+_TEST$|DATASETS\.\w*TEST|DATALOADER\.NUM_WORKERS"
    r"|SOLVER\.(CHECKPOINT_PERIOD|EXACT_RESUME)|(GRADAUG|gradaug)\.(LOG_PERIOD|log_period)"
    r"|train\.(output_dir|init_checkpoint|device|ddp|checkpointer|eval_period|log_period)"
    r"|dataloader\.train\.(num_workers|prefetch_factor|persistent_workers|pin_memory|timeout)"
)
_RESTORED = (
    r"SEED|SOLVER\.(BASE_LR|MOMENTUM|NESTEROV|WEIGHT_DECAY|BIAS_LR_FACTOR)"
    r"|train\.seed|dataloader\.train\.seed|optimizer\."
)
"""Keys of both kinds of config: all that are looked at, that may change, and that have no effect
after a resume, because optimizer and seed come from the checkpoint."""


class SaveOnTermination(HookBase):
    """Saves a checkpoint when SIGTERM comes, and ends the process with
    :data:`gradaug_det.core.preemption.EXIT_CODE`. Register it last. What loads images, for training
    or evaluation, outlives the signal, also with loaders of your own.

    Args:
        checkpointer: of the training.
    """

    def __init__(self, checkpointer: Any) -> None:
        self.checkpointer = checkpointer
        self._notice = TerminationNotice()

    def before_train(self) -> None:
        once = "SIGTERM saves a training once"
        check_alone(getattr(self.trainer, "_hooks", ()), SaveOnTermination, once)
        comm.synchronize()  # who listens later than others would die of what they note
        self._notice.listen()

    def after_step(self) -> None:
        """Raises SystemExit once the checkpoint is written."""
        device = next(self.checkpointer.model.parameters()).device
        if not self._notice.received(device):
            if self.trainer.iter + 1 >= self.trainer.max_iter:
                self._notice.close()  # all is saved: the last evaluation may be broken off
            return
        if comm.is_main_process():
            iteration = self.trainer.iter
            self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()
        raise SystemExit(EXIT_CODE)

    def after_train(self) -> None:
        self._notice.close()


def resumable_train_loader(cfg: CfgNode, seed: int) -> ResumableLoader:
    """The training loader of a config, as Detectron2 makes it, but resumable.

    Args:
        cfg: with the keys of :func:`gradaug_det.d2.config.add_gradaug_config`.
        seed: see :class:`ResumableLoader`.
    """
    # A sampler made here would draw its seed from whatever state the generators have.
    parts = build_detection_train_loader.from_config(cfg, sampler=())
    del parts["sampler"]
    dataset, mapper = parts.pop("dataset"), parts.pop("mapper")

    def make_sampler() -> Sampler:
        return build_detection_train_loader.from_config(cfg, mapper, dataset=dataset)["sampler"]

    return ResumableLoader(dataset, mapper, make_sampler, seed, **parts)


def resumable_lazy_loader(node: DictConfig, seed: int) -> ResumableLoader | None:
    """The same for the ``dataloader.train`` of a LazyConfig; None, with a warning, if that is not
    Detectron2's ``build_detection_train_loader``. A ``seed`` of the node's own goes before."""
    target = node._target_
    if (locate(target) if isinstance(target, str) else target) is not build_detection_train_loader:
        logger.warning(
            "dataloader.train is not Detectron2's build_detection_train_loader: after a resume its "
            "images begin anew. gradaug_det.d2.resume.ResumableLoader goes on where it was left"
        )
        return None
    parts = {k: instantiate(v) for k, v in node.items() if k not in ("_target_", "sampler")}
    if missing := [key for key in ("dataset", "mapper") if key not in parts]:
        raise ConfigError(f"dataloader.train.{missing[0]}", "is missing")
    dataset, mapper = parts.pop("dataset"), parts.pop("mapper")
    own_seed = parts.pop("seed", None)

    def make_sampler() -> Sampler:
        sampler = node.get("sampler")
        return instantiate(sampler) if sampler else TrainingSampler(len(dataset))

    return ResumableLoader(
        dataset, mapper, make_sampler, seed if own_seed is None else own_seed, **parts
    )


def training_seed(configured: int | None) -> int:
    """The config's seed, or one that all processes draw together if it has none (negative)."""
    if configured is not None and configured >= 0:
        return configured
    return comm.shared_random_seed()


class _Numbered(Dataset):
    """Gets (place, index): the image's random numbers depend on its place."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, numbered: tuple[int, int]) -> Any:
        place, index = numbered
        with seeded(stable_seed("image", self.seed, place)):
            return self.dataset[index]


@dataclass(frozen=True)
class _Places(Sampler):
    """(place in the stream of all processes, index in the dataset) of one process' images."""

    sampler: Sampler
    seed: int
    rank: int
    world: int
    waiting: tuple[tuple[int, int], ...] = ()
    first: int = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from self.waiting
        places = ((self.rank + k * self.world, index) for k, index in enumerate(self._indices()))
        yield from itertools.islice(places, self.first, None)

    def _indices(self, at_once: int = 256) -> Iterator[int]:
        """The sampler's, whose random numbers are its own and not the step's that asks for them."""
        indices: Iterator[int] | None = None
        for count in itertools.count():
            with seeded(stable_seed("order", self.seed, count)):
                indices = indices or iter(self.sampler)
                some = [int(index) for index in itertools.islice(indices, at_once)]
            yield from some
            if len(some) < at_once:
                return


def _as_it_is(image: Any) -> Any:
    return image


def _in_order(images: Iterable[dict], size: int, drop_last: bool) -> Iterator[list[dict]]:
    """Batches in the stream's order, whatever the number of workers."""
    images = iter(images)
    while batch := list(itertools.islice(images, size)):
        if len(batch) == size or not drop_last:
            yield batch


def _shape(record: Mapping[str, Any], needed: bool) -> dict[str, Any]:
    shape = {key: record[key] for key in ("width", "height") if key in record}
    if needed and len(shape) < 2:
        raise GradAugError(
            "resuming batches of similar aspect ratio needs the images' width and height in the "
            "dataset dicts; add them, or set DATALOADER.ASPECT_RATIO_GROUPING False"
        )
    return shape
