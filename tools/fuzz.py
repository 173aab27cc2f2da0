#!/usr/bin/env python
"""Feeds broken and hostile files to what reads files from anywhere, and watches what happens.

    python tools/fuzz.py zoo-index --minutes 10
    python tools/fuzz.py --list

Inputs are drawn by Hypothesis: sound files with parts replaced, removed, repeated or cut off, and
programs of pickle's own opcodes. The good outcome is a result, or one of the package's errors with
a sentence that can be printed. A finding is anything else: another exception, a dead process, an
input that takes more than 10 s, or memory out of proportion.

The reading happens in a process of its own. What was found is printed, the input is kept under
``--keep``, and docs/faults/fuzzing/TARGET.json and docs/faults/fuzzing.md (a table of all targets)
are written. Exit code: 0 without findings, 1 with some.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gradaug_det.errors import GradAugError
from gradaug_det.files import atomic_path

INPUT_SECONDS = 10.0
"""An input that takes longer hangs."""
MEMORY_BYTES = 512 * 2**20
"""A reader whose memory grows by more than this over an input of a few kilobytes blows up."""
ADDRESS_BYTES = 12 * 2**30
"""Limit of a reader's address space, so that a blow-up ends it and not the machine."""
ROOT = Path(__file__).resolve().parents[1]
Input = tuple[str, bytes]
"""Name of a file and its content."""

# ---- values that are likely to break something ------------------------------------------------

HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "\0", "\ud800", "\x1b[31m red", "a b\n"),
    *("../../etc/passwd", "/dev/zero", "file:///etc/passwd", "NaN", "1e999", "x" * 5000),
    *([], {}, [[]], {"": None}, [None] * 4, [1e308] * 4, [10**400] * 4, [0] * 3, [[1e308] * 6]),
    *({"size": [1, 1], "counts": [1]}, {"size": [10**6] * 2, "counts": "0" * 50}),
    *({"size": [96, 128], "counts": "P" * 8}, {"size": [96, 128], "counts": [2**31] * 3}),
]
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(HOSTILE)
)
JSON = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def mutated(value: Any, rng: random.Random, news: list[Any]) -> Any:
    """The JSON value with one random part replaced, removed, repeated, renamed or moved."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.06:
        return rng.choice(news)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    action = rng.random()
    if action < 0.06:
        rest = [k for k in (value if isinstance(value, dict) else range(len(value))) if k != key]
        return {k: value[k] for k in rest} if isinstance(value, dict) else [value[k] for k in rest]
    if action < 0.12 and isinstance(value, list):
        return [*value, *([value[key]] * rng.choice((1, 1, 1, 200)))]
    if action < 0.16 and isinstance(value, dict):
        return {
            (k if k != key else rng.choice((k + "x", "", k.upper()))): v for k, v in value.items()
        }
    new = dict(value) if isinstance(value, dict) else list(value)
    if action < 0.2:
        other = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        new[key] = value[other]
    else:
        new[key] = mutated(value[key], rng, news)
    return new


def mangled(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some flipped, cut off, inserted or repeated."""
    if not data:
        return bytes(rng.choices(range(256), k=rng.randrange(40)))
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(content) + 1)
        action = rng.random()
        if action < 0.2:
            del content[place:]
        elif action < 0.4:
            content[place:place] = bytes(rng.choices(range(256), k=rng.randrange(1, 20)))
        elif action < 0.5:
            content[place : place + rng.randrange(20)] = b""
        elif action < 0.6:
            content[place : place + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f"))
        elif place < len(content):
            content[place] = rng.choice((content[place] ^ (1 << rng.randrange(8)), 0, 255, 128))
    return bytes(content)


def _rng() -> st.SearchStrategy[random.Random]:
    return st.randoms(use_true_random=True)  # seeded by Hypothesis, fast


@st.composite
def documents(draw: Callable, sound: Any, name: str, bytes_share: float = 0.15) -> Input:
    """A JSON file: ``sound`` with parts changed, and at times its bytes."""
    rng, news = draw(_rng()), [*draw(st.lists(JSON, min_size=1, max_size=3)), *HOSTILE]
    value = sound
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        value = mutated(value, rng, news)
    data = json.dumps(value).encode()
    return name, mangled(data, rng) if rng.random() < bytes_share else data


# ---- targets ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Args:
        title: for readers.
        inputs: folder -> strategy of inputs; may put files into the folder that inputs refer to.
        read: (folder, path of the input): reads it, raises what it raises.
    """

    title: str
    inputs: Callable[[Path], st.SearchStrategy[Input]]
    read: Callable[[Path, Path], None]


def _info() -> dict[str, Any]:
    return {
        "name": "tiny",
        "architecture": "resnet18",
        "depth": 18,
        "min_width": 0.9,
        "stem": "7x7",
        "stride_in": "3x3",
        "channel_order": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
        "recipe": {"epochs": 1, "scales": [1, 0.5]},
        "metrics": {"top1": 12.5},
        "licence": "Apache-2.0",
        "source": "a test",
    }


def _index_inputs(_folder: Path) -> st.SearchStrategy[Input]:
    def entry(name: str, **changes: Any) -> dict[str, Any]:
        values = {"description": "random", "file": f"{name}.safetensors", "kind": "packaged"}
        values |= {"size": 1000, "sha256": "0" * 64, "gdrive_id": None, "measured": False}
        return values | {"info": _info() | {"name": name}} | changes

    drive = {"kind": "gdrive", "file": "x.pth", "size": None, "sha256": None}
    entries = {
        "tiny": entry("tiny"),
        "far": entry("far", kind="url"),
        "drive": entry("drive", **drive, gdrive_id="1_0aXi30ET4OrQY0j6KxTYXK0lkgo70Fh"),
    }
    return documents({"base_url": "https://example.org/zoo", "entries": entries}, "index.json")


def _read_index(folder: Path, path: Path) -> None:
    from gradaug_det.zoo.download import local_path
    from gradaug_det.zoo.index import load_index

    os.environ["GRADAUG_CACHE"] = str(folder / "cache")
    index = load_index(path)
    for name, entry in index.entries.items():
        if "/" in entry.file or folder not in local_path(entry).resolve().parents:
            raise AssertionError(f"{entry.file!r} leaves the zoo's folder")
        json.dumps(index.find(name).to_dict(), allow_nan=False)
        if not f"{entry.description}{entry.info.licence}{entry.info.source}{name}".isprintable():
            raise AssertionError("text that a terminal would obey")


_HEADER = 2**18  # bytes kept for a header in the file that has all tensors


def _safetensors_inputs(folder: Path) -> st.SearchStrategy[Input]:
    from safetensors.torch import save
    from torchvision.models import resnet18

    state = {n: t.half() for n, t in resnet18().state_dict().items() if "_tracked" not in n}
    data = save(state, metadata={"gradaug_det": json.dumps(_info())})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    # Headers change, the tensors stay: a file of zeros that is not written anew each time.
    with (folder / "whole.safetensors").open("wb") as file:
        file.truncate(8 + _HEADER + len(data) - 8 - length)
    tiny = {"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}
    metadata = header["__metadata__"]

    @st.composite
    def inputs(draw: Callable) -> Input:
        rng, news = draw(_rng()), [*draw(st.lists(JSON, min_size=1, max_size=3)), *HOSTILE]
        info: Any = _info()
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            info = mutated(info, rng, news)
        text = json.dumps(info)
        if rng.random() < 0.1:
            text = mangled(text.encode(), rng).decode("utf-8", "replace")
        kind = rng.random()
        if kind < 0.6:  # the description alone
            content = {
                "__metadata__": {"gradaug_det": text},
                **{k: v for k, v in header.items() if k != "__metadata__"},
            }
            if rng.random() < 0.4:
                content = mutated(content, rng, news)
            return "header.json", json.dumps(content).encode()
        small: Any = {"__metadata__": {**metadata, "gradaug_det": text}, **tiny}
        for _ in range(rng.choice((0, 1, 2))):
            small = mutated(small, rng, news)
        raw = json.dumps(small).encode()
        whole = len(raw).to_bytes(8, "little") + raw + b"\0" * 4
        return "small.safetensors", mangled(whole, rng) if rng.random() < 0.6 else whole

    return inputs()


def _read_safetensors(folder: Path, path: Path) -> None:
    from gradaug_det.zoo.backbone import read_backbone, read_info
    from gradaug_det.zoo.export import convert_file
    from gradaug_det.zoo.unpickle import load_checkpoint
    from gradaug_det.zoo.url import parse_url, refuse_bare_backbone
    from gradaug_det.zoo.verify import verify

    if path.suffix == ".json":
        header, path = path.read_bytes(), folder / "whole.safetensors"
        if len(header) > _HEADER:
            return
        with path.open("r+b") as file:
            file.write(_HEADER.to_bytes(8, "little") + header.ljust(_HEADER))
    _, refused = _all_or_first(
        lambda: json.dumps(read_info(path).to_dict(), allow_nan=False),
        lambda: read_backbone(path),
        lambda: verify(str(path)),
        lambda: load_checkpoint(path),
        lambda: parse_url(f"gradaug://{path}", "BGR").load("detectron2"),
        lambda: convert_file(path, folder / "out.pth", "mmdet"),
    )
    _all_or_first(lambda: refuse_bare_backbone(path))  # right to refuse a sound one
    if refused:
        raise refused


def _all_or_first(*calls: Callable[[], Any]) -> tuple[int, GradAugError | None]:
    """How many calls returned, and the first of the package's errors; others are raised."""
    done, first = 0, None
    for call in calls:
        try:
            call()
            done += 1
        except GradAugError as error:
            if problem := sentence_problem(error):
                raise AssertionError(problem) from error
            first = first or error
    return done, first


def _tiny_state(framework: str) -> dict[str, Any]:
    """A ResNet of one block a stage and one or two channels."""
    import torch

    from gradaug_det.zoo.convert import convert

    state: dict[str, Any] = {"conv1.weight": torch.ones(2, 3, 7, 7)}

    def norm(name: str) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = torch.ones(2)
        state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    norm("bn1")
    for stage in (1, 2, 3, 4):
        for n in (1, 2):
            state[f"layer{stage}.0.conv{n}.weight"] = torch.ones(2, 2, 3, 3)
            norm(f"layer{stage}.0.bn{n}")
        if stage > 1:
            state[f"layer{stage}.0.downsample.0.weight"] = torch.ones(2, 2, 1, 1)
            norm(f"layer{stage}.0.downsample.1")
    state |= {"fc.weight": torch.ones(5, 2), "fc.bias": torch.ones(5)}
    if framework == "torchvision":
        return state
    return convert(state, "torchvision", framework)


class _Bomb:
    """Pickled, it is the call of a function that leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def _opcodes(rng: random.Random) -> bytes:
    """A program of pickle's opcodes, most of them with arguments of the right kind."""
    names = [
        *("collections OrderedDict", "numpy dtype", "numpy ndarray", "_codecs encode"),
        *("numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar"),
        *("numpy._core.numeric _frombuffer", "builtins set", "builtins frozenset"),
        *(
            "builtins complex",
            "builtins bytes",
            "os system",
            "builtins getattr",
            "copyreg _reconstructor",
        ),
    ]
    small = [
        *(b"}", b"]", b")", b"(", b"N", b"\x88", b"K\x01", b"J\xff\xff\xff\x7f", b"0", b"2", b"1"),
        *(b"U\x02f4", b"U\x01<", b"C\x04abcd", b"X\x01\0\0\0a", b"h\0", b"h\x01", b"q\0", b"q\x01"),
        *(
            b"t",
            b"\x85",
            b"\x86",
            b"\x87",
            b"R",
            b"R",
            b"b",
            b"s",
            b"u",
            b"e",
            b"a",
            b"\x81",
            b"\x90",
        ),
        *(b"\x91", b"\x8f", b"\x92", b"G?\xf0\0\0\0\0\0\0", b"\x94", b"j\x00\0\0\0", b"d", b"l"),
        *(b"\x8a\x01\x05", b"\x8e\x04\0\0\0\0\0\0\0abcd", b"r\xff\xff\xff\x0f", b"r\x10\0\0\0"),
        *(b"\x8e\0\0\0\0\1\0\0\0", b"\x96\x04\0\0\0\0\0\0\0abcd", b"P1\n", b"Q", b"I1\n", b"L2L\n"),
    ]
    if rng.random() < 0.15:
        # Small programs that are endless, or huge, for a reader that believes them.
        key = b")" + b"2\x86" * 40
        return rng.choice(
            (
                *(b"}" + key + b"Ns.", b"}(" + key + b"Nu.", b"(" + key + b"Nd."),
                *(b"\x8f(" + key + b"\x90.", b"(" + key + b"\x91.", b"}Nr\xff\xff\xff\x3f."),
                *(b"cbuiltins\nset\n]" + key + b"a\x85R.", b"}K\x01]" + b"2\x86" * 40 + b"s."),
                *(b"\x8e" + b"\xff" * 5 + b"\0\0\0.", b"\x96" + b"\xff" * 5 + b"\0\0\0."),
                *(b"c_codecs\nencode\n(Va\n" + key + b"tR.", b"cnumpy\ndtype\n" + key + b"\x85R."),
                *(b"c_codecs\nencode\n(N}V__defaults__\n)stb.", b"I" + b"9" * 10**5 + b"\n."),
            )
        )
    parts = [b"\x80\x04"] if rng.random() < 0.5 else []
    for _ in range(rng.randrange(3, 40)):
        if rng.random() < 0.2:
            module, name = rng.choice(names).split()
            parts.append(f"c{module}\n{name}\n".encode())
        else:
            parts.append(rng.choice(small))
    return b"".join([*parts, b"."])


def _nested(rng: random.Random, depth: int) -> Any:
    """A value whose parts are one object again and again: small in a file, endless to walk."""
    value: Any = rng.choice(((), (1,), [], {}))
    for _ in range(depth):
        kind = rng.choice((tuple, list, dict))
        value = {"a": value, "b": value} if kind is dict else kind((value, value))
    return value


def _checkpoint_inputs(_folder: Path) -> st.SearchStrategy[Input]:
    import numpy as np
    import torch
    from safetensors.torch import save

    frameworks = ("torchvision", "mmdet", "detectron2", "timm", "authors")
    states = {name: _tiny_state(name) for name in frameworks}

    def values(rng: random.Random) -> Any:
        return rng.choice(
            (
                *(None, 1, "text", b"bytes", [], {}, (), 1.5, float("nan"), [1, [2]], {"a": 1}),
                *(torch.ones(2, 3, 7, 7), torch.ones(3), torch.tensor(1), torch.ones(0)),
                *(torch.ones(2, 4, 7, 7), torch.ones(2, dtype=torch.complex64)),
                *(torch.ones(2, dtype=torch.bool), torch.ones(2) * float("nan")),
                *(torch.ones(1).expand(10**9), torch.ones(2, 3, 1, 1).expand(2, 3, 10**5, 10**5)),
                *(torch.ones(2, 3).to_sparse(), torch.nn.Parameter(torch.ones(2))),
                *(np.ones(2, np.float32), np.ones((2, 3, 7, 7)), np.float32(1), np.array("text")),
                _nested(rng, rng.choice((3, 40))),
            )
        )

    def broken(rng: random.Random) -> tuple[str, dict[Any, Any]]:
        framework = rng.choice(frameworks)
        state: dict[Any, Any] = dict(states[framework])
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            key = rng.choice(list(state) or ["x"])
            action = rng.random()
            if action < 0.25:
                state.pop(key, None)
            elif action < 0.4:
                wrong = [
                    1,
                    None,
                    ("a",),
                    b"x",
                    "",
                    "\ud800",
                    "\x1b[31m",
                    "x.weight",
                    f"{key}x",
                    1.5,
                ]
                if rng.random() < 0.2:
                    wrong = [_hashable(40)]
                state[rng.choice(wrong)] = state.pop(key, None)
            else:
                state[key] = values(rng)
        if rng.random() < 0.2:
            state = {f"module.{k}" if isinstance(k, str) else k: v for k, v in state.items()}
        if rng.random() < 0.15:
            state = {f"backbone.{k}" if isinstance(k, str) else k: v for k, v in state.items()}
        if rng.random() < 0.3:
            state = {rng.choice(("state_dict", "model", "blobs")): state, "__author__": "x"}
        return framework, state

    @st.composite
    def inputs(draw: Callable) -> Input:
        rng = draw(_rng())
        framework, state = broken(rng)
        target = rng.choice(("torchvision", "mmdet", "detectron2", "timm"))
        name = f"{framework}-{target}"
        kind = rng.random()
        if kind < 0.25:
            return f"{name}.pkl", _opcodes(rng)
        if kind < 0.5:
            buffer = io.BytesIO()
            zipped = rng.random() < 0.5
            if rng.random() < 0.05:
                state["bomb"] = _Bomb(str(_BOMB))
            try:
                torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
            except Exception:  # what cannot be saved is no input
                buffer = io.BytesIO(b"x")
            data, name = buffer.getvalue(), f"{name}.{rng.choice(('pth', 'pt', 'pyth'))}"
        elif kind < 0.85:
            plain = {
                k: v.numpy()
                if isinstance(v, torch.Tensor)
                and v.layout is torch.strided
                and v.numel() < 10**4
                and not v.requires_grad
                else v
                for k, v in state.items()
            }
            plain = {k: v for k, v in plain.items() if not isinstance(v, torch.Tensor)}
            if rng.random() < 0.05:
                plain["bomb"] = _Bomb(str(_BOMB))
            data, name = pickle.dumps(plain, protocol=rng.choice((0, 2, 4, 5))), f"{name}.pkl"
        else:
            sound = {
                k: v.contiguous().clone()
                for k, v in state.items()
                if isinstance(k, str)
                and isinstance(v, torch.Tensor)
                and v.numel() < 10**4
                and v.layout is torch.strided
                and "\ud800" not in k
            }
            data, name = save(sound), f"{name}.safetensors"
        return name, mangled(data, rng) if rng.random() < 0.35 else data

    return inputs()


def _hashable(depth: int) -> tuple:
    value: tuple = ()
    for _ in range(depth if depth < 20 else 18):  # this process hashes it, too
        value = (value, value)
    return value


_BOMB = Path(tempfile.gettempdir()) / f"gradaug_fuzz_bomb_{os.getpid()}"


def _read_checkpoint(folder: Path, path: Path) -> None:
    from gradaug_det.zoo.export import convert_file
    from gradaug_det.zoo.unpickle import load_checkpoint

    framework, target = path.stem.split("-")
    _, refused = _all_or_first(
        lambda: load_checkpoint(path),
        lambda: convert_file(path, folder / "out.safetensors", target, framework=framework),
        lambda: convert_file(path, folder / "out.pth", target, framework="torchvision"),
    )
    if _BOMB.exists():
        _BOMB.rmdir()
        raise AssertionError("code in a checkpoint has run")
    if refused:
        raise refused


def _coco_inputs(folder: Path) -> st.SearchStrategy[Input]:
    import numpy as np
    from PIL import Image

    images = folder / "images"
    images.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    for name, more in (("0.png", {}), ("1.jpg", {"exif": exif}), ("2.gif", {}), ("3.tif", {})):
        Image.fromarray(pixels).save(images / name, **more)
    files = {path.name: path.read_bytes() for path in sorted(images.iterdir())}
    polygon = [[10.0, 10, 50, 10, 50, 60, 10, 60]]
    rles = [{"size": [96, 128], "counts": [0, 96 * 128]}, {"size": [96, 128], "counts": "PP3"}]
    sound = {
        "images": [
            {"id": i, "file_name": name, "width": 128, "height": 96} for i, name in enumerate(files)
        ],
        "categories": [{"id": i, "name": f"class{i}"} for i in (1, 2, 7)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i % 4,
                "category_id": (1, 2, 7)[i % 3],
                "bbox": [10, 10, 40, 50],
                "area": 2000,
                "iscrowd": int(i == 5),
                "segmentation": (polygon, polygon, rles[0], polygon, rles[1], rles[0])[i],
            }
            for i in range(6)
        ],
    }
    (folder / "sound.json").write_text(json.dumps(sound))

    @st.composite
    def inputs(draw: Callable) -> Input:
        rng = draw(_rng())
        if rng.random() < 0.2:
            name = rng.choice(list(files))
            return f"image_{name}", mangled(files[name], rng)
        return draw(documents(sound, "instances.json", 0.08))

    return inputs()


