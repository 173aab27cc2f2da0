"""The stream of images is taken up where it was left, whatever workers, groups and samplers."""

import itertools
import logging

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall
from detectron2.data import (
    DatasetMapper,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import IterableDataset, Sampler

from gradaug_det.d2.data import register_coco
from gradaug_det.d2.resume import (
    ExactResume,
    ResumableLoader,
    resumable_lazy_loader,
    resumable_train_loader,
    training_seed,
)
from gradaug_det.d2.train import Trainer
from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.utils.seeding import seed_everything, stable_seed, temporary_seed
from tests.d2.dataset import annotation, write_coco
from tests.d2.helpers import tiny_cfg

SIZES = [(96, 128), (128, 96), (96, 120), (96, 128), (128, 90), (100, 128), (128, 96)]


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """Seven images, upright and lying; sizes and mirroring are drawn."""
    folder = tmp_path_factory.mktemp("coco") / "data"
    images = [[annotation(5, 5, 30, 40, category=1 + i % 3)] for i in range(len(SIZES))]
    register_coco("resume_train", *write_coco(folder, images, SIZES))
    cfg = tiny_cfg("mask_rcnn")
    cfg.DATASETS.TRAIN = ("resume_train",)
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 72, 80, 88)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def changed(cfg, *pairs):
    cfg = cfg.clone()
    cfg.merge_from_list(pairs)
    return cfg


def content(batch):
    """What a detector sees of a batch."""
    return [
        (item["image_id"], item["image"].tolist(), item["instances"].gt_boxes.tensor.tolist())
        for item in batch
    ]


def take(loader, first, count):
    loader.first = first
    return [content(batch) for batch in itertools.islice(iter(loader), count)]


@pytest.mark.parametrize(
    "pairs",
    [
        (),
        ("DATALOADER.ASPECT_RATIO_GROUPING", False),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ],
)
def test_from_any_step_on_the_batches_are_the_same(cfg, pairs):
    if "RepeatFactorTrainingSampler" in pairs:
        pairs += ("DATALOADER.REPEAT_THRESHOLD", 0.5)
    cfg = changed(cfg, *pairs)
    whole = take(resumable_train_loader(cfg, seed=3), 0, 10)
    for first in (1, 4, 7):
        assert take(resumable_train_loader(cfg, seed=3), first, 10 - first) == whole[first:]
    assert take(resumable_train_loader(cfg, seed=4), 0, 10) != whole


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rank", [None, 0, 1])
def test_workers_change_nothing(cfg, grouping, size, rank, monkeypatch):
    """Whatever Detectron2's version shares among them, of one process or two."""
    parts = build_detection_train_loader.from_config(cfg)
    if rank is not None:
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "get_rank", lambda: rank)

    def batches(workers, first, count):
        loader = ResumableLoader(
            parts["dataset"],
            parts["mapper"],
            lambda: TrainingSampler(len(SIZES), seed=5),
            seed=3,
            single_gpu_batch_size=size,
            aspect_ratio_grouping=grouping,
            num_workers=workers,
        )
        return take(loader, first, count)

    alone = batches(0, 0, 9)
    for workers, first in ((1, 4), (2, 0), (3, 5), (4, 4)):
        assert batches(workers, first, 4) == alone[first : first + 4]


def test_images_are_detectron2s_own_but_for_the_random_numbers(cfg):
    """Same order for the same sampler seed, same keys, same grouping."""
    ours = [[x[0] for x in batch] for batch in take(resumable_train_loader(cfg, seed=3), 0, 8)]
    with temporary_seed(stable_seed("sampler", 3)):
        theirs = build_detection_train_loader(cfg)
    batches = itertools.islice(iter(theirs), 8)
    assert ours == [[item["image_id"] for item in batch] for batch in batches]


def test_loading_leaves_the_trainings_random_numbers_alone(cfg):
    loader = resumable_train_loader(cfg, seed=3)
    for batches in (iter(loader), iter(resumable_train_loader(cfg, seed=5))):
        seed_everything(0)
        expected = (torch.rand(3), np.random.rand(3))  # noqa: NPY002
        seed_everything(0)
        next(batches)  # the first starts the loader
        assert torch.equal(torch.rand(3), expected[0])
        assert (np.random.rand(3) == expected[1]).all()  # noqa: NPY002


