"""Training with Detectron2 and GradAug: what ``tools/train_net.py`` runs."""

from __future__ import annotations

import argparse
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.options import ITERATION_KEYS
from gradaug_det.d2.checkpoint import SafeCheckpointer
from gradaug_det.d2.checks import check_batch, check_detector, check_device, check_operators
from gradaug_det.d2.config import gradaug_options, load_config, load_lazy_config, name_config_keys
from gradaug_det.d2.data import check_datasets, check_own_records, register_coco, register_mini_coco
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.d2.evaluation import build_evaluator, build_lazy_evaluator
from gradaug_det.d2.hook import GradAugHook
from gradaug_det.d2.preprocessing import check_preprocessing, fix_preprocessing
from gradaug_det.d2.resume import (
    ExactResume,
    ResumableLoader,
    SaveOnTermination,
    resumable_lazy_loader,
    resumable_train_loader,
    training_seed,
)
from gradaug_det.errors import ConfigError
from gradaug_det.utils.files import check_writable


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with the GradAug hook, COCO evaluation and exact resume."""

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer scales, too, but by its own function.
        super().__init__(self.auto_scale_workers(cfg, comm.get_world_size()))

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Returns the config for another number of processes than ``REFERENCE_WORLD_SIZE``, with
        GradAug's iterations scaled as Detectron2's are."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is not cfg:
            factor = cfg.SOLVER.REFERENCE_WORLD_SIZE / num_workers
            scaled.defrost()
            for key in map(str.upper, ITERATION_KEYS):
                scaled.GRADAUG[key] = round(factor * cfg.GRADAUG[key])
            if cfg.is_frozen():
                scaled.freeze()
        return scaled

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        if not cfg.SOLVER.EXACT_RESUME:
            return super().build_train_loader(cfg)
        return resumable_train_loader(cfg, training_seed(cfg.SEED))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return optimizer
        own = ("params", "lr", "weight_decay")
        groups = [{key: group[key] for key in own} for group in optimizer.param_groups]
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(groups)

    def build_hooks(self) -> list[Any]:
        # DefaultTrainer has just made a checkpointer that runs what is in a .pkl file.
        self.checkpointer = SafeCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        loader = self._trainer.data_loader
        resumable = isinstance(loader, ResumableLoader)
        seed = loader.seed if resumable else training_seed(self.cfg.SEED)
        exact = ExactResume(loader if resumable else None, seed, self.cfg)
        return [
            exact if self.cfg.SOLVER.EXACT_RESUME else None,
            GradAugHook.from_config(self.cfg),
            *super().build_hooks(),
            SaveOnTermination(self.checkpointer),
        ]

    def state_dict(self) -> dict[str, Any]:
        # 0.6's DefaultTrainer leaves out the optimizer.
        return {"_trainer": self._trainer.state_dict(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:  # not in a checkpoint of 0.6's DefaultTrainer
            self._trainer.load_state_dict(state_dict["_trainer"])


def run(args: argparse.Namespace) -> OrderedDict:
    """Trains or, with ``--eval-only``, evaluates; returns Detectron2's results.

    Args:
        args: of Detectron2's ``default_argument_parser``, and ``register``: (name, annotations,
            images) of the datasets to register; ``fix_preprocessing``: whether to set what a
            ``gradaug://`` backbone needs.
    """
    if str(args.config_file).endswith(".py"):
        return run_lazy(args)
    cfg = _load(args, load_config)
    amp = cfg.SOLVER.AMP.ENABLED and not args.eval_only
    check_device("MODEL.DEVICE", cfg.MODEL.DEVICE, "SOLVER.AMP.ENABLED", amp)
    check_operators(cfg)
    if not (args.eval_only or cfg.SOLVER.REFERENCE_WORLD_SIZE):
        check_batch("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH)
    if not (cfg.DATASETS.TRAIN or args.eval_only):
        raise ConfigError("DATASETS.TRAIN", "is empty; name a data set, as in ('mine_train',)")
    classes = check_datasets(cfg, eval_only=args.eval_only)
    check_writable(cfg.OUTPUT_DIR)
    cfg.freeze()
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        check_detector(model, classes, scored=True)
        checkpointer = SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    model = trainer.model
    model = model.module if isinstance(model, DistributedDataParallel) else model
    check_detector(model, classes, scored=bool(cfg.DATASETS.TEST))
    if cfg.GRADAUG.ENABLED:
        # Not only in the hook: an unsuitable detector should fail before any data is loaded.
        options = gradaug_options(cfg)
        with name_config_keys():
            GradAugDetector(model, options)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run_lazy(args: argparse.Namespace) -> OrderedDict:
    """Runs a LazyConfig, whose ``gradaug``, if there is one, is a lazy GradAugHook."""
    cfg = _load(args, load_lazy_config)
    amp = bool(OmegaConf.select(cfg, "train.amp.enabled")) and not args.eval_only
    check_device("train.device", cfg.train.device, "train.amp.enabled", amp)
    total = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if total is not None and not args.eval_only:
        check_batch("dataloader.train.total_batch_size", total)
    classes = check_datasets(cfg, eval_only=args.eval_only)
    check_writable(cfg.train.output_dir)
    default_setup(cfg, args)
    model = instantiate(cfg.model).to(cfg.train.device)
    check_detector(model, classes, scored=args.eval_only or "evaluator" in cfg.dataloader)
    if args.eval_only:
        SafeCheckpointer(model).load(cfg.train.init_checkpoint)
        return evaluate_lazy(cfg, model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    model = create_ddp_model(model, **cfg.train.ddp)
    seed = training_seed(cfg.train.get("seed"))
    exact = cfg.train.get("exact_resume", True)
    loader = resumable_lazy_loader(cfg.dataloader.train, seed) if exact else None
    if loader is not None:
        check_own_records(cfg, loader.dataset)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(
        model, loader or instantiate(cfg.dataloader.train), optimizer
    )
    checkpointer = SafeCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    exact_hook = ExactResume(loader, seed, cfg) if exact else None
    saver = writer = None
    if comm.is_main_process():
        saver = hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        writer = hooks.PeriodicWriter(writers, period=cfg.train.log_period)
    trainer.register_hooks(
        [
            exact_hook,  # before all that draws random numbers
            instantiate(cfg.gradaug) if "gradaug" in cfg else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            saver,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate_lazy(cfg, model)),
            writer,
            SaveOnTermination(checkpointer),  # after all that belongs to a step
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    start = trainer.iter + 1 if args.resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return OrderedDict()


def _load(args: argparse.Namespace, load: Callable[[str, list[str]], Any]) -> Any:
    """The config, with its datasets known and its preprocessing agreed on."""
    register_mini_coco()
    for dataset in args.register:
        register_coco(*dataset)
    cfg = load(args.config_file, args.opts)
    if getattr(args, "fix_preprocessing", False):
        fix_preprocessing(cfg)
    check_preprocessing(cfg)
    return cfg


def evaluate_lazy(cfg: Any, model: Any) -> OrderedDict:
    """Evaluates a LazyConfig's model with the config's evaluator."""
    if "evaluator" not in cfg.dataloader:
        return OrderedDict()
    loader, evaluator = instantiate(cfg.dataloader.test), build_lazy_evaluator(cfg, model)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results
