"""Bad input as data: how each case is made, the way in that it is tried on, what it must give.

Nothing is kept in files: images, annotations, configs and checkpoints are made when a test runs.
"""

import io
import json
import math
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from gradaug_det.core.options import GradAugOptions
from gradaug_det.pretrain.recipe import Recipe
from gradaug_det.zoo.index import read_index
from gradaug_det.zoo.publish import verify
from gradaug_det.zoo.url import parse_url
from tests.d2.dataset import SIZE, annotation, crowd, write_coco
from tests.faults import entries
from tests.faults.expected import EXPECTED
from tests.zoo.helpers import make_file, make_info, make_state

HEIGHT, WIDTH = SIZE
GOOD = annotation(10, 10, 40, 50)
OTHER = annotation(60, 20, 50, 60, category=2)


@dataclass(frozen=True)
class Case:
    """One bad input on one way in.

    Attributes:
        name: what is bad.
        category: images, annotations, annotation files, configs, checkpoints or zoo.
        entry: the way in.
        run: folder -> one line; raises what the way in raises.
    """

    name: str
    category: str
    entry: str
    run: Callable[[Path], str]

    @property
    def id(self) -> str:
        return f"{self.category}: {self.name}: {self.entry}"

    @property
    def gives(self) -> str:
        """What the outcome's line begins with; see expected.py."""
        return EXPECTED[self.id]


# ---- images -----------------------------------------------------------------------------------


def _exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data


def saved(mode="RGB", size=(WIDTH, HEIGHT), form="PNG", cut=1.0, **options):
    """Bytes of a noise image; ``cut``: the share of them that is left."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()[: int(len(buffer.getvalue()) * cut)]


def huge_png(side=60_000):
    """A PNG of a few bytes that says it has 3.6 billion pixels."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# name -> (file name, its bytes or None, (width, height) that the annotation file says)
SAID = (WIDTH, HEIGHT)
IMAGES = {
    "truncated PNG": ("0.png", lambda: saved(cut=0.5), SAID),
    "truncated JPEG": ("0.jpg", lambda: saved(form="JPEG", cut=0.5), SAID),
    "cut within the header": ("0.png", lambda: saved()[:20], SAID),
    "empty file": ("0.png", lambda: b"", SAID),
    "HTML page": ("0.jpg", lambda: b"<html>404 not found</html>", SAID),
    "missing": ("gone.png", None, SAID),
    "CMYK": ("0.jpg", lambda: saved("CMYK", form="JPEG"), SAID),
    "16-bit grey": ("0.png", lambda: saved("I;16"), SAID),
    "32-bit float": ("0.tif", lambda: saved("F", form="TIFF"), SAID),
    "grey": ("0.png", lambda: saved("L"), SAID),
    "palette": ("0.png", lambda: saved("P"), SAID),
    "transparent": ("0.png", lambda: saved("RGBA"), SAID),
    "1x1": ("0.png", lambda: saved(size=(1, 1)), (1, 1)),
    "says 60000x60000": ("0.png", huge_png, (60_000, 60_000)),
    "long and thin": ("0.png", lambda: saved(size=(2000, 2)), (2000, 2)),
    "of another size": ("0.png", lambda: saved(size=(64, 48)), SAID),
    "turned by Exif": ("0.jpg", lambda: saved(form="JPEG", exif=_exif(6)), SAID),
    "upside down by Exif": ("0.jpg", lambda: saved(form="JPEG", exif=_exif(3)), SAID),
    "damaged Exif": ("0.jpg", lambda: saved(form="JPEG", exif=b"Exif\0\0MM\0*\xff\xff"), SAID),
    "GIF": ("0.gif", lambda: saved(form="GIF"), SAID),
    "TGA": ("0.tga", lambda: saved(form="TGA"), SAID),
    "named .jpg, is PNG": ("0.jpg", lambda: saved(), SAID),
}


def _write_image(folder, name, make):
    if make is not None:
        (folder / name).write_bytes(make())


