"""A COCO-format dataset of a few images for tests of the data path."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 128)  # height, width


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(x, y, w, h, category=1, **changes):
    """One COCO annotation with a rectangular polygon."""
    return {
        "bbox": [x, y, w, h],
        "segmentation": rectangle(x, y, w, h),
        "area": w * h,
        "category_id": category,
        "iscrowd": 0,
        **changes,
    }


def crowd(size=SIZE):
    """A crowd over the left half of an image."""
    height, width = size
    return {
        "bbox": [0, 0, width // 2, height],
        "segmentation": {"size": [height, width], "counts": [0, height * (width // 2)]},
        "area": height * (width // 2),
        "category_id": 1,
        "iscrowd": 1,
    }


def write_coco(folder, images, sizes=None, classes=3):
    """Writes noise images and annotations.

    Args:
        images: for each image its list of annotations.
        sizes: for each image (height, width); SIZE for all if None.

    Returns:
        (annotation file, image folder)
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": f"class{i}"} for i in range(classes)],
    }
    for index, annotations in enumerate(images):
        height, width = sizes[index] if sizes else SIZE
        name = f"{index}.png"
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        content["images"].append(
            {"id": index + 1, "file_name": name, "height": height, "width": width}
        )
        for item in annotations:
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": index + 1, **item}
            )
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return file, folder / "images"
