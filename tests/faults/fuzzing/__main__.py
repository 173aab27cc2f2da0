#!/usr/bin/env python
"""Feeds broken and hostile files to what reads files from anywhere, and watches what happens.

    python tools/fuzz.py zoo-index --minutes 10
    python tools/fuzz.py --list

Inputs are drawn by Hypothesis: sound files with parts replaced, removed, repeated or cut off, and
programs of pickle's own opcodes. The good outcome is a result, or one of the package's errors with
a sentence that can be printed. A finding is anything else: something that ran (an audit hook looks
for programs, files outside of the folder and other unpicklers), another exception, a dead process,
an input that takes more than 10 s, or memory out of proportion.

The reading happens in a process of its own. What was found is printed, the input is kept under
``--keep``, and docs/faults/fuzzing/TARGET.json and docs/faults/fuzzing.md (a table of all targets)
are written. Exit code: 0 without findings, 1 with some.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
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
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gradaug_det.errors import GradAugError
from gradaug_det.utils.files import atomic_path

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
            (k if k != key else rng.choice((f"{k}x", "", str(k).upper()))): v
            for k, v in value.items()
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
        modules: what importing starts programs for, so it comes before the first input.
    """

    title: str
    inputs: Callable[[Path], st.SearchStrategy[Input]]
    read: Callable[[Path, Path], None]
    modules: tuple[str, ...] = ()


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
    from gradaug_det.utils.checkpoints import load_checkpoint
    from gradaug_det.zoo.backbone import read_backbone, read_info
    from gradaug_det.zoo.export import convert_file
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

    def __reduce__(self) -> tuple:
        return os.mkdir, (_BOMB,)


_BOMB = str(Path(tempfile.gettempdir()) / f"gradaug_fuzz_bomb_{os.getpid()}")


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _named(module: str, name: str, rng: random.Random) -> bytes:
    """A name, as GLOBAL or STACK_GLOBAL."""
    if rng.random() < 0.7:
        return f"c{module}\n{name}\n".encode()
    return _text(module) + _text(name) + b"\x93"


_WALKED = "__globals__ __dict__ __class__ __init__ __reduce__ __setstate__ mean min np sys modules"
_UNLISTED = (
    *(("posix", "mkdir"), ("os", "system"), ("builtins", "eval"), ("functools", "partial")),
    *(("operator", "attrgetter"), ("copyreg", "_reconstructor"), ("collections", "defaultdict")),
    *(("mmengine.logging.history_buffer", "np.os.mkdir"), ("torch", "load"), ("torch", "hub.load")),
    *(("torch._utils", "_rebuild_wrapper_subclass"), ("torch.serialization", "_get_layout")),
    *(("torch.serialization", "os.mkdir"), ("collections", "OrderedDict.fromkeys")),
)
_STATES = (
    *("statistics_methods", "_log_history", "_count_history", "max_length", "_metadata"),
    *("__class__", "__dict__", "mean", "_hook_for_profile"),
)
_OPCODES = (
    *(b"}", b"]", b")", b"(", b"N", b"\x88", b"K\x01", b"J\xff\xff\xff\x7f", b"0", b"2", b"1"),
    *(b"U\x02f4", b"U\x01<", b"C\x04abcd", b"X\x01\0\0\0a", b"h\0", b"h\x01", b"q\0", b"q\x01"),
    *(b"t", b"\x85", b"\x86", b"\x87", b"R", b"R", b"b", b"b", b"s", b"u", b"e", b"a", b"\x81"),
    *(b"\x90", b"\x91", b"\x8f", b"\x92", b"G?\xf0\0\0\0\0\0\0", b"\x94", b"j\0\0\0\0", b"d"),
    *(b"l", b"\x8a\x01\x05", b"\x8e\x04\0\0\0\0\0\0\0abcd", b"r\xff\xff\xff\x0f", b"Q"),
    *(b"\x8e\0\0\0\0\1\0\0\0", b"\x96\x04\0\0\0\0\0\0\0abcd", b"P1\n", b"I1\n", b"L2L\n"),
    *(b"o", b"\x82\x01", b"iposix\nmkdir\n"),
    *(b"(" + _text(_BOMB) + b"t", _text(_BOMB) + b"\x85R", b"\x97", b"\x98"),
)


