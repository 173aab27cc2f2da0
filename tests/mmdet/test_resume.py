"""MMEngine's batches from any iteration on, and files that are whole or not there."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import pickle
import re
from typing import ClassVar

import numpy as np
import pytest
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import (
    BaseDataset,
    ConcatDataset,
    DefaultSampler,
    InfiniteSampler,
    pseudo_collate,
)
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, TRANSFORMS
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from gradaug_det.core.resumed import PlacedDataset, PlacedIndex
from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.mmdet.resume import PlacedBatches
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


@TRANSFORMS.register_module(force=True)
class FillImage:
    def __init__(self, value):
        self.value = value

    def __call__(self, results):
        item = tiny_item(results["sample_idx"], (96, 128), "bitmap")
        item["inputs"][:] = self.value
        return item


@DATASETS.register_module(force=True)
class PlainDataset(BaseDataset):
    METAINFO: ClassVar = dict(classes=("a", "b", "c"))

    def load_data_list(self):
        return [dict(instances=[dict(bbox_label=i % 3)]) for i in range(7)]

    def get_cat_ids(self, index):
        return [index % 3]


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
    end_workers(runner)


def train(runner):
    runner.train()
    end_workers(runner)


def end_workers(runner):
    """The garbage collector closes their queues first, and then waits five seconds for each."""
    iterator = runner.train_dataloader._iterator
    if iterator is not None:
        iterator._shutdown_workers()


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_sampler", [None, dict(type="AspectRatioBatchSampler")])
def test_within_an_epoch_too(by_epoch, workers, batch_sampler, tmp_path):
    """Four steps an epoch; the checkpoint that is resumed is of the sixth of twelve."""
    whole, cut = tiny_model(), tiny_model()
    options = settings(by_epoch, workers, batch_sampler)
    train(make_runner(whole, tmp_path / "whole", None, **options))
    stop_at(make_runner(cut, tmp_path / "cut", None, **options), 7)
    resumed = tiny_model(seed=9)
    # Another number of workers changes nothing either.
    other = settings(by_epoch, 1 if workers else 0, batch_sampler)
    runner = make_runner(resumed, tmp_path / "cut", None, resume=True, **other)
    train(runner)
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
    return PlacedBatches(sampler, 3, iteration, epoch, endless)


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
    place = pickle.loads(pickle.dumps(PlacedIndex(5, (7, 1))))
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


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("BaseDataset", 0), ("BaseDataset", 1), ("RepeatDataset", 0), ("ConcatDataset", 0)],
)
def test_hooks_change_the_dataset_and_not_what_stands_before_it(kind, workers, tmp_path):
    """MMDetection's own hook, which sets the pipeline; with and without persistent workers."""
    switch = dict(
        type="PipelineSwitchHook",
        switch_epoch=1,
        switch_pipeline=[dict(type="FillImage", value=250)],
    )
    inner = dict(type="PlainDataset", pipeline=[dict(type="FillImage", value=0)])
    wrapped = {
        "BaseDataset": inner,
        "RepeatDataset": dict(type="RepeatDataset", times=1, dataset=inner),
        "ConcatDataset": dict(type="ConcatDataset", datasets=[inner]),
    }[kind]
    options = settings(True, workers, length=2)
    options["train_dataloader"]["dataset"] = wrapped
    if kind == "BaseDataset":
        options["train_dataloader"]["sampler"] = dict(type="ClassAwareSampler")
    seen = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append((runner.epoch, float(data_batch["inputs"][0].max())))

        def before_train_epoch(self, runner):
            dataset, loader = runner.train_dataloader.dataset, runner.train_dataloader
            assert loader is runner.train_loop.dataloader
            assert (loader.batch_size, loader.sampler.epoch) == (2, runner.epoch)
            assert loader.batch_sampler.batch_size == 2
            if kind == "RepeatDataset":  # as such hooks do for it
                assert type(dataset.dataset).__name__ == "PlainDataset"
            if kind == "ConcatDataset":
                assert isinstance(dataset, ConcatDataset)
                assert type(dataset.datasets[0]).__name__ == "PlainDataset"

    hooks = [*options.pop("hooks"), Look()] + ([switch] if kind == "BaseDataset" else [])
    train(make_runner(tiny_model(), tmp_path, None, hooks=hooks, **options))
    assert {epoch for epoch, _ in seen} == {0, 1}
    later = 250 if kind == "BaseDataset" else 0
    assert all(value == (later if epoch else 0) for epoch, value in seen)


def test_a_stand_in_passes_on_what_is_set_and_removed():
    original = NoisyDataset()
    numbered = PlacedDataset(original, 3)
    numbered.pipeline, numbered.seed = "second", 5
    assert (original.pipeline, original.seed, numbered.pipeline) == ("second", 5, "second")
    del numbered.pipeline
    assert not hasattr(original, "pipeline") and not hasattr(numbered, "pipeline")
    assert isinstance(numbered, NoisyDataset) and len(numbered) == 7
    again = pickle.loads(pickle.dumps(numbered))  # as to a spawned worker
    assert type(again) is PlacedDataset and np.array_equal(
        again[2]["inputs"], numbered[2]["inputs"]
    )


def test_a_sampler_that_draws_from_numpys_generator_repeats():
    class Careless(list):
        def __iter__(self):
            while True:
                yield np.random.permutation(7)[:2].tolist()  # noqa: NPY002

    def batches(iteration):
        stream = iter(places(Careless(), iteration, endless=True))
        return [next(stream) for _ in range(9 - iteration)]

    assert batches(4) == batches(0)[4:]


def test_what_a_resumed_training_does_otherwise_is_said(tmp_path, caplog):
    def run(length, lr, workers=0, batch_size=2):
        options = settings(False, workers, length=length)
        options["train_dataloader"]["batch_size"] = batch_size
        caplog.clear()
        runner = make_runner(
            tiny_model(),
            tmp_path,
            None,
            resume=length > 1,
            log_level="WARNING",
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=lr)),
            **options,
        )
        runner.logger.addHandler(caplog.handler)
        train(runner)
        return [r.getMessage() for r in caplog.records if "resumed with" in r.getMessage()]

    assert run(1, 0.01) == []
    assert run(2, 0.01, workers=1) == []
    (said,) = run(3, 0.5, batch_size=1)
    assert re.search(r"not used, the checkpoint's hold: optimizer\.lr 0\.5 \(was 0\.01\)", said)
    assert "images a step and process 1 (was 2)" in said
    (said,) = run(4, 0.5, batch_size=1)  # it was not used the last time either
    assert "optimizer.lr 0.5 (was 0.01)" in said and "images a step" not in said


def test_a_moved_folder_is_gone_on_with_and_a_gone_checkpoint_is_said(tmp_path):
    make_runner(tiny_model(), tmp_path / "old", None, **settings(False, length=1)).train()
    (tmp_path / "old").rename(tmp_path / "new")
    runner = make_runner(
        tiny_model(), tmp_path / "new", None, resume=True, **settings(False, length=2)
    )
    runner.train()
    assert runner.iter == 8
    (tmp_path / "new/iter_8.pth").write_bytes(b"")
    runner = make_runner(
        tiny_model(), tmp_path / "new", None, resume=True, **settings(False, length=3)
    )
    with pytest.raises(
        GradAugError, match=r"iter_8\.pth, which is empty or cut off; .*: iter_6\.pth"
    ):
        runner.train()
