"""Whatever the image, the scale and the mirror: what lives in the pixels goes where they go."""

import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gradaug_det.core.transforms import BatchTransform
from tests.properties import FIXED, drawn, extent, rectangles, sizes, transforms

IMAGES = (torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16)
MASKS = (torch.bool, torch.uint8, torch.int64, torch.float32)
FLOATS = (torch.float32, torch.float64)
CASES = st.tuples(sizes(), transforms()).flatmap(
    lambda case: st.tuples(*map(st.just, case), rectangles(case[0]))
)


def random_boxes(size, count=20, dtype=torch.float64, seed=0):
    """Boxes inside and somewhat outside an image, of all shapes, down to no width."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    corners = corners * torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
    first = torch.minimum(corners[:, :2], corners[:, 2:])
    second = torch.maximum(corners[:, :2], corners[:, 2:])
    second[0] = first[0]
    return torch.cat([first, second], dim=1).to(dtype)


@FIXED
@given(CASES)
@example(((1, 1), BatchTransform(0.02, True), (0, 0, 1, 1)))
@example(((3, 41), BatchTransform(0.3, True), (5, 0, 6, 3)))
@example(((17, 2), BatchTransform(0.571, False), (0, 0, 2, 15)))
def test_masks_and_boxes_follow_the_image(case):
    size, transform, box = case
    moved = transform.boxes(torch.tensor([box], dtype=torch.float64), size)[0]
    image = transform.image(drawn([box], size, torch.float32))[0]
    mask = transform.masks(drawn([box], size))[0]
    assert image.shape == mask.shape == transform.output_size(size)
    # Half of a pixel at least is covered where the box is two pixels or larger after all.
    large = (moved[2:] - moved[:2]).min() >= 2
    for found in (extent(image), extent(mask)):
        assert found is not None or not large
        if found is not None:
            assert (found - moved).abs().max() <= 1 + 1e-6
    outside = torch.ones_like(image, dtype=torch.bool)
    x0, y0, x1, y1 = moved.tolist()
    # Antialiasing reaches no further than one pixel of the coarser image.
    reach = 1 + max(1.0, 1 / transform.scale, transform.scale)
    outside[
        max(0, int(y0 - reach)) : int(y1 + reach) + 1, max(0, int(x0 - reach)) : int(x1 + reach) + 1
    ] = False
    assert not image[outside].any() and not mask[outside].any()


@FIXED
@given(sizes(), transforms(), st.sampled_from(FLOATS))
def test_inverse_boxes_are_the_boxes(size, transform, dtype):
    boxes = random_boxes(size, dtype=dtype)
    back = transform.inverse_boxes(transform.boxes(boxes, size), size)
    error = (back - boxes).abs().max()
    assert error <= (1e-3 if dtype is torch.float32 else 1e-9)  # an exact inverse, not a pixel's
    if transform.output_size(size) == size and not transform.flip:
        assert torch.equal(back, boxes)


@FIXED
@given(sizes(), transforms())
def test_proposals_of_the_small_image_come_back_to_within_a_pixel(size, transform):
    """Rounded to whole pixels of the transformed image, as a detector's boxes nearly are."""
    boxes = random_boxes(size)
    coarse = transform.boxes(boxes, size).round()
    back = transform.inverse_boxes(coarse, size)
    height, width = transform.output_size(size)
    pixel = max(1.0, size[0] / height, size[1] / width)
    assert (back - boxes).abs().max() <= pixel


@FIXED
@given(sizes(), transforms())
def test_areas_scale_with_the_square_of_the_ratio(size, transform):
    boxes = random_boxes(size)
    moved = transform.boxes(boxes, size)
    before, after = ((b[:, 2:] - b[:, :2]).prod(dim=1) for b in (boxes, moved))
    height, width = transform.output_size(size)
    ratio = (height / size[0]) * (width / size[1])
    assert torch.allclose(after, before * ratio, rtol=1e-9, atol=1e-9)
    assert ((moved[:, 2:] - moved[:, :2]) >= 0).all()
    # Sizes are rounded to pixels: the ratio is that of the scale to within half a pixel a side.
    for side, new in zip(size, (height, width), strict=True):
        assert abs(new - side * transform.scale) <= 0.5 or new == 1


