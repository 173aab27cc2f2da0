"""Downloads from a server that fails: nothing corrupt lands, and every message says what to do."""

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest

from gradaug_det.errors import ZooError
from gradaug_det.zoo import download as http
from gradaug_det.zoo.download import cache_dir, download
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.sources import find
from tests.zoo.conftest import CONTENT
from tests.zoo.server import (
    endless,
    misplaced,
    reset,
    serve,
    stalled,
    status,
    truncated,
    whole,
    without_ranges,
    wrong,
)

SHA256 = hashlib.sha256(CONTENT).hexdigest()
FOLDER = SHA256[:40]
WAY_OUT = rf"GRADAUG_ZOO_URL .* put the file at .*tiny\.safetensors yourself .* {SHA256}"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_download_then_cache(cache_folder, make_index, capfd):
    with serve(CONTENT) as server:
        make_index(server.url + "/zoo/")
        path = fetch("tiny", progress=True)
        assert "100%" in capfd.readouterr().err
        assert fetch("tiny") == path
        assert server.requests == [("/zoo/tiny.safetensors", None)]
    assert path == cache_folder / FOLDER / "tiny.safetensors"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    assert listing(cache_folder / FOLDER) == ["tiny.safetensors"]
    assert fetch("tiny") == path  # with no server


@pytest.mark.parametrize(
    ("behaviours", "ranges"),
    [
        ((status(500), status(503), status(429), whole), [None, None, None, None]),
        ((reset(None), whole), [None, None]),
        ((truncated(200_000), whole), [None, "bytes=196608-"]),
        ((truncated(200_000, say_length=False), whole), [None, "bytes=200000-"]),
        ((truncated(100_000), status(500), whole), [None, "bytes=65536-", "bytes=65536-"]),
        ((truncated(200_000), without_ranges), [None, "bytes=196608-"]),
        ((truncated(200_000), misplaced, whole), [None, "bytes=196608-"]),
        ((wrong, whole), [None, None]),
    ],
    ids=[
        "500 503 429",
        "reset",
        "truncated",
        "truncated, no length",
        "truncated 500",
        "no ranges",
        "misplaced range",
        "wrong hash once",
    ],
)
def test_what_passes_is_tried_again(cache_folder, make_index, behaviours, ranges):
    with serve(CONTENT, *behaviours) as server:
        make_index(server.url)
        assert fetch("tiny").read_bytes() == CONTENT
    assert [span for _, span in server.requests] == ranges
    assert listing(cache_folder / FOLDER) == ["tiny.safetensors"]


def test_reset_in_the_middle_resumes(cache_folder, make_index):
    with serve(CONTENT, reset(150_000), whole) as server:
        make_index(server.url)
        assert fetch("tiny").read_bytes() == CONTENT
    # A reset may overtake bytes on their way: where it resumes is not certain.
    assert len(server.requests) == 2
    assert listing(cache_folder / FOLDER) == ["tiny.safetensors"]


@pytest.mark.parametrize(
    ("behaviour", "requests", "message"),
    [
        (status(404), 1, r"cannot download http://127\S+/tiny\.safetensors \(1 attempt\): 404"),
        (status(403), 1, r"\(1 attempt\): 403"),
        (status(500), 4, r"\(4 attempts\): 500"),
        (reset(None), 4, r"\(4 attempts\): .*(reset|aborted)"),
        (reset(150_000), 4, r"\(4 attempts\): "),
        (truncated(200_000), 4, r"\(4 attempts\): .*Incomplete"),
        (truncated(200_000, say_length=False), 4, r"\(4 attempts\): 200000 of 300000 bytes"),
        (wrong, 2, "does not match the known hash: expected .*outdated; set"),
        (endless, 1, "the server sends more than 300000 bytes"),
    ],
    ids=[
        "404",
        "403",
        "500",
        "reset",
        "reset in the middle",
        "truncated",
        "truncated, no length",
        "wrong hash",
        "endless",
    ],
)
def test_what_does_not_pass_leaves_nothing(cache_folder, make_index, behaviour, requests, message):
    with serve(CONTENT, behaviour) as server:
        make_index(server.url)
        with pytest.raises(ZooError, match=message) as caught:
            fetch("tiny")
        assert len(server.requests) == requests
    assert listing(cache_folder / FOLDER) == []
    assert caught.match(WAY_OUT)


def test_a_server_that_falls_silent(cache_folder, make_index, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 2)  # less might be too short on a busy machine
    with serve(CONTENT, stalled(200_000), whole) as server:
        make_index(server.url)
        assert fetch("tiny").read_bytes() == CONTENT
        assert [span for _, span in server.requests] == [None, "bytes=196608-"]
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.2)
    (cache_folder / FOLDER / "tiny.safetensors").unlink()
    with serve(CONTENT, stalled(0)) as server:
        make_index(server.url)
        with pytest.raises(ZooError, match=r"\(4 attempts\): .*timed out") as caught:
            fetch("tiny")
    assert caught.match(WAY_OUT)
    assert listing(cache_folder / FOLDER) == []


def test_no_server(cache_folder, make_index):
    with serve(CONTENT) as server:
        make_index(server.url)
    with pytest.raises(ZooError, match=r"\(4 attempts\): .*refused") as caught:
        fetch("tiny")
    assert caught.match(WAY_OUT)
    assert listing(cache_folder / FOLDER) == []


