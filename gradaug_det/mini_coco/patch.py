"""One garment cut out of its 28x28 image: silhouette, enlarged and tinted patch, compositing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from gradaug_det.mini_coco.garments import CLASS_NAMES, GARMENT_SIDE
from gradaug_det.mini_coco.masks import fill_holes, keep_large_components

_BACKGROUND_GREY = 10
_SEE_THROUGH = frozenset({CLASS_NAMES.index("Sandal"), CLASS_NAMES.index("Bag")})
_SOLED = frozenset({CLASS_NAMES.index("Sneaker"), CLASS_NAMES.index("Ankle boot")})
_NEIGHBOURHOOD = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Patch:
    """A garment ready to be drawn: colours, and how much of each pixel it covers."""

    color: np.ndarray  # (P, P, 3) float32, 0..255
    alpha: np.ndarray  # (P, P) float32, 0..1

    @property
    def mask(self) -> np.ndarray:
        """The pixels that are mostly garment, (P, P) bool."""
        return self.alpha >= 0.5


def silhouette(image: np.ndarray, label: int) -> np.ndarray:
    """Returns the garment's own outline: (28, 28) uint8 image to (28, 28) bool.

    Some parts are as dark as the background. Midsoles cut a shoe in two: gaps of up to two
    pixels between the upper and the sole are closed. Prints make holes: they are filled, except
    the real ones between the straps of sandals and under the handles of bags.
    """
    mask = image > _BACKGROUND_GREY
    if label in _SOLED:
        tall = np.pad(mask, ((2, 2), (0, 0)))
        mask = mask | ((tall[:-4] | tall[1:-3]) & (tall[3:-1] | tall[4:]))
    mask = keep_large_components(mask, min_pixels=3, min_share=0.05)
    return fill_holes(mask, min_open=5 if label in _SEE_THROUGH else None)


def garment_patch(
    image: np.ndarray, label: int, scale: float, degrees: float, flip: bool, tint: np.ndarray
) -> Patch:
    """Enlarges, rotates and tints a garment; its outline is found at the enlarged resolution.

    Args:
        image: (28, 28) uint8.
        label: 0..9.
        scale: pixels of the patch per pixel of ``image``.
        degrees: rotation about the middle.
        flip: mirror left and right first.
        tint: (3,) RGB, 0..255, of the garment's brightest parts.

    Returns:
        A square patch just large enough, with the garment in its middle.
    """
    shape = silhouette(image, label)
    grey = image.astype(np.float32)
    bright = max(float(np.percentile(grey[shape], 95)) if shape.any() else 0.0, 64.0)
    inner = ndimage.binary_erosion(shape, _NEIGHBOURHOOD)
    # Rim pixels are partly background: their grey says how much, their neighbours what colour.
    rim = np.clip(grey / (0.5 * bright), 0.45, 1)
    cover = np.pad(np.where(inner, 1, shape * rim).astype(np.float32), 2)
    inside = ndimage.convolve(inner.astype(np.int64), _NEIGHBOURHOOD, mode="constant")
    color = ndimage.convolve(inner * grey, _NEIGHBOURHOOD, mode="constant") / np.maximum(inside, 1)
    grey = np.where(~inner & (inside > 0), color, grey)
    covered_grey = cover * np.pad(np.clip(grey / bright, 0, 1), 2)

    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    side = math.ceil(GARMENT_SIDE * scale * (abs(cos) + abs(sin))) + 2
    mirror = -1.0 if flip else 1.0
    xx, xy, yx, yy = mirror * cos / scale, mirror * sin / scale, -sin / scale, cos / scale
    middle, source = side / 2, cover.shape[0] / 2
    affine = (xx, xy, source - (xx + xy) * middle, yx, yy, source - (yx + yy) * middle)

    def resample(array: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(array.astype(np.float32))
        method = Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
        return np.asarray(picture.transform((side, side), *method))

    soft = resample(cover)
    # Dividing by the cover keeps the black surroundings out of the garment's rim.
    shade = np.clip(resample(covered_grey) / np.maximum(soft, 0.05), 0, 1.1)
    alpha = np.clip((soft - 0.5) * max(scale, 1.0) + 0.5, 0, 1)
    return Patch((0.2 + 0.8 * shade)[..., None] * tint, alpha)


def overlap(
    patch: np.ndarray, left: int, top: int, size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns the part of the canvas under a patch, and the part of the patch on the canvas."""
    height, width = size
    x0, y0 = max(left, 0), max(top, 0)
    x1 = max(min(left + patch.shape[1], width), x0)
    y1 = max(min(top + patch.shape[0], height), y0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def blend(canvas: np.ndarray, patch: Patch, left: int, top: int) -> None:
    """Draws a patch into ``canvas`` (H, W, 3) float32, in place; it may stick out."""
    on_canvas, on_patch = overlap(patch.alpha, left, top, canvas.shape[:2])
    part = canvas[on_canvas]
    part += patch.alpha[on_patch][..., None] * (patch.color[on_patch] - part)