def _read_coco(folder: Path, path: Path) -> None:
    from gradaug_det.datasets.check import check_before_training, check_coco

    images, annotations = folder / "images", path
    if path.name.startswith("image_"):
        annotations = folder / "sound.json"
        name = path.name.removeprefix("image_")
        whole = (images / name).read_bytes()
        (images / name).write_bytes(path.read_bytes())
    try:
        _, refused = _all_or_first(
            lambda: _printable(check_coco(annotations, images, num_classes=3)),
            lambda: _printable(check_coco(annotations, None, masks=False, class_names=["class1"])),
            lambda: check_before_training(annotations, images, name="set"),
        )
    finally:
        if path.name.startswith("image_"):
            (images / name).write_bytes(whole)
    if refused:
        raise refused


def _printable(result: Any) -> None:
    text = json.dumps(result.to_dict(), allow_nan=False, ensure_ascii=False)
    if not text.isprintable() or not text.encode():
        raise AssertionError("the result has text that a terminal would obey")


TARGETS = {
    "zoo-index": Target("the zoo's index.json", _index_inputs, _read_index),
    "backbone": Target(
        "a backbone file: safetensors header and description",
        _safetensors_inputs,
        _read_safetensors,
    ),
    "checkpoint": Target(
        "checkpoints: unpickler, torch.load, safetensors, converter",
        _checkpoint_inputs,
        _read_checkpoint,
    ),
    "coco": Target("COCO annotation files and images (check-data)", _coco_inputs, _read_coco),
}


