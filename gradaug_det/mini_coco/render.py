"""Draws garments: one on a canvas for classification, or several that occlude each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradaug_det.errors import ConfigError
from gradaug_det.mini_coco.canvas import random_color, render_canvas
from gradaug_det.mini_coco.garments import GARMENT_SIDE
from gradaug_det.mini_coco.masks import keep_large_components
from gradaug_det.mini_coco.patch import Patch, blend, garment_patch, overlap

MIN_SCALE, MAX_SCALE = 0.7, 5.0
MIN_VISIBLE_SHARE = 0.25
MIN_VISIBLE_PIXELS = 24
MAX_ROTATION_DEGREES = 15.0
CROWD_SHARE, EMPTY_SHARE = 0.05, 0.04

_COUNT_CHANCES = (0.1, 0.17, 0.22, 0.21, 0.17, 0.13)  # of 1, 2, ... 6 garments
_PLACING_TRIES = 8
_CROP_STREAM = 2  # beside the streams of the mini-COCO splits, 0 and 1


@dataclass(frozen=True)
class Instance:
    """The visible part of one garment, or of a pile of garments of one class."""

    label: int  # 0..9, an index into `CLASS_NAMES`
    garment_ids: tuple[int, ...]  # positions in the arrays that they came from; one unless a crowd
    mask: np.ndarray  # (H, W) bool, the visible pixels
    crowd: bool  # a pile, annotated as one region


def _random_patch(
    rng: np.random.Generator, image: np.ndarray, label: int, scale: float, tint: np.ndarray
) -> Patch:
    degrees = rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)
    return garment_patch(image, label, scale, degrees, bool(rng.integers(2)), tint)


def _random_tint(rng: np.random.Generator) -> np.ndarray:
    return random_color(rng, (0.1, 0.9), (0.5, 1.0))


def _finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Exposure and sensor noise over everything, so that neither betrays the garments."""
    gain, offset = rng.uniform(0.8, 1.15), rng.uniform(-12, 12)
    noise = rng.normal(0, rng.uniform(1, 4), canvas.shape[:2])[..., None]
    return np.clip(canvas * gain + offset + noise + 0.5, 0, 255).astype(np.uint8)


class _Scene:
    """A canvas on which every annotated thing keeps a share of its pixels visible."""

    def __init__(self, canvas: np.ndarray) -> None:
        self.canvas = canvas
        self.size: tuple[int, int] = canvas.shape[:2]
        self.owner = np.zeros(self.size, np.int64)  # 0: the background; things count from 1
        self.needed = [0.0]  # visible pixels that each thing must keep

    def place(self, patch: Patch, x: float, y: float, thing: int) -> bool:
        """Draws a patch round (x, y) as ``thing`` unless it, or what it covers, would vanish."""
        side = patch.alpha.shape[0]
        left, top = int(x - side / 2), int(y - side / 2)
        on_canvas, on_patch = overlap(patch.alpha, left, top, self.size)
        mask = patch.mask[on_patch]
        needed = max(MIN_VISIBLE_SHARE * np.count_nonzero(patch.mask), MIN_VISIBLE_PIXELS)
        if np.count_nonzero(mask) < needed:
            return False
        owner = self.owner.copy()
        owner[on_canvas][mask] = thing
        counts = np.bincount(owner.ravel(), minlength=thing + 1)
        if any(counts[i] < self.needed[i] for i in range(1, len(self.needed))):
            return False
        if thing == len(self.needed):
            self.needed.append(needed)
        else:  # another garment of a pile
            self.needed[thing] = max(self.needed[thing], MIN_VISIBLE_SHARE * counts[thing])
        self.owner = owner
        blend(self.canvas, patch, left, top)
        return True

    def visible(self, thing: int) -> np.ndarray:
        """Returns what an annotator would outline: no crumbs between other garments."""
        return keep_large_components(self.owner == thing, min_pixels=4, min_share=0.02)


