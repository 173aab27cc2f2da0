"""A picture of a data set in COCO format: a grid of images with masks, boxes and class names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from pycocotools import mask as coco_mask

ZOOM = 1.5
GAP, CAPTION = 10, 22  # pixels around a tile, and above it

_COLUMNS = 5
_PAPER, _INK = (22, 24, 29), (200, 204, 212)
_COLORS = (
    *((86, 180, 255), (255, 159, 64), (120, 220, 120), (255, 99, 132), (180, 142, 255)),
    *((255, 221, 87), (64, 224, 208), (255, 140, 220), (190, 230, 60), (210, 160, 120)),
)


def draw_contact_sheet(root: Path, out: Path, tiles: Mapping[str, int]) -> None:
    """Draws the first images of some splits with everything their annotations say.

    Both are read from the files, so the sheet shows what a training run will see.

    Args:
        root: a directory with ``annotations/instances_<split>.json`` and ``<split>/``, its images
            of one size.
        out: the PNG to write.
        tiles: split to the number of its images to show.
    """
    pictures = []
    for split, count in tiles.items():
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text("utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        annotations = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        for record in content["images"][:count]:
            own = annotations[record["id"]]
            with Image.open(root / split / record["file_name"]) as image:
                tile = _draw_tile(image.convert("RGB"), own, names)
            crowds = sum(annotation["iscrowd"] for annotation in own)
            caption = f"{split} {record['id']}  ·  {len(own) - crowds} garments"
            pictures.append((caption + "  ·  1 crowd" * crowds, tile))
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    tile_width, tile_height = pictures[0][1].size
    step_x, step_y = tile_width + GAP, tile_height + CAPTION + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (caption, tile) in enumerate(pictures):
        x, y = GAP + index % columns * step_x, GAP + index // columns * step_y
        draw.text((x, y + 2), caption, fill=_INK, font=ImageFont.load_default(14))
        sheet.paste(tile, (x, y + CAPTION))
    sheet.save(out)


def _draw_tile(
    image: Image.Image, annotations: list[dict[str, Any]], names: Mapping[int, str]
) -> Image.Image:
    size = round(image.width * ZOOM), round(image.height * ZOOM)
    zoom = size[0] / image.width, size[1] / image.height
    tile = image.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(tile)
    colors = [_COLORS[(a["category_id"] - 1) % len(_COLORS)] for a in annotations]
    for annotation, color in zip(annotations, colors, strict=True):
        mask = _zoomed_mask(annotation["segmentation"], size, zoom)
        opacity = 0.55 if annotation["iscrowd"] else 0.3
        tile.paste(color, mask=mask.point(lambda value, opacity=opacity: int(value * opacity)))
        tile.paste(color, mask=ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3))))
    for annotation, color in zip(annotations, colors, strict=True):
        x, y, width, height = annotation["bbox"]
        draw.rectangle(_zoomed([x, y, x + width, y + height], zoom), outline=color, width=1)
    font = ImageFont.load_default(11)
    for annotation, color in zip(annotations, colors, strict=True):  # no outline crosses a name
        name = names[annotation["category_id"]] + (" crowd" if annotation["iscrowd"] else "")
        width, height = draw.textlength(name, font=font) + 6, 14
        ((left, top),) = _zoomed(annotation["bbox"][:2], zoom)
        x = min(max(left, 0), size[0] - width)
        y = top - height if top >= height else top
        draw.rectangle([x, y, x + width, y + height], fill=color)
        draw.text((x + 3, y), name, fill=_PAPER, font=font)
    return tile


def _zoomed(flat: list[float], zoom: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x * zoom[0], y * zoom[1]) for x, y in zip(flat[::2], flat[1::2], strict=True)]


def _zoomed_mask(
    segmentation: list[list[float]] | dict[str, Any],
    size: tuple[int, int],
    zoom: tuple[float, float],
) -> Image.Image:
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        mask = Image.fromarray(coco_mask.decode(segmentation) * 255)
        return mask.resize(size, Image.Resampling.BILINEAR)
    mask = Image.new("L", size)
    for polygon in segmentation:
        ImageDraw.Draw(mask).polygon(_zoomed(polygon, zoom), fill=255)
    return mask
