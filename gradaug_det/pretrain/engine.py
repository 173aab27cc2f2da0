"""The pretraining loop, on Lightning Fabric: devices, processes and precision are its business."""

from __future__ import annotations

import json
import logging
import math
import operator
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models import get_model
from torchvision.transforms import v2
from tqdm import tqdm

from gradaug_det.core.gradients import average_gradients, check_gradients
from gradaug_det.core.preemption import EXIT_CODE, TerminationNotice
from gradaug_det.core.processes import Meeting
from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import sample_own_pass, sample_sub_networks
from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.pretrain import data
from gradaug_det.pretrain.classifier import Classifier, add_stochastic_depth
from gradaug_det.pretrain.recipe import Recipe
from gradaug_det.pretrain.scoring import broadcast_buffers, score, score_widths
from gradaug_det.utils.checkpoints import load_checkpoint
from gradaug_det.utils.files import (
    atomic_path,
    check_writable,
    explain_write_errors,
    remove_partial_files,
)
from gradaug_det.utils.seeding import isolated_rng, stable_seed
from gradaug_det.utils.text import describe_error
from gradaug_det.zoo.backbone import save_backbone
from gradaug_det.zoo.info import DEPTHS, BackboneInfo

logger = logging.getLogger(__name__)


class Pretraining:
    """One pretraining: made, resumed if it was begun before, run to its end.

    Args:
        recipe: what to train.
        out: folder of ``last.ckpt`` (state of an unfinished training), ``backbone.safetensors``
            and ``metrics.json`` (at the end) and TensorBoard's files.
        fabric: launched; its precision is the recipe's.

    Raises:
        ConfigError: the batch cannot be shared by this number of processes.
        DataError: the images are not there.
        UnslimmableError: the model has no sub-networks.
    """

    def __init__(self, recipe: Recipe, out: str | Path, fabric: Fabric) -> None:
        self.recipe, self.out, self.fabric = recipe, Path(out), fabric
        self._checkpoint, self._metrics_file = self.out / "last.ckpt", self.out / "metrics.json"
        check_writable(self.out)
        if recipe.batch_size % fabric.world_size:
            raise ConfigError(
                "batch_size",
                f"must be a multiple of the {fabric.world_size} processes, got {recipe.batch_size}",
            )
        self.images = data.load_images(recipe.data, recipe.seed)
        self.batches = data.StatelessBatches(
            len(self.images.train), recipe, 0, fabric.global_rank, fabric.world_size
        )
        classes = len(self.images.classes)
        with isolated_rng(stable_seed("weights", recipe.seed)):
            model = get_model(recipe.model, weights=None, num_classes=classes)
        add_stochastic_depth(model, recipe.stochastic_depth)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        # Passes run on the module itself, not on what Fabric wraps it in: gradients cross the
        # network once a step, after all of them, not once a backward.
        self.wrapped, self.optimizer = fabric.setup(model, _make_optimizer(model, recipe))
        self.model, self.meeting = model, Meeting()
        self.classifier = Classifier(
            model, rotations=tuple(recipe.gradaug.rotations), label_smoothing=recipe.label_smoothing
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.ema = None
        if recipe.ema_decay:
            average = get_ema_multi_avg_fn(recipe.ema_decay)
            self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.mix = None
        if recipe.mix != "none":
            kind = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[recipe.mix]
            self.mix = kind(alpha=recipe.mix_alpha, num_classes=classes)

    def _lr_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine to 0 at the last step."""
        warmup = round(self.recipe.optim.warmup_epochs * self.batches.steps_per_epoch)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.batches.steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def run(self) -> dict[str, float]:
        """Trains what is left, evaluates and writes the backbone.

        Returns:
            ``top1`` and ``top5`` in per cent of the validation images, and ``loss``; and top-1 at
            each of the recipe's widths.

        Raises:
            GradAugError: the loss is not finite, the folder holds another training, or a checkpoint
                could not be written (the one before it is intact).
            SystemExit: SIGTERM came; with :data:`gradaug_det.core.preemption.EXIT_CODE`, after a
                checkpoint.
        """
        # However it ends: processes that wait for this one are told by its leaving.
        with closing(self.meeting):
            if self._metrics_file.is_file():  # this training was finished before
                content = json.loads(self._metrics_file.read_text())
                self._check_same(content["recipe"])
                return content["metrics"]
            if self.fabric.is_global_zero:
                remove_partial_files(self.out)
            self._resume()
            self._train()
            return self._finish()

    def _train(self) -> None:
        name = self.recipe.name
        progress = tqdm(
            data.train_loader(self.images, self.recipe, self.batches),
            name,
            initial=self.batches.first,
            total=self.batches.steps,
            disable=None if self.fabric.is_global_zero else True,
        )
        per_epoch = self.batches.steps_per_epoch
        period = self.recipe.checkpoint_steps or per_epoch
        self.model.train()
        self.fabric.barrier()  # who listens later than others would die of what they note
        with closing(TerminationNotice()) as notice:
            notice.listen()
            for step, (images, labels) in enumerate(progress, start=self.batches.first):
                losses = self.train_step(step, images, labels)
                if step % 20 == 0:
                    self._log(step, losses, progress)
                finished = step + 1
                told_to_go = notice.received()
                if told_to_go or finished % period == 0 or finished == self.batches.steps:
                    self._save(finished)
                if told_to_go:
                    raise SystemExit(EXIT_CODE)
                if finished % per_epoch == 0:
                    self._end_epoch(finished // per_epoch, losses["loss"])

    def train_step(self, step: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step of Algorithm 1, or of alternating passes, and of the optimizer.

        Args:
            step: from 0, over the whole training.
            images: (N, 3, H, W) uint8, this process's share of the batch; of own views
                (N, 1 + n, 3, H, W).
            labels: (N,) classes.

        Returns:
            ``loss`` of the network's own pass and ``sub0``, ... of the sub-networks'; of
            alternating passes ``width`` too, and the loss once more as ``w0.5`` or the like.
        """
        fabric = self.fabric
        images, labels = fabric.to_device((images, labels))
        images = data.normalize(images)
        if self.mix:
            seed = stable_seed("mix", self.recipe.seed, step, fabric.global_rank)
            with isolated_rng(seed, fabric.device):
                # Views are mixed alike, as channels of one image.
                mixed, labels = self.mix(
                    images.reshape(len(images), -1, *images.shape[-2:]), labels
                )
                images = mixed.view_as(images)
        self.optimizer.zero_grad()
        # Stochastic depth draws from the generator: by step and process, as everything random here.
        noise = stable_seed("full pass", self.recipe.seed, step, fabric.global_rank)
        options = self.recipe.options
        own = sample_own_pass(options, step)
        with (
            fabric.no_backward_sync(self.wrapped, enabled=fabric.world_size > 1),
            fabric.autocast(),
            isolated_rng(noise, fabric.device),
        ):
            losses, subs = gradaug_step(
                self.classifier,
                (images, labels),
                sample_sub_networks(options, step),
                fabric.backward,
                self.meeting,
                own,
            )
        if fabric.world_size > 1:
            average_gradients(self.model, self.meeting)
        loss = losses["loss_cls"].detach()
        if not loss.isfinite():
            raise GradAugError(
                f"the loss is {loss.item()} at step {step}; the optimizer has not stepped. Lower "
                "optim.lr or lengthen optim.warmup_epochs; the last checkpoint is whole"
            )
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        check_gradients(self.model, step, skip=False, scaler=scaler)
        self.optimizer.step()
        self.schedule.step()
        if self.ema:
            self.ema.update_parameters(self.model)
        named = {"loss": loss, **{one.sub.name: one.total for one in subs}}
        if options.passes == "alternating":
            named |= {own.name: loss, "width": torch.tensor(own.width)}
        return named

    def _log(self, step: int, losses: dict[str, Tensor], progress: tqdm) -> None:
        values = {f"train/{name}": loss.item() for name, loss in losses.items()}
        values["train/lr"] = self.schedule.get_last_lr()[0]
        self.fabric.log_dict(values, step=step)
        progress.set_postfix(loss=f"{values['train/loss']:.3f}")

    def _end_epoch(self, epoch: int, loss: Tensor) -> None:
        text = f"epoch {epoch} of {self.recipe.epochs}, loss {loss:.3f}"
        every = self.recipe.eval_epochs
        # The last epoch's weights are evaluated when the training is over.
        if every and epoch % every == 0 and epoch < self.recipe.epochs:
            metrics = self._validate(epoch * self.batches.steps_per_epoch)
            text += f", {metrics['top1']:.2f} % top-1"
        if self.fabric.is_global_zero:
            logger.info("%s: %s", self.recipe.name, text)

    @property
    def _result(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.ema.module if self.ema else self.model

    def _validate(self, step: int) -> dict[str, float]:
        metrics = score(self._result, self.images, self.recipe, self.fabric)
        self.fabric.log_dict({f"val/{name}": value for name, value in metrics.items()}, step=step)
        return metrics

    def _parts(self) -> dict[str, Any]:
        """All that has a state; random numbers have none, they depend on the step."""
        parts = {name: getattr(self, name) for name in ("model", "optimizer", "schedule", "ema")}
        parts["precision"] = self.fabric.strategy.precision  # a float16 scaler
        return {name: part for name, part in parts.items() if part is not None}

    def _save(self, step: int) -> None:
        """Writes ``last.ckpt``, whole or not at all."""
        broadcast_buffers(self.model)
        if self.fabric.is_global_zero:
            state = {name: part.state_dict() for name, part in self._parts().items()}
            path = self._checkpoint
            with explain_write_errors("the checkpoint", path), atomic_path(path) as temporary:
                torch.save({"recipe": self.recipe.as_dict(), "step": step, **state}, temporary)
        self.fabric.barrier()

    def _resume(self) -> None:
        """Loads ``last.ckpt`` if there is one, and notes the step to go on with."""
        if not self._checkpoint.is_file():
            return
        state = load_checkpoint(self._checkpoint)
        try:
            self._check_same(dict(state["recipe"]))
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.batches.first = operator.index(state["step"])
        except GradAugError:
            raise
        except Exception as error:  # load_state_dict fails anywhere in another's file
            raise GradAugError(
                f"{self._checkpoint} cannot be gone on with ({describe_error(error)}); use another "
                "--out, or delete that file"
            ) from error
        if self.fabric.is_global_zero:
            logger.info("%s: going on from step %d", self.recipe.name, self.batches.first)

    def _check_same(self, recipe: dict[str, Any]) -> None:
        if not self.recipe.same_training(recipe):
            own = self.recipe.as_dict()
            odd = next((k for k in own if own[k] != recipe.get(k)), "a key")
            raise GradAugError(
                f"{self.out} holds a training of another recipe ({odd}: {recipe.get(odd)!r:.80} "
                f"there, {own.get(odd)!r:.80} here); use another --out, or delete that folder"
            )

    def _finish(self) -> dict[str, float]:
        metrics = self._validate(self.batches.steps)
        metrics |= score_widths(self._result, self.images, self.recipe, self.fabric)
        if self.fabric.is_global_zero:
            info = _describe(self.recipe, metrics)
            save_backbone(self.out / "backbone.safetensors", self._result.state_dict(), info)
            content = {"recipe": self.recipe.as_dict(), "metrics": metrics}
            with atomic_path(self._metrics_file) as temporary:
                temporary.write_text(json.dumps(content, indent=1))
            self._checkpoint.unlink(missing_ok=True)
            logger.info("%s: %.2f %% top-1", self.recipe.name, metrics["top1"])
        self.fabric.barrier()
        return metrics


def _describe(recipe: Recipe, metrics: Mapping[str, float]) -> BackboneInfo:
    """The description in the zoo's file, with which a detector's config must agree."""
    options = recipe.options
    return BackboneInfo(
        name=recipe.name,
        architecture=recipe.model,
        depth=DEPTHS[recipe.model],
        min_width=options.trained_width,
        stem="7x7",
        stride_in="3x3",
        channel_order="RGB",
        pixel_mean=data.PIXEL_MEAN,
        pixel_std=data.PIXEL_STD,
        recipe=recipe.as_dict() | {"data": vars(recipe.data) | {"root": ""}},
        metrics=dict(metrics),
        licence="Apache-2.0",
        source="trained by tools/pretrain.py of gradaug_det",
    )


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    own = recipe.optim
    shared = {"lr": own.lr, "weight_decay": own.weight_decay}
    # On a CPU, where PyTorch 2.4 has it too, the unfused step is a fifth of a small network's
    # training. The float16 scaler wants to see the gradients before the step.
    if recipe.precision != "16-mixed" and torch.__version__ >= (2, 4):
        shared["fused"] = True
    if own.name == "adamw":
        return torch.optim.AdamW(model.parameters(), **shared)
    nesterov = own.momentum > 0
    return torch.optim.SGD(model.parameters(), **shared, momentum=own.momentum, nesterov=nesterov)
