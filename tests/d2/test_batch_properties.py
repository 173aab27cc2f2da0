"""Detectron2's instances go where the image's pixels go, whatever the sizes and the transform."""

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from hypothesis import given
from hypothesis import strategies as st

from gradaug_det.core.soft_targets import SubNetworkView, transform_deltas
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.d2.batch import transform_batch
from gradaug_det.d2.soft_targets import _transform_boxes
from tests.properties import FIXED, drawn, extent, rectangles, sizes, transforms

BATCHES = st.lists(
    sizes(most=60).flatmap(
        lambda size: st.tuples(st.just(size), st.lists(rectangles(size), max_size=3))
    ),
    min_size=1,
    max_size=2,
)


def item(size, boxes):
    """An input with every kind of field, of the same rectangles."""
    masks = drawn(boxes, size)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[:, masks.any(dim=0)] = 255
    target = Instances(size)
    target.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    target.gt_classes = torch.arange(len(boxes))
    target.gt_masks = BitMasks(masks)
    target.polygons = PolygonMasks(
        [[np.array([a, b, c, b, c, d, a, d], dtype=np.float64)] for a, b, c, d in boxes]
    )
    proposals = Instances(size, proposal_boxes=Boxes(target.gt_boxes.tensor.clone()))
    return {
        "image": image,
        "instances": target,
        "proposals": proposals,
        "sem_seg": masks.any(dim=0).long(),
        "height": size[0],
    }


@FIXED
@given(BATCHES, transforms())
def test_everything_follows_the_image(batch, transform):
    new = transform_batch([item(*case) for case in batch], transform)
    for (size, boxes), moved in zip(batch, new, strict=True):
        found = moved["instances"]
        shape = transform.output_size(size)
        assert tuple(moved["image"].shape) == (3, *shape)
        assert found.image_size == moved["proposals"].image_size == shape
        assert moved["sem_seg"].shape == shape and moved["height"] == size[0]
        exact = transform.boxes(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), size)
        assert (found.gt_boxes.tensor - exact).abs().amax().item() < 1e-3 if boxes else True
        assert torch.equal(moved["proposals"].proposal_boxes.tensor, found.gt_boxes.tensor)
        assert found.gt_classes.tolist() == list(range(len(boxes)))
        assert found.gt_masks.tensor.dtype == torch.bool
        outlines = found.polygons.get_bounding_boxes().tensor
        assert torch.allclose(outlines.double(), exact, atol=1e-3)
        for box, mask in zip(exact, found.gt_masks.tensor, strict=True):
            seen = extent(mask.float())
            assert seen is not None or (box[2:] - box[:2]).min() < 1
            assert seen is None or (seen - box).abs().max() <= 1 + 1e-6
        # Where the labels are, the image is: of all objects together.
        union = found.gt_masks.tensor.any(dim=0) if boxes else torch.zeros(shape, dtype=torch.bool)
        assert torch.equal(moved["sem_seg"] > 0, union)


@FIXED
@given(BATCHES, transforms())
def test_areas_of_polygons_scale(batch, transform):
    new = transform_batch([item(*case) for case in batch], transform)
    for (size, boxes), moved in zip(batch, new, strict=True):
        height, width = transform.output_size(size)
        ratio = height / size[0] * width / size[1]
        before = np.array([(c - a) * (d - b) for a, b, c, d in boxes])
        assert np.allclose(moved["instances"].polygons.area(), before * ratio, rtol=1e-4)


@FIXED
@given(sizes(most=60), st.floats(0.05, 4.0), st.integers(0, 3))
def test_keypoints_follow_without_a_mirror(size, scale, count):
    points = torch.rand(count, 5, 3, dtype=torch.float32)
    scaled = points * torch.tensor([size[1], size[0], 2.0])
    target = Instances(size, gt_keypoints=Keypoints(scaled))
    inputs = [{"image": torch.zeros(3, *size, dtype=torch.uint8), "instances": target}]
    (new,) = transform_batch(inputs, BatchTransform(scale))
    height, width = new["instances"].image_size
    expected = points * torch.tensor([width, height, 2.0])
    assert torch.allclose(new["instances"].gt_keypoints.tensor, expected, atol=1e-3)


@FIXED
@given(BATCHES, transforms(), st.integers(1, 4))
def test_boxes_and_deltas_of_soft_targets(batch, transform, classes):
    shapes = [size for size, _ in batch]
    boxes = [torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for _, b in batch]
    moved = _transform_boxes(boxes, SubNetworkView(None, {}, transform, shapes))
    for new, old, size in zip(moved, boxes, shapes, strict=True):
        assert torch.equal(new.tensor, transform.boxes(old, size))
        assert torch.allclose(transform.inverse_boxes(new.tensor, size), old, atol=1e-3)
    deltas = torch.randn(sum(map(len, boxes)), 4 * classes)
    mirrored = transform_deltas(deltas, transform)
    assert mirrored.shape == deltas.shape
    sign = torch.tensor([-1.0 if transform.flip else 1.0, 1, 1, 1]).repeat(classes)
    assert torch.equal(mirrored, deltas * sign)
