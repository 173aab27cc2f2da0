"""The index: strictly read, since a lab's may come from anywhere; the package's own is whole."""

import json

import pytest

from gradaug_det.errors import ZooError
from gradaug_det.zoo.index import INDEX, find, load_index
from gradaug_det.zoo.publish import verify
from tests.zoo.helpers import make_info


def test_the_packages_own(cache_folder):
    index = load_index()
    assert index.path == INDEX
    entry = find("resnet50-gradaug-authors")
    assert entry.gdrive_id == "1_0aXi30ET4OrQY0j6KxTYXK0lkgo70Fh"
    assert entry.sha256 is None
    assert not entry.measured
    assert entry.info.metrics == {"top1": 78.78, "top5": 94.43}
    assert find("resnet50-gradaug-cutmix-authors").info.metrics == {"top1": 79.67, "top5": 94.93}


def test_packaged_files_are_the_indexs(cache_folder):
    """sha256, size, the file's own description, shapes, no NaN; and no file without an entry."""
    packaged = [e for e in load_index().entries.values() if e.kind == "packaged"]
    for entry in packaged:
        assert "as in the index" in verify(entry.name)
    weights = INDEX.parent / "weights"
    files = {path.name for path in weights.glob("*")} if weights.exists() else set()
    assert files == {entry.file for entry in packaged}


def test_an_entry_is_what_was_written(make_index):
    path = make_index("https://example.org/zoo")
    index = load_index()
    assert index.path == path
    assert index.base_url == "https://example.org/zoo"
    written = json.loads(path.read_text())["entries"]["tiny"]
    assert find("tiny").to_dict() == written
    assert find("tiny").packaged_path == path.parent / "weights" / "tiny.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../tiny.safetensors"}, "file must be a name without folders"),
        ({"file": "a/tiny.safetensors"}, "file must be a name without folders"),
        ({"file": ".safetensors"}, "file must be a name without folders"),
        ({"file": "tiny.zip"}, "file must be a name without folders"),
        ({"file": "tiny.safetensors\n"}, "file must be a name without folders"),
        ({"file": "tiny.pth"}, "file must end in .safetensors unless kind is gdrive"),
        ({"file": None}, "file must be a name"),
        ({"kind": "ftp"}, "kind must be packaged, url or gdrive, got 'ftp'"),
        ({"size": None}, "size must be a number of bytes"),
        ({"size": -1}, "size must be a number of bytes"),
        ({"size": True}, "size must be a number of bytes"),
        ({"size": 2**40}, "size must be a number of bytes below 2 GiB"),
        ({"sha256": "abc"}, "sha256 must be 64 lower-case hex digits"),
        ({"sha256": "A" * 64}, "sha256 must be 64 lower-case hex digits"),
        ({"sha256": None}, "sha256 must be 64 lower-case hex digits"),
        ({"gdrive_id": "x" * 20}, "gdrive_id must be .* else null"),
        ({"kind": "gdrive"}, "gdrive_id must be Google Drive's id"),
        ({"kind": "gdrive", "gdrive_id": "a/../b?x=1"}, "gdrive_id must be"),
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
        load_index()
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
        load_index()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, True, -5, 1.5, 10**400, "", "x", "\0", [], [[]], {}, {"a": {}}]
)
def test_no_value_breaks_the_reader(make_index, value):
    """Whatever stands in a field, the answer is an entry or a sentence."""
    info = make_info().to_dict()
    fields = ["description", "file", "kind", "size", "sha256", "gdrive_id", "measured", "info"]
    changes = [{field: value} for field in fields]
    changes += [{"info": info | {field: value}} for field in info]
    changes += [change | {"kind": "gdrive", "file": "x.pth"} for change in changes]
    refused = 0
    for change in changes:
        make_index(**change)
        try:
            load_index()
        except ZooError as error:
            assert "entry 'tiny': " in str(error)
            refused += 1
    assert refused >= len(changes) - 8  # some values are right in some field


def test_a_missing_index_names_the_variable(make_index):
    make_index().unlink()
    with pytest.raises(ZooError, match=r"cannot read .*No such file.*GRADAUG_ZOO_INDEX must name"):
        load_index()
