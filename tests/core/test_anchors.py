"""Which anchor of the full pass an anchor of a sub-network's pass is."""

import itertools

import pytest
import torch

from gradaug_det.core.anchors import MIN_SHAPE_IOU, AnchorGrid
from gradaug_det.core.transforms import BatchTransform

STRIDES = (4, 8, 16, 32, 64)


def cells(size):
    shapes = [(size / r**0.5, size * r**0.5) for r in (0.5, 1.0, 2.0)]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes])


def grid(offset=0.0):
    return AnchorGrid([cells(8 * s) for s in STRIDES], [(s, s) for s in STRIDES], offset)


def shapes(size):
    return [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]


def test_anchors_are_detectron2s():
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(
        sizes=[[8.0 * s] for s in STRIDES],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=STRIDES,
        offset=0.5,
    )
    features = [torch.zeros(1, 1, *shape) for shape in shapes((96, 128))]
    theirs = torch.cat([boxes.tensor for boxes in generator(features)])
    ours = AnchorGrid(list(generator.cell_anchors), [(s, s) for s in STRIDES], 0.5)
    assert torch.equal(ours.anchors(shapes((96, 128))), theirs)


def test_identity_matches_every_anchor_with_itself():
    size = (96, 128)
    index, valid = grid().match(BatchTransform(), size, shapes(size), shapes(size))
    assert valid.all()
    assert torch.equal(index, torch.arange(len(index)))


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize(
    ("scale", "flip"),
    list(itertools.product((1.0, 0.857, 0.714, 0.571, 0.5, 1.5), (False, True))),
)
def test_matches_are_near_in_place_and_shape(scale, flip, offset):
    size, transform, anchors = (200, 260), BatchTransform(scale, flip), grid(offset)
    full, sub = shapes(size), shapes(transform.output_size(size))
    index, valid = anchors.match(transform, size, full, sub)
    ours, theirs = anchors.anchors(sub)[valid], anchors.anchors(full)[index[valid]]
    # Halfway between two octaves no anchor of the full pass is near enough.
    if scale == 0.714:
        assert not valid.any()
        return
    assert valid.float().mean() > 0.2
    back = transform.inverse_boxes(ours, size)
    stride = torch.cat(
        [torch.full((h * w * 3,), float(s)) for (h, w), s in zip(full, STRIDES, strict=True)]
    )[index[valid]]
    distance = ((back[:, :2] + back[:, 2:]) - (theirs[:, :2] + theirs[:, 2:])).abs().amax(1) / 2
    # Half a cell, or one and a half where the nearest cell would be off the grid.
    assert (distance <= 1.5 * stride + 1e-3).all()
    assert (distance <= 0.5 * stride + 1e-3).float().mean() > 0.8
    one, two = back[:, 2:] - back[:, :2], theirs[:, 2:] - theirs[:, :2]
    common = torch.minimum(one, two).prod(1)
    overlap = common / (one.prod(1) + two.prod(1) - common)
    assert (overlap >= MIN_SHAPE_IOU - 1e-3).all()


def test_half_scale_is_one_level_up():
    """At half the size, an anchor of one level is the same box as one of the next level."""
    size, transform, anchors = (256, 256), BatchTransform(0.5), grid()
    full, sub = shapes(size), shapes((128, 128))
    index, valid = anchors.match(transform, size, full, sub)
    same = anchors.anchors(sub)[valid] * 2 == anchors.anchors(full)[index[valid]]
    assert same.all()
    last = 3 * sub[-1][0] * sub[-1][1]
    assert not valid[-last:].any()  # the top level has no level above
    assert valid[:-last].all()


def test_padding_has_no_target():
    """Cells beyond the transformed image, in the batch's padding, are not compared."""
    size, transform = (64, 64), BatchTransform(0.5)
    _, valid = grid().match(transform, size, shapes((64, 64)), shapes((64, 64)))
    first = valid[: 16 * 16 * 3].reshape(16, 16, 3)
    assert first[:8, :8].all()
    assert not first[8:].any()
    assert not first[:, 8:].any()
