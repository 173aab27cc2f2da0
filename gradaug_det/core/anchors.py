"""Soft targets for dense predictions: which anchor of the full pass an anchor of a sub-network is.

After a random scale, an anchor of the sub-network's image covers, in the full network's image, a
box that no single anchor covers exactly. Its soft target is the prediction of the anchor that is
nearest in shape and then in position; box deltas are carried over as *boxes* and encoded anew, so
they are right for any transform.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradaug_det.core.transforms import BatchTransform, Size

MIN_SHAPE_IOU = 0.55
"""Anchors whose nearest shape overlaps less (with a common centre) have no soft target. Halfway
between two levels an octave apart the overlap is 0.5: an anchor that far away answers for objects
of another size, and its objectness contradicts the labels."""


@dataclass(frozen=True)
class AnchorGrid:
    """Anchors of a feature pyramid."""

    cells: Sequence[Tensor]  # per level, the (A, 4) XYXY anchors of one cell, centred at 0
    strides: Sequence[tuple[float, float]]  # per level, (x, y) pixels between cells
    offset: float = 0.0  # position of the first cell's centre, in cells

    def anchors(self, shapes: Sequence[Size]) -> Tensor:
        """Returns (sum of Hi * Wi * A, 4) XYXY in order of level, row, column, cell anchor."""
        both = zip(self.cells, self._centres(shapes), strict=True)
        return torch.cat([(c.repeat(1, 2)[:, None] + cell).reshape(-1, 4) for cell, c in both])

    def anchor_strides(self, shapes: Sequence[Size]) -> Tensor:
        """Returns the (A',) horizontal strides of the anchors' levels, in pixels."""
        counts = [h * w * len(cell) for (h, w), cell in zip(shapes, self.cells, strict=True)]
        strides = self.cells[0].new_tensor([stride[0] for stride in self.strides])
        return strides.repeat_interleave(torch.tensor(counts, device=strides.device))

    def _centres(self, shapes: Sequence[Size]) -> list[Tensor]:
        """Returns per level (Hi * Wi, 2): x, y of the cells' centres in pixels."""
        centres = []
        for shape, strides, cell in zip(shapes, self.strides, self.cells, strict=True):
            y, x = (
                (torch.arange(count, device=cell.device, dtype=cell.dtype) + self.offset) * stride
                for count, stride in zip(shape, strides[::-1], strict=True)
            )
            centres.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2))
        return centres

    @torch.no_grad()
    def match(
        self,
        transform: BatchTransform,
        size: Size,
        full_shapes: Sequence[Size],
        sub_shapes: Sequence[Size],
    ) -> tuple[Tensor, Tensor]:
        """Finds for each anchor of the transformed image the nearest one of the full network's.

        Args:
            transform: what was done to the image.
            size: (height, width) of the image before it.
            full_shapes, sub_shapes: (Hi, Wi) of each level in the full and the sub-network's pass.

        Returns:
            index: (A',) index into the full pass's anchors (0 where there is none).
            valid: (A',) whether there is one: a similar shape, inside both images.
        """
        new_height, new_width = transform.output_size(size)
        ratio = self.cells[0].new_tensor([new_width / size[1], new_height / size[0]])
        # The shapes of all levels' cell anchors, and where each level's anchors start.
        shapes = torch.cat([cell[:, 2:] - cell[:, :2] for cell in self.cells])  # (B, 2)
        counts = [h * w * len(cell) for (h, w), cell in zip(full_shapes, self.cells, strict=True)]
        starts = [0, *itertools.accumulate(counts)]
        # Of each shape, in tensors: a look at which is the nearest would wait for the device.
        strides, last, steps = [], [], []
        for level, (height, width) in enumerate(full_shapes):
            for anchor in range(count := len(self.cells[level])):
                strides.append(self.strides[level])
                last.append((width - 1, height - 1))
                steps.append((starts[level] + anchor, width * count, count))
        strides, last = shapes.new_tensor(strides), shapes.new_tensor(last)
        steps = torch.tensor(steps, device=shapes.device)

        indices, valids, first = [], [], 0
        for cell, centres in zip(self.cells, self._centres(sub_shapes), strict=True):
            # First by shape: at half the scale an anchor covers what one of the next level, twice
            # its size, covered in the full pass.
            overlap = _shape_iou(shapes[first : first + len(cell)] / ratio, shapes)
            first += len(cell)
            best, nearest = overlap.max(dim=1)
            # Centres in the padding of the batch are nobody's.
            inside = (centres < centres.new_tensor([new_width, new_height])).all(dim=1)
            original = transform.inverse_boxes(centres.repeat(1, 2), size)[:, :2]
            # Then by position: the cell of that shape's level whose centre is nearest. Many
            # anchors of the sub-network may share one of the full pass.
            place = original[:, None] / strides[nearest] - self.offset  # (Hi * Wi, B, 2)
            place = place.round().clamp(min=0).minimum(last[nearest]).long()
            start, row, column = steps[nearest].unbind(-1)
            index = start + place[..., 1] * row + place[..., 0] * column
            indices.append(index.reshape(-1))
            valids.append((inside[:, None] & (best >= MIN_SHAPE_IOU)).reshape(-1))
        return torch.cat(indices), torch.cat(valids)


def _shape_iou(one: Tensor, two: Tensor) -> Tensor:
    """(M, 2) and (B, 2) widths and heights -> (M, B) IoU of boxes with a common centre."""
    common = torch.minimum(one[:, None], two[None]).prod(dim=-1)
    return common / (one.prod(dim=-1)[:, None] + two.prod(dim=-1)[None] - common)
