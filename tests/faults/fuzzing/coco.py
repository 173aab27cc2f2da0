"""COCO annotation files and images for check-data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.faults.fuzzing.inputs import Input, documents, mangled, seeded
from tests.faults.fuzzing.outcome import raise_first_error


def coco_inputs(folder: Path) -> st.SearchStrategy[Input]:
    import numpy as np
    from PIL import Image

    images = folder / "images"
    images.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    for name, more in (("0.png", {}), ("1.jpg", {"exif": exif}), ("2.gif", {}), ("3.tif", {})):
        Image.fromarray(pixels).save(images / name, **more)
    files = {path.name: path.read_bytes() for path in sorted(images.iterdir())}
    polygon = [[10.0, 10, 50, 10, 50, 60, 10, 60]]
    rles = [{"size": [96, 128], "counts": [0, 96 * 128]}, {"size": [96, 128], "counts": "PP3"}]
    sound = {
        "images": [
            {"id": i, "file_name": name, "width": 128, "height": 96} for i, name in enumerate(files)
        ],
        "categories": [{"id": i, "name": f"class{i}"} for i in (1, 2, 7)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i % 4,
                "category_id": (1, 2, 7)[i % 3],
                "bbox": [10, 10, 40, 50],
                "area": 2000,
                "iscrowd": int(i == 5),
                "segmentation": (polygon, polygon, rles[0], polygon, rles[1], rles[0])[i],
            }
            for i in range(6)
        ],
    }
    (folder / "sound.json").write_text(json.dumps(sound))

    @st.composite
    def inputs(draw: Callable) -> Input:
        rng = draw(seeded())
        if rng.random() < 0.2:
            name = rng.choice(list(files))
            return f"image_{name}", mangled(files[name], rng)
        return draw(documents(sound, "instances.json", 0.08))

    return inputs()


def read_coco(folder: Path, path: Path) -> None:
    from gradaug_det.check_data.check import check_before_training, check_coco

    images, annotations = folder / "images", path
    if path.name.startswith("image_"):
        annotations = folder / "sound.json"
        name = path.name.removeprefix("image_")
        whole = (images / name).read_bytes()
        (images / name).write_bytes(path.read_bytes())
    try:
        raise_first_error(
            lambda: _check_printable(check_coco(annotations, images, num_classes=3)),
            lambda: _check_printable(check_coco(annotations, None, masks=False)),
            lambda: check_before_training(annotations, images, name="set"),
        )
    finally:
        if path.name.startswith("image_"):
            (images / name).write_bytes(whole)


def _check_printable(result: Any) -> None:
    text = json.dumps(result.to_dict(), allow_nan=False, ensure_ascii=False)
    if not text.isprintable() or not text.encode():
        raise AssertionError("the result has text that a terminal would obey")