def render_scene(
    rng: np.random.Generator,
    images: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    min_scale: float = MIN_SCALE,
) -> tuple[np.ndarray, list[Instance]]:
    """Composes one detection image.

    Args:
        rng: everything random comes from it.
        images: (N, 28, 28) uint8 garments to choose from.
        labels: (N,) their classes, 0..9.
        size: (H, W) of the image in pixels.
        min_scale: of the smallest garment that is not in a crowd.

    Returns:
        The image (H, W, 3) uint8 RGB, and its instances from back to front: 1 to 6 garments,
        a few per cent of the images with a crowd besides, a few per cent with nothing at all.
    """
    # The order of draws from `rng` decides what every build looks like: it must stay.
    kind = rng.uniform()
    scene = _Scene(render_canvas(rng, size, distractors=(4, 12)))
    things: list[tuple[int, tuple[int, ...], bool]] = []
    if kind >= EMPTY_SHARE:
        if kind >= 1 - CROWD_SHARE:
            label, ids = _place_pile(rng, scene, images, labels)
            if ids:
                things.append((label, ids, True))
        for _ in range(rng.choice(len(_COUNT_CHANCES), p=_COUNT_CHANCES) + 1):
            garment = int(rng.integers(len(labels)))
            if _place_garment(rng, scene, images[garment], int(labels[garment]), min_scale):
                things.append((int(labels[garment]), (garment,), False))
    image = _finish(rng, scene.canvas)
    return image, [
        Instance(label, ids, scene.visible(thing), crowd)
        for thing, (label, ids, crowd) in enumerate(things, start=1)
    ]


def _place_garment(
    rng: np.random.Generator, scene: _Scene, image: np.ndarray, label: int, min_scale: float
) -> bool:
    height, width = scene.size
    # The same share of any canvas.
    largest = max(MAX_SCALE * min(height, width) / 192, 1.0, min_scale)
    tint = _random_tint(rng)
    for _ in range(_PLACING_TRIES):
        scale = min_scale * (largest / min_scale) ** rng.uniform() ** 0.75
        patch = _random_patch(rng, image, label, scale, tint)
        x, y = rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height
        if scene.place(patch, x, y, len(scene.needed)):
            return True
    return False  # a crowded canvas: the image has one garment less


def _place_pile(
    rng: np.random.Generator, scene: _Scene, images: np.ndarray, labels: np.ndarray
) -> tuple[int, tuple[int, ...]]:
    """Draws a dense heap of small garments of one class, which COCO annotates as one crowd."""
    height, width = scene.size
    label = int(labels[rng.integers(len(labels))])
    candidates = np.flatnonzero(labels == label)
    center_x, center_y = rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.75) * height
    spread = 0.09 * min(height, width)
    ids = []
    for _ in range(rng.integers(10, 22)):
        garment = int(rng.choice(candidates))
        patch = _random_patch(rng, images[garment], label, rng.uniform(0.7, 1.2), _random_tint(rng))
        x, y = rng.normal(center_x, 1.6 * spread), rng.normal(center_y, spread)
        if scene.place(patch, x, y, thing=1):
            ids.append(garment)
    return label, tuple(ids)


def render_garment_crops(
    images: np.ndarray,
    labels: np.ndarray,
    size: int,
    seed: int,
    indices: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Draws single garments for classification, by the code that draws the detection images.

    Each garment is tinted, flipped or not, rotated up to 15 degrees, scaled to 0.55 to 1 of the
    crop and put near the middle of a textured canvas. Crop ``i`` depends on ``images[i]``,
    ``labels[i]``, ``seed`` and ``i`` only.

    Args:
        images: (N, 28, 28) uint8, as `load_garments` returns them.
        labels: (N,) classes 0..9.
        size: side of a crop in pixels, at least 16.
        seed: not negative.
        indices: the crops to draw; None: all.

    Returns:
        (N, 3, size, size) uint8, RGB, N the number of crops drawn.

    Raises:
        ConfigError: a size, seed or shape that cannot be used.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.shape != (len(labels), GARMENT_SIDE, GARMENT_SIDE) or images.dtype != np.uint8:
        problem = f"are {images.dtype} {images.shape} for {len(labels)} labels"
        raise ConfigError("images", f"{problem}; they must be uint8 (N, 28, 28)")
    if size < 16:
        raise ConfigError("size", f"{size} is too small for a garment; use 16 or more")
    if seed < 0:
        raise ConfigError("seed", f"{seed} is negative; use 0 or more")
    indices = range(len(labels)) if indices is None else indices
    crops = np.empty((len(indices), 3, size, size), np.uint8)
    for crop, index in zip(crops, indices, strict=True):
        rng = np.random.default_rng([seed, _CROP_STREAM, int(index)])
        canvas = render_canvas(rng, (size, size), distractors=(0, 4))
        scale = size / GARMENT_SIDE * rng.uniform(0.55, 1.0)
        patch = _random_patch(rng, images[index], int(labels[index]), scale, _random_tint(rng))
        shift = rng.uniform(-0.1, 0.1, 2) * size
        left, top = ((size - patch.alpha.shape[0]) / 2 + shift).astype(int).tolist()
        blend(canvas, patch, left, top)
        crop[:] = _finish(rng, canvas).transpose(2, 0, 1)
    return crops
