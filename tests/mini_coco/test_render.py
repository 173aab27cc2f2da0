import numpy as np
import pytest

from gradaug_det.errors import ConfigError
from gradaug_det.mini_coco import CLASS_NAMES, load_garments, render_garment_crops
from gradaug_det.mini_coco.patch import garment_patch, silhouette
from gradaug_det.mini_coco.render import MIN_VISIBLE_PIXELS, render_scene


@pytest.fixture(scope="module")
def garments():
    return load_garments("test")


def test_crops_are_reproducible_and_depend_on_seed_and_position_only(garments):
    images, labels = garments[0][:12], garments[1][:12]
    crops = render_garment_crops(images, labels, 64, seed=3)
    assert crops.shape == (12, 3, 64, 64)
    assert crops.dtype == np.uint8
    np.testing.assert_array_equal(crops, render_garment_crops(images, labels, 64, seed=3))
    np.testing.assert_array_equal(crops[:5], render_garment_crops(images[:5], labels[:5], 64, 3))
    chosen = render_garment_crops(images, labels, 64, seed=3, indices=[7, 2])
    np.testing.assert_array_equal(crops[[7, 2]], chosen)
    other = render_garment_crops(images, labels, 64, seed=4)
    assert all((a != b).any() for a, b in zip(crops, other, strict=True))


def test_crops_show_the_garment(garments):
    """The same random canvas with and without a garment differs by about a garment's area."""
    images, labels = garments[0][:20], garments[1][:20]
    crops = render_garment_crops(images, labels, 64, seed=0).astype(int)
    blank = render_garment_crops(np.zeros_like(images), labels, 64, seed=0).astype(int)
    changed = (np.abs(crops - blank).max(axis=1) > 8).mean(axis=(1, 2))
    assert changed.min() > 0.02
    assert 0.1 < changed.mean() < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 8}, "size 8"),
        ({"seed": -1}, "seed -1"),
        ({"labels": np.zeros(3)}, r"uint8 \(N, 28, 28\)"),
        ({"images": np.zeros((2, 28, 28))}, r"float64 \(2, 28, 28\)"),
    ],
)
def test_crops_refuse_what_they_cannot_draw(change, message):
    good = {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.zeros(2), "size": 64, "seed": 0}
    with pytest.raises(ConfigError, match=message):
        render_garment_crops(**(good | change))


def test_silhouettes_keep_the_holes_that_are_real():
    ring = np.zeros((28, 28), np.uint8)
    ring[4:24, 4:24] = 200
    ring[10:18, 10:18] = 0
    assert not silhouette(ring, CLASS_NAMES.index("Bag"))[14, 14]
    assert silhouette(ring, CLASS_NAMES.index("Pullover"))[14, 14]


def test_silhouettes_close_the_midsole_of_shoes_but_not_the_gap_between_legs():
    image = np.zeros((28, 28), np.uint8)
    image[8:14, 2:26] = image[16:20, 2:26] = 200
    assert silhouette(image, CLASS_NAMES.index("Sneaker"))[14:16, 5:20].all()
    assert not silhouette(image.T, CLASS_NAMES.index("Trouser"))[5:20, 14:16].any()


@pytest.mark.parametrize("scale", [0.7, 1.0, 2.5, 5.0])
def test_a_patch_has_the_garment_s_size_times_the_scale_squared(scale):
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 6:22] = 200
    tint = np.array([255, 128, 0], np.float32)
    patch = garment_patch(image, 0, scale, degrees=10, flip=True, tint=tint)
    assert patch.mask.sum() == pytest.approx(20 * 16 * scale**2, rel=0.06)
    middle = patch.color[tuple(side // 2 for side in patch.alpha.shape)]
    np.testing.assert_allclose(middle, tint, atol=2)
    edge = np.concatenate([patch.alpha[0], patch.alpha[-1], patch.alpha[:, 0], patch.alpha[:, -1]])
    assert edge.max() < 0.5, "the patch cuts the garment off"


def test_flip_mirrors_and_degrees_turn():
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 4:10] = image[18:24, 4:24] = 200  # an L
    tint = np.full(3, 255, np.float32)

    def center_of_mass(degrees: float, flip: bool) -> np.ndarray:
        """x, y from the middle of the patch."""
        mask = garment_patch(image, 0, 2.0, degrees, flip, tint).mask
        ys, xs = np.nonzero(mask)
        return np.array([xs.mean(), ys.mean()]) - (mask.shape[0] - 1) / 2

    x, y = center_of_mass(0, flip=False)
    assert x < -2
    assert y > 2
    np.testing.assert_allclose(center_of_mass(0, flip=True), (-x, y), atol=0.1)
    np.testing.assert_allclose(center_of_mass(180, flip=False), (-x, -y), atol=0.1)
    turned = center_of_mass(15, flip=False)
    np.testing.assert_allclose(np.hypot(*turned), np.hypot(x, y), atol=0.2)
    angle = np.degrees(np.arctan2(turned[1], turned[0]) - np.arctan2(y, x))
    assert abs(angle) == pytest.approx(15, abs=1.5)


def test_nothing_annotated_is_nearly_hidden(garments):
    seen = 0
    for index in range(25):
        rng = np.random.default_rng([11, index])
        image, instances = render_scene(rng, *garments, size=(128, 160))
        assert image.shape == (128, 160, 3)
        assert image.dtype == np.uint8
        if instances:
            assert np.sum([i.mask for i in instances], axis=0).max() == 1
        for instance in instances:
            assert instance.mask.sum() >= 0.8 * MIN_VISIBLE_PIXELS
            assert all(garments[1][g] == instance.label for g in instance.garment_ids)
            seen += 1
    assert seen > 50


def test_a_garment_without_a_single_bright_pixel_is_not_annotated():
    blank = np.zeros((3, 28, 28), np.uint8)
    rng = np.random.default_rng(0)
    assert render_scene(rng, blank, np.array([0, 4, 8]), (96, 96))[1] == []
