"""A picture of a data set in COCO format: a grid of images with masks, boxes and class names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gradaug_det.reports.pictures import draw_instances, read_image, truth_instances

GAP, CAPTION = 10, 22  # pixels around a tile, and above it

_COLUMNS = 5
_PAPER, _INK = (22, 24, 29), (200, 204, 212)


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
        truth = json.loads((root / "annotations" / f"instances_{split}.json").read_text("utf-8"))
        for record in truth["images"][:count]:
            objects = truth_instances(truth, record["id"])
            tile = draw_instances(read_image(root / split / record["file_name"]), objects)
            pictures.append((f"{split} {record['id']}  ·  {len(objects)} objects", tile))
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
