"""Checkpoints are read without running what is in them: bombs, wrecks and the real thing."""

import io
import lzma
import os
import pickle
import random
import tarfile
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gradaug_det.errors import ZooError
from gradaug_det.utils.checkpoints import load_checkpoint
from tests.utils import hostile

ARRAYS = {
    "stem.conv1.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(4, dtype=">f8"),
    "half": np.array([0.5, -1.0], dtype=np.float16),
    "no_dimension": np.array(3, dtype=np.int64),
    "nothing": np.zeros((0, 3), dtype=np.float32),
    "flags": np.array([True, False]),
}


class Bomb:
    """Pickled, it is the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def bombs(target):
    """Calls that would make ``target``, one way each."""
    return {
        "system": Bomb(os.system, f"touch {target}"),
        "open": Bomb(open, str(target), "w"),
        "mkdir": Bomb(os.mkdir, str(target)),
        "exec": Bomb(exec, f"open({str(target)!r}, 'w')"),
        "eval": Bomb(eval, f"open({str(target)!r}, 'w')"),
        "memmap": Bomb(np.memmap, str(target), np.uint8, "w+", 0, (4,)),
        "tofile": Bomb(np.ndarray.tofile, np.zeros(3), str(target)),
    }


def dump(content, path, kind):
    if kind == "pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


FORMATS = {"pkl": "pkl", "zip": "pth", "legacy": "pth"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("way", bombs("x"))
def test_a_bomb_is_refused_and_has_not_run(tmp_path, kind, way):
    target, path = tmp_path / "made_by_the_bomb", tmp_path / f"model.{FORMATS[kind]}"
    weights = {"w": np.zeros(2, np.float32) if kind == "pkl" else torch.zeros(2)}
    dump({"model": weights, "__author__": bombs(target)[way]}, path, kind)
    with pytest.raises(ZooError, match=r"is refused: besides weights it holds .*nothing of it has"):
        load_checkpoint(path)
    assert not target.exists()
    # The bomb is a real one: who unpickles it plainly, runs it.
    if kind == "pkl":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


def test_the_refusal_names_what_would_have_run(tmp_path):
    for kind, ending in FORMATS.items():
        path = tmp_path / f"{kind}.{ending}"
        dump({"model": {}, "x": Bomb(os.system, "true")}, path, kind)
        with pytest.raises(ZooError, match=r"it holds posix.system, which loading would run"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.", "builtins.getattr"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "numpy.ndarray.__init__"),
        (b"\x80\x04\x8c\x07_codecs\x8c\x06decode\x93.", "_codecs.decode"),
        (b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.", "the encoding 'zlib'"),
        (b"ccollections\nnamedtuple\n.", "collections.namedtuple"),
    ],
)
def test_only_listed_names(tmp_path, content, wanted):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(ZooError, match=f"it holds {wanted}"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("way", hostile.PROGRAMS)
def test_programs_are_refused(tmp_path, way, kind):
    """Whatever the file's name and format; PyTorch's and MMEngine's lists play no part."""
    target = tmp_path / "made"
    for ending in ("pkl", "pth", "pyth", "ckpt", "bin"):
        path = hostile.write(tmp_path / f"x.{ending}", hostile.PROGRAMS[way](target), kind)
        with torch.serialization.safe_globals([getattr, os.mkdir]), pytest.raises(ZooError):
            load_checkpoint(path)
    assert not target.exists()


def nested(container, item, levels=40):
    """Each level has the one within twice: walking through them all takes years."""
    return item + (b"2" + container) * levels


