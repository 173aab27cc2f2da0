"""The index: strictly read, since a lab's may come from anywhere; the package's own is whole."""

import json

import pytest

from gradaug_det.errors import ZooError
from gradaug_det.zoo.sources import BUILT_IN, find, load_indexes
from tests.zoo.helpers import make_info


def test_the_packages_own(cache_folder):
    entry = find("resnet50-gradaug-authors")
    assert entry.index == str(BUILT_IN)
    assert entry.gdrive_id == "1_0aXi30ET4OrQY0j6KxTYXK0lkgo70Fh"
    assert entry.sha256 is None
    assert not entry.measured
    assert entry.info.metrics == {"top1": 78.78, "top5": 94.43}
    assert find("resnet50-gradaug-cutmix-authors").info.metrics == {"top1": 79.67, "top5": 94.93}


def test_an_entry_is_what_was_written(make_index):
    path = make_index("https://example.org/zoo")
    index = load_indexes()[0]
    assert (index.address, index.base_url) == (str(path), "https://example.org/zoo")
    assert find("tiny").to_dict() == json.loads(path.read_text())["entries"]["tiny"]
    assert find("tiny").home == "https://example.org/zoo"
    make_index()
    assert find("tiny").home == path.parent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../tiny.safetensors"}, "file must be a name without folders"),
        ({"file": "a/tiny.safetensors"}, "file must be a name without folders"),
        ({"file": ".safetensors"}, "file must be a name without folders"),
        ({"file": "tiny.zip"}, "file must be a name without folders"),
        ({"file": "tiny.safetensors\n"}, "file must be a name without folders"),
        ({"file": "tiny.pth"}, "file must end in .safetensors without a gdrive_id"),
        ({"file": None}, "file must be a name"),
        ({"size": None}, "size must be a number of bytes"),
        ({"size": -1}, "size must be a number of bytes"),
        ({"size": True}, "size must be a number of bytes"),
        ({"size": 2**40}, "size must be a number of bytes below 2 GiB"),
        ({"sha256": "abc"}, "sha256 must be 64 lower-case hex digits"),
        ({"sha256": "A" * 64}, "sha256 must be 64 lower-case hex digits"),
        ({"sha256": None}, "sha256 must be 64 lower-case hex digits"),
        ({"gdrive_id": "a/../b?x=1"}, "gdrive_id must be Google Drive's id, or null"),
        ({"kind": "url"}, "must have description, file, "),
        ({"measured": 1}, "measured must be true or false"),
        ({"description": "two\nlines"}, "description must be one line"),
        ({"colour": 1}, "must have description, file, "),
        ({"info": {}}, "the backbone's description lacks architecture"),
        ({"info": make_info(name="other").to_dict()}, "info's name must be 'tiny', got 'other'"),
        ({"info": make_info().to_dict() | {"stem": 7}}, "stem must be 7x7 or deep, got 7"),
    ],
)
def test_a_wrong_entry_is_refused(make_index, changes, message):
    path = make_index(**changes)
    with pytest.raises(ZooError, match=message) as caught:
        load_indexes()
    assert str(caught.value).startswith(f"the zoo's index {path}: entry 'tiny': ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must be an object of base_url and entries"),
        ('{"entries": {}}', "must be an object of base_url and entries"),
        ('{"base_url": "file:///etc/", "entries": {}}', "base_url must be null or http"),
        ('{"base_url": "http://x/?q=", "entries": {}}', "base_url must be null or http"),
        ('{"base_url": null, "entries": []}', "entries must be an object"),
        ('{"base_url": null, "entries": {"tiny": 1}}', "entry 'tiny': must be an object"),
        (" " * (2**20 + 1), "more than 1048576 bytes"),
    ],
)
def test_a_wrong_index_is_refused(make_index, text, message):
    path = make_index()
    path.write_text(text)
    with pytest.raises(ZooError, match=message) as caught:
        load_indexes()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, True, -5, 1.5, 10**400, "", "x", "\0", [], [[]], {}, {"a": {}}]
)
def test_no_value_breaks_the_reader(make_index, value):
    """Whatever stands in a field, the answer is an entry or a sentence."""
    info = make_info().to_dict()
    fields = ["description", "file", "size", "sha256", "gdrive_id", "measured", "info"]
    changes = [{field: value} for field in fields]
    changes += [{"info": info | {field: value}} for field in info]
    changes += [change | {"gdrive_id": "x" * 20, "file": "x.pth"} for change in changes]
    refused = 0
    for change in changes:
        make_index(**change)
        try:
            load_indexes()
        except ZooError as error:
            assert "entry 'tiny': " in str(error)
            refused += 1
    assert refused >= len(changes) - 8  # some values are right in some field


def test_a_folder_without_an_index(make_index):
    path = make_index()
    path.unlink()
    with pytest.raises(ZooError, match=rf"cannot read the zoo's index {path}: No such file"):
        load_indexes()


def test_an_unknown_name(make_index):
    make_index()
    with pytest.raises(ZooError, match=r"no backbone 'tinny': did you mean 'tiny'\?"):
        find("tinny")
