"""Exact resume in Detectron2: the same images, random numbers and momentum as without a break.

Detectron2 starts its stream of images anew when it resumes. Here a step's random numbers depend on
(seed, iteration, rank), an image's on (seed, place in the stream), and the stream is taken up where
it was left. See :mod:`gradaug_det.core.resumed`.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from gradaug_det.core.checks import check_integer
from gradaug_det.core.preemption import EXIT_CODE, TerminationNotice
from gradaug_det.core.resumed import (
    PlacedDataset,
    PlacedIndex,
    SettingsRecord,
    draw_seeded,
    optimizer_settings,
)
from gradaug_det.core.step import check_alone
from gradaug_det.d2.checks import check_batch
from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.utils.seeding import seed_everything, stable_seed, temporary_seed

logger = logging.getLogger("detectron2.gradaug")

_LOADER_OPTIONS = (
    *("prefetch_factor", "persistent_workers", "pin_memory", "pin_memory_device", "timeout"),
    *("worker_init_fn", "multiprocessing_context"),
)


class ResumableLoader:
    """Batches of Detectron2's training loader from any step on.

    Args:
        dataset: dataset dicts, as a list or a map-style dataset. With ``aspect_ratio_grouping`` the
            training's own process looks up each one's ``width`` and ``height`` once.
        mapper: from a dataset dict to what the detector takes.
        make_sampler: makes Detectron2's endless sampler. Numpy's and torch's generators are seeded
            when it is made and while it is asked for images, so that samplers without a seed of
            their own repeat too.
        seed: of order and augmentation; the same on all processes.
        total_batch_size, single_gpu_batch_size: of all processes together, or of each.
        aspect_ratio_grouping, num_workers, collate_fn, drop_last: see Detectron2's
            ``build_detection_train_loader``; the last is for samplers that end.
        options: of torch's ``DataLoader``, where they do not change which images come.

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
        listed = isinstance(dataset, list)
        self.dataset = DatasetFromList(dataset, copy=False) if listed else dataset
        self.mapper, self.make_sampler, self.seed = mapper, make_sampler, seed
        self.batch_size = _share_batch(total_batch_size, single_gpu_batch_size)
        """Images a step of this process."""
        self.aspect_ratio_grouping, self.collate_fn = aspect_ratio_grouping, collate_fn
        self.drop_last = drop_last
        if unknown := sorted(set(options) - set(_LOADER_OPTIONS)):
            raise ConfigError(
                f"dataloader.train.{unknown[0]}",
                f"is not among what exact resume can pass on ({', '.join(_LOADER_OPTIONS)}); "
                "remove it, or set train.exact_resume = False",
            )
        if options.get("prefetch_factor") is not None:
            check_integer("dataloader.train.prefetch_factor", options["prefetch_factor"], low=1)
        if not num_workers:  # DataLoader refuses the other options then
            options = {k: v for k, v in options.items() if k.startswith("pin_memory")}
        self.num_workers, self.options = num_workers, options
        self.first = 0
        """Batches to leave out, without loading their images. Set it before the first batch."""
        self._wide: dict[int, bool] = {}
        try:
            self._load(())
        except (TypeError, ValueError) as error:
            raise ConfigError("dataloader.train", f"cannot be used: {error}") from None

    def __iter__(self) -> Iterator[list[Any]]:
        # A generator: a trainer asks for the iterator when it is made, and hears only later, from
        # its checkpoint, where it goes on and with which seed.
        #
        # Batches are put together before their images are loaded. So a resumed training counts off
        # those that it had, one by one, in the same stream: an image that waits in a group of its
        # shape which is not full yet waits in it again.
        batches = itertools.islice(self._batches(), self.first, None)
        # Images are loaded one at a time, as Detectron2 does: a batch would keep one worker busy
        # while the others wait. They come back in order, whatever the number of workers.
        images = self._load(itertools.chain.from_iterable(batches))
        # Making the iterator draws a number, which would be the step's that happens to come first.
        with temporary_seed(stable_seed("workers", self.seed)):
            images = iter(images)
        while batch := list(itertools.islice(images, self.batch_size)):
            yield self.collate_fn(batch) if self.collate_fn else batch

    def _load(self, places: Iterable[PlacedIndex]) -> DataLoader:
        mapped = MapDataset(self.dataset, self.mapper) if self.mapper else self.dataset
        return DataLoader(
            PlacedDataset(mapped, "image", self.seed),
            batch_size=None,
            sampler=places,
            num_workers=self.num_workers,
            collate_fn=_keep,
            **self.options,
        )

    def _batches(self) -> Iterator[list[PlacedIndex]]:
        """All batches of this process, from the training's first step on."""
        # Wide images and the others, as Detectron2's AspectRatioGroupedDataset; or one group.
        groups: dict[bool, list[PlacedIndex]] = defaultdict(list)
        for place in self._places():
            group = groups[self.aspect_ratio_grouping and self._is_wide(place)]
            group.append(place)
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()
        if not (self.drop_last or self.aspect_ratio_grouping):
            yield groups[False]

    def _places(self) -> Iterator[PlacedIndex]:
        """This process' images, by their places in the stream of all processes."""
        with temporary_seed(stable_seed("sampler", self.seed)):
            sampler = self.make_sampler()
        rank, world = comm.get_rank(), comm.get_world_size()
        # Seeding takes as long as drawing some hundred images.
        for count, index in enumerate(draw_seeded(sampler, self.seed, block=256)):
            yield PlacedIndex(index, (rank + count * world,))

    def _is_wide(self, index: int) -> bool:
        if index not in self._wide:
            # A dataset may draw from the generators of the step that asks. Detectron2's do not, and
            # are asked for all of their images: seeding takes many times as long as that.
            listed = isinstance(self.dataset, DatasetFromList)
            with nullcontext() if listed else temporary_seed(0):
                record = self.dataset[int(index)]
            if not {"width", "height"} <= set(record):
                raise GradAugError(
                    "batches of similar aspect ratio need the images' width and height in the "
                    "dataset dicts; add them, or set DATALOADER.ASPECT_RATIO_GROUPING False or "
                    "SOLVER.EXACT_RESUME False"
                )
            self._wide[int(index)] = record["width"] > record["height"]
        return self._wide[index]


