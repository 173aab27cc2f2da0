"""Checkpoints for the converter, and programs of pickle's own opcodes."""

from __future__ import annotations

import io
import os
import pickle
import random
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.faults.fuzzing.inputs import Input, mangled, seeded
from tests.faults.fuzzing.outcome import raise_first_error


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


def checkpoint_inputs(_folder: Path) -> st.SearchStrategy[Input]:
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
                wrong = [1, None, 1.5, ("a",), b"x", "", "\ud800", "\x1b[31m"]
                wrong += ["x.weight", f"{key}x"]
                if rng.random() < 0.2:
                    wrong = [_doubled(18)]  # not 40: this process hashes it, too
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

    def is_small(value: Any) -> bool:
        strided = isinstance(value, torch.Tensor) and value.layout is torch.strided
        return strided and value.numel() < 10**4

    @st.composite
    def inputs(draw: Callable) -> Input:
        rng = draw(seeded())
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
                k: v.detach().numpy() if is_small(v) else v
                for k, v in state.items()
                if is_small(v) or not isinstance(v, torch.Tensor)
            }
            if rng.random() < 0.05:
                plain["bomb"] = _Bomb()
            data, name = pickle.dumps(plain, protocol=rng.choice((0, 2, 4, 5))), f"{name}.pkl"
        else:
            sound = {
                k: v.contiguous().clone()
                for k, v in state.items()
                if is_small(v) and isinstance(k, str) and "\ud800" not in k
            }
            data, name = save(sound), f"{name}.safetensors"
        return name, mangled(data, rng) if rng.random() < 0.35 else data

    return inputs()


def _doubled(depth: int) -> tuple:
    value: tuple = ()
    for _ in range(depth):
        value = (value, value)
    return value


def read_checkpoint(folder: Path, path: Path) -> None:
    from gradaug_det.utils.checkpoints import load_checkpoint
    from gradaug_det.zoo.convert import convert_file

    framework, target = path.stem.split("-")
    raise_first_error(
        lambda: load_checkpoint(path),
        lambda: convert_file(path, folder / "out.safetensors", target, framework=framework),
        lambda: convert_file(path, folder / "out.pth", target, framework="torchvision"),
    )
