"""The zoo's files: its index, and backbones in safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.faults.fuzzing.inputs import Input, documents, mangled, mutated, replacements, seeded
from tests.faults.fuzzing.outcome import raise_first_error, run_all
from tests.zoo.helpers import make_info


def index_inputs(_folder: Path) -> st.SearchStrategy[Input]:
    def entry(name: str, **changes: Any) -> dict[str, Any]:
        values = {"description": "random", "file": f"{name}.safetensors"}
        values |= {"size": 1000, "sha256": "0" * 64, "gdrive_id": None, "measured": False}
        return values | {"info": make_info().to_dict() | {"name": name}} | changes

    drive = {"file": "x.pth", "size": None, "sha256": None}
    entries = {
        "tiny": entry("tiny"),
        "drive": entry("drive", **drive, gdrive_id="1_0aXi30ET4OrQY0j6KxTYXK0lkgo70Fh"),
    }
    return documents({"base_url": "https://example.org/zoo", "entries": entries}, "index.json")


def read_index(folder: Path, path: Path) -> None:
    from gradaug_det.zoo.card import model_card
    from gradaug_det.zoo.download import local_path
    from gradaug_det.zoo.index import read_index

    os.environ["GRADAUG_CACHE"] = str(folder / "cache")
    index = read_index(path)
    model_card(index.entries)
    for name, entry in index.entries.items():
        if "/" in entry.file or folder not in local_path(entry).resolve().parents:
            raise AssertionError(f"{entry.file!r} leaves the zoo's folder")
        json.dumps(entry.to_dict(), allow_nan=False)
        if not f"{entry.description}{entry.info.licence}{entry.info.source}{name}".isprintable():
            raise AssertionError("text that a terminal would obey")


_HEADER = 2**18  # bytes kept for a header in the file that has all tensors


def backbone_inputs(folder: Path) -> st.SearchStrategy[Input]:
    from safetensors.torch import save
    from torchvision.models import resnet18

    state = {n: t.half() for n, t in resnet18().state_dict().items() if "_tracked" not in n}
    data = save(state, metadata={"gradaug_det": json.dumps(make_info().to_dict())})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    # Headers change, the tensors stay: a file of zeros that is not written anew each time.
    with (folder / "whole.safetensors").open("wb") as file:
        file.truncate(8 + _HEADER + len(data) - 8 - length)
    tiny = {"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}
    metadata = header["__metadata__"]

    @st.composite
    def inputs(draw: Callable) -> Input:
        rng, news = draw(seeded()), draw(replacements())
        info: Any = make_info().to_dict()
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            info = mutated(info, rng, news)
        text = json.dumps(info)
        if rng.random() < 0.1:
            text = mangled(text.encode(), rng).decode("utf-8", "replace")
        kind = rng.random()
        if kind < 0.6:  # the description alone
            content: Any = header | {"__metadata__": {"gradaug_det": text}}
            if rng.random() < 0.4:
                content = mutated(content, rng, news)
            return "header.json", json.dumps(content).encode()
        small: Any = {"__metadata__": {**metadata, "gradaug_det": text}, **tiny}
        for _ in range(rng.choice((0, 1, 2))):
            small = mutated(small, rng, news)
        raw = json.dumps(small).encode()
        whole = len(raw).to_bytes(8, "little") + raw + b"\0" * 4
        return "small.safetensors", mangled(whole, rng) if rng.random() < 0.6 else whole

    return inputs()


def read_backbone_file(folder: Path, path: Path) -> None:
    from gradaug_det.utils.checkpoints import load_checkpoint
    from gradaug_det.zoo.backbone import read_backbone, read_info
    from gradaug_det.zoo.convert import convert_file
    from gradaug_det.zoo.publish import verify
    from gradaug_det.zoo.url import parse_url, refuse_bare_backbone

    if path.suffix == ".json":
        header, path = path.read_bytes(), folder / "whole.safetensors"
        if len(header) > _HEADER:
            return
        with path.open("r+b") as file:
            file.write(_HEADER.to_bytes(8, "little") + header.ljust(_HEADER))
    run_all(lambda: refuse_bare_backbone(path))  # right to refuse a sound one
    raise_first_error(
        lambda: json.dumps(read_info(path).to_dict(), allow_nan=False),
        lambda: read_backbone(path),
        lambda: verify(str(path)),
        lambda: load_checkpoint(path),
        lambda: parse_url(f"gradaug://{path}", "BGR").load("detectron2"),
        lambda: convert_file(path, folder / "out.pth", "mmdet"),
    )