def test_the_same_image_is_changed_otherwise_the_next_time(cfg):
    seen = {}
    for batch in take(resumable_train_loader(cfg, seed=3), 0, 28):
        for image, pixels, _ in batch:
            seen.setdefault(image, []).append(pixels)
    assert all(any(later != first[0] for later in first[1:]) for first in seen.values())


def test_processes_share_the_stream(cfg, monkeypatch):
    """Two processes' images are the odd and the even ones of one process'."""
    parts = build_detection_train_loader.from_config(cfg)

    def loader(total):
        return ResumableLoader(
            parts["dataset"],
            parts["mapper"],
            lambda: TrainingSampler(len(SIZES), seed=5),
            seed=3,
            total_batch_size=total,
            aspect_ratio_grouping=False,
        )

    alone = take(loader(1), 0, 12)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert take(loader(2), 2, 4) == alone[rank::2][2:6]


def test_a_lazy_config_gives_the_same_loader(cfg, caplog):
    node = LazyCall(build_detection_train_loader)(
        dataset=LazyCall(get_detection_dataset_dicts)(names="resume_train"),
        mapper=DatasetMapper(cfg, True),
        total_batch_size=2,
        num_workers=0,
    )
    records, mapper = get_detection_dataset_dicts("resume_train"), DatasetMapper(cfg, True)
    own = ResumableLoader(
        records, mapper, lambda: TrainingSampler(len(SIZES)), 3, total_batch_size=2
    )
    assert take(resumable_lazy_loader(node, 3), 2, 5) == take(own, 2, 5)
    node["sampler"] = LazyCall(RandomSubsetTrainingSampler)(size=7, subset_ratio=0.5)
    few = {image for batch in take(resumable_lazy_loader(node, 3), 0, 9) for image, *_ in batch}
    assert len(few) == 3
    node["_target_"] = "builtins.dict"
    caplog.set_level("WARNING", "detectron2.gradaug")
    logging.getLogger("detectron2").propagate = True
    assert resumable_lazy_loader(node, 3) is None
    assert "begin anew" in caplog.text


