"""MMEngine's batches from any iteration on, and files that are whole or not there."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import logging
import pickle

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from mmengine.registry import DATASETS
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.resume import _mend_note, _Place, _Places
from tests.mmdet.helpers import assert_same, make_runner, tiny_item, tiny_model


@DATASETS.register_module(force=True)
class NoisyDataset(Dataset):
    """Images of which a stripe is drawn from numpy's generator, as augmentations are."""

    def __init__(self):
        self.metainfo = dict(classes=("a", "b", "c"), palette=None)

    def __len__(self):
        return 7

    def __getitem__(self, index):
        item = tiny_item(index, ((96, 128), (80, 112))[index % 2], "bitmap")
        item["inputs"][:, :8] = int(np.random.randint(256))  # noqa: NPY002
        return item

    def get_data_info(self, index):
        height, width = ((96, 128), (128, 96))[index % 2]
        return dict(height=height, width=width)


def settings(by_epoch, workers=0, batch_sampler=None, length=3):
    loop = dict(by_epoch=True, max_epochs=length)
    if not by_epoch:
        loop = dict(type="IterBasedTrainLoop", max_iters=4 * length)
    return dict(
        loop=loop,
        hooks=[dict(type="ExactResumeHook")],
        train_dataloader=dict(
            batch_size=2,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True),
            batch_sampler=batch_sampler,
            dataset=dict(type="NoisyDataset"),
            collate_fn=dict(type="pseudo_collate"),
        ),
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False), timer=None
        ),
    )


class Stop(Exception):
    pass


def stop_at(runner, iteration):
    """As a killed process would: between a step and the next."""
    step = runner.model.train_step

    def train_step(*args, **kwargs):
        if runner.iter == iteration:
            raise Stop
        return step(*args, **kwargs)

    runner.model.train_step = train_step
    with pytest.raises(Stop):
        runner.train()


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_sampler", [None, dict(type="AspectRatioBatchSampler")])
def test_within_an_epoch_too(by_epoch, workers, batch_sampler, tmp_path):
    """Four steps an epoch; the checkpoint that is resumed is of the sixth of twelve."""
    whole, cut = tiny_model(), tiny_model()
    options = settings(by_epoch, workers, batch_sampler)
    make_runner(whole, tmp_path / "whole", None, **options).train()
    stop_at(make_runner(cut, tmp_path / "cut", None, **options), 7)
    resumed = tiny_model(seed=9)
    # Another number of workers changes nothing either.
    other = settings(by_epoch, 1 if workers else 0, batch_sampler)
    runner = make_runner(resumed, tmp_path / "cut", None, resume=True, **other)
    runner.train()
    assert runner.iter == 12
    assert_same(whole.state_dict(), resumed.state_dict())


def test_a_training_without_a_seed_goes_on_with_its_own(tmp_path):
    options = settings(False) | dict(randomness=dict(seed=None))
    cut = tiny_model()
    runner = make_runner(cut, tmp_path / "cut", None, **options)
    seed = runner.seed
    stop_at(runner, 7)
    again = make_runner(tiny_model(seed=9), tmp_path / "cut", None, resume=True, **options)
    assert again.seed != seed
    again.train()
    assert again.seed == seed
    whole = tiny_model()
    with_seed = settings(False) | dict(randomness=dict(seed=seed))
    make_runner(whole, tmp_path / "whole", None, **with_seed).train()
    assert_same(whole.state_dict(), again.model.state_dict())


def places(sampler, iteration=0, epoch=0, endless=False):
    return _Places(sampler, 3, iteration, epoch, endless)


def test_the_rest_of_an_epoch_then_whole_ones():
    sampler = BatchSampler(DefaultSampler(range(7), shuffle=True, seed=3), 2, drop_last=False)
    whole = places(sampler)
    epochs = []
    for epoch in range(3):
        sampler.sampler.set_epoch(epoch)
        epochs.append(list(whole))
    assert [len(e) for e in epochs] == [4, 4, 4]
    cut = places(sampler, iteration=6, epoch=1)
    assert len(cut) == 2  # by which MMEngine knows an epoch's last iteration
    sampler.sampler.set_epoch(1)
    rest = list(cut)
    assert rest == epochs[1][2:] and [b[0].place for b in rest] == [(6, 0), (7, 0)]
    sampler.sampler.set_epoch(2)
    assert len(list(cut)) == len(cut) == 4


def test_an_endless_stream_over_a_sampler_of_epochs():
    sampler = BatchSampler(DefaultSampler(range(7), shuffle=True, seed=3), 2, drop_last=False)
    stream = iter(places(sampler, endless=True))
    whole = [next(stream) for _ in range(11)]
    stream = iter(places(sampler, iteration=6, endless=True))
    assert [next(stream) for _ in range(5)] == whole[6:]
    assert whole[:4] != whole[4:8], "epochs have the same order"


def test_a_group_that_was_not_full_is_taken_up(tmp_path):
    def batches(iteration):
        sampler = InfiniteSampler(NoisyDataset(), seed=3)
        stream = iter(places(AspectRatioBatchSampler(sampler, 2), iteration, endless=True))
        return [next(stream) for _ in range(12 - iteration)]

    assert batches(5) == batches(0)[5:]


def test_a_place_survives_the_way_to_a_worker():
    place = pickle.loads(pickle.dumps(_Place(5, (7, 1))))
    assert place == 5 and place.place == (7, 1) and [*range(9)][place] == 5


def test_what_has_no_order_is_refused(tmp_path):
    class Stream(IterableDataset):
        metainfo = None

        def __iter__(self):
            yield from ()

    options = settings(False)
    options["train_dataloader"] = DataLoader(Stream(), collate_fn=pseudo_collate)
    with pytest.raises(ConfigError, match=r"train_dataloader has no batch sampler.*ExactResume"):
        make_runner(tiny_model(), tmp_path, None, **options).train()


def test_one_checkpoint_to_keep_means_two(tmp_path):
    options = settings(False)
    options["default_hooks"]["checkpoint"]["max_keep_ckpts"] = 1
    make_runner(tiny_model(), tmp_path, None, **options).train()
    assert {p.name for p in tmp_path.glob("*.pth")} == {"iter_10.pth", "iter_12.pth"}


@pytest.mark.parametrize("note", [None, "", "gone.pth"])
def test_the_note_of_the_last_checkpoint_is_mended(note, tmp_path):
    file, logger = tmp_path / "last_checkpoint", logging.getLogger("mend")
    if note is not None:
        file.write_text(note)
    _mend_note(tmp_path, logger)
    assert not file.exists(), "it would be taken for a checkpoint's name"
    torch.save({}, tmp_path / "iter_2.pth")
    torch.save({}, tmp_path / ".partial.iter_4.pth.abc.pth")  # half-written
    _mend_note(tmp_path, logger)
    assert file.read_text() == str(tmp_path / "iter_2.pth")
