"""Adding to an index, and MODEL_ZOO.md."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from gradaug_det.errors import ZooError
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.index import INDEX, load_index
from gradaug_det.zoo.publish import add_file, backbone_table, write_index
from tests.zoo.helpers import make_file

ROOT = Path(__file__).parents[2]


def test_model_zoo_md_is_the_indexs():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "update_model_zoo.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
    assert text == tool.updated(text), "run tools/update_model_zoo.py"
    for name in load_index(INDEX).entries:
        assert f"| `{name}` |" in text
    for config in sorted((ROOT / "configs").glob("*/*")):
        if "Base" not in config.name and not config.match("pretrain/mini*"):
            assert f"]({config.relative_to(ROOT).as_posix()}) |" in text, config


def test_the_index_is_as_write_index_writes_it(tmp_path):
    index = load_index(INDEX)
    write_index(tmp_path / "index.json", index.base_url, index.entries)
    assert (tmp_path / "index.json").read_text(encoding="utf-8") == INDEX.read_text("utf-8")


def test_add_then_fetch(tmp_path, cache_folder, monkeypatch):
    """A zoo on a shared disk: from a file to its name."""
    file = make_file(tmp_path / "some.safetensors", name="b")
    index = tmp_path / "zoo" / "index.json"
    entry = add_file(file, "First", index=index)
    assert (entry.name, entry.kind, entry.measured) == ("b", "packaged", True)
    assert entry.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    add_file(make_file(tmp_path / "a.safetensors", name="a"), "Second", index=index)
    again = add_file(file, "First, described better", index=index, measured=False)
    monkeypatch.setenv("GRADAUG_ZOO_INDEX", str(index))
    assert list(json.loads(index.read_text())["entries"]) == ["a", "b"]
    assert load_index().find("b") == again
    assert fetch("b").read_bytes() == file.read_bytes()
    assert fetch("b") == index.parent / "weights" / "b.safetensors"
    names = sorted(path.name for path in index.parent.rglob("*"))
    assert names == ["a.safetensors", "b.safetensors", "index.json", "weights"]
    # A file that is in its place already.
    assert add_file(fetch("b"), "Third", index=index).sha256 == entry.sha256
    assert fetch("b").read_bytes() == file.read_bytes()


def test_url_entries_are_not_copied_and_the_base_url_stays(tmp_path, make_index):
    index = make_index("https://example.org")
    entry = add_file(make_file(tmp_path / "x.safetensors", name="x"), "X", kind="url")
    assert entry.file == "x.safetensors"
    assert load_index().base_url == "https://example.org"
    assert list(load_index().entries) == ["tiny", "x"]
    assert [path.name for path in index.parent.iterdir()] == ["index.json"]


@pytest.mark.parametrize(
    ("description", "kind", "content", "message"),
    [
        ("two\nlines", "packaged", None, "description must be one line"),
        ("x", "gdrive", None, "kind must be packaged or url, got 'gdrive'"),
        ("x", "packaged", b"no backbone", "not a safetensors file"),
    ],
)
def test_what_is_wrong_changes_nothing(tmp_path, description, kind, content, message):
    file = make_file(tmp_path / "tiny.safetensors")
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ZooError, match=message):
        add_file(file, description, kind=kind, index=tmp_path / "zoo" / "index.json")
    assert not (tmp_path / "zoo").exists()


def test_table(make_index):
    make_index()
    table = backbone_table(load_index().entries)
    assert table.splitlines()[2].startswith("| `tiny` | resnet18 | 0.3 | 12.50 |  | `")
    assert "94.43*" in backbone_table(load_index(INDEX).entries)