# ---- the process that reads -------------------------------------------------------------------


def sentence_problem(error: BaseException) -> str | None:
    """What is wrong with an exception as an answer to a user; None if it is a good one."""
    text = str(error)
    if not isinstance(error, GradAugError):
        return f"{type(error).__name__} is none of the package's errors: {text!r:.300}"
    if len(text.split()) < 4:
        return f"{type(error).__name__} is no sentence: {text!r}"
    if not text.replace("\n", "").isprintable():
        return f"{type(error).__name__} has characters that a terminal would obey: {text!r:.300}"
    if len(text) > 5000:
        return f"{type(error).__name__} of {len(text)} characters"
    return None


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_forever(name: str, folder: Path, first_seed: int, memory: int = MEMORY_BYTES) -> None:
    """Draws and reads inputs until it is killed; one line of JSON a try."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    target = TARGETS[name]
    inputs, place = target.inputs(folder), folder / "input"
    place.mkdir(exist_ok=True)
    peak = [0, 0]  # memory, tries

    def attempt(drawn: Input) -> None:
        for old in place.iterdir():
            old.unlink()
        path = place / drawn[0]
        path.write_bytes(drawn[1])
        answer: dict[str, Any] = {"file": drawn[0], "bytes": len(drawn[1])}
        begin = time.monotonic()
        print(json.dumps({"begin": True}), flush=True)
        try:
            target.read(folder, path)
            answer["accepted"] = True
        except Exception as error:
            if problem := sentence_problem(error):
                frame = traceback.extract_tb(error.__traceback__)[-1]
                answer |= {"finding": problem, "at": f"{Path(frame.filename).name}:{frame.lineno}"}
                answer["traceback"] = traceback.format_exc()
            else:
                answer["sentence"] = _shape(str(error), folder)
        answer["seconds"] = time.monotonic() - begin
        used = _memory()
        # The first inputs import what the target needs.
        if peak[1] > 20 and used - peak[0] > memory:
            answer |= {"finding": f"memory grew by {(used - peak[0]) >> 20} MiB", "at": "memory"}
        peak[:] = [max(used, peak[0]), peak[1] + 1]
        print(json.dumps(answer), flush=True)

    quiet = settings(
        max_examples=300,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    number = first_seed
    while True:
        seed(number)(quiet(given(inputs)(attempt)))()
        number += 1


def _shape(text: str, folder: Path) -> str:
    """An error's sentence without what differs from input to input, to count kinds of it."""
    text = text.replace(str(folder), "").split("got ")[0]
    return re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\[[^\]]*\]|[\d.]+", "_", text)[:90]


