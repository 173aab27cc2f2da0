"""A picture of a data set in COCO format: a grid of images with masks, boxes and class names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from gradaug_det.mini_coco.masks import rle_to_mask

ZOOM = 1.5
GAP, CAPTION = 10, 22

_PAPER, _INK = (22, 24, 29), (200, 204, 212)
_COLORS = (
    *((86, 180, 255), (255, 159, 64), (120, 220, 120), (255, 99, 132), (180, 142, 255)),
    *((255, 221, 87), (64, 224, 208), (255, 140, 220), (190, 230, 60), (210, 160, 120)),
)


def draw_contact_sheet(
    root: Path, out: Path, tiles: Mapping[str, int], size: tuple[int, int], columns: int = 5
) -> None:
    """Draw the first images of some splits with everything their annotations say.

    The annotations are read from the files, so the sheet shows what a training run will see.

    Args:
        root: a directory with ``annotations/instances_<split>.json`` and ``<split>/``.
        out: the PNG to write.
        tiles: split to the number of its images to show.
        size: (H, W) of an image; others are resized to it.
        columns: tiles in a row. A tile is 1.5 times an image, with a caption of 22 pixels above
            it and gaps of 10 pixels around.
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
                tile = _draw_tile(image.convert("RGB"), own, names, size)
            crowds = sum(annotation["iscrowd"] for annotation in own)
            caption = f"{split} {record['id']}  ·  {len(own) - crowds} garments"
            pictures.append((caption + "  ·  1 crowd" * crowds, tile))
    if not pictures:
        return
    columns = min(columns, len(pictures))
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
    image: Image.Image,
    annotations: list[dict[str, Any]],
    names: Mapping[int, str],
    size: tuple[int, int],
) -> Image.Image:
    width, height = round(size[1] * ZOOM), round(size[0] * ZOOM)
    zoom = width / image.width, height / image.height
    tile = image.resize((width, height), Image.Resampling.BICUBIC)
    for annotation in annotations:
        color = _COLORS[(annotation["category_id"] - 1) % len(_COLORS)]
        mask = _zoomed_mask(annotation["segmentation"], tile.size, zoom)
        opacity = 0.55 if annotation["iscrowd"] else 0.3
        tile.paste(color, mask=mask.point(lambda value, opacity=opacity: int(value * opacity)))
        outline = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))
        tile.paste(color, mask=outline)
    draw = ImageDraw.Draw(tile)
    for annotation in annotations:
        color = _COLORS[(annotation["category_id"] - 1) % len(_COLORS)]
        x, y, box_width, box_height = annotation["bbox"]
        corners = _zoomed([x, y, x + box_width, y + box_height], zoom)
        draw.rectangle(corners, outline=color, width=1)
    for annotation in annotations:  # last, so that no outline crosses a name
        color = _COLORS[(annotation["category_id"] - 1) % len(_COLORS)]
        name = names[annotation["category_id"]] + (" crowd" if annotation["iscrowd"] else "")
        _draw_name(draw, name, _zoomed(annotation["bbox"][:2], zoom)[0], color)
    return tile


def _draw_name(
    draw: ImageDraw.ImageDraw, name: str, corner: tuple[float, float], color: tuple[int, int, int]
) -> None:
    font = ImageFont.load_default(11)
    width, height = draw.textlength(name, font=font) + 6, 14
    x = min(max(corner[0], 0), draw.im.size[0] - width)
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle([x, y, x + width, y + height], fill=color)
    draw.text((x + 3, y), name, fill=_PAPER, font=font)


def _zoomed(flat: list[float], zoom: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x * zoom[0], y * zoom[1]) for x, y in zip(flat[::2], flat[1::2], strict=True)]


def _zoomed_mask(
    segmentation: list[list[float]] | dict[str, Any],
    size: tuple[int, int],
    zoom: tuple[float, float],
) -> Image.Image:
    if isinstance(segmentation, dict):
        mask = Image.fromarray(rle_to_mask(segmentation).astype(np.uint8) * 255)
        return mask.resize(size, Image.Resampling.BILINEAR)
    mask = Image.new("L", size)
    for polygon in segmentation:
        ImageDraw.Draw(mask).polygon(_zoomed(polygon, zoom), fill=255)
    return mask
