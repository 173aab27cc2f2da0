"""FGSM and corruptions: bounded, repeatable, and they do harm."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gradaug_det.errors import DataError
from gradaug_det.evaluation.corruptions import corruption_names
from gradaug_det.pretrain.data import Crops, normalize
from gradaug_det.pretrain.scoring import fgsm, load_classifier
from studies.mini_zoo.robustness import accuracy, corrupt_images, corrupted_sets, measure
from tests.pretrain.helpers import pretraining, tiny_recipe


@pytest.fixture(scope="module")
def images():
    crops = Crops("test", root="", size=32)
    return crops.pixels(range(40)), crops.targets[:40]


@pytest.fixture(scope="module")
def model(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("model")
    pretraining(tiny_recipe("baseline", "epochs=1"), folder).run()
    model = load_classifier(str(folder / "backbone.safetensors"))
    # Fitted to the few images of these tests, so that there is something to lose.
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(normalize(images[0])), images[1]).backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(30):
            model(normalize(images[0]))
    return model.eval()


def test_fgsm_moves_pixels_by_epsilon_up_the_loss(model, images):
    pixels, labels = images
    moved = fgsm(model, pixels, labels, 2)
    steps = (moved - pixels).abs()
    assert steps.max() <= 2
    assert (steps[(pixels > 2) & (pixels < 253)] == 2).float().mean() > 0.95
    assert moved.min() >= 0 and moved.max() <= 255
    with torch.no_grad():
        before, after = (F.cross_entropy(model(normalize(x)), labels) for x in (pixels, moved))
    assert after > before
    assert not any(p.grad is not None and p.grad.isnan().any() for p in model.parameters())
    assert torch.equal(fgsm(model, pixels, labels, 0), pixels.float())


def test_there_are_imagenet_cs_fifteen():
    assert len(corruption_names()) == 15


@pytest.mark.parametrize("name", corruption_names())
def test_corruptions_repeat_and_leave_the_generators_alone(name, images):
    pixels = images[0][:3]
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = corrupt_images(pixels, name, 3), corrupt_images(pixels, name, 3)
    assert torch.equal(one, two)
    assert one.dtype == torch.uint8 and one.shape == pixels.shape
    assert not torch.equal(one, pixels)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert np.random.default_rng().random() != np.random.default_rng().random()


def test_small_images_are_refused():
    with pytest.raises(DataError, match="corruptions need images of 32 pixels"):
        corrupt_images(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "fog", 1)


def test_measure_and_its_cache(model, images, tmp_path):
    pixels, labels = images
    names = ["gaussian_noise", "contrast"]
    sets = corrupted_sets(pixels[:10], tmp_path, names, severities=(1, 5))
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 4
    again = corrupted_sets(pixels[:10], tmp_path, names, severities=(1, 5))
    assert all(torch.equal(sets[key], again[key]) for key in sets)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files
    metrics = measure(model, pixels, labels, sets, labels[:10])
    assert metrics["top1"] == accuracy(model, pixels, labels) > 50
    assert metrics["fgsm4"] <= metrics["fgsm1"] <= metrics["top1"]
    each = {key: accuracy(model, part, labels[:10]) for key, part in sets.items()}
    assert metrics["corruption5"] == pytest.approx(sum(each[n, 5] for n in names) / 2)
    assert metrics["corruption"] == pytest.approx(sum(each.values()) / 4)
    assert metrics["corruption/contrast"] == pytest.approx(
        (each["contrast", 1] + each["contrast", 5]) / 2
    )
