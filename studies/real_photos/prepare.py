"""The two sets from their published archives, as small COCO sets."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

import numpy as np
import pycocotools.mask
from PIL import Image

from gradaug_det.errors import DataError
from gradaug_det.utils.files import atomic_path

LONGEST = 480  # pixels of an image's longer side, at most
BLOOD_CELLS = ("RBC", "WBC", "Platelets")
Item = tuple[int, str, Image.Image, list[dict]]  # id, name, small image, objects


def prepare_set(archive: Path, data: Path) -> None:
    """Makes a set of PennFudanPed.zip or of the repository BCCD_Dataset's zip, under ``data``.

    Of five images of Penn-Fudan by name, the first is a test's and left out, the second in dev; of
    the blood cells, the published part val is dev, and test is left out."""
    try:
        files = ZipFile(archive)
    except (OSError, BadZipFile) as error:
        raise DataError(f"{archive} cannot be read as a zip archive: {error}") from None
    people = sorted(name for name in files.namelist() if re.search("/PNGImages/.*png$", name))
    lists = {Path(name).stem: name for name in files.namelist() if "/ImageSets/Main/" in name}
    if not people and not {"train", "val"} <= set(lists):
        raise DataError(f"{archive} has neither PNGImages nor ImageSets/Main: another archive")
    numbered = list(enumerate(people, start=1))
    for split, rests, part in (("train", (0, 3, 4), "train"), ("dev", (2,), "val")):
        if people:
            items = (_read_masks(files, *one) for one in numbered if one[0] % 5 in rests)
            _write(data / "pennfudan", split, items, ["person"])
        else:
            folder = PurePosixPath(lists[part]).parents[2]
            listed = sorted(files.read(lists[part]).decode().split())
            items = (_read_voc(files, folder, name) for name in listed)
            _write(data / "bccd", split, items, BLOOD_CELLS)


def _read_masks(files: ZipFile, number: int, name: str) -> Item:
    picture, _ = _read_image(files, name)
    mask = name.replace("PNGImages", "PedMasks").replace(".png", "_mask.png")
    with Image.open(io.BytesIO(files.read(mask))) as labels:
        labels = np.asarray(labels.resize(picture.size, Image.Resampling.NEAREST))
    objects = []
    for label in np.unique(labels[labels > 0]):
        rle = pycocotools.mask.encode(np.asfortranarray(labels == label))
        box, area = pycocotools.mask.toBbox(rle).tolist(), float(pycocotools.mask.area(rle))
        rle["counts"] = rle["counts"].decode()
        objects.append({"category_id": 1, "bbox": box, "area": area, "segmentation": rle})
    return number, PurePosixPath(name).stem, picture, objects


def _read_voc(files: ZipFile, folder: PurePosixPath, name: str) -> Item:
    picture, factor = _read_image(files, f"{folder}/JPEGImages/{name}.jpg")
    text, objects = files.read(f"{folder}/Annotations/{name}.xml"), []
    for one in ElementTree.fromstring(text).iter("object"):
        ends = (one.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
        x, y, right, low = (factor * float(end) for end in ends)
        box, category = [x, y, right - x, low - y], BLOOD_CELLS.index(one.findtext("name")) + 1
        objects.append({"category_id": category, "bbox": box, "area": box[2] * box[3]})
    return int(name.rpartition("_")[2]) + 1, name, picture, objects


def _read_image(files: ZipFile, name: str) -> tuple[Image.Image, float]:
    picture = Image.open(io.BytesIO(files.read(name))).convert("RGB")
    factor = min(1.0, LONGEST / max(picture.size))
    return picture.resize([round(factor * length) for length in picture.size]), factor


def _write(out: Path, split: str, items: Iterable[Item], classes: Sequence[str]) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    for number, name, picture, objects in items:
        picture.save(out / "images" / f"{name}.jpg", quality=90)
        size = dict(zip(("width", "height"), picture.size, strict=True))
        content["images"].append({"id": number, "file_name": f"{name}.jpg", **size})
        for index, one in enumerate(objects):
            ids = {"id": 1000 * number + index, "image_id": number, "iscrowd": 0}
            content["annotations"].append({**ids, **one})
    with atomic_path(out / f"{split}.json") as temporary:
        temporary.write_text(json.dumps(content), "utf-8")
