"""A synthetic COCO set with everything that makes scoring hard, and noisy predictions for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

CATEGORIES = [
    {"id": 1, "name": "shirt"},
    {"id": 3, "name": "boot"},  # ids with gaps, as in COCO
    {"id": 4, "name": "bag"},
    {"id": 9, "name": "dress"},
    {"id": 12, "name": "hat"},
    {"id": 13, "name": "never seen"},  # no ground truth: its AP does not exist
]

_SEEN, _SHARES = [1, 3, 4, 9, 12], [0.4, 0.3, 0.15, 0.1, 0.05]
_CROWDED = 7  # the image with 40 objects of one category and more than 100 detections of it


def ellipse(height: int, width: int, box: list[float], power: float = 2.0) -> np.ndarray:
    """A filled super-ellipse inside an XYWH box, as a (height, width) uint8 mask."""
    x, y, w, h = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = (
        np.abs((columns - x - w / 2) / (w / 2)) ** power
        + np.abs((rows - y - h / 2) / (h / 2)) ** power
    ) <= 1
    return inside.astype(np.uint8)


def encode(mask: np.ndarray) -> dict:
    """A mask as compressed RLE that JSON can hold."""
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def run_lengths(mask: np.ndarray) -> list[int]:
    """A mask as the counts of an uncompressed RLE: columns first, starting with background."""
    flat = mask.ravel("F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.r_[0, changes, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def _polygon(box: list[float], power: float, points: int = 24) -> list[list[float]]:
    x, y, w, h = box
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    outline = np.stack(
        [
            x + w / 2 + w / 2 * np.sign(cos) * np.abs(cos) ** (2 / power),
            y + h / 2 + h / 2 * np.sign(sin) * np.abs(sin) ** (2 / power),
        ],
        axis=1,
    )
    return [outline.round(2).ravel().tolist()]


def make_ground_truth(seed: int = 0, images: int = 60) -> dict:
    """Images of several sizes with 0 to 14 objects, small to large; some crowds, some empty images.

    One image has 40 objects of one category, so that 1, 10 and 100 detections differ. Masks are
    polygons, compressed RLE and, for crowds, uncompressed RLE (as in COCO's own files).
    """
    rng = np.random.default_rng(seed)
    dataset: dict = {"info": {}, "images": [], "annotations": [], "categories": CATEGORIES}
    for index in range(images):
        height, width = [(240, 320), (300, 256), (192, 256)][index % 3]
        image_id = 17 * index + 5
        dataset["images"].append(
            {"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.png"}
        )
        count = 0 if index % 9 == 4 else int(rng.integers(1, 15))
        count = 40 if index == _CROWDED else count
        for _ in range(count):
            # Log-uniform sizes from 6 px to most of the image: all three of COCO's area ranges.
            w, h = np.exp(rng.uniform(np.log(6), np.log([0.85 * width, 0.85 * height])))
            box = [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
            box = [round(float(value), 2) for value in box]
            power = float(rng.choice([1.5, 2.0, 4.0]))
            crowd = rng.random() < 0.06
            mask = ellipse(height, width, box, power)
            if crowd:
                segmentation = {"size": [height, width], "counts": run_lengths(mask)}
            elif rng.random() < 0.5:
                segmentation = _polygon(box, power)
            else:
                segmentation = encode(mask)
            dataset["annotations"].append(
                {
                    "id": len(dataset["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1 if index == _CROWDED else int(rng.choice(_SEEN, p=_SHARES)),
                    "bbox": box,
                    "area": float(mask.sum()),
                    "iscrowd": int(crowd),
                    "segmentation": segmentation,
                }
            )
    return dataset


def make_predictions(dataset: dict, seed: int = 1, noise: float = 0.06) -> list[dict]:
    """Jittered ground truth, misses, duplicates, wrong classes and false positives.

    Scores have two decimals, so ties occur; one image has more than 100 detections of one category.
    """
    rng = np.random.default_rng(seed)
    truth = {image["id"]: [] for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        truth[annotation["image_id"]].append(annotation)
    predictions = []

    def add(image: dict, category: int, box: list[float], score: float, power: float) -> None:
        w, h = max(box[2], 2.0), max(box[3], 2.0)
        x = float(np.clip(box[0], 0, image["width"] - 2))
        y = float(np.clip(box[1], 0, image["height"] - 2))
        box = [x, y, float(min(w, image["width"] - x)), float(min(h, image["height"] - y))]
        predictions.append(
            {
                "image_id": image["id"],
                "category_id": category,
                "bbox": box,
                "score": round(float(np.clip(score, 0.01, 1)), 2),
                "segmentation": encode(ellipse(image["height"], image["width"], box, power)),
            }
        )

    for index, image in enumerate(dataset["images"]):
        for annotation in truth[image["id"]]:
            x, y, w, h = annotation["bbox"]
            for _ in range(int(rng.choice([0, 1, 2], p=[0.15, 0.7, 0.15]))):
                dx, dy, dw, dh = rng.normal(0, noise, 4)
                box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
                wrong = rng.random() < 0.1
                category = int(rng.choice([*_SEEN, 13])) if wrong else annotation["category_id"]
                add(image, category, box, rng.normal(0.65, 0.2), rng.choice([1.5, 2.0, 4.0]))
        false_positives = 130 if index == _CROWDED else int(rng.integers(0, 6))
        for _ in range(false_positives):
            w, h = rng.uniform(5, 90, 2)
            box = [rng.uniform(0, image["width"] - 5), rng.uniform(0, image["height"] - 5), w, h]
            category = 1 if index == _CROWDED else int(rng.choice(_SEEN))
            add(image, category, box, rng.normal(0.35, 0.2), 2.0)
    return predictions


def write_images(dataset: dict, folder: Path, seed: int = 2) -> None:
    """A picture for every image record: noise background with the objects as flat shapes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    colours = {c["id"]: rng.integers(60, 220, 3) for c in dataset["categories"]}
    for image in dataset["images"]:
        height, width = image["height"], image["width"]
        canvas = rng.integers(90, 150, (height, width, 1)) + rng.integers(-15, 15, (1, 1, 3))
        for annotation in dataset["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = ellipse(height, width, annotation["bbox"]).astype(bool)
                canvas[mask] = colours[annotation["category_id"]] + rng.integers(-20, 20, 3)
        Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).save(folder / image["file_name"])


def write_json(path: Path, content: object) -> Path:
    """Write JSON and return the path."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