# ---- the process that watches -----------------------------------------------------------------


@dataclass
class Report:
    """What came of a target."""

    target: str
    minutes: float
    seed: int
    seconds: float = 0.0
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    restarts: int = 0
    sentences: dict[str, int] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "title": TARGETS[self.target].title,
            "command": f"python tools/fuzz.py {self.target} --minutes {self.minutes:g} "
            f"--seed {self.seed}",
            "hypothesis": hypothesis.__version__,
            "seconds": round(self.seconds, 1),
            "inputs": self.inputs,
            "accepted": self.accepted,
            "refused": self.inputs - self.accepted - sum(f["count"] for f in self.findings),
            "kinds_of_sentences": len(self.sentences),
            "slowest_seconds": round(self.slowest, 2),
            "restarts": self.restarts,
            "findings": self.findings,
        }


def watch(name: str, minutes: float, first_seed: int, keep: Path) -> Report:
    """Runs readers of a target for some minutes; a new one for each that hangs or dies."""
    report = Report(name, minutes, first_seed)
    start = time.monotonic()
    until = start + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="gradaug_fuzz_") as temporary:
        while time.monotonic() < until:
            folder = Path(temporary) / f"{report.restarts}"
            folder.mkdir()
            next_seed = first_seed + 100_000 * report.restarts
            reason = _follow(report, folder, next_seed, until, keep)
            if reason is None:
                break
            _note(report, {"finding": reason, "at": reason}, folder, keep)
            report.restarts += 1
    report.seconds = time.monotonic() - start
    return report


