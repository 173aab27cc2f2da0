"""Pictures of ground truth and predictions: boxes, masks, class names and scores."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
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
    """A colour for every category id, the same in all pictures of a dataset.

    Hues step by the golden angle, which keeps neighbours apart for any number of categories.
    """
    colours = {}
    for position, category in enumerate(sorted(categories, key=lambda c: c["id"])):
        hue, value = (0.02 + position * 0.381966) % 1, 0.95 - 0.2 * (position % 2)
        rgb = colorsys.hsv_to_rgb(hue, 0.75, value)
        colours[category["id"]] = tuple(round(255 * channel) for channel in rgb)
    return colours


def truth_instances(ground_truth: dict, image_id: int) -> list[Instance]:
    """The annotated objects of an image; crowds are grey."""
    colours, names = _by_id(ground_truth)
    return [
        Instance(
            annotation["bbox"],
            names[annotation["category_id"]] + (" (crowd)" if annotation.get("iscrowd") else ""),
            _CROWD_COLOUR if annotation.get("iscrowd") else colours[annotation["category_id"]],
            annotation.get("segmentation"),
        )
        for annotation in ground_truth["annotations"]
        if annotation["image_id"] == image_id
    ]


def predicted_instances(
    predictions: Iterable[dict], ground_truth: dict, image_id: int, score_threshold: float
) -> list[Instance]:
    """Detections of an image that score at least the threshold, best first, 30 at most."""
    colours, names = _by_id(ground_truth)
    found = [p for p in predictions if p["image_id"] == image_id and p["score"] >= score_threshold]
    found.sort(key=lambda p: -p["score"])
    return [
        Instance(
            p["bbox"],
            names[p["category_id"]],
            colours[p["category_id"]],
            p.get("segmentation"),
            p["score"],
        )
        for p in found[:MAX_DRAWN]
    ]


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        DataError: it does not exist or is no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"image {path} does not exist; image_root must be the folder that the ground truth's "
            "file names are relative to"
        ) from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from error


def draw_instances(image: Image.Image, instances: Sequence[Instance]) -> Image.Image:
    """Draw objects on a copy of the image, enlarged (at most 4 times) if it is small.

    Args:
        image: RGB.
        instances: objects in pixels of ``image``.

    Returns:
        RGB image whose long side is between about 400 and 800 pixels.
    """
    scale = _scale(max(image.size))
    width, height = (round(side * scale) for side in image.size)
    canvas = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)

    # Large objects first: a small one in front of them keeps its own colour.
    by_size = sorted(instances, key=lambda shown: -shown.bbox[2] * shown.bbox[3])
    for shown in by_size:
        mask = _mask(shown.segmentation, image.size, (width, height))
        if mask is not None:
            colour = np.array(shown.colour, dtype=np.float32)
            inside = canvas[mask]
            canvas[mask] = inside * (1 - _MASK_OPACITY) + colour * _MASK_OPACITY
            canvas[mask & ~binary_erosion(mask)] = colour
    drawn = Image.fromarray(canvas.round().astype(np.uint8))

    pen = ImageDraw.Draw(drawn)
    boxes = []
    for shown in by_size:
        x, y, w, h = (float(value) * scale for value in shown.bbox)
        box = [
            *(min(max(x, 0), width - 1), min(max(y, 0), height - 1)),
            *(min(max(x + w, 0), width - 1), min(max(y + h, 0), height - 1)),
        ]
        boxes.append(box)
        pen.rectangle(box, outline=shown.colour, width=2)
    _draw_labels(pen, by_size, boxes, (width, height))
    return drawn


def _draw_labels(
    pen: ImageDraw.ImageDraw, instances: Sequence[Instance], boxes: list, size: tuple[int, int]
) -> None:
    """Write each label at its box, where it hides the least of the labels written before."""
    font = ImageFont.load_default(_FONT_SIZE)
    taken: list[tuple[float, float, float, float]] = []
    for shown, (left, top, right, bottom) in zip(instances, boxes, strict=True):
        text_left, text_top, text_right, text_bottom = font.getbbox(shown.label)
        w, h = text_right - text_left + 8, text_bottom - text_top + 6
        spots = [(left, top - h), (left, top), (left, bottom), (right - w, bottom - h)]
        spots = [
            (min(max(x, 0), max(size[0] - w, 0)), min(max(y, 0), max(size[1] - h, 0)))
            for x, y in spots
        ]
        x, y = min(spots, key=lambda spot: sum(_overlap((*spot, w, h), other) for other in taken))
        taken.append((x, y, w, h))
        pen.rectangle([x, y, x + w, y + h], fill=shown.colour)
        red, green, blue = shown.colour
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        pen.text(
            (x + 4 - text_left, y + 3 - text_top),
            shown.label,
            fill=(0, 0, 0) if light else (255, 255, 255),
            font=font,
        )


def _overlap(first: tuple, second: tuple) -> float:
    across = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    down = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(across, 0) * max(down, 0)


def _scale(long_side: int) -> float:
    if long_side > _LARGEST_SIDE:
        return _LARGEST_SIDE / long_side
    return min(max(round(_TARGET_SIDE / long_side), 1), 4)


def _mask(
    segmentation: dict | list | None, size: tuple[int, int], drawn_size: tuple[int, int]
) -> np.ndarray | None:
    """A COCO segmentation (polygons or RLE) as a boolean mask of the enlarged picture."""
    if not segmentation:
        return None
    import pycocotools.mask

    rle = segmentation
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        rle = pycocotools.mask.frPyObjects(segmentation, size[1], size[0])
    if isinstance(rle, list):  # one for each polygon
        rle = pycocotools.mask.merge(rle)
    mask = Image.fromarray(pycocotools.mask.decode(rle) * 255)
    # Enlarged smoothly and cut at one half: pixel stairs would hide the shape.
    return np.asarray(mask.resize(drawn_size, Image.Resampling.BILINEAR)) > 127


def _by_id(ground_truth: dict) -> tuple[dict[int, tuple[int, int, int]], dict[int, str]]:
    categories = ground_truth["categories"]
    return category_colours(categories), {c["id"]: c["name"] for c in categories}
