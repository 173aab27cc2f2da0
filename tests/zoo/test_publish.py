"""A folder that becomes a zoo, its model card, the repository's own zoo, and MODEL_ZOO.md."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from gradaug_det.errors import ZooError
from gradaug_det.zoo.card import backbone_table
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.index import read_index
from gradaug_det.zoo.publish import publish, verify
from gradaug_det.zoo.sources import BUILT_IN, CHECKOUT, find
from tests.zoo.helpers import make_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the backbones a and b."""
    folder = tmp_path_factory.mktemp("files")
    return [str(make_file(folder / f"{name}-1.safetensors", name=name)) for name in "ab"]


def front_matter(folder):
    _, text, _ = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(text)


# ---- the repository's own -----------------------------------------------------------------------


def test_model_zoo_md_and_the_packages_index_are_the_zoos():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "update_model_zoo.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
    assert text == tool.updated(text), "run tools/update_model_zoo.py"
    ours, published = (json.loads(p.read_text()) for p in (BUILT_IN, CHECKOUT / "index.json"))
    assert ours["entries"] == published["entries"], "run tools/update_model_zoo.py"
    assert published["base_url"] is None
    for name in ours["entries"]:
        assert f"| `{name}` |" in text
    for config in sorted((ROOT / "configs").glob("*/*")):
        if "Base" not in config.name and not config.match("pretrain/mini*"):
            assert f"]({config.relative_to(ROOT).as_posix()}) |" in text, config


def test_publishing_it_again_gives_the_same_bytes(tmp_path, cache_folder):
    """And its files are good: sha256, size, description, shapes, no NaN."""
    names = list(read_index(CHECKOUT / "index.json").entries)
    publish(tmp_path / "again", reversed(names))
    again, ours = (sorted(folder.iterdir()) for folder in (tmp_path / "again", CHECKOUT))
    assert [path.name for path in again] == [path.name for path in ours]
    for one, other in zip(again, ours, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    for name in names:
        assert find(name).gdrive_id or "as in the index" in verify(name)


# ---- publishing ---------------------------------------------------------------------------------


def test_publish_then_fetch(tmp_path, cache_folder, monkeypatch, files):
    """A zoo on a shared disk: from files to names, one after the other, then changed."""
    out = tmp_path / "my zoo"
    (entry,) = publish(out, files[1:], description="First")
    assert (entry.name, entry.description, entry.measured) == ("b", "First", True)
    assert entry.sha256 == hashlib.sha256(Path(files[1]).read_bytes()).hexdigest()
    publish(out, files[:1])
    (again,) = publish(out, files[1:], claimed=True)
    assert (again.description, again.measured) == ("First", False)
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "a.safetensors", "b.safetensors", "index.json")
    ]
    monkeypatch.setenv("GRADAUG_ZOO_URL", str(out))
    assert find("b") == again
    assert find("a").description == "resnet18, a test"
    assert fetch("b") == out / "b.safetensors"
    assert fetch("b").read_bytes() == Path(files[1]).read_bytes()
    # Names are entries of zoos in use; a file may be in its place already.
    assert publish(out, ["b", str(fetch("a"))])[0] == again
    publish(tmp_path / "other", ["b", "resnet50-gradaug-authors"])
    names = [path.name for path in (tmp_path / "other").iterdir()]
    assert sorted(names) == ["README.md", "b.safetensors", "index.json"]
    before = (out / "README.md").read_bytes(), (out / "index.json").read_bytes()
    assert publish(out, []) == []
    assert before == ((out / "README.md").read_bytes(), (out / "index.json").read_bytes())


@pytest.mark.parametrize(
    ("sources", "description", "message"),
    [
        (["FILE"], "two\nlines", "description must be one line"),
        (["FILE", "FILE"], "x", "a description belongs to one file or name.*got 2"),
        ([], None, "is no zoo yet: name the files"),
        (["FILE", "tinny"], None, "no backbone 'tinny'"),
        (["FILE", "DAMAGED"], None, "not a safetensors file"),
        (["FILE", "missing.safetensors"], None, "there is no such file"),
    ],
)
def test_what_is_wrong_changes_nothing(
    tmp_path, cache_folder, files, sources, description, message
):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no backbone")
    paths = {"FILE": files[0], "DAMAGED": str(damaged)}
    with pytest.raises(ZooError, match=message):
        publish(tmp_path / "zoo", [paths.get(s, s) for s in sources], description=description)
    assert not (tmp_path / "zoo").exists()


def test_a_zoo_that_lost_a_file_is_not_published(tmp_path, files):
    publish(tmp_path, files)
    index = (tmp_path / "index.json").read_bytes()
    for damage in (lambda path: path.write_bytes(b"x"), lambda path: path.unlink()):
        damage(tmp_path / "a.safetensors")
        with pytest.raises(ZooError, match=r"a\.safetensors must be the index's file of sha256"):
            publish(tmp_path, files[1:])
        assert (tmp_path / "index.json").read_bytes() == index
    publish(tmp_path, files[:1])  # put there again


# ---- what people read ---------------------------------------------------------------------------


def test_the_card_is_of_hugging_faces_form(tmp_path, cache_folder):
    metrics = {"top1": 12.5, "loss": 1e-5, "mine: # '": 3}
    data = {"recipe": {"data": {"kind": "'yes': [no]"}}, "metrics": metrics}
    publish(tmp_path, [str(make_file(tmp_path / "x.safetensors", name="x", **data))])
    data = front_matter(tmp_path)
    assert data["license"] == "apache-2.0"
    assert (data["library_name"], data["pipeline_tag"]) == ("gradaug_det", "image-classification")
    assert "detectron2" in data["tags"]
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert (model["name"], result["task"]["type"]) == ("x", "image-classification")
    assert result["dataset"] == {"type": "'yes': [no]", "name": "'yes': [no]"}
    assert result["metrics"] == [
        {"type": "accuracy", "name": "top-1", "value": 12.5},
        {"type": "loss", "name": "loss", "value": 0.0},
        {"type": "accuracy", "name": "mine: # '", "value": 3.0},
    ]
    other = make_file(tmp_path / "y.safetensors", name="y", licence="my own", metrics={})
    publish(tmp_path, [str(other)])
    data = front_matter(tmp_path)
    assert (data["license"], data["license_link"]) == ("other", "README.md")
    assert [model["name"] for model in data["model-index"]] == ["x"]
    text = (tmp_path / "README.md").read_text()
    assert "## y\n" in text
    assert "| sha256 | `" + hashlib.sha256(other.read_bytes()).hexdigest() in text


def test_table(make_index):
    path = make_index()
    row = backbone_table(read_index(path).entries).splitlines()[2]
    assert row.startswith("| `tiny` | resnet18 | 0.3 | 12.50 |  |  |  |  |  |  | `")
    assert "94.43*" in backbone_table(read_index(BUILT_IN).entries)
