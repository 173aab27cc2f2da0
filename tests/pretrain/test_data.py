"""What a training sees depends on (seed, step) alone, in any number of processes."""

import numpy as np
import pytest
import torch
from PIL import Image

from gradaug_det.core.resumed import PlacedIndex
from gradaug_det.errors import DataError
from gradaug_det.mini_coco import load_garments, render_garment_crops
from gradaug_det.pretrain.data import (
    Crops,
    Lighting,
    StatelessBatches,
    augment_images,
    load_images,
    normalize,
    train_loader,
    val_loader,
)
from gradaug_det.pretrain.recipe import DataSettings
from tests.pretrain.helpers import tiny_recipe


def keys(recipe, images=160, **kwargs):
    batches = StatelessBatches(images, recipe, **kwargs)
    return [[key.place for key in batch] for batch in batches]


def test_every_image_once_an_epoch_in_another_order():
    batches = keys(tiny_recipe())
    assert len(batches) == 10
    first, second = (
        [index for batch in batches[part] for _, index in batch]
        for part in (slice(5), slice(5, 10))
    )
    assert sorted(first) == sorted(second) == list(range(160))
    assert first != second
    assert [batch[0][0] for batch in batches] == [0] * 5 + [1] * 5


def test_a_resumed_training_goes_on_with_the_next_batch():
    recipe = tiny_recipe()
    assert keys(recipe, first=7) == keys(recipe)[7:]


def test_processes_share_each_batch():
    recipe = tiny_recipe()
    shares = [keys(recipe, rank=rank, world=4) for rank in range(4)]
    for step, whole in enumerate(keys(recipe)):
        assert [key for share in shares for key in share[step]] == whole


def test_fewer_images_than_a_batch():
    with pytest.raises(DataError, match="batch_size 32 is more than the 20 training images"):
        StatelessBatches(20, tiny_recipe())


def test_pixels_do_not_depend_on_workers_or_on_the_global_generator():
    recipe = tiny_recipe("baseline", "data.workers=2")
    images = load_images(recipe.data, recipe.seed)
    batches = StatelessBatches(len(images.train), recipe)
    with_workers = next(iter(train_loader(images, recipe, batches)))
    torch.manual_seed(99)
    recipe.data.workers = 0
    state = torch.get_rng_state()
    without = next(iter(train_loader(images, recipe, batches)))
    assert torch.equal(with_workers[0], without[0])
    assert torch.equal(with_workers[1], without[1])
    assert without[0].dtype == torch.uint8
    assert without[0].shape == (32, 3, 16, 16)
    dataset = augment_images(images.train, recipe.data, recipe.seed)
    torch.set_rng_state(state)
    one, later = (dataset[PlacedIndex(5, (epoch, 5))][0] for epoch in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one, later)  # another epoch, another augmentation


def test_the_first_view_is_what_it_would_be_alone():
    images = load_images(tiny_recipe().data, 3)
    alone, several = (augment_images(images.train, tiny_recipe().data, 3, n) for n in (1, 3))
    first, views = alone[PlacedIndex(5, (0, 5))][0], several[PlacedIndex(5, (0, 5))][0]
    assert views.shape == (3, *first.shape) and views.dtype == torch.uint8
    assert torch.equal(views[0], first)
    differ = [len({view.numpy().tobytes() for view in several[i][0]}) for i in range(20)]
    assert sum(differ) > 50  # of 60: a shift of 0 to 4 pixels and a flip can be the same twice
    recipe = tiny_recipe("gradaug_views")
    batch, _ = next(iter(train_loader(images, recipe, StatelessBatches(160, recipe))))
    assert batch.shape == (32, 3, 3, 16, 16)  # the network's own and of n = 2


