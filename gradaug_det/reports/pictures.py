"""Pictures of ground truth and predictions: boxes, masks, class names and scores."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_erosion

from gradaug_det.errors import DataError

_TARGET_SIDE = 512  # small images are enlarged to about this long side, so that labels are readable
_LARGEST_SIDE = 800
_FONT_SIZE = 18
_MASK_OPACITY = 0.42
MAX_DRAWN = 30
_CROWD_COLOUR = (150, 150, 150)


@dataclass
class Instance:
    """An object to draw: XYWH box in pixels, optional COCO segmentation, score of a detection."""

    bbox: Sequence[float]
    name: str
    colour: tuple[int, int, int]
    segmentation: dict | list | None = None
    score: float | None = None

    @property
    def label(self) -> str:
        return self.name if self.score is None else f"{self.name} {self.score:.2f}"


def category_colours(categories: Iterable[dict]) -> dict[int, tuple[int, int, int]]:
    """Returns a colour for every category id, the same in all pictures of a dataset.

    Hues step by the golden angle, which keeps neighbours apart for any number of categories.
    """
    colours = {}
    for position, category in enumerate(sorted(categories, key=lambda c: c["id"])):
        hue, value = (0.02 + position * 0.381966) % 1, 0.95 - 0.2 * (position % 2)
        rgb = colorsys.hsv_to_rgb(hue, 0.75, value)
        colours[category["id"]] = tuple(round(255 * channel) for channel in rgb)
    return colours


def truth_instances(truth: dict, image_id: int) -> list[Instance]:
    """Returns the annotated objects of an image; crowds are grey."""
    colours, names = category_colours(truth["categories"]), _names(truth)
    instances = []
    for annotation in truth["annotations"]:
        if annotation["image_id"] == image_id:
            name, colour = names[annotation["category_id"]], colours[annotation["category_id"]]
            if annotation.get("iscrowd"):
                name, colour = f"{name} (crowd)", _CROWD_COLOUR
            mask = annotation.get("segmentation")
            instances.append(Instance(annotation["bbox"], name, colour, mask))
    return instances


def predicted_instances(
    predictions: Iterable[dict], truth: dict, image_id: int, score_threshold: float
) -> list[Instance]:
    """Returns an image's detections that score at least the threshold, best first, 30 at most."""
    colours, names = category_colours(truth["categories"]), _names(truth)
    found = [p for p in predictions if p["image_id"] == image_id and p["score"] >= score_threshold]
    found.sort(key=lambda p: -p["score"])
    return [
        Instance(p["bbox"], names[key], colours[key], p.get("segmentation"), p["score"])
        for p in found[:MAX_DRAWN]
        for key in [p["category_id"]]
    ]


def _names(truth: dict) -> dict[int, str]:
    return {category["id"]: category["name"] for category in truth["categories"]}


def read_image(path: Path) -> Image.Image:
    """Reads an image as RGB.

    Raises:
        DataError: it does not exist or is no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"image {path} does not exist; the folder of images must be the one that the ground "
            "truth's file names are relative to"
        ) from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from error


def draw_instances(image: Image.Image, instances: Sequence[Instance]) -> Image.Image:
    """Draws objects on a copy of the image, enlarged (at most 4 times) if it is small.

    Args:
        image: RGB.
        instances: objects in pixels of ``image``.

    Returns:
        RGB image whose long side is between about 400 and 800 pixels.
    """
    scale = min(max(round(_TARGET_SIDE / max(image.size)), 1), 4)
    scale = min(scale, _LARGEST_SIDE / max(image.size))
    width, height = (round(side * scale) for side in image.size)
    canvas = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    # Large objects first: a small one in front of them keeps its own colour.
    by_size = sorted(instances, key=lambda instance: -instance.bbox[2] * instance.bbox[3])
    for instance in by_size:
        mask = _mask(instance.segmentation, image.size, (width, height))
        if mask is not None:
            colour = np.array(instance.colour, dtype=np.float32)
            canvas[mask] = canvas[mask] * (1 - _MASK_OPACITY) + colour * _MASK_OPACITY
            canvas[mask & ~binary_erosion(mask)] = colour
    drawn = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    boxes = []
    for instance in by_size:
        x, y, w, h = (float(value) * scale for value in instance.bbox)
        boxes.append(np.clip([x, y, x + w, y + h], 0, 2 * [width - 1, height - 1]).tolist())
        pen.rectangle(boxes[-1], outline=instance.colour, width=2)
    _draw_labels(pen, by_size, boxes, (width, height))
    return drawn


def _draw_labels(
    pen: ImageDraw.ImageDraw, instances: Sequence[Instance], boxes: list, size: tuple[int, int]
) -> None:
    # Writes each label at its box, where it hides the least of the labels written before.
    font = ImageFont.load_default(_FONT_SIZE)
    taken: list[list[float]] = []
    for instance, (left, top, right, bottom) in zip(instances, boxes, strict=True):
        text_left, text_top, text_right, text_bottom = font.getbbox(instance.label)
        w, h = text_right - text_left + 8, text_bottom - text_top + 6
        spots = [(left, top - h), (left, top), (left, bottom), (right - w, bottom - h)]
        inside = np.clip(spots, 0, np.maximum(np.subtract(size, (w, h)), 0)).tolist()
        labels = [[x, y, w, h] for x, y in inside]
        # As of crowds, the IoU is the share of a label that lies on another one.
        hidden = coco_mask.iou(labels, taken, [1] * len(taken)).sum(axis=1) if taken else [0]
        x, y, *_ = label = labels[int(np.argmin(hidden))]
        taken.append(label)
        pen.rectangle([x, y, x + w, y + h], fill=instance.colour)
        red, green, blue = instance.colour
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        ink = (0, 0, 0) if light else (255, 255, 255)
        pen.text((x + 4 - text_left, y + 3 - text_top), instance.label, fill=ink, font=font)


def _mask(
    segmentation: dict | list | None, size: tuple[int, int], drawn_size: tuple[int, int]
) -> np.ndarray | None:
    # A COCO segmentation (polygons or RLE) as a boolean mask of the enlarged picture.
    if not segmentation:
        return None
    rle = segmentation
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, size[1], size[0])
    if isinstance(rle, list):  # one for each polygon
        rle = coco_mask.merge(rle)
    mask = Image.fromarray(coco_mask.decode(rle) * 255)
    # Enlarged smoothly and cut at one half: pixel stairs would hide the shape.
    return np.asarray(mask.resize(drawn_size, Image.Resampling.BILINEAR)) > 127