MEMOIZED = hostile.name("builtins", "bytearray") + b"q\x010"
KEYED = pickle.dumps({"little_endian": True}, 2)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"}\x8a\x09" + b"\1" * 9 + b"Ns.", "long or nested int as a key"),
        (b"}X" + (10_001).to_bytes(4, "little") + b"k" * 10_001 + b"Ns.", "nested str as a key"),
        (b"}" + nested(b"\x86", b"N") + b"Ns.", "nested tuple as a key"),
        (b"}G" + b"\0" * 8 + b"\x8a\x08" + b"\1" * 8 + b"\x86Ns.", "nested tuple as a key"),
        (
            MEMOIZED + b"B\0\0\4\0" + b"x" * 2**18 + b"q\x020(" + b"h\1h\2\x85R" * 80 + b"l.",
            "unfold to many times its size",
        ),
        (b"}K\0" + nested(b"\x86", b"N") + b"s.", "unfold to many times its size"),
        (b"}q\1K\0h\1s.", "unfold to many times its size"),
    ],
)
def test_small_files_that_would_take_years_or_all_memory(tmp_path, program, reason):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04" + program)
    with pytest.raises(ZooError, match=reason):
        load_checkpoint(path)


def test_a_tensor_larger_than_its_storage_and_the_file(tmp_path):
    """A view of stride 0, which whoever copies it would pay for."""
    torch.save({"w": torch.ones(1).expand(2**12, 2**12)}, tmp_path / "sound.pth")
    assert load_checkpoint(tmp_path / "sound.pth")["w"].shape == (2**12, 2**12)
    torch.save({"w": torch.ones(1).expand(2**20, 2**20)}, tmp_path / "x.pth")
    with pytest.raises(ZooError, match="unfold to many times its size"):
        load_checkpoint(tmp_path / "x.pth")


def test_lists_of_storages_are_looked_at(tmp_path):
    """The last pickle of files before PyTorch 1.6: keys, which an error would print, too."""
    first = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001))
    keys = b"\x80\x02]" + nested(b"\x86", b"N", 20) + b"a."
    (tmp_path / "x.pth").write_bytes(first + KEYED + pickle.dumps({}, 2) + keys)
    with pytest.raises(ZooError, match="nested tuple as a key"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("pack", [bytes, lzma.compress])
def test_archives_are_not_unpacked(tmp_path, pack):
    """tarfile follows a chain of long names, and reads as much as an entry says, to know one."""
    entry = tarfile.TarInfo("././@LongLink")
    entry.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "x.pth").write_bytes(pack(entry.tobuf(tarfile.GNU_FORMAT) * 3000))
    with pytest.raises(ZooError, match="is an archive of tar or gzip"):
        load_checkpoint(tmp_path / "x.pth")


