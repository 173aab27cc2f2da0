"""What fuzzing and the corpus found once, as small as it gets."""

import json
import os
import pickle
import resource

import numpy as np
import pytest
import torch

from gradaug_det.check_data.check import HEADER_IMAGES, check_coco
from gradaug_det.check_data.masks import _run_lengths
from gradaug_det.core.checks import check_number
from gradaug_det.errors import ConfigError, GradAugError, ZooError
from gradaug_det.evaluation.coco_data import CocoData
from gradaug_det.mini_coco.masks import mask_to_rle
from gradaug_det.utils.checkpoints import load_checkpoint
from gradaug_det.utils.text import to_printable
from gradaug_det.zoo.convert import convert
from tests.zoo.helpers import make_state

KEY = b")" + b"2\x86" * 40  # a tuple of 2 ** 40 tuples
HOSTILE_PICKLES = {
    "key of SETITEM": (b"}" + KEY + b"Ns.", "a long or nested tuple as a key of a dict or set"),
    "key of SETITEMS": (b"}(" + KEY + b"Nu.", "a long or nested tuple as a key of a dict or set"),
    "key of DICT": (b"(" + KEY + b"Nd.", "a long or nested tuple as a key of a dict or set"),
    "element of ADDITEMS": (b"\x8f(" + KEY + b"\x90.", "a key of a dict or set"),
    "element of FROZENSET": (b"(" + KEY + b"\x91.", "a key of a dict or set"),
    "element of a set that is called": (b"cbuiltins\nset\n]" + KEY + b"a\x85R.", "a key of a dict"),
    "key of an ordered dict": (
        b"ccollections\nOrderedDict\n]]" + KEY + b"aNaa\x85R.",
        "a key of a dict or set",
    ),
    "encoding that is shown": (b"c_codecs\nencode\n(Va\n" + KEY + b"tR.", "the encoding tuple"),
    "attributes of a function": (
        b"c_codecs\nencode\n(N}V__defaults__\n)stb.",
        "a state for a function",
    ),
    "bytes of a terabyte": (b"\x8e\0\0\0\0\0\1\0\0.", "it ends too early"),
    "bytearray of a terabyte": (b"\x96\0\0\0\0\0\1\0\0.", "it promises 1099511627776 bytes"),
    "an integer of 100000 digits": (b"I" + b"9" * 10**5 + b"\n.", "cannot be read"),
    "control characters": (b"cnum\x1b[31my\nload\n.", r"'num\\x1b\[31my.load"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", HOSTILE_PICKLES)
def test_pickles_that_hung_the_reader_or_more(tmp_path, case):
    data, sentence = HOSTILE_PICKLES[case]
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    with pytest.raises(ZooError, match=sentence) as error:
        load_checkpoint(path)
    assert str(error.value).isprintable()


@pytest.mark.timeout(30)
def test_a_memo_index_takes_no_memory(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"}Nr\xff\xff\xff\x3f0.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_checkpoint(path) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.timeout(30)
@pytest.mark.parametrize("depth", [20, 60])
def test_lists_of_one_list_are_walked_once(depth, tmp_path):
    value = [np.ones(2)]
    for _ in range(depth):
        value = [value, value]
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": value}))
    if depth == 60:  # who walks through them otherwise, as a framework may, never ends
        with pytest.raises(ZooError, match="contents that unfold to many times its size"):
            load_checkpoint(path)
        return
    found = load_checkpoint(path)["model"]
    for _ in range(depth):
        assert found[0] is found[1]
        found = found[0]
    assert found[0].tolist() == [1, 1]


BAD_STATES = {
    "a name that is a number": ({1: torch.ones(1)}, "its entries need names, one has 1"),
    "a name of control characters": ({"\x1b[31m": torch.ones(1)}, r"first entry is '\\x1b\[31m'"),
    "bytes": ({"bn1.weight": b"x"}, "'bn1.weight' is a bytes, not a tensor of numbers"),
    "a float": ({"bn1.bias": 1.5}, "'bn1.bias' is a float, not a tensor"),
    "a dict": ({"bn1.num_batches_tracked": {}}, "is a dict, not a tensor"),
    "text": ({"bn1.bias": np.array("text")}, "is a ndarray, not a tensor of numbers"),
    "sparse": ({"bn1.bias": torch.ones(64).to_sparse()}, "not a tensor of numbers"),
    "a terabyte from one number": (
        {"bn1.num_batches_tracked": torch.ones(1).expand(2**40)},
        r"repeats its numbers to shape \(1099511627776,\)",
    ),
    "counts": ({"bn1.num_batches_tracked": torch.ones(3)}, r"has shape \(3,\), it is one number"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_states_that_made_the_converter_fail(case):
    change, sentence = BAD_STATES[case]
    named = all(isinstance(name, str) and name.startswith("bn1") for name in change)
    state = (make_state() | change) if named else change
    with pytest.raises(ZooError, match=sentence) as error:
        convert(state, "torchvision", "mmdet")
    assert str(error.value).isprintable()


def test_what_is_shown_of_a_file_cannot_steer_a_terminal():
    assert to_printable("\x1b[31m red") == repr("\x1b[31m red")
    assert to_printable("plain text") == "plain text"


@pytest.mark.timeout(30)
def test_run_lengths_of_a_gigapixel_take_no_memory(tmp_path):
    """One kilobyte took six gigabytes and a minute: pycocotools makes the array to count it."""
    side = 2**15
    counts = _packed(0) + _packed(side * side)
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "bbox": [0, 0, side, side],
            "area": 5,
            "iscrowd": 0,
            "segmentation": {"size": [side, side], "counts": counts},
        }
        for number in range(1, 6)
    ]
    file = tmp_path / "x.json"
    image = {"id": 1, "file_name": "a.png", "width": side, "height": side}
    content = {"images": [image], "categories": [{"id": 1, "name": "a"}]}
    file.write_text(json.dumps(content | {"annotations": annotations}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {finding.kind.name for finding in check_coco(file, None).findings}
    assert found == {"rle-instance"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def _packed(number):
    text = ""
    while True:
        code, number = number & 31, number >> 5
        more = number != -1 if code & 16 else number != 0
        text += chr((code | 32 if more else code) + 48)
        if not more:
            return text


def test_run_lengths_are_read_as_pycocotools_packs_them():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.3, 0.5, 0.99, 1.0):
        for block in (1, 9):
            mask = np.kron(rng.random((17, 23)) < share, np.ones((block, block))).astype(bool)
            plain, packed = (
                mask_to_rle(mask, compressed)["counts"] for compressed in (False, True)
            )
            assert _run_lengths(packed).tolist() == plain


@pytest.mark.timeout(30)
def test_a_pipe_among_the_images_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    file = tmp_path / "x.json"
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    categories = [{"id": 1, "name": "a"}]
    content = {"images": [image], "categories": categories, "annotations": []}
    file.write_text(json.dumps(content))
    kinds = {finding.kind.name for finding in check_coco(file, tmp_path).findings}
    assert "unreadable-image" in kinds


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, -float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(ConfigError, match="x must be a number in"):
        check_number("x", value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"images": null, "annotations": [], "categories": []}',
        b'{"images": [], "annotations": [], "categories": [{"id": 1}]}',
        b'{"images": [], "annotations": [], "categories": [{"name": "a"}]}',
        b'{"images": [null], "annotations": [], "categories": []}',
    ],
)
def test_ground_truth_of_the_wrong_kind_is_a_sentence(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(GradAugError, match=r"x\.json"):
        CocoData.read(file).truth  # noqa: B018


def test_headers_of_usual_data_sets_are_looked_at():
    assert HEADER_IMAGES >= 5000  # COCO's validation images