@pytest.mark.parametrize("augment", ["light", "imagenet"])
def test_photos_are_cut_before_they_become_tensors(augment, monkeypatch):
    """The same cut and colours as from a tensor, but for Pillow's rounding; no seed of devices."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(photo)).permute(2, 0, 1)
    settings = DataSettings(augment=augment, size=64)
    monkeypatch.setattr(torch, "manual_seed", None)  # formats the stack in every spawned worker
    for epoch in range(4):
        datasets = (augment_images([(image, 0)], settings, seed=1) for image in (photo, pixels))
        cut, whole = (dataset[PlacedIndex(0, (epoch, 0))][0] for dataset in datasets)
        difference = (cut.float() - whole.float()).abs()
        assert difference.mean() < 0.5 and difference.max() <= 16


def test_a_share_has_all_classes_and_a_holdout_is_kept_out():
    whole = load_images(DataSettings(size=16), seed=0)
    assert (len(whole.train), len(whole.val)) == (4000, 1200)
    tenth = load_images(DataSettings(size=16, fraction=0.1), seed=0)
    labels = torch.tensor([label for _, label in tenth.train])
    assert labels.bincount().tolist() == [40] * 10
    other = load_images(DataSettings(size=16, fraction=0.1), seed=1)
    assert tenth.train.indices != other.train.indices
    held = load_images(DataSettings(size=16, holdout=0.25), seed=0)
    assert (len(held.train), len(held.val)) == (3000, 1000)
    inside = held.val.images.indices
    assert not set(inside) & set(held.train.indices)
    assert torch.equal(held.val[0][0], whole.train.dataset[inside[0]][0])


def test_only_crops_that_are_asked_for_are_drawn_and_once(monkeypatch):
    drawn = []

    def noted(*args):
        drawn.append(args[-1].tolist())
        return render_garment_crops(*args)

    monkeypatch.setattr("gradaug_det.pretrain.data.render_garment_crops", noted)
    crops = Crops("test", root="", size=16)
    images, labels = load_garments("test")
    expected = render_garment_crops(images[:8], labels[:8], 16, seed=1)
    assert np.array_equal(crops.pixels([7, 2, 7]), expected[[7, 2, 7]])
    assert np.array_equal(crops[3][0], expected[3])
    assert crops[3][1] == labels[3]
    assert np.array_equal(crops.pixels(range(8)), expected)
    assert drawn == [[2, 7], [3], [0, 1, 4, 5, 6]]


def make_folders(root, classes=("cat", "dog"), splits=("train", "val")):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def test_image_folders(tmp_path):
    root = make_folders(tmp_path / "data")
    recipe = tiny_recipe(
        "baseline",
        "data.kind=imagefolder",
        f"data.root={root}",
        "data.augment=imagenet",
        "data.fraction=1",
        "data.size=32",
        "batch_size=4",
    )
    images = load_images(recipe.data, recipe.seed)
    assert images.classes == ["cat", "dog"]
    loader = train_loader(images, recipe, StatelessBatches(len(images.train), recipe))
    pixels, labels = next(iter(loader))
    assert pixels.shape == (4, 3, 32, 32)
    assert set(labels.tolist()) <= {0, 1}
    seen = [len(part[1]) for rank in (0, 1) for part in val_loader(images, recipe, rank, 2)]
    assert sum(seen) == 6


def test_image_folders_that_are_not_there(tmp_path):
    settings = DataSettings(kind="imagefolder", root=str(tmp_path))
    with pytest.raises(DataError, match="has no folder 'train'; give the folder that holds"):
        load_images(settings, 0)
    make_folders(tmp_path)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    with pytest.raises(DataError, match=r"different classes, e\.g\. cat, cow"):
        load_images(settings, 0)
    for file in (tmp_path / "train" / "cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"data\.root .*cat"):
        load_images(settings, 0)


def test_lighting_moves_colours_of_the_whole_image_together():
    torch.manual_seed(0)
    image = torch.full((3, 4, 4), 128, dtype=torch.uint8)
    lit = Lighting(std=1.0)(image)
    assert lit.dtype == torch.uint8
    shifts = lit.float() - 128
    assert shifts.abs().max() > 1
    assert (shifts.flatten(1).std(dim=1) == 0).all()
    assert torch.equal(Lighting(std=0.0)(image), image)


def test_normalisation_is_imagenets_on_the_0_255_scale():
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = (torch.tensor([124, 116, 104]) - torch.tensor([123.675, 116.28, 103.53])) / (
        255 * torch.tensor([0.229, 0.224, 0.225])
    )
    assert torch.allclose(normalize(image).flatten(), expected, atol=1e-6)