def _follow(report: Report, folder: Path, seed_: int, until: float, keep: Path) -> str | None:
    """Reads a reader's lines until the time is over; the reason if it ended otherwise."""
    command = [sys.executable, __file__, report.target, "--read", str(folder), "--seed", str(seed_)]
    errors = folder / "stderr"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT) as reader,
    ):
        assert reader.stdout is not None
        os.set_blocking(reader.stdout.fileno(), False)
        pending, begun, heard = b"", False, time.monotonic()
        try:
            while time.monotonic() < until:
                ready, _, _ = select.select([reader.stdout], [], [], 0.5)
                data = reader.stdout.read() if ready else None
                if data == b"":
                    code = reader.wait()
                    tail = errors.read_text("utf-8", "replace").strip().splitlines()[-1:]
                    return f"the process died with exit code {code} {' '.join(tail)}".strip()
                if data:
                    heard = time.monotonic()
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        answer = json.loads(line)
                        begun = "begin" in answer
                        if not begun:
                            _count(report, answer, folder, keep)
                # Before its first input a reader imports frameworks.
                elif time.monotonic() - heard > (INPUT_SECONDS if begun else 12 * INPUT_SECONDS):
                    return f"an input took more than {INPUT_SECONDS:g} s"
            return None
        finally:
            reader.kill()