def _keep(image: Any) -> Any:
    return image


def _share_batch(total: int | None, single: int | None) -> int:
    """Images a step of one process."""
    if single is None:
        check_batch("SOLVER.IMS_PER_BATCH (total_batch_size)", total)
        return total // comm.get_world_size()
    if total is not None:
        problem = f"must not be given beside total_batch_size {total}"
        raise ConfigError("single_gpu_batch_size", problem)
    return check_integer("single_gpu_batch_size", single, low=1)


def resumable_train_loader(cfg: CfgNode, seed: int) -> ResumableLoader:
    """The training loader of a config, as Detectron2 makes it, but resumable."""
    # A sampler made here would draw its seed from whatever state the generators have.
    parts = build_detection_train_loader.from_config(cfg, sampler=())
    del parts["sampler"]
    own = {key: parts[key] for key in ("dataset", "mapper")}

    def make_sampler() -> Sampler:
        return build_detection_train_loader.from_config(cfg, **own)["sampler"]

    return ResumableLoader(make_sampler=make_sampler, seed=seed, **parts)


def resumable_lazy_loader(node: DictConfig, seed: int) -> ResumableLoader | None:
    """The training loader of a LazyConfig's ``dataloader.train``, whose own ``seed`` goes first.

    None, with a warning, if that is not Detectron2's ``build_detection_train_loader``.
    """
    target = node._target_
    if (locate(target) if isinstance(target, str) else target) is not build_detection_train_loader:
        logger.warning(
            "dataloader.train is not Detectron2's build_detection_train_loader: after a resume its "
            "images begin anew. gradaug_det.d2.resume.ResumableLoader goes on where it was left"
        )
        return None
    for key in ("dataset", "mapper"):
        if key not in node:
            raise ConfigError(f"dataloader.train.{key}", "is missing")
    parts = {k: instantiate(v) for k, v in node.items() if k not in ("_target_", "sampler")}
    if parts.get("seed") is None:
        parts["seed"] = seed

    def make_sampler() -> Sampler:
        sampler = node.get("sampler")
        return instantiate(sampler) if sampler else TrainingSampler(len(parts["dataset"]))

    return ResumableLoader(make_sampler=make_sampler, **parts)


