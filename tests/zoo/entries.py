"""A zoo of random backbones in a folder, for tests of what loads them."""

import json
from contextlib import contextmanager

import pooch

from gradaug_det.zoo.backbone import save_backbone
from gradaug_det.zoo.info import DEPTHS
from gradaug_det.zoo.publish import publish
from tests.zoo.helpers import make_info, make_state
from tests.zoo.server import serve

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def describe(name, architecture, **changes):
    """The description of a backbone of that architecture."""
    depth = DEPTHS[architecture]
    return make_info(name=name, architecture=architecture, depth=depth, **changes)


def random_backbone(info, path):
    """Writes a file with random weights and statistics; returns its tensors as they read back."""
    state = make_state(info.architecture, classes=3)
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    save_backbone(path, state, info)
    return {n: t.half().float() for n, t in state.items() if not n.endswith("_tracked")}


def write_index(folder, *infos):
    """A zoo's index; its files are only there if they lie in the folder."""
    entries = {}
    for info in infos:
        path = folder / f"{info.name}.safetensors"
        found = path.is_file()
        entries[info.name] = {
            "description": "random",
            "file": path.name,
            "size": path.stat().st_size if found else 1,
            "sha256": pooch.file_hash(str(path)) if found else "0" * 64,
            "gdrive_id": None,
            "measured": False,
            "info": info.to_dict(),
        }
    index = folder / "index.json"
    index.write_text(json.dumps({"base_url": None, "entries": entries}))
    return index


def small_zoo(folder):
    """A zoo with one file, tiny-resnet18, and descriptions of others.

    Returns:
        The folder, and the tensors of the file.
    """
    info = describe("tiny-resnet18", "resnet18")
    state = random_backbone(info, folder / "tiny-resnet18.safetensors")
    others = [
        describe("tiny-resnet50", "resnet50"),
        describe("caffe-resnet50", "resnet50", stride_in="1x1", channel_order="BGR"),
        describe("tiny-resnext50", "resnext50_32x4d"),
        describe("tiny-wide50", "wide_resnet50_2"),
        describe("deep-resnet50", "resnet50", stem="deep"),
    ]
    write_index(folder, info, *others)
    return folder, state


@contextmanager
def served_zoo(zoo, folder, monkeypatch):
    """Publishes the zoo's tiny-resnet18 and another-resnet18, and puts a server of them in force.

    Yields:
        The server; its requests tell which files were downloaded.
    """
    file = folder / "another.safetensors"
    double = {name: tensor * 2 for name, tensor in zoo[1].items()}
    save_backbone(file, double, describe("another-resnet18", "resnet18"))
    publish(folder / "published", [str(zoo[0] / "tiny-resnet18.safetensors"), str(file)])
    with serve(folder / "published") as server:
        monkeypatch.setenv("GRADAUG_ZOO_URL", server.url)
        monkeypatch.setenv("GRADAUG_CACHE", str(folder / "cache"))
        yield server


def use_zoo(folder, monkeypatch):
    """Puts the folder's zoo in force, with a cache of its own."""
    monkeypatch.setenv("GRADAUG_ZOO_URL", str(folder))
    monkeypatch.setenv("GRADAUG_CACHE", str(folder / "cache"))
