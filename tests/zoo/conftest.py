"""A zoo of one file of 300 kB behind a server of this machine, and a cache of its own."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from gradaug_det.zoo import download as http
from gradaug_det.zoo import sources
from tests.zoo.helpers import make_info

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def cache_folder(tmp_path, monkeypatch) -> Path:
    """The cache folder, not made yet; no variable of the user's environment is in force."""
    for name in ("GRADAUG_ZOO_URL", "GRADAUG_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRADAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "PAUSE_SECONDS", 0.01)
    sources._load_remote_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def make_index(tmp_path, monkeypatch, cache_folder):
    """Writes a zoo's index and puts it in force."""

    def make(base_url: str | None = None, **changes: object) -> Path:
        fields = {
            "description": "For a test",
            "file": "tiny.safetensors",
            "size": len(CONTENT),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "gdrive_id": None,
            "measured": True,
            "info": make_info().to_dict(),
        }
        path = tmp_path / "zoo" / "index.json"
        path.parent.mkdir(exist_ok=True)
        data = {"base_url": base_url, "entries": {"tiny": fields | changes}}
        path.write_text(json.dumps(data))
        monkeypatch.setenv("GRADAUG_ZOO_URL", str(path.parent))
        return path

    return make
