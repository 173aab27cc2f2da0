"""Boxes, masks, points and deltas follow the image."""

import itertools

import pytest
import torch

from gradaug_det.core.transforms import BatchTransform

TRANSFORMS = [
    BatchTransform(scale, flip)
    for scale, flip in itertools.product((1.0, 0.857, 0.5, 0.3, 1.5), (False, True))
]
SIZE = (60, 90)


def blob(box, size=SIZE):
    """A white rectangle on black; box in whole pixels."""
    x0, y0, x1, y1 = box
    image = torch.zeros(1, *size)
    image[:, y0:y1, x0:x1] = 1
    return image


def extent(image, threshold=0.5):
    ys, xs = torch.where(image[0] > threshold)
    return torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("box", [(10, 12, 50, 40), (0, 0, 30, 20), (60, 30, 90, 60)])
def test_boxes_and_masks_follow_the_image(transform, box):
    image = transform.image(blob(box))
    assert tuple(image.shape[-2:]) == transform.output_size(SIZE)
    moved = transform.boxes(torch.tensor([box], dtype=torch.float), SIZE)[0]
    assert (extent(image) - moved).abs().max() <= 1
    masks = transform.masks(blob(box).bool())
    assert masks.dtype == torch.bool
    assert (extent(masks.float()) - moved).abs().max() <= 1
    corners = transform.points(torch.tensor(box, dtype=torch.float).reshape(2, 2), SIZE)
    x = sorted([corners[0, 0].item(), corners[1, 0].item()])
    assert x == pytest.approx([moved[0].item(), moved[2].item()])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_inverse_and_area(transform):
    torch.manual_seed(0)
    corner, extent_ = torch.rand(50, 2) * 40, torch.rand(50, 2) * 20 + 1
    boxes = torch.cat([corner, corner + extent_], dim=1)
    moved = transform.boxes(boxes, SIZE)
    assert torch.allclose(transform.inverse_boxes(moved, SIZE), boxes, atol=1e-4)
    height, width = transform.output_size(SIZE)
    ratio = (width / SIZE[1]) * (height / SIZE[0])
    areas, before = ((b[:, 2:] - b[:, :2]).prod(dim=1) for b in (moved, boxes))
    assert torch.allclose(areas, before * ratio, rtol=1e-4)
    assert (moved[:, 2:] > moved[:, :2]).all()


def test_the_identity_changes_nothing():
    image = torch.rand(3, 20, 30)
    same = BatchTransform()
    assert torch.equal(same.image(image), image)
    assert torch.equal(same.boxes(torch.ones(2, 4), (20, 30)), torch.ones(2, 4))


def test_one_pixel_is_the_least():
    tiny = BatchTransform(0.1)
    assert tiny.output_size((3, 400)) == (1, 40)
    assert tiny.image(torch.rand(3, 3, 400)).shape == (3, 1, 40)
    assert tiny.image(torch.rand(3, 1, 1)).shape == (3, 1, 1)
    for size in ((8, 10), (3, 30), (30, 3), (9, 9)):
        grey = torch.full((3, *size), 77, dtype=torch.uint8)
        small = BatchTransform(0.05).image(grey)
        assert small.shape[-2:] == BatchTransform(0.05).output_size(size)
        assert (small == 77).all()
    boxes = tiny.boxes(torch.tensor([[0.0, 0.0, 400.0, 3.0]]), (3, 400))
    assert torch.allclose(boxes, torch.tensor([[0.0, 0.0, 40.0, 1.0]]))


def test_dtypes_and_empty():
    half = BatchTransform(0.5, True)
    assert half.image(torch.zeros(3, 8, 8, dtype=torch.uint8)).dtype == torch.uint8
    assert half.image(torch.zeros(2, 3, 8, 8, dtype=torch.float64)).shape == (2, 3, 4, 4)
    assert half.masks(torch.zeros(0, 8, 10, dtype=torch.bool)).shape == (0, 4, 5)
    assert half.boxes(torch.zeros(0, 4), (8, 8)).shape == (0, 4)


def test_deltas_of_a_mirrored_box():
    flip = BatchTransform(1.0, True)
    boxes, targets = torch.tensor([[10.0, 10, 30, 40]]), torch.tensor([[14.0, 8, 44, 50]])

    def deltas(source, target):
        size, goal = source[:, 2:] - source[:, :2], target[:, 2:] - target[:, :2]
        shift = (target[:, :2] + goal / 2 - source[:, :2] - size / 2) / size
        return torch.cat([shift, (goal / size).log()], dim=1)

    moved = deltas(flip.boxes(boxes, SIZE), flip.boxes(targets, SIZE))
    assert torch.allclose(flip.deltas(deltas(boxes, targets)), moved, atol=1e-5)
    crop = torch.arange(6.0).reshape(1, 2, 3)
    assert torch.equal(flip.box_crops(crop), crop.flip(2))
    assert torch.equal(BatchTransform(0.5).box_crops(crop), crop)
