"""Procedural backgrounds: textured canvases with distractors that are no garments."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw


def random_color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """Returns an RGB colour (3,) float32 in 0..255 of any hue."""
    hsv = rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)
    return np.asarray(colorsys.hsv_to_rgb(*hsv), np.float32) * 255


def render_canvas(
    rng: np.random.Generator, size: tuple[int, int], distractors: tuple[int, int]
) -> np.ndarray:
    """Returns a background (H, W, 3) float32, 0..255: a coloured texture with shapes on it.

    Args:
        rng: everything random comes from it.
        size: (H, W) in pixels.
        distractors: the least and the largest number of shapes.
    """
    canvas = _texture(rng, size)
    for _ in range(rng.integers(distractors[0], distractors[1] + 1)):
        _draw_distractor(rng, canvas)
    return canvas


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Returns smooth noise (H, W) float32 in about -1..1 with bumps ``cell`` pixels wide."""
    height, width = size
    grid = rng.uniform(-1, 1, (math.ceil(height / cell) + 3, math.ceil(width / cell) + 3))
    image = Image.fromarray(grid.astype(np.float32))
    # A box inside the grid: its border would be interpolated from repeated values.
    box = (1.0, 1.0, 1.0 + width / cell, 1.0 + height / cell)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _octaves(rng: np.random.Generator, size: tuple[int, int], coarse: float) -> np.ndarray:
    cells = [coarse, coarse / 2, coarse / 4, coarse / 8]
    return sum(_noise(rng, size, max(cell, 2.0)) * 0.55**i for i, cell in enumerate(cells))


def _stripes(rng: np.random.Generator, size: tuple[int, int], angle: float) -> np.ndarray:
    ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
    along = xs * math.cos(angle) + ys * math.sin(angle)
    along = along + _noise(rng, size, 48) * rng.uniform(0, 12)  # woven cloth, not a test card
    wave = np.sin(along * (2 * math.pi / rng.uniform(6, 40)) + rng.uniform(0, 6.3))
    return np.tanh(wave * rng.uniform(1, 4))


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    kind = rng.choice(["noise", "gradient", "stripes", "plaid"], p=[0.4, 0.2, 0.2, 0.2])
    angle = rng.uniform(0, math.pi)
    if kind == "noise":
        field = _octaves(rng, size, rng.uniform(16, 80))
    elif kind == "gradient":
        ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
        slope = (xs / size[1] - 0.5) * math.cos(angle) + (ys / size[0] - 0.5) * math.sin(angle)
        field = 2 * slope + 0.4 * _octaves(rng, size, 32)
    elif kind == "stripes":
        field = _stripes(rng, size, angle)
    else:
        field = (_stripes(rng, size, angle) + _stripes(rng, size, angle + math.pi / 2)) / 2
    mix = np.clip(0.5 + 0.5 * rng.uniform(0.4, 1) * field, 0, 1)[..., None]
    patches = np.clip(0.5 + _octaves(rng, size, 64), 0, 1)[..., None]
    first, second, third = (random_color(rng, (0.05, 0.7), (0.15, 0.95)) for _ in range(3))
    # The second pair of colours lies close together: strong contrasts everywhere hide the garments.
    second = first + (second - first) * rng.uniform(0.3, 0.8)
    third = first + (third - first) * rng.uniform(0.2, 0.7)
    colored = first * mix + (second * patches + third * (1 - patches)) * (1 - mix)
    grain = _noise(rng, size, 3) * rng.uniform(2, 14)
    return (colored + grain[..., None]).astype(np.float32)


def _draw_distractor(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draws one shape into ``canvas`` (H, W, 3) in place: shaded, textured, anti-aliased."""
    height, width = canvas.shape[:2]
    coverage = Image.new("L", (2 * width, 2 * height))  # twice the size: anti-aliasing
    draw = ImageDraw.Draw(coverage)
    center = np.array([rng.uniform(0, 2 * width), rng.uniform(0, 2 * height)])
    radius = min(height, width) * rng.uniform(0.06, 0.5)
    kind = rng.choice(["blob", "plate", "stroke", "ring"], p=[0.35, 0.25, 0.25, 0.15])
    if kind == "stroke":
        turns = np.cumsum(rng.normal(0, 0.7, 6)) + rng.uniform(0, 6.3)
        steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius * 0.6
        points = center + np.cumsum(steps, axis=0)
        thickness = int(rng.integers(3, 14))
        draw.line([tuple(p) for p in points.tolist()], fill=255, width=thickness, joint="curve")
    elif kind == "ring":
        box = [*(center - radius * 0.7).tolist(), *(center + radius * 0.7).tolist()]
        draw.ellipse(box, outline=255, width=int(rng.integers(3, 20)))
    else:
        corners = int(rng.integers(3, 5)) if kind == "plate" else 40
        angles = rng.uniform(0, 2 * math.pi) + np.arange(corners) * (2 * math.pi / corners)
        lobes = [rng.uniform(0, 0.3) * np.sin(n * angles + rng.uniform(0, 6.3)) for n in (2, 3, 5)]
        reach = radius * (1 + sum(lobes))
        points = center + np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
        draw.polygon([tuple(p) for p in points.tolist()], fill=255)
    alpha_image = coverage.reduce(2)
    box = alpha_image.getbbox()
    color = random_color(rng, (0.05, 0.9), (0.2, 1.0))
    opacity = rng.uniform(0.6, 1.0)
    if box is None:
        return
    part = canvas[box[1] : box[3], box[0] : box[2]]
    alpha = np.asarray(alpha_image.crop(box), np.float32)[..., None] * (opacity / 255)
    shade = 1 + 0.3 * _noise(rng, part.shape[:2], rng.uniform(4, 40))[..., None]
    part += alpha * (color * shade - part)