def _count(report: Report, answer: dict[str, Any], folder: Path, keep: Path) -> None:
    report.inputs += 1
    report.slowest = max(report.slowest, answer["seconds"])
    if "finding" in answer:
        _note(report, answer, folder, keep)
    elif answer.get("accepted"):
        report.accepted += 1
    else:
        kind = answer["sentence"]
        report.sentences[kind] = report.sentences.get(kind, 0) + 1


def _note(report: Report, answer: dict[str, Any], folder: Path, keep: Path) -> None:
    """Counts a finding, and keeps the input of the first of its kind."""
    for known in report.findings:
        if known["at"] == answer["at"]:
            known["count"] += 1
            return
    number = len(report.findings)
    if number < 100:
        place = keep / report.target / str(number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for path in (folder / "input").glob("*"):
            shutil.copy(path, place / path.name)
        (place / "finding.txt").write_text(answer.get("traceback", answer["finding"]))
    finding = answer["finding"].replace(str(folder), "FOLDER")
    report.findings.append({"finding": finding, "at": answer["at"], "count": 1})
    print(f"{report.target}: finding {number} at {answer['at']}: {finding}", flush=True)


# ---- documents --------------------------------------------------------------------------------


def write(report: Report, out: Path) -> None:
    """Writes ``fuzzing/TARGET.json`` and the table of all targets, ``fuzzing.md``."""
    folder = out / "fuzzing"
    with atomic_path(folder / f"{report.target}.json") as path:
        path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    with atomic_path(out / "fuzzing.md") as path:
        path.write_text(table(folder), encoding="utf-8")


def table(folder: Path) -> str:
    """The document of all targets that have a JSON file in the folder."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = [
        "# Fuzzing",
        "",
        "What reads files from anywhere was given broken and hostile ones, drawn by Hypothesis. A",
        "finding is an exception that is not the package's own with a sentence that can be",
        f"printed, a dead process, an input that takes more than {INPUT_SECONDS:g} s, or memory",
        f"that grows by more than {MEMORY_BYTES >> 20} MiB. What was found before is fixed, and",
        "kept as tests in tests/faults/test_found_by_fuzzing.py.",
        "",
        "| target | reads | minutes | inputs | accepted | refused with a sentence | kinds of "
        "sentences | slowest input | findings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['target']} | {r['title']} | {r['seconds'] / 60:.1f} | {r['inputs']} | "
        f"{r['accepted']} | {r['refused']} | {r['kinds_of_sentences']} | "
        f"{r['slowest_seconds']:.2f} s | {len(r['findings'])} |"
        for r in found
    ]
    for r in found:
        lines += [f"- {r['target']}: {f['finding']} (x {f['count']})" for f in r["findings"]]
    lines += ["", "Written by:", "", "```bash", *(r["command"] for r in found), "```", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", choices=TARGETS, metavar="TARGET")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same inputs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "faults", help="documents")
    parser.add_argument("--keep", type=Path, default=ROOT / "output" / "fuzz", help="of findings")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.list or args.target is None:
        for name, target in TARGETS.items():
            print(f"{name:12} {target.title}")
        return 0
    if args.read is not None:
        read_forever(args.target, args.read, args.seed)
    report = watch(args.target, args.minutes, args.seed, args.keep)
    write(report, args.out)
    values = report.to_dict()
    print(
        f"{report.target}: {values['inputs']} inputs in {report.seconds:.0f} s: "
        f"{values['accepted']} accepted, {values['refused']} refused with one of "
        f"{values['kinds_of_sentences']} sentences, slowest {report.slowest:.2f} s; "
        f"{len(report.findings)} findings" + (f" in {args.keep}" if report.findings else "")
    )
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