def training_seed(configured: int | None) -> int:
    """The config's seed, or one that all processes draw together if it has none (negative)."""
    if configured is not None and configured >= 0:
        return configured
    return comm.shared_random_seed()


class ExactResume(HookBase):
    """Random numbers by iteration, and the place in the stream of images after a resume.

    Register it before hooks that draw random numbers, with a trainer whose checkpoint holds its
    optimizer: 0.6's ``DefaultTrainer`` does not, :class:`gradaug_det.d2.train.Trainer` does.

    Args:
        loader: of the trainer; None if it is not a :class:`ResumableLoader`.
        seed: of the random numbers of steps; the same on all processes.
        config: of the training, whose changes a resumed training warns of.
    """

    def __init__(
        self, loader: ResumableLoader | None, seed: int, config: CfgNode | DictConfig | None = None
    ) -> None:
        self.loader, self.seed, self.config = loader, seed, config
        # Keys of both kinds of config. Optimizer and seed come from the checkpoint.
        self._record = SettingsRecord(
            watched=(
                r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|GRADAUG)\.|SEED"
                r"|(model|train|dataloader\.train|optimizer|lr_multiplier|gradaug)\."
            ),
            harmless=(
                r"MODEL\.(WEIGHTS|DEVICE)$|INPUT\.\w+_TEST$|DATASETS\.\w*TEST"
                r"|SOLVER\.(CHECKPOINT_PERIOD|EXACT_RESUME)|(GRADAUG|gradaug)\.(?i:log_period)"
                r"|train\.(output_dir|init_checkpoint|device|ddp|checkpointer|\w+_period)"
                r"|DATALOADER\.NUM_WORKERS|dataloader\.train\.(num_workers|prefetch_factor"
                r"|persistent_workers|pin_memory|timeout)"
            ),
            restored=(
                r"SEED|SOLVER\.(BASE_LR|MOMENTUM|NESTEROV|WEIGHT_DECAY|BIAS_LR_FACTOR)"
                r"|train\.seed|dataloader\.train\.seed|optimizer\."
            ),
        )

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
        settings = self._record.to_save(self._settings())
        return {"seed": self.seed, "images": images, "settings": settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A training begun without a seed goes on with the one that it drew."""
        if then := state.get("settings"):  # not in checkpoints of older versions
            warn = logger.warning if comm.is_main_process() else logger.debug
            self._record.compare(then, self._settings(), warn)
        self.seed = state["seed"]
        if self.loader is not None:
            self.loader.seed = state.get("images", self.seed)

    def _settings(self) -> dict[str, str]:
        # Before the optimizer's state is loaded, these are the config's own.
        settings = {"processes": str(comm.get_world_size())}
        if self.loader is not None:
            settings["training images"] = str(len(self.loader.dataset))
            settings["images a step and process"] = str(self.loader.batch_size)
        config = self.config
        if config is None:
            optimizer = getattr(self.trainer, "_trainer", self.trainer).optimizer
            return settings | optimizer_settings(optimizer)
        if isinstance(config, DictConfig):
            config = OmegaConf.to_container(config)
        return settings | self._record.select(config)


class SaveOnTermination(HookBase):
    """Saves a checkpoint when SIGTERM comes, and ends the process with
    :data:`gradaug_det.core.preemption.EXIT_CODE`. Register it last, with the checkpointer of the
    training."""

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
        if not self._notice.received():
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