def _endless() -> list[bytes]:
    """Small programs that are endless, or huge, for a reader that believes them."""
    key = b")" + b"2\x86" * 40
    return [
        *(b"}" + key + b"Ns.", b"}(" + key + b"Nu.", b"(" + key + b"Nd."),
        *(b"\x8f(" + key + b"\x90.", b"(" + key + b"\x91.", b"}Nr\xff\xff\xff\x3f."),
        *(b"cbuiltins\nset\n]" + key + b"a\x85R.", b"}K\x01]" + b"2\x86" * 40 + b"s."),
        *(b"\x8e" + b"\xff" * 5 + b"\0\0\0.", b"\x96" + b"\xff" * 5 + b"\0\0\0."),
        *(b"c_codecs\nencode\n(Va\n" + key + b"tR.", b"cnumpy\ndtype\n" + key + b"\x85R."),
        *(b"c_codecs\nencode\n(N}V__defaults__\n)stb.", b"I" + b"9" * 10**5 + b"\n."),
        b"cbuiltins\nset\n" + _tensor_program(1, (2**40,), (0,))[2:-1] + b"\x85R.",
    ]


def _tensor_program(count: int, size: tuple, stride: tuple, key: str = "0") -> bytes:
    """A tensor of a storage, both as large as they say."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu")
    parts = (pickle.dumps(part, 2)[2:-1] for part in (count, 0, size, stride, False, None))
    first, *rest = parts
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + first + b"tQ"
    return head + b"".join(rest) + b"tR."


def _opcodes(rng: random.Random) -> bytes:
    """A program of pickle's opcodes, most of them with arguments of the right kind."""
    from gradaug_det.utils.standins import _ALLOWED

    listed = list(_ALLOWED)
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(_endless())
    if kind < 0.2:
        numbers = (0, 1, 2, -1, 2**40, 2**63)
        pair = [tuple(rng.choices(numbers, k=rng.randrange(3))) for _ in range(2)]
        return b"}" + _text("w") + _tensor_program(rng.choice(numbers), *pair)[2:-1] + b"s."

    def name() -> bytes:
        return _named(*rng.choice(listed if rng.random() < 0.7 else _UNLISTED), rng)

    def walk() -> bytes:
        owner = name()
        for step in rng.choices(_WALKED.split(), k=rng.randrange(1, 4)):
            owner = b"cbuiltins\ngetattr\n" + owner + _text(step) + b"\x86R"
        return owner

    def state() -> bytes:
        """An object with a state of its own kind, of another's, or a walk's result."""
        values = (name(), walk(), b"}", b"N", b"K\x05", b"(K\x01" + name() + b"t")
        keys = rng.choices(_STATES, k=rng.randrange(4))
        items = b"".join(_text(key) + rng.choice(values) + b"s" for key in keys)
        made = rng.choice((b")\x81", b")R", b""))
        history = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
        owner = rng.choice((history, b"ccollections\nOrderedDict\n", name()))
        return owner + made + (b"}" + items if rng.random() < 0.8 else walk()) + b"b"

    parts = [b"\x80" + rng.choice((b"\x02", b"\x04"))] if rng.random() < 0.7 else []
    for _ in range(rng.randrange(3, 40)):
        kind = rng.random()
        if kind < 0.2:
            parts.append(name())
        elif kind < 0.25:
            parts.append(walk())
        elif kind < 0.35:
            parts.append(state())
        else:
            parts.append(rng.choice(_OPCODES))
    return b"".join([*parts, b"."])


