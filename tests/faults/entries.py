"""The ways into the package that bad input is tried on, each giving one line of what came of it.

``works: ...`` names what was seen, ``warning: ...`` the first warning and what was seen, and
``DataError: ...`` (or another error of the package) its sentence. What a framework itself raises
when a broken image's turn comes is ``Detectron2's ValueError: ...``.
"""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import contextlib
import io
import json
import logging
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import load_checkpoint as mmengine_load

import gradaug_det.mmdet
from gradaug_det.benchmark.run import load_data
from gradaug_det.commands import cli
from gradaug_det.d2.checkpoint import SafeCheckpointer
from gradaug_det.d2.config import load_config, load_lazy_config
from gradaug_det.d2.data import check_datasets, register_coco
from gradaug_det.errors import GradAugError
from gradaug_det.frameworks import load_detector
from gradaug_det.mmdet.checkpoint import load_files_safely
from gradaug_det.mmdet.config import load_config as load_mmdet_config
from gradaug_det.mmdet.data import check_data as check_data_mmdet
from gradaug_det.mmdet.values import check_values
from gradaug_det.pretrain.data import StatelessBatches, load_images, train_loader, val_loader
from gradaug_det.pretrain.recipe import load_recipe
from gradaug_det.utils.detector_files import DetectorFiles
from gradaug_det.zoo.convert import convert_file
from tests.d2.dataset import SIZE
from tests.d2.helpers import tiny_cfg
from tests.mmdet.helpers import tiny_model as mm_tiny_model

register_all_modules(init_default_scope=True)
CLASSES = ("class0", "class1", "class2")
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(SIZE[1], SIZE[0]), keep_ratio=True),
    dict(type="RandomFlip", prob=0.0),
    dict(type="PackDetInputs"),
]
LOGGERS = ("gradaug_det", "fvcore", "detectron2", "mmengine")


class Foreign(Exception):
    """What a framework raised by itself, once the package had handed over."""

    def __init__(self, framework, error):
        text = " ".join(str(error).split()) or "no message"
        super().__init__(f"{framework}'s {type(error).__name__}: {text}")


def outcome(run, folder):
    """One line of what ``run(folder)`` gave, without temporary paths."""
    warnings = _Warnings()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(warnings)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            seen = run(folder)
        line = f"warning: {warnings.first}; {seen}" if warnings.first else f"works: {seen}"
    except GradAugError as error:
        line = f"{type(error).__name__}: {error}"
    except Foreign as error:
        line = str(error)
    finally:
        for logger in loggers:
            logger.removeHandler(warnings)
    line = " ".join(line.splitlines()[0].split()) if line.strip() else "nothing"
    return line.replace(str(folder), "FOLDER")


class _Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record):
        self.first = self.first or " ".join(record.getMessage().split())


def _objects(boxes, labels):
    numbers = (",".join(str(round(x)) for x in box) for box in boxes.tolist())
    return " ".join(f"{b}:{c}" for b, c in zip(numbers, labels.tolist(), strict=True)) or "none"


# ---- data -------------------------------------------------------------------------------------


