"""The authors' weights: refused without the flag; with it, gdown really tries and really fails.

Google is out of reach here, so no test downloads; a checkpoint put by hand where the error says
goes through the same path from there on.
"""

import hashlib
import logging
import pickle
import re
import subprocess
import sys

import pytest
import torch

from gradaug_det.errors import ZooError
from gradaug_det.zoo.backbone import read_backbone
from gradaug_det.zoo.convert import convert
from gradaug_det.zoo.fetch import fetch
from tests.zoo.helpers import make_info, make_state

NAME = "resnet50-gradaug-authors"


@pytest.fixture
def authors_checkpoint(cache_folder):
    """A checkpoint as the authors' training writes it, put where the error message says."""
    state = convert(make_state("resnet50"), "torchvision", "authors", classifier=True)
    cache_folder.mkdir()
    path = cache_folder / f"{NAME}.pth"
    model = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 120, "model": model, "optimizer": {}}, path)
    return path


def test_refused_without_the_flag(cache_folder):
    with pytest.raises(ZooError, match=rf"without a sha256.*zoo download {NAME} --allow-unver"):
        fetch(NAME)
    assert not cache_folder.exists()


def test_no_network(cache_folder):
    """In a process in which no name resolves, or it would download 100 MB where Google is."""
    code = (
        "import socket; from gradaug_det.zoo.fetch import fetch\n"
        "def nowhere(*a, **k): raise socket.gaierror(-2, 'Name or service not known')\n"
        "socket.getaddrinfo = nowhere\n"
        f"fetch({NAME!r}, allow_unverified=True)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "ZooError: cannot download https://drive.google.com/uc?id=1_0aXi30" in last
    assert f"put the file at {cache_folder / NAME}.pth yourself" in last
    assert list(cache_folder.iterdir()) == []


def test_without_gdown(cache_folder):
    """In a process that cannot import it."""
    code = (
        "import sys; sys.modules['gdown'] = None\n"
        "from gradaug_det.zoo.fetch import fetch\n"
        f"fetch({NAME!r}, allow_unverified=True)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs gdown: pip install 'gradaug-det[gdrive]'" in run.stderr.splitlines()[-1]
    assert list(cache_folder.iterdir()) == []


def test_offline(cache_folder, monkeypatch):
    monkeypatch.setenv("GRADAUG_OFFLINE", "1")
    with pytest.raises(ZooError, match=rf"put the file at {cache_folder}/{NAME}\.pth yourself"):
        fetch(NAME, allow_unverified=True)
    assert not cache_folder.exists()


def test_a_checkpoint_put_there_is_converted(authors_checkpoint, caplog, monkeypatch):
    monkeypatch.setenv("GRADAUG_OFFLINE", "1")
    with pytest.raises(ZooError, match="without a sha256"):
        fetch(NAME)
    with caplog.at_level(logging.WARNING, "gradaug_det"):
        path = fetch(NAME, allow_unverified=True)
    digest = hashlib.sha256(authors_checkpoint.read_bytes()).hexdigest()
    assert f"sha256 {digest} (not verified)" in caplog.text
    state, info = read_backbone(path)
    assert info.recipe["checkpoint_sha256"] == digest
    assert info.name == NAME
    for name, tensor in make_state("resnet50").items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], tensor), name
    assert fetch(NAME) == path  # accepted once


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [b"<html>Quota exceeded</html>", pickle.dumps(Bomb(), protocol=2)],
    ids=["html", "bomb"],
)
def test_something_else_is_refused(cache_folder, content, capfd):
    cache_folder.mkdir()
    (cache_folder / f"{NAME}.pth").write_bytes(content)
    with pytest.raises(ZooError, match="is not the file that resnet50-gradaug-authors describes"):
        fetch(NAME, allow_unverified=True)
    assert "executed" not in capfd.readouterr().out
    assert [path.name for path in cache_folder.iterdir()] == [f"{NAME}.pth"]


def test_another_architecture_is_refused(cache_folder):
    cache_folder.mkdir()
    state = convert(make_state("resnet18"), "torchvision", "authors", classifier=True)
    torch.save(state, cache_folder / f"{NAME}.pth")
    with pytest.raises(ZooError, match=r"resnet50.*remove it and download"):
        fetch(NAME, allow_unverified=True)


def test_a_published_sha256_needs_no_flag_and_is_checked(authors_checkpoint, make_index):
    info = make_info(name="tiny", architecture="resnet50", depth=50).to_dict()
    common = {"kind": "gdrive", "gdrive_id": "x" * 20, "file": authors_checkpoint.name}
    digest = hashlib.sha256(authors_checkpoint.read_bytes()).hexdigest()
    size = authors_checkpoint.stat().st_size
    make_index(info=info, sha256=digest, size=size, **common)
    path = fetch("tiny")
    make_index(info=info, sha256="0" * 64, size=size, **common)
    with pytest.raises(ZooError, match=re.escape(f"{path} was made from another checkpoint")):
        fetch("tiny")
