"""Hypothesis for this repository's tests: the same examples on every machine, and few enough."""

import hypothesis
import torch
from hypothesis import strategies as st

from gradaug_det.core.transforms import BatchTransform

FIXED = hypothesis.settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    # Shrinking a failure takes minutes here; the first failing example is the same everywhere.
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    suppress_health_check=list(hypothesis.HealthCheck),
)


def transforms():
    """Scales of the whole range that is allowed, whole ratios among them, with and without flip."""
    scales = st.floats(0.02, 4.0) | st.sampled_from((1.0, 0.5, 0.25, 2.0, 0.857, 0.714, 0.571))
    return st.builds(BatchTransform, scales, st.booleans())


def sizes(least=1, most=70):
    """(height, width): odd and even, one pixel and long strips among them."""
    side = st.integers(least, most)
    return st.tuples(side, side)


@st.composite
def rectangles(draw, size):
    """A box in whole pixels, x0, y0, x1, y1, of at least one pixel inside an image of that size."""
    height, width = size
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))


def drawn(boxes, size, dtype=torch.bool):
    """(R, H, W) masks of boxes in whole pixels."""
    masks = torch.zeros(len(boxes), *size, dtype=dtype)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    return masks


def extent(mask, threshold=0.5):
    """x0, y0, x1, y1 of what is above the threshold in a (H, W) mask; None if nothing is."""
    ys, xs = torch.where(mask > threshold + 1e-6)  # whatever the last bit of a half
    if not len(ys):
        return None
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).double()