def _image_case(name, entry):
    file_name, make, (width, height) = IMAGES[name]

    def run(folder):
        file, images = write_coco(folder / "data", [[GOOD, OTHER], [GOOD]])
        (images / "0.png").unlink()
        _write_image(images, file_name, make)
        content = json.loads(file.read_text())
        content["images"][0].update(file_name=file_name, width=width, height=height)
        if (width, height) != SAID:
            box = [0, 0, width, height]
            whole = annotation(*box) | {"id": 1, "image_id": 1}
            content["annotations"] = [whole, content["annotations"][2]]
        file.write_text(json.dumps(content))
        return entries.DATA_ENTRIES[entry](file, images)

    return Case(name, "images", entry, run)


def _folder_case(name):
    file_name, make, _ = IMAGES[name]
    make = make or (lambda: b"")

    def run(folder):
        for split in ("train", "val"):
            for label in ("cat", "dog"):
                place = folder / split / label
                place.mkdir(parents=True)
                (place / "a.png").write_bytes(saved(size=(40, 30)))
                (place / "b.png").write_bytes(saved(size=(30, 40)))
        suffix = Path(file_name).suffix
        (folder / "train" / "cat" / f"c{suffix}").write_bytes(make())
        (folder / "train" / "cat" / "d.png").write_bytes(saved("L"))
        return entries.pretraining(folder)

    return Case(name, "images", "pretraining", run)


def _special_file(kind):
    def run(folder):
        file, images = write_coco(folder / "data", [[GOOD, OTHER]])
        (images / "0.png").unlink()
        if kind == "pipe":
            os.mkfifo(images / "0.png")
        else:
            (images / "0.png").mkdir()
        return entries.check_data(file, images)

    return run


# ---- annotations ------------------------------------------------------------------------------


def _rle(counts, size=SIZE):
    return {"segmentation": {"size": list(size), "counts": counts}}


def _without(key):
    return {k: v for k, v in OTHER.items() if k != key}


def _polygon(*points):
    return OTHER | {"segmentation": [list(points)]}


# name -> the second annotation of the first image
ANNOTATIONS = {
    "box with NaN": OTHER | {"bbox": [60, 20, math.nan, 60]},
    "box with infinity": OTHER | {"bbox": [60, 20, math.inf, 60]},
    "box with a huge integer": OTHER | {"bbox": [60, 20, 10**400, 60]},
    "box of negative size": OTHER | {"bbox": [60, 20, -30, 60]},
    "box at a negative corner": OTHER | {"bbox": [-20, -10, 60, 60]},
    "box of width 0": OTHER | {"bbox": [60, 20, 0, 60]},
    "box outside the image": OTHER | {"bbox": [200, 150, 30, 30]},
    "box partly outside": OTHER | {"bbox": [100, 70, 60, 60]},
    "box of three numbers": OTHER | {"bbox": [60, 20, 5]},
    "box of strings": OTHER | {"bbox": ["60", "20", "5", "5"]},
    "box is null": OTHER | {"bbox": None},
    "no box": _without("bbox"),
    "no category": _without("category_id"),
    "no area": _without("area"),
    "area of NaN": OTHER | {"area": math.nan},
    "no segmentation": _without("segmentation"),
    "empty segmentation": OTHER | {"segmentation": []},
    "polygon of 2 points": _polygon(60, 20, 110, 80),
    "polygon of 7 numbers": _polygon(60, 20, 110, 20, 110, 80, 60),
    "polygon with NaN": _polygon(math.nan, 20, 110, 20, 110, 80),
    "polygon at 1e9": _polygon(60, 20, 1e9, 20, 1e9, 80),
    "polygon outside the image": _polygon(60, 20, 310, 20, 310, 180),
    "polygon of strings": _polygon("60", "20", "110", "20", "110", "80"),
    "empty RLE": OTHER | _rle([HEIGHT * WIDTH]),
    "RLE of the wrong size": OTHER | _rle([0, HEIGHT * WIDTH], (WIDTH, HEIGHT)),
    "RLE with too few pixels": OTHER | _rle([10, 20]),
    "RLE with too many pixels": OTHER | _rle([0, HEIGHT * WIDTH + 1]),
    "RLE string that is cut": OTHER | _rle("PPPPo"),
    "RLE of an ordinary object": OTHER | {"bbox": [0, 0, WIDTH, HEIGHT]} | _rle([0, 12288]),
    "RLE without counts": OTHER | {"segmentation": {"size": [HEIGHT, WIDTH]}},
    "crowd with a polygon": OTHER | {"iscrowd": 1},
    "crowd": crowd() | _rle([0, 6144, 6144]),
    "iscrowd is null": OTHER | {"iscrowd": None},
    "unknown category": OTHER | {"category_id": 9},
    "unknown image": OTHER | {"image_id": 9},
    "duplicate id": OTHER | {"id": 1},
    "id 0": OTHER | {"id": 0},
    "id is a list": OTHER | {"id": [1]},
    "ignore is set": OTHER | {"ignore": 1},
}