def test_arrays_of_pointers_are_refused(tmp_path):
    """numpy itself would take these eight bytes for the address of an object."""
    forged = np.ndarray((1,), dtype=object, buffer=b"A" * 8)
    assert forged.shape == (1,)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": np.array([None])}, protocol=2))
    with pytest.raises(ZooError, match="an array of type 'O8', not of numbers"):
        load_checkpoint(path)
    called = b"cnumpy\nndarray\n((I1\ntcnumpy\ndtype\n(S'O8'\ntRC\x08AAAAAAAAtR."
    path.write_bytes(called)
    with pytest.raises(ZooError, match="'O8', not of numbers"):
        load_checkpoint(path)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_detectron2_files_are_read(tmp_path, protocol, core):
    content = {
        "model": OrderedDict(ARRAYS),
        "__author__": "Detectron2 Model Zoo",
        "matching_heuristics": True,
        "lr": np.float64(0.02),
        "hash": b"\xff\x00",
        "tag": b"",
        "kinds": {"a", 2.5},
        "complex": 1j,
        "list": [(np.float32(1), None)],
    }
    data = pickle.dumps(content, protocol=protocol)
    old, new = f"{np.zeros(0).__reduce__()[0].__module__}".encode(), f"{core}.multiarray".encode()
    if protocol < 4:  # later ones note the length of a name
        data = data.replace(old, new)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(data)
    read = load_checkpoint(path)
    assert list(read) == list(content)
    assert list(read["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read["model"][name].dtype == array.dtype
        assert np.array_equal(read["model"][name], array), name
        assert read["model"][name].flags.writeable  # as torch.from_numpy wants it
    plain = ("__author__", "matching_heuristics", "lr", "hash", "tag", "kinds", "list")
    assert {key: read[key] for key in plain} == {key: content[key] for key in plain}
    assert torch.from_numpy(read["model"]["half"]).tolist() == [0.5, -1.0]


def test_files_of_python_2_are_read(tmp_path):
    """Detectron's: bytes of arrays are str there, read as latin1."""
    value = np.array([1.5, -2.0], dtype=np.float32)
    raw = value.tobytes()
    data = (
        b"\x80\x02}U\x05conv1cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ"
        b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(data)
    assert np.array_equal(load_checkpoint(path)["conv1"], value)


def test_torch_and_safetensors_files_are_read(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 7}
    for kind in ("zip", "legacy"):
        for ending in ("pth", "pt", "tar"):
            path = tmp_path / f"{kind}.{ending}"
            dump(saved, path, kind)
            read = load_checkpoint(path)
            assert read["iteration"] == 7
            assert torch.equal(read["model"]["weight"], model.weight)
            assert read["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    save_file(dict(model.state_dict()), tmp_path / "x.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "x.safetensors")["bias"], model.bias)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_what_torch_saves_is_what_is_read(tmp_path, kind):
    """Kinds of numbers, views, ties, attributes and states that a training may have."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    tied, attributed = torch.ones(3), torch.ones(2)
    attributed.note = "kept by PyTorch"
    saved = {
        "views": [base, base[1:, ::2], base.transpose(0, 2), torch.ones(1).expand(5, 3)],
        "kinds": [
            torch.tensor([0.5, -1]).to(getattr(torch, name))
            for name in (
                *("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"),
                *("uint8", "bool", "complex64", "complex128"),
            )
        ],
        "none": [torch.tensor(3), torch.zeros(0, 2), torch.Size([2, 3]), torch.float16],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "attributes": attributed,
        "tied": [tied, tied],
        "python": {(1, "a"): {1, 2}, 3: Counter("aab"), "b": bytearray(b"ab"), "s": slice(1, 2)},
        "numpy": [np.float64(1.5), np.arange(3), np.array([[True]])],
        "device": torch.device("cuda", 1),
        "rng": [torch.get_rng_state(), random.getstate()],
    }
    if kind == "zip":
        saved["kinds"] += [torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).to(torch.uint16)]
    path = tmp_path / "x.pth"
    dump(saved, path, kind)
    read, wanted = load_checkpoint(path), torch.load(path, weights_only=False)
    assert_same(read, wanted)
    assert read["tied"][0].data_ptr() == read["tied"][1].data_ptr()
    assert read["views"][0].data_ptr() == read["views"][2].data_ptr()
    assert type(read["parameter"]) is torch.nn.Parameter and read["parameter"].requires_grad
    read["views"][0].resize_(100)  # memory of its own
    model = torch.nn.BatchNorm2d(2)
    dump({"model": model.state_dict()}, path, kind)
    assert load_checkpoint(path)["model"]._metadata[""] == {"version": 2}


def assert_same(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert one.dtype is two.dtype and one.stride() == two.stride()
        wide = torch.complex128 if one.is_complex() else torch.float64
        assert torch.equal(one.to(wide), two.to(wide))
    elif isinstance(one, np.ndarray):
        assert one.dtype == two.dtype and np.array_equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        assert_same(list(one.values()), list(two.values()))
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def test_zips_by_others_are_read(tmp_path):
    """Packed again, compressed; or written by PyTorch without checksums."""
    path, again = tmp_path / "x.pth", tmp_path / "y.pth"
    torch.save({"w": torch.randn(1000)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    assert torch.equal(load_checkpoint(again)["w"], torch.load(path)["w"])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_LZMA) as new:
        for entry in old.namelist():  # such a file names the size of its dictionary
            new.writestr(entry, old.read(entry))
    with pytest.raises(ZooError, match="packed otherwise than stored or deflated"):
        load_checkpoint(again)
    if hasattr(torch.serialization, "set_crc32_options"):
        torch.serialization.set_crc32_options(False)
        try:
            torch.save({"w": torch.ones(1000)}, path)
        finally:
            torch.serialization.set_crc32_options(True)
        assert torch.equal(load_checkpoint(path)["w"], torch.ones(1000))


def tensor(size, stride, count=2, offset=0, key="0"):
    """A pickle of a tensor."""
    storage = pickle.dumps(("storage", 1, key, "cpu", count), 2)[2:-1]
    storage = storage.replace(b"K\x01", hostile.name("torch", "FloatStorage"), 1)
    call = hostile.name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"Q"
    inner = b"".join(pickle.dumps(v, 2)[2:-1] for v in (offset, size, stride, False, None))
    return b"\x80\x02}" + hostile.text("w") + call + inner + b"tRs."


@pytest.mark.parametrize(
    ("program", "more", "reason"),
    [
        (tensor((2,), (1,)), {}, "its parts are more than 64 times its size"),
        (tensor((2,), (1,), count=2**40), {}, "of 4398046511104, not of 8"),
        (tensor((2,), (1,), count=-1), {}, "a storage of something but numbers"),
        (tensor((3,), (1,)), {}, "out of bounds for storage"),
        (tensor((2,), (1,), offset=1), {}, "out of bounds for storage"),
        (tensor((2,), (-1,)), {}, "Negative strides"),
        (tensor((2,), (1,), key="../../etc/passwd"), {}, "KeyError: 'archive/data/../../etc"),
        (tensor((2,), (1,)), {"archive/byteorder": b"big"}, "big-endian"),
    ],
)
def test_sizes_that_lie(tmp_path, program, more, reason):
    path = tmp_path / "x.pth"
    big = "64 times" in reason
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        parts = {"data.pkl": program, "data/0": b"\0" * (2**22 if big else 8)}
        for part, content in ({f"archive/{k}": v for k, v in parts.items()} | more).items():
            archive.writestr(part, content)
    with pytest.raises(ZooError, match=reason):
        load_checkpoint(path)


def write_wreck(path, kind, cut):
    buffer = io.BytesIO()
    weights = {"w": torch.zeros(300)}
    if path.suffix == ".safetensors":
        save_file(weights, path)
        buffer.write(path.read_bytes())
    elif path.suffix == ".pkl":
        buffer.write(pickle.dumps({"model": {"w": np.zeros(300)}}, protocol=2))
    else:
        torch.save(weights, buffer, _use_new_zipfile_serialization=kind == "zip")
    data = buffer.getvalue()
    path.write_bytes(data[: int(len(data) * cut)])


@pytest.mark.parametrize("cut", [0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("", "a.safetensors"), ("", "a.pkl"), ("zip", "a.pth"), ("legacy", "a.pth")],
)
def test_truncated_files_give_a_sentence(tmp_path, kind, name, cut):
    write_wreck(tmp_path / name, kind, cut)
    with pytest.raises(ZooError) as error:
        load_checkpoint(tmp_path / name)
    reason = "is empty" if cut == 0 else "cannot be read"
    assert f"the checkpoint {tmp_path / name} {reason}" in str(error.value)
    assert "copy or download it again" in str(error.value)
    assert "weights_only" not in str(error.value)  # no advice to switch the safety off


def test_other_files_give_a_sentence(tmp_path):
    with pytest.raises(ZooError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing.pth")
    html = tmp_path / "page.pth"
    html.write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(ZooError, match="it is damaged or not a checkpoint"):
        load_checkpoint(html)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ZooError, match="holds a list, not a dict"):
        load_checkpoint(tmp_path / "list.pth")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.pt")
    with pytest.raises(ZooError, match="a TorchScript program, which loading would run"):
        load_checkpoint(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        archive.add(html, "page.pth")
    with pytest.raises(ZooError, match="is an archive of tar or gzip; unpack it"):
        load_checkpoint(tmp_path / "old.tar")