def test_a_damaged_cached_file_is_replaced(cache_folder, make_index):
    (cache_folder / FOLDER).mkdir(parents=True)
    for damaged in (CONTENT[:-1], bytes(len(CONTENT))):
        (cache_folder / FOLDER / "tiny.safetensors").write_bytes(damaged)
        with serve(CONTENT) as server:
            make_index(server.url)
            assert fetch("tiny").read_bytes() == CONTENT
    (cache_folder / FOLDER / "tiny.safetensors").write_bytes(CONTENT[:-1])
    with serve(CONTENT, status(404)) as server:
        make_index(server.url)
        with pytest.raises(ZooError, match=WAY_OUT):
            fetch("tiny")
    # Still the damaged one, which is never returned.
    assert listing(cache_folder / FOLDER) == ["tiny.safetensors"]


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    first, status = http.compute_sha256(path), path.stat()
    path.write_bytes(b"2")
    monkeypatch.setattr(Path, "stat", lambda _: status)
    assert http.compute_sha256(path) != first


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline(cache_folder, make_index, monkeypatch, value):
    monkeypatch.setenv("GRADAUG_OFFLINE", value)
    with serve(CONTENT) as server:
        make_index(server.url)
        target = cache_folder / FOLDER / "tiny.safetensors"
        message = rf"GRADAUG_OFFLINE is set and {target} is missing; the file is at http://.*"
        with pytest.raises(ZooError, match=message + WAY_OUT):
            fetch("tiny")
        assert listing(cache_folder / FOLDER) == []
        target.parent.mkdir(parents=True)
        target.write_bytes(CONTENT[:-1])
        with pytest.raises(ZooError, match="has another sha256"):
            fetch("tiny")
        target.write_bytes(CONTENT)  # as the message says
        assert fetch("tiny") == target
        assert server.requests == []
        target.unlink()
        monkeypatch.setenv("GRADAUG_OFFLINE", "0")
        assert fetch("tiny") == target


def test_a_read_only_cache(make_index, monkeypatch):
    """As another user if this is root, who may write anywhere (and whose folders are closed)."""
    make_index("http://127.0.0.1:9")
    entry, root = find("tiny"), os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "cache"
        folder.mkdir(mode=0o555)
        for cache in (folder, folder / "inner"):
            monkeypatch.setenv("GRADAUG_CACHE", str(cache))
            message = f"cannot write to the cache folder {cache}: Permission denied"
            with serve(CONTENT) as server:
                if root:
                    os.seteuid(65534)
                try:
                    with pytest.raises(ZooError, match=f"{message}; make it .* in GRADAUG_CACHE"):
                        downloader = partial(http.download_resuming, 1, False, server.url)
                        download(entry, server.url, downloader)
                finally:
                    if root:
                        os.seteuid(0)
                assert server.requests == []
        assert listing(folder) == []


@pytest.mark.parametrize("kind", ["file", "in a file", "no device"])
def test_a_cache_that_cannot_be_a_folder(tmp_path, make_index, monkeypatch, kind):
    (tmp_path / "file").write_text("mine")
    folder = {
        "file": tmp_path / "file",
        "in a file": tmp_path / "file" / "cache",
        "no device": Path("/proc/no/cache"),
    }[kind]
    monkeypatch.setenv("GRADAUG_CACHE", str(folder))
    with serve(CONTENT) as server:
        make_index(server.url)
        message = rf"cannot write to the cache folder {folder}: .*300000 bytes.* GRADAUG_CACHE"
        with pytest.raises(ZooError, match=message):
            fetch("tiny")
        assert server.requests == []
    assert (tmp_path / "file").read_text() == "mine"


def test_the_default_cache(monkeypatch):
    monkeypatch.delenv("GRADAUG_CACHE", raising=False)
    assert cache_dir().name == "gradaug_det"
    monkeypatch.setenv("GRADAUG_CACHE", "~/zoo")
    assert cache_dir() == Path.home() / "zoo"


def test_two_processes_at_once(cache_folder, make_index):
    """Neither gets a byte before both have asked: they do download at the same time."""
    together = threading.Barrier(2)

    def after_both(handler):
        together.wait(timeout=60)
        whole(handler)

    code = "from gradaug_det.zoo.fetch import fetch; print(fetch('tiny'))"
    with serve(CONTENT, after_both) as server:
        make_index(server.url)
        command = [sys.executable, "-c", code]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, env=os.environ, **pipes) for _ in range(2)]
        outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == [
        str(cache_folder / FOLDER / "tiny.safetensors")
    ] * 2
    assert len(server.requests) == 2
    assert (cache_folder / FOLDER / "tiny.safetensors").read_bytes() == CONTENT
    assert listing(cache_folder / FOLDER) == ["tiny.safetensors"]


def test_a_folder(cache_folder, make_index):
    path = make_index().parent / "tiny.safetensors"
    with pytest.raises(ZooError, match=rf"{path} is missing; put the file there .* {SHA256}"):
        fetch("tiny")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ZooError, match="has another sha256 than the index says"):
        fetch("tiny")
    path.write_bytes(CONTENT)
    assert fetch("tiny") == path
    assert not cache_folder.exists()