def lazy(cfg, **arguments):
    return LazyCall(build_detection_train_loader)(
        dataset=LazyCall(get_detection_dataset_dicts)(names="resume_train"),
        mapper=DatasetMapper(cfg, True),
        **{"total_batch_size": 2, **arguments},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_workers": 2, "prefetch_factor": 1, "persistent_workers": True, "pin_memory": False},
        {"num_workers": 0, "prefetch_factor": 4, "persistent_workers": True},
        {"num_workers": 1, "timeout": 60, "multiprocessing_context": "fork", "drop_last": True},
        {"total_batch_size": None, "single_gpu_batch_size": 2},
    ],
)
def test_the_loader_arguments_of_detectron2_main(cfg, arguments):
    alone = take(resumable_lazy_loader(lazy(cfg), 3), 1, 3)
    assert take(resumable_lazy_loader(lazy(cfg, **arguments), 3), 1, 3) == alone


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"shuffle": True}, r"dataloader\.train\.shuffle is not among .*prefetch_factor.*remove"),
        ({"in_order": False}, r"dataloader\.train\.in_order is not among"),
        (
            {"num_workers": 1, "prefetch_factor": 0},
            r"train\.prefetch_factor must be an integer of",
        ),
        ({"num_workers": "2"}, r"dataloader\.train cannot be used: "),
        ({"single_gpu_batch_size": 2}, "single_gpu_batch_size must not be given beside"),
        ({"total_batch_size": 0}, r"\(total_batch_size\) must be 1 or more, got 0"),
        ({"total_batch_size": "2"}, "must be 1 or more, got '2'"),
    ],
)
def test_loader_arguments_that_have_no_meaning(cfg, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resumable_lazy_loader(lazy(cfg, **arguments), 3)


def test_a_seed_of_the_loaders_own(cfg):
    own = resumable_lazy_loader(lazy(cfg, seed=9), 3)
    assert own.seed == 9
    state = ExactResume(own, 3, cfg).state_dict()
    hook = ExactResume(resumable_lazy_loader(lazy(cfg), 4), 4, cfg)
    hook.load_state_dict(state)
    assert (hook.seed, hook.loader.seed) == (3, 9)


def test_a_sampler_that_draws_from_numpys_generator_repeats(cfg):
    class Careless(Sampler):
        def __init__(self):
            pass

        def __iter__(self):
            while True:
                yield from np.random.permutation(len(SIZES))  # noqa: NPY002

    def loader(workers):
        parts = build_detection_train_loader.from_config(cfg)
        size = {"total_batch_size": 2, "num_workers": workers}
        return ResumableLoader(parts["dataset"], parts["mapper"], Careless, 3, **size)

    assert take(loader(2), 3, 3) == take(loader(0), 0, 6)[3:]


def test_what_a_resumed_training_does_otherwise_is_said(cfg, tmp_path, caplog):
    cfg = changed(cfg, "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 0.02, "SEED", 7)
    Trainer(cfg).checkpointer.save("model_0000001", iteration=1)
    logging.getLogger("detectron2").propagate = True

    def said(*pairs):
        caplog.clear()
        trainer = Trainer(changed(cfg, *pairs))
        trainer.resume_or_load(resume=True)
        assert trainer._trainer.optimizer.param_groups[0]["initial_lr"] == 0.02
        return [r.getMessage() for r in caplog.records if "resumed with" in r.getMessage()]

    harmless = ("DATALOADER.NUM_WORKERS", 2, "SOLVER.CHECKPOINT_PERIOD", 9, "MODEL.WEIGHTS", "x")
    assert said(*harmless) == []
    (one,) = said(
        *("SOLVER.BASE_LR", 0.5, "SEED", 8, "SOLVER.IMS_PER_BATCH", 1, "SOLVER.STEPS", (5,))
    )
    ignored, used = one.split("used, so that it is another training from here on: ")
    assert "SOLVER.BASE_LR 0.5 (was 0.02)" in ignored and "SEED 8 (was 7)" in ignored
    assert "images a step and process 1 (was 2)" in used and "SOLVER.STEPS [5]" in used


def test_the_checkpoint_that_is_gone(cfg, tmp_path):
    cfg = changed(cfg, "OUTPUT_DIR", str(tmp_path / "old"))
    trainer = Trainer(cfg)
    for trainer.iter in (1, 2):
        iteration = trainer.iter
        trainer.checkpointer.save(f"model_{iteration}", iteration=iteration)
    (tmp_path / "old").rename(tmp_path / "new")
    cfg.OUTPUT_DIR = str(tmp_path / "new")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    (tmp_path / "new/model_2.pth").unlink()
    with pytest.raises(GradAugError, match=r"model_2\.pth, which is not there; .*: model_1\.pth\."):
        trainer.resume_or_load(resume=True)


def test_what_has_no_places_is_refused(cfg):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ()

    with pytest.raises(GradAugError, match=r"needs a dataset with a length.*EXACT_RESUME False"):
        ResumableLoader(Stream(), None, lambda: TrainingSampler(3), 0, total_batch_size=2)
    records = [{"file_name": "x"}] * 4
    loader = ResumableLoader(records, None, lambda: TrainingSampler(4), 0, total_batch_size=2)
    loader.first = 1
    with pytest.raises(GradAugError, match=r"width and height.*ASPECT_RATIO_GROUPING False"):
        next(iter(loader))


def test_it_can_be_turned_off(cfg):
    cfg = changed(cfg, "SOLVER.EXACT_RESUME", False)
    assert not isinstance(Trainer.build_train_loader(cfg), ResumableLoader)
    names = [type(hook).__name__ for hook in Trainer(cfg)._hooks]
    assert "ExactResume" not in names and names[-1] == "SaveOnTermination"


def test_a_training_without_a_seed_draws_one(cfg):
    assert training_seed(7) == 7 and training_seed(0) == 0
    seed_everything(0)
    drawn = {training_seed(-1), training_seed(-1), training_seed(None)}
    assert len(drawn) == 3 and min(drawn) >= 0
