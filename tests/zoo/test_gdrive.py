"""The authors' weights: refused without the flag; with it, gdown really tries and really fails.

Google is out of reach here, so no test downloads; a checkpoint put by hand where the error says
goes through the same path from there on.
"""

import hashlib
import logging
import pickle
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
DRIVE_ID = "1_0aXi30ET4OrQY0j6KxTYXK0lkgo70Fh"


@pytest.fixture
def put_file(cache_folder):
    """Where the error message says that a file can be put by hand."""
    path = cache_folder / DRIVE_ID / f"{NAME}.pth"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def authors_checkpoint(put_file):
    """A checkpoint as the authors' training writes it, put there."""
    state = convert(make_state("resnet50"), "torchvision", "authors", classifier=True)
    model = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 120, "model": model, "optimizer": {}}, put_file)
    return put_file


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
    assert f"put the file at {cache_folder}/{DRIVE_ID}/{NAME}.pth yourself" in last
    assert list(cache_folder.rglob("*.*")) == []


def test_without_gdown(cache_folder):
    """In a process that cannot import it."""
    code = (
        "import sys; sys.modules['gdown'] = None\n"
        "from gradaug_det.zoo.fetch import fetch\n"
        f"fetch({NAME!r}, allow_unverified=True)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs gdown: pip install 'gradaug-det[gdrive]'" in run.stderr.splitlines()[-1]
    assert list(cache_folder.rglob("*.*")) == []


def test_offline(cache_folder, monkeypatch):
    monkeypatch.setenv("GRADAUG_OFFLINE", "1")
    with pytest.raises(ZooError, match=rf"put the file at {cache_folder}/{DRIVE_ID}/{NAME}\.pth "):
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
def test_something_else_is_refused(put_file, content, capfd):
    put_file.write_bytes(content)
    with pytest.raises(ZooError, match="is not the file that resnet50-gradaug-authors describes"):
        fetch(NAME, allow_unverified=True)
    assert "executed" not in capfd.readouterr().out
    assert list(put_file.parent.iterdir()) == [put_file]


def test_another_architecture_is_refused(put_file):
    state = convert(make_state("resnet18"), "torchvision", "authors", classifier=True)
    torch.save(state, put_file)
    with pytest.raises(ZooError, match=r"resnet50.*remove it and download"):
        fetch(NAME, allow_unverified=True)


def test_a_published_sha256_needs_no_flag_and_is_checked(
    authors_checkpoint, make_index, monkeypatch
):
    """The same file under another name of the cache: zoos do not see each other's."""
    info = make_info(name="tiny", architecture="resnet50", depth=50).to_dict()
    common = {"gdrive_id": DRIVE_ID, "file": authors_checkpoint.name, "info": info}
    digest = hashlib.sha256(authors_checkpoint.read_bytes()).hexdigest()
    target = authors_checkpoint.parents[1] / digest[:40] / authors_checkpoint.name
    target.parent.mkdir()
    authors_checkpoint.rename(target)
    make_index(sha256=digest, size=target.stat().st_size, **common)
    path = fetch("tiny")
    assert path.parent == target.parent
    assert fetch("tiny") == path
    path.unlink()
    target.write_bytes(target.read_bytes()[:-1])
    monkeypatch.setenv("GRADAUG_OFFLINE", "1")
    with pytest.raises(ZooError, match="has another sha256"):
        fetch("tiny")