def _data_case(name, category, entry, edit):
    def run(folder):
        file, images = write_coco(folder / "data", [[GOOD, OTHER], [GOOD]])
        content = json.loads(file.read_text())
        data = edit(content)
        data = json.dumps(content).encode() if data is None else data
        file.write_bytes(data)
        return entries.DATA_ENTRIES[entry](file, images)

    return Case(name, category, entry, run)


def _second(annotation_):
    def edit(content):
        old = content["annotations"][1]
        content["annotations"][1] = {"id": old["id"], "image_id": 1} | annotation_

    return edit


def _drop(*path):
    def edit(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        del content[last]

    return edit


def _set(value, *path):
    def edit(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value

    return edit


def _non_contiguous(content):
    for category, id_ in zip(content["categories"], (7, 19, 90), strict=True):
        category["id"] = id_
    for annotation_ in content["annotations"]:
        annotation_["category_id"] = {1: 7, 2: 19}[annotation_["category_id"]]


def _each(**values):
    def edit(content):
        for annotation_ in content["annotations"]:
            annotation_.update(values)

    return edit


def _no_iscrowd(content):
    for annotation_ in content["annotations"]:
        del annotation_["iscrowd"]


FILES = {
    "all crowds": _each(iscrowd=1),
    "image ids that are texts": _each(image_id="1"),
    "boxes in fractions": _each(bbox=[0.1, 0.1, 0.3, 0.5]),
    "no iscrowd": _no_iscrowd,
    "a byte order mark": lambda c: json.dumps(c).encode("utf-8-sig"),
    "empty": lambda _: b"",
    "cut off": lambda c: json.dumps(c).encode()[:200],
    "not UTF-8": lambda _: b"\xff\xfe\x00",
    "nested 100000 deep": lambda _: b"[" * 100_000,
    "a list (predictions)": lambda _: b"[]",
    "no images": _drop("images"),
    "no categories": _drop("categories"),
    "no annotations": _drop("annotations"),
    "images is null": _set(None, "images"),
    "an empty list of images": _set([], "images"),
    "an image without a width": _drop("images", 0, "width"),
    "an image without a file name": _drop("images", 0, "file_name"),
    "an image without an id": _drop("images", 0, "id"),
    "an image that is null": _set(None, "images", 0),
    "a file name that no file can have": _set("a\0b", "images", 0, "file_name"),
    "a width of 0": _set(0, "images", 0, "width"),
    "duplicate image ids": _set(1, "images", 1, "id"),
    "duplicate file names": _set("0.png", "images", 1, "file_name"),
    "duplicate category ids": _set(1, "categories", 1, "id"),
    "duplicate category names": _set("class0", "categories", 1, "name"),
    "non-contiguous category ids": _non_contiguous,
    "categories in reverse": lambda c: c["categories"].reverse(),
    "a category without a name": _drop("categories", 0, "name"),
    "a category without an id": _drop("categories", 0, "id"),
    "a category too many": lambda c: c["categories"].append({"id": 4, "name": "class3"}),
    "an image id that is a string": _set("1", "images", 0, "id"),
}


# ---- configs ----------------------------------------------------------------------------------

# key -> values that are wrong, for every field of GradAugOptions (a test compares the keys)
BAD_OPTIONS = {
    "num_subnets": (-1, 1.5, "two", None, True),
    "min_width": (0, 1.5, -0.5, math.nan, math.inf, "half", None, True, 10**400),
    "scales": ([], [0], [-1.0], [5.0], [math.nan], ["1"], "1.0", 0.5, None),
    "flip_prob": (-0.1, 1.1, math.nan, "always", None),
    "block_survival": (-0.1, 1.1, math.nan, "no", None),
    "passes": ("one", None),
    "widths": ([0], [1.0], 0.5),
    "full_share": (-0.1, 1.1, math.nan),
    "smallest_share": (-0.1, 1.1, math.nan),
    "start": (-1, 1.5),
    "stop": (-1, 1.5),
    "divisor": (0, 1.5, "eight", None),
    "supervision": ("hard", "", None, 1, ["soft"]),
    "soft_weight": (-1, math.nan, math.inf, "1", None),
    "labels_weight": (-1, math.nan, math.inf, "1", None),
    "soft_warmup": (-1, 1.5, "ten", None),
    "subnet_norm": ("bn", "", None, 1),
    "seed": (0.5, "x", None, True),
    "log_period": (-1, 0.5, "often", None),
    "channels_last": ("yes", None, 1),
    "nonfinite": ("ignore", "", None, True),
    "not_in_pixels": ("gt_depth", [1]),
    "slim": ("neck", None),
    "keep_whole": ("neck", [1]),
}
# The same for a pretraining's recipe, as overrides.
BAD_RECIPE = {
    "name": ("", "'Two Words'", "a/b"),
    "model": ("vgg11", "null"),
    "epochs": ("0", "1.5", "many", "null"),
    "batch_size": ("1", "-4", "x"),
    "data.kind": ("coco", "null"),
    "data.root": ("[1]", "null"),
    "data.fraction": ("0", "1.5", "nan", "all"),
    "data.size": ("8", "x"),
    "data.augment": ("heavy",),
    "data.workers": ("-1", "x"),
    "data.holdout": ("-0.1", "0.95", "nan"),
    "optim.name": ("adam",),
    "optim.lr": ("0", "-1", "inf", "nan", "fast"),
    "optim.momentum": ("-0.1", "1.5", "nan"),
    "optim.weight_decay": ("-1", "inf", "nan"),
    "optim.warmup_epochs": ("-1", "inf", "nan"),
    "gradaug.num_subnets": ("-1", "x"),
    "gradaug.views": ("new", "own"),
    "gradaug.min_width": ("0", "1.5", "nan"),
    "gradaug.scales": ("[]", "[0]", "[9]", "[nan]", "1.0"),
    "gradaug.rotations": ("[]", "[400]", "[nan]", "[inf]", "90"),
    "gradaug.block_survival": ("-1", "2"),
    "gradaug.divisor": ("0", "x"),
    "gradaug.passes": ("one",),
    "gradaug.widths": ("[0]", "[1]"),
    "gradaug.full_share": ("-1", "2"),
    "gradaug.smallest_share": ("-1", "2"),
    "eval_epochs": ("-1", "x"),
    "mix": ("blend",),
    "mix_alpha": ("0", "-1", "inf", "nan"),
    "stochastic_depth": ("-1", "2", "nan"),
    "label_smoothing": ("-1", "2", "nan"),
    "ema_decay": ("-1", "2", "nan"),
    "precision": ("8-bit",),
    "seed": ("-1", "0.5"),
    "channels_last": ("fast", "null"),
    "checkpoint_steps": ("-1", "x"),
}


def option_keys():
    return [field.name for field in fields(GradAugOptions)]


def recipe_keys(kind=Recipe, prefix=""):
    """Dotted keys of all values of a recipe."""
    keys = []
    for field in fields(kind):
        default = field.default_factory() if callable(field.default_factory) else None
        if is_dataclass(default):
            keys += recipe_keys(type(default), f"{prefix}{field.name}.")
        else:
            keys.append(f"{prefix}{field.name}")
    return keys


def _plain(value):
    """As it is written in yaml."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf"
    if isinstance(value, list):
        return f"[{', '.join(_plain(item) for item in value)}]"
    return json.dumps(value)


def _shown(value):
    return "10**400" if value == 10**400 else repr(value)


CONFIGS = {
    ("Detectron2", "no yaml"): entries.d2_yaml("a: [1\n"),
    ("Detectron2", "code in yaml"): entries.d2_yaml(
        "VERSION: !!python/object/apply:os.getpid []\n"
    ),
    ("Detectron2", "not text"): entries.d2_yaml(b"\xff\xfe\x00\x01"),
    ("Detectron2", "empty"): entries.d2_yaml(""),
    ("Detectron2", "a list"): entries.d2_yaml("- 1\n"),
    ("Detectron2", "a word"): entries.d2_yaml("word\n"),
    ("Detectron2", "a base that is not there"): entries.d2_yaml("_BASE_: gone.yaml\n"),
    ("Detectron2", "its own base"): entries.d2_yaml("_BASE_: config.yaml\n"),
    ("Detectron2", "unknown key"): entries.d2_yaml("MODEL: {NO_SUCH: 1}\n"),
    ("Detectron2", "unknown GRADAUG key"): entries.d2_yaml("GRADAUG: {MIN_WIDHT: 0.9}\n"),
    ("Detectron2", "GRADAUG key that is a number"): entries.d2_yaml("GRADAUG: {1: 2}\n"),
    ("Detectron2", "GRADAUG is null"): entries.d2_yaml("GRADAUG:\n"),
    ("Detectron2", "GRADAUG is a list"): entries.d2_yaml("GRADAUG: [1]\n"),
    ("Detectron2", "GRADAUG.ENABLED is a word"): entries.d2_yaml("GRADAUG: {ENABLED: maybe}\n"),
    ("Detectron2", "a value of another type"): entries.d2_yaml("SOLVER: {MAX_ITER: many}\n"),
    ("Detectron2", "an override without a value"): entries.d2_yaml(
        "VERSION: 2\n", ["SOLVER.MAX_ITER"]
    ),
    ("Detectron2", "an override of no key"): entries.d2_yaml("VERSION: 2\n", ["SOLVER.ITERS", "1"]),
    ("Detectron2", "lazy: syntax error"): entries.d2_lazy("model = (\n"),
    ("Detectron2", "lazy: raises"): entries.d2_lazy("model = 1 / 0\n"),
    ("Detectron2", "lazy: imports nothing"): entries.d2_lazy("import no_such_module_x\n"),
    ("Detectron2", "lazy: bad override"): entries.d2_lazy("model = dict(a=1)\n", ["model.a=[1"]),
    ("MMDetection", "syntax error"): entries.mm_config("model = (\n"),
    ("MMDetection", "raises"): entries.mm_config("model = 1 / 0\n"),
    ("MMDetection", "a base that is not there"): entries.mm_config("_base_ = 'gone.py'\n"),
    ("MMDetection", "no yaml"): entries.mm_config("a: [1\n", suffix=".yaml"),
    ("MMDetection", "no json"): entries.mm_config("{", suffix=".json"),
    ("MMDetection", "of another kind"): entries.mm_config("x", suffix=".txt"),
    ("MMDetection", "unknown setting"): entries.mm_config(
        "custom_hooks = [dict(type='GradAugHook', min_widht=0.9)]\n"
    ),
    ("MMDetection", "an override that does not fit"): entries.mm_config(
        "custom_hooks = []\n", {"custom_hooks.0.min_width": 0.9}
    ),
    ("MMDetection", "data that is not there"): entries.mm_config(
        "train_dataloader = dict(dataset=dict(type='CocoDataset', ann_file='gone.json'))\n"
    ),
    ("MMDetection", "a data set that is a word"): entries.mm_config(
        "train_dataloader = dict(dataset='coco')\n"
    ),
    ("MMDetection", "a data prefix that is a word"): entries.mm_config(
        "train_dataloader = dict(dataset=dict(type='CocoDataset', data_prefix='x'))\n"
    ),
    ("pretraining", "no yaml"): entries.recipe("a: [1\n"),
    ("pretraining", "not text"): entries.recipe(b"\xff\xfe\x00\x01"),
    ("pretraining", "a list"): entries.recipe("- 1\n"),
    ("pretraining", "a word"): entries.recipe("word\n"),
    ("pretraining", "unknown key"): entries.recipe("learning_rate: 1\n"),
    ("pretraining", "its own base"): entries.recipe("base: recipe.yaml\n"),
    ("pretraining", "a base that is not there"): entries.recipe("base: gone.yaml\n"),
    ("pretraining", "a base that is a number"): entries.recipe("base: 5\n"),
    ("pretraining", "a section that is a number"): entries.recipe("optim: 5\n"),
    ("pretraining", "an interpolation of nothing"): entries.recipe("name: ${nothing}\n"),
    ("pretraining", "an override without a value"): entries.recipe(None, ["epochs"]),
    ("pretraining", "an override that is no yaml"): entries.recipe(None, ["gradaug.scales=[1"]),
}


def config_cases():
    cases = [Case(name, "configs", entry, run) for (entry, name), run in CONFIGS.items()]
    for key, values in BAD_OPTIONS.items():
        for value in values:
            text = f"GRADAUG: {{ENABLED: true, {key.upper()}: {_plain(value)}}}\n"
            name = f"{key} = {_shown(value)}"
            cases.append(Case(name, "configs", "Detectron2", entries.d2_yaml(text)))
            hook = f"custom_hooks = [dict(type='GradAugHook', {key}={value!r})]\n"
            hook = hook.replace("nan", "float('nan')").replace("inf)", "float('inf'))")
            cases.append(Case(name, "configs", "MMDetection", entries.mm_config(hook)))
    for key, values in BAD_RECIPE.items():
        for value in values:
            run = entries.recipe(None, [f"{key}={value}"])
            cases.append(Case(f"{key} = {value}", "configs", "pretraining", run))
    return cases


# ---- checkpoints ------------------------------------------------------------------------------


class Bomb:
    """Pickled, it is a call."""

    def __reduce__(self):
        return os.system, ("true",)


def _saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _nested(depth=40):
    value = [1]
    for _ in range(depth):
        value = [value, value]
    return value


_KEY = b")" + b"2\x86" * 40
CHECKPOINTS = {
    "missing": ("gone.pth", None),
    "empty": ("x.pth", lambda: b""),
    "HTML page": ("x.pth", lambda: b"<!DOCTYPE html><html>Quota exceeded</html>"),
    "truncated zip": ("x.pth", lambda: _saved(make_state())[:100_000]),
    "truncated pickle": ("x.pkl", lambda: pickle.dumps({"model": {"w": np.zeros(300)}})[:900]),
    "truncated safetensors": ("x.safetensors", lambda: save(make_state())[:100_000]),
    "a list": ("x.pth", lambda: _saved([1, 2])),
    "of another architecture": (
        "x.pth",
        lambda: _saved(
            {"state_dict": {"stages.0.weight": torch.ones(2), "norm.bias": torch.ones(2)}}
        ),
    ),
    "a ResNet-18 with another width": (
        "x.pth",
        lambda: _saved({k: v[:8] if v.dim() else v for k, v in make_state().items()}),
    ),
    "hostile: calls os.system": ("x.pth", lambda: _saved({"model": {}, "x": Bomb()})),
    "hostile: calls os.system, pickle": ("x.pkl", lambda: pickle.dumps({"x": Bomb()})),
    "hostile: a key that takes years": ("x.pkl", lambda: b"}" + _KEY + b"Ns."),
    "hostile: lists of one list": ("x.pkl", lambda: pickle.dumps({"model": _nested()})),
    "hostile: a memo of gigabytes": ("x.pkl", lambda: b"}Nr\xff\xff\xff\x3f0."),
    "a name that is a number": ("x.pth", lambda: _saved({1: torch.ones(1)})),
    "values that are no tensors": ("x.pth", lambda: _saved(dict.fromkeys(make_state(), 1))),
    "a backbone file as a checkpoint": ("x.safetensors", "backbone"),
}


def _checkpoint_case(name, entry):
    file_name, make = CHECKPOINTS[name]

    def run(folder):
        path = folder / file_name
        if make == "backbone":
            make_file(path)
        elif make is not None:
            path.write_bytes(make())
        return entries.CHECKPOINT_ENTRIES[entry](path)

    return Case(name, "checkpoints", entry, run)


# ---- the zoo ----------------------------------------------------------------------------------


def _index(text):
    def run(folder):
        (folder / "index.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"{len(read_index(folder / 'index.json').entries)} entries"

    return run


def _backbone(edit):
    """A backbone file whose bytes or description ``edit`` has changed."""

    def run(folder):
        path = folder / "x.safetensors"
        edit(path)
        return verify(str(path))

    return run


def _header(**metadata):
    data = save({"w": torch.ones(1)}, metadata=metadata or None)
    return lambda path: path.write_bytes(data)


def _cut(path):
    make_file(path)
    path.write_bytes(path.read_bytes()[: 10**6])


def _described_as(**changes):
    info = make_info().to_dict() | changes
    return _header(gradaug_det=json.dumps(info))


ZOO = {
    "index: empty": _index(""),
    "index: nested 100000 deep": _index("[" * 100_000),
    "index: not UTF-8": _index(b"\xff\xfe\x00"),
    "index: a list": _index("[]"),
    "index: another protocol": _index('{"base_url": "file:///etc/", "entries": {}}'),
    "index: control characters": _index('{"base_url": "\\u001b[31m red", "entries": {}}'),
    "index: an entry without fields": _index('{"base_url": null, "entries": {"a": {}}}'),
    "index: more than a megabyte": _index(" " * (2**20 + 1)),
    "backbone: cut": _backbone(_cut),
    "backbone: no description": _backbone(_header()),
    "backbone: description is no JSON": _backbone(_header(gradaug_det="{")),
    "backbone: of other tensors": _backbone(_described_as()),
    "backbone: of another architecture": _backbone(_described_as(architecture="vgg", depth=16)),
    "backbone: mean of another scale": _backbone(_described_as(pixel_mean=[0.4, 0.4, 0.4])),
    "backbone: header of 2**60 bytes": _backbone(
        lambda path: path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    ),
    "URL: no such backbone": lambda _: str(parse_url("gradaug://nothing", "BGR").path()),
    "URL: no name": lambda _: str(parse_url("gradaug://", "BGR")),
    "URL: unknown key": lambda _: str(parse_url("gradaug://a?order=RGB", "BGR")),
    "URL: unknown order": lambda _: str(parse_url("gradaug://a?format=GBR", "BGR")),
}


def _all():
    cases = []
    for name in IMAGES:
        cases += [_image_case(name, entry) for entry in list(entries.DATA_ENTRIES)[:3]]
        if name != "missing":
            cases.append(_folder_case(name))
    for kind in ("pipe", "folder"):
        run = _special_file(kind)
        cases.append(Case(f"a {kind}", "images", "gradaug-det check-data", run))
    for name, second in ANNOTATIONS.items():
        for entry in list(entries.DATA_ENTRIES)[:3]:
            cases.append(_data_case(name, "annotations", entry, _second(second)))
    for name, edit in FILES.items():
        for entry in entries.DATA_ENTRIES:
            cases.append(_data_case(name, "annotation files", entry, edit))
    cases += config_cases()
    for name in CHECKPOINTS:
        cases += [_checkpoint_case(name, entry) for entry in entries.CHECKPOINT_ENTRIES]
    cases += [Case(name, "zoo", "gradaug-det zoo", run) for name, run in ZOO.items()]
    return {case.id: case for case in cases}


CASES = _all()
