import numpy as np
import pytest
from pycocotools import mask as coco_mask

from gradaug_det.mini_coco.masks import (
    fill_holes,
    keep_large_components,
    mask_to_box,
    mask_to_polygons,
    mask_to_rle,
)


def picture(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def random_masks(count: int) -> list[np.ndarray]:
    """Blobs of several sizes with holes, islands in holes and parts touching by a corner."""
    rng = np.random.default_rng(0)
    masks = []
    for index in range(count):
        block = 1 + index % 4
        coarse = rng.uniform(size=(24 // block, 36 // block)) < rng.uniform(0.2, 0.8)
        coarse[0, 0] = True
        masks.append(np.kron(coarse, np.ones((block, block), bool)).astype(bool))
    return masks


def decode(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))
    return coco_mask.decode(rle).astype(bool)


def test_polygons_decode_to_the_mask_they_came_from():
    for mask in random_masks(60):
        np.testing.assert_array_equal(decode(mask_to_polygons(mask), mask.shape), mask)


def test_a_hole_is_cut_open_because_coco_has_no_polygons_for_holes():
    ring = np.ones((9, 9), bool)
    ring[3:6, 3:6] = False
    polygons = mask_to_polygons(ring)
    assert len(polygons) == 2
    np.testing.assert_array_equal(decode(polygons, ring.shape), ring)


def test_a_rectangle_is_eight_points_half_a_pixel_off_its_corners():
    mask = np.zeros((10, 10), bool)
    mask[2:6, 3:9] = True
    (polygon,) = mask_to_polygons(mask)
    points = {tuple(p) for p in np.reshape(polygon, (-1, 2)).tolist()}
    assert points == {
        *((3.5, 2), (8.5, 2), (9, 2.5), (9, 5.5)),
        *((8.5, 6), (3.5, 6), (3, 5.5), (3, 2.5)),
    }


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_agree_with_pycocotools(compressed):
    for mask in random_masks(20):
        rle = mask_to_rle(mask, compressed)
        packed = rle if compressed else coco_mask.frPyObjects(rle, *mask.shape)
        np.testing.assert_array_equal(coco_mask.decode(packed), mask)


def test_box_agrees_with_pycocotools():
    for mask in random_masks(20):
        expected = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))
        assert mask_to_box(mask) == expected.tolist()


def test_components_touching_by_a_corner_are_two():
    mask = picture("##..", "##..", "..#.", "#..#")
    np.testing.assert_array_equal(
        keep_large_components(mask, 2, 0), picture("##..", "##..", *["...."] * 2)
    )
    assert len(mask_to_polygons(mask)) == 4


def test_a_spiral_is_one_component():
    spiral = picture("#######", "#.....#", "#.###.#", "#.#.#.#", "#.#...#", "#.#####", "#......")
    np.testing.assert_array_equal(keep_large_components(spiral, 99, 1), spiral)
    assert len(mask_to_polygons(spiral)) == 1


def test_small_components_go_but_the_largest_stays():
    mask = picture("####.#", "####..", ".....#")
    np.testing.assert_array_equal(
        keep_large_components(mask, min_pixels=2, min_share=0),
        picture("####..", "####..", "......"),
    )
    assert keep_large_components(picture("#.."), min_pixels=4, min_share=0).any()
    assert not keep_large_components(picture("..."), min_pixels=1, min_share=0).any()


def test_holes_fill_unless_they_are_large_enough_to_be_real():
    mask = picture("#####.", "#.#.#.", "#.###.", "#####.", "......")
    filled = fill_holes(mask)
    np.testing.assert_array_equal(filled[:4, :5], True)
    assert filled.sum() == 20
    partly = fill_holes(mask, min_open=2)
    assert partly[1, 3]
    assert not partly[1, 1]