def check_data(file, images):
    """``gradaug-det check-data``: exit code and the worst line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        arguments = ["check-data", "--annotations", str(file), "--images", str(images)]
        code = cli.main([*arguments, "--num-classes", "3", "--jobs", "1"])
    if code == 2:
        return f"exit 2, {err.getvalue().strip()}"
    lines = [line.strip() for line in out.getvalue().splitlines() if line.startswith("  ")]
    found = [line for line in lines if line.split()[0] in ("error", "warning", "note")]
    return f"exit {code}, {' '.join(found[0].split()) if found else 'nothing found'}"


def detectron2(file, images):
    """As tools/train_net.py: the checks, then the mapper on each image."""
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_HEADS.NUM_CLASSES = True, 3
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (SIZE[0],), "none"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("faults",), ()
    register_coco("faults", file, images)
    try:
        check_datasets(cfg)
        mapper, seen = DatasetMapper(cfg, is_train=True), []
        try:
            for record in DatasetCatalog.get("faults"):
                objects = mapper(record)["instances"]
                seen.append(_objects(objects.gt_boxes.tensor, objects.gt_classes))
        except Exception as error:
            raise Foreign("Detectron2", error) from error
        return " | ".join(seen)
    finally:
        DatasetCatalog.remove("faults")
        MetadataCatalog.remove("faults")


def mmdetection(file, images):
    """As gradaug_det.mmdet.train.build_runner: the checks, then each image of the data set."""
    dataset = dict(
        type="CocoDataset",
        ann_file=str(file),
        data_prefix=dict(img=str(images)),
        metainfo=dict(classes=CLASSES),
        pipeline=PIPELINE,
    )
    check_data_mmdet(Config(dict(train_dataloader=dict(dataset=dataset))))
    seen = []
    try:
        built = DATASETS.build(dataset)
        for index in range(len(built)):
            objects = built.prepare_data(index)["data_samples"].gt_instances
            seen.append(_objects(objects.bboxes.tensor, objects.labels))
    except Exception as error:
        raise Foreign("MMDetection", error) from error
    return " | ".join(seen)


def benchmark_data(file, images):
    """As gradaug-det benchmark reads its data."""
    data = load_data(file, images, "faults")
    return f"{len(data.categories)} categories"


DATA_ENTRIES = {
    "gradaug-det check-data": check_data,
    "Detectron2": detectron2,
    "MMDetection": mmdetection,
    "gradaug-det benchmark": benchmark_data,
}


def pretraining(root):
    """The pretraining's loaders over all images once."""
    overrides = (f"data.root={root}", "data.kind=imagefolder", "batch_size=2", "epochs=1")
    recipe = load_recipe(PRETRAIN, [*overrides, "data.size=16"])
    images = load_images(recipe.data, recipe.seed)
    batches = StatelessBatches(len(images.train), recipe)
    pixels = [batch for batch, _ in train_loader(images, recipe, batches)]
    pixels += [batch for batch, _ in val_loader(images, recipe)]
    means = torch.cat(pixels).float().mean(dim=(1, 2, 3))
    return f"{len(means)} images, the brightest {means.max():.0f}"


PRETRAIN = Path(__file__).parents[2] / "configs" / "pretrain" / "mini_resnet18_baseline.yaml"


# ---- configs ----------------------------------------------------------------------------------


def d2_yaml(text, overrides=()):
    def run(folder):
        file = folder / "config.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        load_config(file, list(overrides))
        return "loaded"

    return run


def d2_lazy(text, overrides=()):
    def run(folder):
        file = folder / "config.py"
        file.write_text(text)
        load_lazy_config(file, list(overrides))
        return "loaded"

    return run


def mm_config(text, overrides=None, suffix=".py"):
    def run(folder):
        file = folder / f"config{suffix}"
        file.write_text(text)
        config = load_mmdet_config(file, overrides)
        for hook in config.get("custom_hooks", ()):
            HOOKS.build(hook)
        if "train_dataloader" in config:
            optimizer = dict(optimizer=dict(type="SGD", lr=0.1))
            others = dict(model={}, train_cfg={}, optim_wrapper=optimizer)
            check_values(Config(others | config.to_dict()))
        check_data_mmdet(config)
        return "loaded"

    return run


def recipe(text=None, overrides=()):
    def run(folder):
        file = folder / "recipe.yaml"
        file.write_bytes(text if isinstance(text, bytes) else (text or "name: x\n").encode())
        load_recipe(file, overrides)
        return "loaded"

    return run


# ---- checkpoints ------------------------------------------------------------------------------


def convert(path, framework="torchvision", target="mmdet"):
    convert_file(path, path.parent / "out.pth", target, framework=framework)
    return "converted"


def d2_weights(path):
    """As MODEL.WEIGHTS: loaded into a small R-18 Mask R-CNN."""
    from detectron2.modeling import build_model

    model = build_model(tiny_cfg())
    SafeCheckpointer(model).load(str(path))
    return "loaded"


def mm_weights(path):
    """As load_from: loaded into a small R-18 Mask R-CNN."""
    load_files_safely()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        mmengine_load(mm_tiny_model(), str(path), map_location="cpu")
    said = " ".join(out.getvalue().split())
    return f"loaded; {said[said.index('The model') :][:70]}" if "The model" in said else "loaded"


def benchmark_weights(path):
    """As gradaug-det benchmark --weights, of a Detectron2 config."""
    folder = path.parent
    config = folder / "small.yaml"
    cfg = tiny_cfg()
    cfg.MODEL.WEIGHTS = ""
    config.write_text(cfg.dump())
    file = folder / "truth.json"
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    file.write_text(json.dumps(dict(images=[], annotations=[], categories=categories)))
    data = load_data(file, folder, "faults")
    load_detector(DetectorFiles(config, str(path), "x"), data, "cpu")
    return "loaded"


CHECKPOINT_ENTRIES = {
    "gradaug-det zoo convert": convert,
    "Detectron2": d2_weights,
    "MMDetection": mm_weights,
    "gradaug-det benchmark": benchmark_weights,
}
assert gradaug_det.mmdet is not None  # registers the hook
