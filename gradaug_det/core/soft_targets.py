"""Soft targets of detectors: what the full pass predicted, moved to where a sub-network looks.

The adapters know the frameworks' heads; here is what both do with their outputs.

Source: GradAug, Algorithm 1, carried over to detectors (equation 3 for the class distribution).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradaug_det.core import losses as soft
from gradaug_det.core.anchors import AnchorGrid
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.errors import ConfigError

# ---- what the full pass gave --------------------------------------------------------------------

Select = Callable[[tuple, dict, Any], Any]
"""(positional arguments, keyword arguments, output) of a module's call -> what to keep of it,
detached: it outlives the pass's graph."""
Modules = Mapping[str, tuple[nn.Module, Select]]
Calls = dict[str, list[Any]]
"""By the name in :data:`Modules`, what was kept of each call, in order."""


class ForwardRecorder:
    """Keeps a selection of each call of some modules, in a pass that somebody else runs."""

    def __init__(self, modules: Modules) -> None:
        self._calls: Calls = {name: [] for name in modules}
        self._handles = [
            module.register_forward_hook(partial(self._note, name, select), with_kwargs=True)
            for name, (module, select) in modules.items()
        ]

    def _note(
        self, name: str, select: Select, _module: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> None:
        self._calls[name].append(select(args, kwargs, output))

    def stop(self) -> Calls:
        """Ends the recording, and returns it."""
        for handle in self._handles:
            handle.remove()
        calls, self._calls = self._calls, {}  # the recorder may outlive what it recorded
        return calls


def detach(value: Any) -> Any:
    """Detaches the tensors of (nested) lists and tuples; other things stay as they are."""
    if isinstance(value, Tensor):
        return value.detach()
    return [detach(item) for item in value] if isinstance(value, (list, tuple)) else value


def select_argument(index: int) -> Select:
    """Keeps a positional argument of a recorded call."""
    return lambda args, _kwargs, _output: detach(args[index])


def select_output(_args: tuple, _kwargs: dict, output: Any) -> Any:
    """Keeps the output of a recorded call."""
    return detach(output)


@dataclass(frozen=True)
class SubNetworkView:
    """A batch as a sub-network's heads see it, beside what the full pass gave for it."""

    features: Any  # what the heads get of the transformed batch
    calls: Calls  # what was recorded in the full pass
    transform: BatchTransform  # what was done to the batch
    sizes: list[Size]  # (height, width) of each image before it


class SoftTargets(ABC):
    """Compares the heads of a kind of detector in the full and in a sub-network's pass."""

    @abstractmethod
    def record(self) -> Modules:
        """Returns which modules to note in the full pass."""

    @abstractmethod
    def losses(self, view: SubNetworkView) -> Losses:
        """Runs the heads on a sub-network's features, on the full pass's proposals; returns the
        distances to what they gave there, by name."""


def unsupported(what: str) -> ConfigError:
    """Returns the error about a detector without soft targets."""
    return ConfigError(
        "supervision",
        f"cannot be 'soft' or 'both': soft targets are not implemented for {what}; use 'labels'",
    )


def require(module: Any, kinds: type | tuple[type, ...], what: str, exact: bool = True) -> None:
    """Raises unless the module is of one of the kinds; a subclass may mean other things."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not (type(module) in kinds if exact else isinstance(module, kinds)):
        raise unsupported(f"{what} {type(module).__name__}")


# ---- dense heads --------------------------------------------------------------------------------

HeadOutputs = Sequence[Sequence[Tensor]]
"""A dense head's (N, A * K, Hi, Wi) logits a level, its (N, A * 4, Hi, Wi) encoded boxes a level,
and perhaps its (N, A, Hi, Wi) centerness logits a level."""


@dataclass(frozen=True)
class DensePair:
    """Predictions of both passes for the A' anchors of a sub-network's images."""

    anchors: Tensor  # (A', 4) XYXY in the transformed image
    strides: Tensor  # (A',) pixels between the cells of each anchor's level
    logits: Tensor  # (N, A', K)
    target_logits: Tensor  # (N, A', K)
    deltas: Tensor  # (N, A', 4), the sub-network's encoded boxes
    target_boxes: Tensor  # (N, A', 4) XYXY in the transformed image
    valid: Tensor  # (N, A'), whether an anchor has a target
    centerness: Tensor | None = None  # (N, A') logits, of heads that have them
    target_centerness: Tensor | None = None


def align_dense(
    grid: AnchorGrid,
    decode: Callable[[Tensor, Tensor, Tensor], Tensor],
    full: HeadOutputs,
    sub: HeadOutputs,
    view: SubNetworkView,
) -> DensePair:
    """Finds for each anchor of a sub-network's pass what the full pass predicted there.

    Args:
        grid: the head's anchors, in both passes.
        decode: (A, 4) anchors, (A, 4) encoded boxes, (A,) strides -> (A, 4) XYXY boxes.
        full, sub: what the head gave in the two passes.
    """
    full_shapes, sub_shapes = ([tuple(x.shape[-2:]) for x in outs[0]] for outs in (full, sub))
    full_flat, sub_flat = ([_flatten(x, grid) for x in outs] for outs in (full, sub))
    anchors, full_anchors = grid.anchors(sub_shapes), grid.anchors(full_shapes)
    full_strides = grid.anchor_strides(full_shapes)
    images = []
    for image, size in enumerate(view.sizes):
        index, valid = grid.match(view.transform, size, full_shapes, sub_shapes)
        logits, deltas, *centerness = (flat[image, index] for flat in full_flat)
        # Deltas are relative to an anchor, and the two passes' anchors differ in place and shape.
        # The box that they mean is moved like the image, and can be encoded for any anchor.
        boxes = decode(full_anchors[index], deltas.to(full_anchors.dtype), full_strides[index])
        boxes = view.transform.boxes(boxes, size)
        # An untrained network may predict boxes of no width, which nothing encodes. Its anchor
        # stands in for such a box, so that a weight of 0 is not multiplied with an infinity.
        good = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
        boxes = boxes.where(good[:, None], anchors)
        images.append((logits, boxes, valid & good, *(c[:, 0] for c in centerness)))
    target_logits, target_boxes, valid, *target_centerness = map(
        torch.stack, zip(*images, strict=True)
    )
    return DensePair(
        anchors,
        grid.anchor_strides(sub_shapes),
        sub_flat[0],
        target_logits,
        sub_flat[1],
        target_boxes,
        valid,
        *(flat[..., 0] for flat in sub_flat[2:]),
        *target_centerness,
    )


def _flatten(levels: Sequence[Tensor], grid: AnchorGrid) -> Tensor:
    """(N, A * K, Hi, Wi) a level -> (N, A', K) in order of level, row, column, cell anchor."""
    flat = []
    for level, cell in zip(levels, grid.cells, strict=True):
        columns = level.shape[1] // len(cell)
        flat.append(level.permute(0, 2, 3, 1).reshape(len(level), -1, columns))
    return torch.cat(flat, dim=1)


def compare_objectness(
    pair: DensePair, samples: float, positive_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compares an RPN's scores.

    Args:
        pair: of which K is 1.
        samples: anchors of the batch that the RPN's own loss samples.
        positive_share: largest share of objects among them.

    Returns:
        The loss; (N, A') weights for the boxes' loss; and what that is to be divided by.
    """
    target = pair.target_logits[..., 0]
    weights = soft.confidence(soft.unsampled_logits(target, pair.valid, samples)) * pair.valid
    loss = soft.objectness_kl(pair.logits[..., 0], target, pair.valid, samples, positive_share)
    return loss, weights, weights.sum().clamp(min=samples)


def compare_focal(pair: DensePair, positives: float, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compares class scores that focal loss trains; returns what :func:`compare_objectness` does.

    Args:
        positives: by how many positive anchors the head's own loss is divided.
        gamma: of the focal loss.
    """
    # Focal weights: at its prior of 0.01 a thousand background anchors count as one object.
    target = soft.at_least_float32(pair.target_logits)
    weights = target.sigmoid().amax(dim=-1).pow(gamma) * pair.valid
    normalizer = weights.sum().clamp(min=positives)
    loss = soft.quality_focal(pair.logits, pair.target_logits, pair.valid, normalizer, gamma)
    return loss, weights, normalizer


# ---- second stages ------------------------------------------------------------------------------


def compare_box_head(
    sub: tuple[Tensor, Tensor], full: tuple[Tensor, Tensor], transform: BatchTransform
) -> Losses:
    """Compares (R, K + 1) logits and (R, K * 4) deltas of the same proposals."""
    logits, deltas = full
    return {
        "cls": soft.class_kl(sub[0], logits),
        "box": soft.class_box_l1(sub[1], transform_deltas(deltas, transform), logits),
    }


def transform_deltas(deltas: Tensor, transform: BatchTransform) -> Tensor:
    """(R, K * 4) deltas of the proposals, as they are in the transformed image."""
    # Not -1 for K: of no proposals it cannot be told.
    return transform.deltas(deltas.unflatten(1, (deltas.shape[1] // 4, 4))).flatten(1)
