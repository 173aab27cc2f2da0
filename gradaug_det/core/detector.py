"""Both passes of Algorithm 1 for the detectors of either framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.plan import flatten_output
from gradaug_det.core.processes import synchronized_norms
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import detector_backbone, slim_plan
from gradaug_det.core.soft_targets import Calls, ForwardRecorder, SoftTargets, SubNetworkView
from gradaug_det.core.transforms import BatchTransform, Size


class SlimmableDetector(ABC):
    """A detector in training, up to its passes (see
    :class:`gradaug_det.core.regularizer.Trainable`).

    Args:
        detector: the framework's model, not wrapped for distribution.
        options: the settings.

    Attributes:
        autocast: the precision in which sub-networks' forward passes run; backward passes run
            outside, as those of the full network do.

    Raises:
        UnslimmableError: the backbone (or all of it, as the options say) cannot be slimmed.
        ConfigError: the supervision or the norm policy does not fit the detector.
    """

    def __init__(self, detector: nn.Module, options: GradAugOptions) -> None:
        self.module, self.options = detector, options
        self.backbone = detector_backbone(detector)
        self.slimmed = self.find_slimmed(detector, options.slim, options.keep_whole)
        self.subnet_norm = options.subnet_norm
        self.autocast: AbstractContextManager = nullcontext()
        plan = slim_plan(self.slimmed)
        plan.check_norm(options.subnet_norm)
        plan.check_divisor(options.divisor, options.smallest_width)
        if options.channels_last:
            detector.to(memory_format=torch.channels_last)
        self._watch_heads: Callable[[Any], None] | None = None  # see after_heads
        # Made only where needed: any detector can learn from labels.
        self.targets = self.make_soft_targets(detector) if options.uses_soft else None

    # ---- the framework's part -----------------------------------------------------------------

    find_slimmed: Callable[[nn.Module, str, Sequence[str]], nn.Module]  # what is narrow, planned
    make_soft_targets: Callable[[nn.Module], SoftTargets]  # or ConfigError if it has none

    @abstractmethod
    def batch_of(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Returns the batch of a call of the detector, if it is a training pass; else None."""

    def on_device(self, batch: Any) -> Any:
        """Returns the batch on the detector's device: there it is moved once a step, and
        transformed."""
        return batch

    @abstractmethod
    def losses(self, batch: Any) -> Losses:
        """Returns the detector's own losses."""

    def loss_terms(self, output: Any) -> Losses:
        """Returns the losses in what a training pass of the detector returned."""
        return output

    @abstractmethod
    def features(self, batch: Any) -> Any:
        """Returns what its heads get, the output of :attr:`last`."""

    @property
    @abstractmethod
    def last(self) -> nn.Module:
        """The layer before the heads."""

    @abstractmethod
    def transform(self, batch: Any, transform: BatchTransform) -> Any:
        """Returns the batch that a sub-network sees."""

    @abstractmethod
    def sizes(self, batch: Any) -> list[Size]:
        """Returns (height, width) of its images."""

    # ---- gradients ----------------------------------------------------------------------------

    def head_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that are behind :attr:`last` and whole: their gradients are final
        while the last backward pass is still before it. No parameters if a norm there talks to
        other processes itself."""
        if self.options.slim != "backbone" or synchronized_norms(self.module, self.backbone):
            return []
        before = {id(p) for layer in (self.backbone, self.last) for p in layer.parameters()}
        own = self.module.parameters()
        return [p for p in own if p.requires_grad and id(p) not in before]

    @contextmanager
    def after_heads(self, run: Callable[[], None] | None) -> Iterator[None]:
        """Within the block, the last sub-network's backward pass runs this once it has left the
        heads."""

        def watch(features: Any) -> None:
            tensors = [t for t in flatten_output(features)[0] if t.requires_grad]
            if tensors:
                hook = register_multi_grad_hook(tensors, lambda _gradients: run())
                # It holds the graph, which holds it: nothing else would free either.
                stack.callback(hook.remove)

        with ExitStack() as stack:
            self._watch_heads = watch if run else None
            stack.callback(setattr, self, "_watch_heads", None)
            yield

    # ---- passes -------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[ForwardRecorder]:
        """Within the block, a recorder notes what soft targets are made of."""
        recorder = ForwardRecorder(self.targets.record() if self.targets else {})
        try:
            yield recorder
        finally:
            recorder.stop()

    def full_pass(self, batch: Any) -> tuple[Losses, Calls]:
        """Returns the detector's own losses, and what its heads gave on the way."""
        with self.recording() as recorder:
            return self.losses(batch), recorder.stop()

    def sub_network_pass(self, batch: Any, soft_target: Calls, sub: SubNetwork) -> Losses:
        """Returns the sub-network's losses by name: ``soft_*`` and ``labels_*``, weighted."""
        options, kept, losses = self.options, [], {}
        with self.autocast:
            sub_batch = self.transform(batch, sub.transform)
            if options.uses_labels:
                # The heads' input is kept on its way: `both` runs the backbone once.
                with self.last.register_forward_hook(lambda _m, _i, out: kept.append(out)):
                    labels = self._labels_pass(sub_batch)
                for name, loss in labels.items():
                    losses[f"labels_{name.replace('loss_', '')}"] = options.labels_weight * loss
            if self.targets and not kept:
                kept.append(self.features(sub_batch))
            if kept and self._watch_heads and sub.index == options.num_subnets - 1:
                self._watch_heads(kept[0])
            if self.targets:
                sizes = self.sizes(batch)
                view = SubNetworkView(kept[0], soft_target, sub.transform, sizes)
                soft = self.targets.losses(view)
                weight = options.soft_weight_at(sub.iteration)
                losses |= {f"soft_{name}": weight * loss for name, loss in soft.items()}
        return losses

    def _labels_pass(self, batch: Any) -> Losses:
        return self.losses(batch)