def _packed(program: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A program as a pickle, or in a file of torch.save; (ending of the name, content)."""
    kind, ending = rng.random(), rng.choice(("pth", "pyth", "pkl", "pt", "ckpt", "bin"))
    if kind < 0.34:
        return ending, program
    if kind < 0.67:
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        tail = pickle.dumps(["0"], 2) + (2).to_bytes(8, "little") + b"\0" * 8
        return ending, b"".join(pickle.dumps(part, 2) for part in head) + program + tail
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((0, 8))) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = ["x/data.pkl", "x/data/0", "x/data/0", "x/byteorder", "x/constants.pkl", "../x"]
        for part in [names[0], *rng.choices(names, (4, 20, 9, 1, 1, 1), k=rng.randrange(3))]:
            size = rng.choice((8, 8, 8, 0, 10**6))
            archive.writestr(part, program if part == names[0] else b"\0" * size)
    return ending, buffer.getvalue()


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
        if kind < 0.4:
            ending, data = _packed(_opcodes(rng), rng)
            return f"{name}.{ending}", mangled(data, rng) if rng.random() < 0.1 else data
        if kind < 0.6:
            buffer = io.BytesIO()
            zipped = rng.random() < 0.5
            if rng.random() < 0.05:
                state["bomb"] = _Bomb()
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
                plain["bomb"] = _Bomb()
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


def _read_checkpoint(folder: Path, path: Path) -> None:
    from gradaug_det.utils.checkpoints import load_checkpoint
    from gradaug_det.zoo.export import convert_file

    framework, target = path.stem.split("-")
    _, refused = _all_or_first(
        lambda: load_checkpoint(path),
        lambda: convert_file(path, folder / "out.safetensors", target, framework=framework),
        lambda: convert_file(path, folder / "out.pth", target, framework="torchvision"),
    )
    if refused:
        raise refused


def _trained() -> tuple[Any, ...]:
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 7), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)


def _training_inputs(sound: Callable[[], dict[str, Any]]) -> Callable[..., Any]:
    """Files of a training's state with parts replaced, and those of every checkpoint."""

    def inputs(folder: Path) -> st.SearchStrategy[Input]:
        import numpy as np
        import torch

        other, state = _checkpoint_inputs(folder), sound()
        news = [*HOSTILE, torch.ones(1), torch.ones(1).expand(2**40), np.ones(2), np.float32(1)]

        @st.composite
        def drawn(draw: Callable) -> Input:
            rng = draw(_rng())
            if rng.random() < 0.5:
                return draw(other)
            value: Any = state
            for _ in range(rng.choice((0, 1, 1, 2, 4))):
                value = mutated(value, rng, news)
            buffer = io.BytesIO()
            try:
                torch.save(value, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
            except Exception:  # what cannot be saved is no input
                buffer.write(b"x")
            data = buffer.getvalue()
            return "mmdet-timm.pth", mangled(data, rng) if rng.random() < 0.1 else data

        return drawn()

    return inputs


def _detectron2_state() -> dict[str, Any]:
    model, optimizer, schedule = _trained()
    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    return state | {"scheduler": schedule.state_dict(), "iteration": 3}


def _read_detectron2(folder: Path, path: Path) -> None:
    from gradaug_det.d2.checkpoint import SafeCheckpointer

    model, optimizer, schedule = _trained()
    out = folder / "d2"
    out.mkdir(exist_ok=True)
    resumed = out / f"model{path.suffix}"
    shutil.copy(path, resumed)
    (out / "last_checkpoint").write_text(resumed.name)
    checkpointer = SafeCheckpointer(model, str(out), optimizer=optimizer, scheduler=schedule)
    _, refused = _all_or_first(
        lambda: checkpointer.resume_or_load(str(path), resume=False),
        lambda: checkpointer.resume_or_load("", resume=True),
    )
    resumed.unlink()
    if refused:
        raise refused


def _mmengine_state() -> dict[str, Any]:
    from mmengine.logging import MessageHub

    model, optimizer, _ = _trained()
    hub = MessageHub("fuzz")
    hub.update_scalar("train/loss", 1.5)
    hub.update_info("iter", 3)
    meta = {"epoch": 1, "iter": 3, "cfg": "a = 1", "dataset_meta": {"classes": ("a",)}}
    state = {"state_dict": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    return state | {"meta": meta, "message_hub": hub.state_dict()}


def _read_mmengine(folder: Path, path: Path) -> None:
    from mmengine.logging import HistoryBuffer, MessageHub
    from mmengine.runner import CheckpointLoader, load_checkpoint

    from gradaug_det.mmdet.checkpoint import load_files_safely, load_from_url

    load_files_safely()
    cached = folder / "hub" / path.name
    cached.parent.mkdir(exist_ok=True)
    shutil.copy(path, cached)
    methods = dict(HistoryBuffer._statistics_methods)
    _, refused = _all_or_first(
        lambda: CheckpointLoader.load_checkpoint(str(path)),
        lambda: load_from_url(f"https://example.org/{path.name}", str(cached.parent)),
    )
    cached.unlink()
    with contextlib.suppress(Exception):  # MMEngine's own, of what was not refused
        content = load_checkpoint(_trained()[0], str(path))
        MessageHub("fuzz").load_state_dict(content["message_hub"])
    if HistoryBuffer._statistics_methods != (methods or HistoryBuffer([])._statistics_methods):
        raise AssertionError("a file has replaced the methods of a class")
    if refused:
        raise refused


def _step_state() -> dict[str, Any]:
    import torch

    from gradaug_det.core.options import GradAugOptions
    from gradaug_det.core.sampling import sample_sub_networks

    subs = [asdict(sub) for sub in sample_sub_networks(GradAugOptions(2, 0.9, (1.0,), 0), 0)]
    content = {"format": 1, "framework": "detectron2", "config": None, "iteration": 0}
    content |= {"rank": 0, "subs": subs, "bad": 0, "options": {}, "rng": torch.get_rng_state()}
    boxes = {"kind": "Boxes", "value": torch.ones(1, 4)}
    polygons = {"kind": "PolygonMasks", "value": [[[1.0, 1, 2, 2, 3, 1]]]}
    fields = {"gt_boxes": boxes, "gt_masks": polygons}
    item = {"image": torch.ones(3, 4, 4), "instances": {"image_size": [4, 4], "fields": fields}}
    fields = {"bboxes": {**boxes, "kind": "HorizontalBoxes"}}
    fields |= {"masks": {**polygons, "size": [4, 4]}}
    part = {"kind": "InstanceData", "meta": {}, "fields": fields}
    sample = {"meta": {"img_shape": [4, 4]}, "parts": {"gt_instances": part}}
    batch = {"inputs": torch.ones(1, 3, 4, 4), "samples": [sample]}
    return content | {"weights": {}, "images": ["a"], "batch": [item], "other": batch}


def _read_step(folder: Path, path: Path) -> None:
    import torch

    from gradaug_det.frameworks import load_replay
    from gradaug_det.replay import replay
    from gradaug_det.utils.checkpoints import load_checkpoint

    with contextlib.suppress(GradAugError):  # a state has a batch of each framework
        content = load_checkpoint(path)
        other = content.pop("other", None)
        for framework, batch in (("detectron2", content.get("batch")), ("mmdet", other)):
            torch.save(content | {"framework": framework, "batch": batch}, folder / "step.pt")
            _all_or_first(lambda: replay(folder / "step.pt"))
            with contextlib.suppress(Exception):  # replay says so in a sentence
                load_replay(framework).decode(batch)
    replay(path)


def _recipe() -> Any:
    from gradaug_det.pretrain.recipe import load_recipe

    small = ("data.size=16", "data.fraction=0.04", "epochs=2", "batch_size=32")
    return load_recipe(ROOT / "configs" / "pretrain" / "mini_resnet18_gradaug.yaml", small)


def _pretraining_state() -> dict[str, Any]:
    return _detectron2_state() | {"recipe": _recipe().as_dict(), "step": 3, "precision": {}}


_TRAININGS: dict[Path, Any] = {}


def _read_pretraining(folder: Path, path: Path) -> None:
    from lightning_fabric import Fabric

    from gradaug_det.pretrain.engine import Pretraining

    if folder not in _TRAININGS:
        fabric = Fabric(accelerator="cpu", devices=1)
        _TRAININGS[folder] = Pretraining(_recipe(), folder / "pretraining", fabric)
    training = _TRAININGS[folder]
    shutil.copy(path, training._checkpoint)
    training._resume()


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
    from gradaug_det.check_data.check import check_before_training, check_coco

    images, annotations = folder / "images", path
    if path.name.startswith("image_"):
        annotations = folder / "sound.json"
        name = path.name.removeprefix("image_")
        whole = (images / name).read_bytes()
        (images / name).write_bytes(path.read_bytes())
    try:
        _, refused = _all_or_first(
            lambda: _printable(check_coco(annotations, images, num_classes=3)),
            lambda: _printable(check_coco(annotations, None, masks=False)),
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


_FRAMEWORKS = ("gradaug_det.d2.replay", "gradaug_det.mmdet.replay")
TARGETS = {
    "zoo-index": Target("the zoo's index.json", _index_inputs, _read_index),
    "backbone": Target(
        "a backbone file: safetensors header and description",
        _safetensors_inputs,
        _read_safetensors,
    ),
    "checkpoint": Target(
        "checkpoints: zips, old files and pickles, safetensors; converter",
        _checkpoint_inputs,
        _read_checkpoint,
    ),
    "detectron2": Target(
        "Detectron2's checkpointer: .pkl, .pth, .pyth; start and resume",
        _training_inputs(_detectron2_state),
        _read_detectron2,
        _FRAMEWORKS,
    ),
    "mmengine": Target(
        "MMEngine's loader after load_files_safely: local and URL, message hub",
        _training_inputs(_mmengine_state),
        _read_mmengine,
        _FRAMEWORKS,
    ),
    "replay": Target(
        "steps for gradaug-det replay", _training_inputs(_step_state), _read_step, _FRAMEWORKS
    ),
    "pretraining": Target(
        "pretraining's resume",
        _training_inputs(_pretraining_state),
        _read_pretraining,
        ("gradaug_det.pretrain.engine",),
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


_WATCHED = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"),
    *("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.chmod", "os.link", "os.symlink"),
    *("os.kill", "pickle.find_class", "open"),
)


class Canary:
    """Notes and stops what a file must not bring about while it is read: programs that are
    started, an unpickler that is not ours, files that are touched outside of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran, self.on = str(folder), [], False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.on or event not in _WATCHED:
            return
        path = str(arguments[0]) if arguments else ""
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        at_home = event in ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod")
        if reads or (at_home and (path.startswith(self.folder) or "__pycache__" in path)):
            return
        self.ran.append(f"{event}{arguments!r:.100}")
        raise PermissionError(f"{event} while a file is read")


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_forever(name: str, folder: Path, first_seed: int, memory: int = MEMORY_BYTES) -> None:
    """Draws and reads inputs until it is killed; one line of JSON a try."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    target = TARGETS[name]
    inputs, place = target.inputs(folder), folder / "input"
    place.mkdir(exist_ok=True)
    peak = [0, 0]  # memory, tries
    tempfile.tempdir = os.environ["MPLCONFIGDIR"] = str(folder)
    # What is read may print and log: our lines go another way.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable()
    for module in target.modules:
        importlib.import_module(module)
    canary = Canary(folder)

    def attempt(drawn: Input) -> None:
        for old in place.iterdir():
            old.unlink()
        path = place / drawn[0]
        path.write_bytes(drawn[1])
        answer: dict[str, Any] = {"file": drawn[0], "bytes": len(drawn[1])}
        begin = time.monotonic()
        print(json.dumps({"begin": True}), file=lines, flush=True)
        try:
            canary.ran, canary.on = [], True
            target.read(folder, path)
            answer["accepted"] = True
        except Exception as error:
            if problem := sentence_problem(error):
                frame = traceback.extract_tb(error.__traceback__)[-1]
                answer |= {"finding": problem, "at": f"{Path(frame.filename).name}:{frame.lineno}"}
                answer["traceback"] = traceback.format_exc()
            else:
                answer["sentence"] = _shape(str(error), folder)
        canary.on = False
        if canary.ran:
            answer |= {
                "finding": f"something ran: {canary.ran[0]}",
                "at": canary.ran[0].partition("(")[0],
            }
        answer["seconds"] = time.monotonic() - begin
        used = _memory()
        # The first inputs import what the target needs.
        if peak[1] > 20 and used - peak[0] > memory:
            answer |= {"finding": f"memory grew by {(used - peak[0]) >> 20} MiB", "at": "memory"}
        peak[:] = [max(used, peak[0]), peak[1] + 1]
        print(json.dumps(answer), file=lines, flush=True)

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
        "finding is something that ran (a program, another unpickler, a file outside of the",
        "folder), an exception that is not the package's own with a sentence that can be",
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
