"""Corruptions are repeatable and know the order of channels; settings are checked."""

import numpy as np
import pytest

from gradaug_det.benchmark.changes import FGSM, Corruption
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.corruptions import corruption_names

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
RANDOM = ("gaussian_noise", "impulse_noise", "glass_blur", "frost", "elastic_transform")


@pytest.mark.parametrize("kind", RANDOM)
def test_the_same_file_is_corrupted_alike_whatever_was_drawn_before(kind):
    change = Corruption(kind, 3)
    first = change.apply(IMAGE, "a.png", "RGB")
    np.random.seed(5)  # noqa: NPY002
    np.random.rand()  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(first, change.apply(IMAGE, "a.png", "RGB"))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002 and leaves no trace
    assert not np.array_equal(first, change.apply(IMAGE, "b.png", "RGB"))
    assert first.dtype == np.uint8 and first.shape == IMAGE.shape


def test_channels_may_be_in_either_order():
    change = Corruption("fog", 4)
    rgb = change.apply(IMAGE, "a.png", "RGB")
    bgr = change.apply(IMAGE[..., ::-1], "a.png", "BGR")
    assert np.array_equal(rgb, bgr[..., ::-1])
    assert not np.array_equal(rgb, IMAGE)


def test_there_are_fifteen():
    assert len(corruption_names()) == 15 and set(RANDOM) < set(corruption_names())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Corruption("rain", 1), "'rain' is unknown; choose among gaussian_noise, "),
        (lambda: Corruption("fog", 6), r"severity must be one of \[1, 2, 3, 4, 5\], got 6"),
        (lambda: FGSM(0), "--fgsm must be above 0, at most 255, got 0"),
    ],
)
def test_settings_that_do_not_exist(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_images_too_small_to_corrupt():
    with pytest.raises(DataError, match="32 pixels or more a side, this one has 16 x 64"):
        Corruption("fog", 1).apply(IMAGE[:16], "a.png", "RGB")