@FIXED
@given(sizes(), transforms(), st.sampled_from(FLOATS))
def test_points_are_the_corners_of_boxes(size, transform, dtype):
    boxes = random_boxes(size, dtype=dtype)
    corners = transform.points(boxes.reshape(-1, 2, 2), size)
    assert corners.dtype == dtype and corners.shape == (len(boxes), 2, 2)
    moved = transform.boxes(boxes, size)
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    assert torch.equal(torch.cat([low, high], dim=1), moved)


@FIXED
@given(sizes(least=2), transforms())
def test_deltas_go_from_moved_box_to_moved_target(size, transform):
    sources, targets = (random_boxes(size, seed=seed)[1:] for seed in (1, 2))

    def deltas(source, target):
        extent_, goal = source[:, 2:] - source[:, :2], target[:, 2:] - target[:, :2]
        shift = (target[:, :2] + goal / 2 - source[:, :2] - extent_ / 2) / extent_
        return torch.cat([shift, (goal / extent_).log()], dim=1)

    wide = (sources[:, 2:] - sources[:, :2]).amin(dim=1) > 0.1
    wide &= (targets[:, 2:] - targets[:, :2]).amin(dim=1) > 0.1
    assume(wide.any())
    sources, targets = sources[wide], targets[wide]
    moved = deltas(transform.boxes(sources, size), transform.boxes(targets, size))
    assert torch.allclose(transform.deltas(deltas(sources, targets)), moved, atol=1e-6)
    assert transform.deltas(deltas(sources, targets)).isfinite().all()


@FIXED
@given(sizes(most=12), transforms(), st.integers(0, 3), st.sampled_from((*FLOATS, torch.bool)))
def test_crops_of_boxes_are_mirrored_and_nothing_else(size, transform, count, dtype):
    crops = (torch.rand(count, 2, *size) * 9).to(dtype)
    moved = transform.box_crops(crops)
    assert moved.dtype == dtype and moved.shape == crops.shape
    assert torch.equal(moved.flip(-1) if transform.flip else moved, crops)


@FIXED
@given(sizes(), transforms(), st.sampled_from(IMAGES), st.sampled_from(MASKS))
@example((1, 1), BatchTransform(4.0, True), torch.uint8, torch.bool)
@example((1, 70), BatchTransform(0.02, False), torch.uint8, torch.int64)
@example((70, 1), BatchTransform(0.5, True), torch.bfloat16, torch.bool)
def test_dtype_device_and_range_are_kept(size, transform, image_type, mask_type):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), generator=generator).to(image_type)
    moved = transform.image(image)
    assert moved.dtype == image_type and moved.device == image.device
    assert moved.shape == (3, *transform.output_size(size))
    assert moved.double().isfinite().all()
    assert moved.double().min() >= image.double().min() - 1
    assert moved.double().max() <= image.double().max() + 1
    masks = torch.randint(0, 2, (2, *size), generator=generator).to(mask_type)
    new = transform.masks(masks)
    assert new.dtype == mask_type and new.device == masks.device
    assert set(new.unique().tolist()) <= set(masks.unique().tolist())  # nearest: no new labels
    flat = torch.full((3, *size), 77).to(image_type)
    assert (transform.image(flat).double() - 77).abs().max() <= (
        0 if image_type is torch.uint8 else 1
    )


@FIXED
@given(sizes(), transforms(), st.sampled_from(FLOATS), st.sampled_from(MASKS))
def test_of_nothing_comes_nothing(size, transform, box_type, mask_type):
    boxes = torch.zeros(0, 4, dtype=box_type)
    for moved in (transform.boxes(boxes, size), transform.inverse_boxes(boxes, size)):
        assert moved.shape == (0, 4) and moved.dtype == box_type
    assert transform.deltas(boxes).shape == (0, 4)
    assert transform.points(torch.zeros(0, 2), size).shape == (0, 2)
    masks = transform.masks(torch.zeros(0, *size, dtype=mask_type))
    assert masks.shape == (0, *transform.output_size(size)) and masks.dtype == mask_type


@FIXED
@given(sizes(), transforms())
def test_twice_mirrored_is_not_mirrored(size, transform):
    assume(transform.flip)
    straight = BatchTransform(transform.scale)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    assert torch.equal(transform.image(image).flip(-1), straight.image(image))
    boxes = random_boxes(size)
    width = transform.output_size(size)[1]
    moved, expected = transform.boxes(boxes, size), straight.boxes(boxes, size)
    assert torch.allclose(moved[:, [0, 2]], width - expected[:, [2, 0]])
    assert torch.equal(moved[:, [1, 3]], expected[:, [1, 3]])
