"""The part of a check that opens image files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image
from tqdm import tqdm

_BY_BOTH = {"JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"}
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"}
_CHUNK = 32  # files of one task


class File(NamedTuple):
    """An image file to look at.

    Attributes:
        path: where it should be.
        size: (width, height) in pixels that the annotations say; None: not known.
        orientation: whether Exif matters; torchvision's folders ignore it.
        place: what an example of a finding names.
    """

    path: Path
    size: tuple[int, int] | None
    orientation: bool
    place: dict[str, Any]


Problem = tuple[str, dict[str, Any]]
"""A kind, and the values that an example of it shows."""

Look = Callable[[File], list[Problem]]
"""A way to look at a file; it raises nothing."""


def exists(file: File) -> list[Problem]:
    """Whether a file is there; does not open it."""
    try:
        return [] if file.path.is_file() else [("missing-image", {})]
    except (OSError, ValueError) as error:  # a name that no file can have
        return [("missing-image", {"problem": str(error)})]


def look_at_header(file: File) -> list[Problem]:
    """What the header of a file shows: format, mode, size, orientation."""
    return _look(file, decode=False)


def look_at_pixels(file: File) -> list[Problem]:
    """What decoding shows: all that the header does, and whether the pixels are there."""
    return _look(file, decode=True)


def look_at_all(
    files: Sequence[File],
    look: Look,
    jobs: int,
    progress: bool,
) -> Iterator[tuple[File, list[Problem]]]:
    """Looks at files in ``jobs`` threads (Pillow decodes outside the GIL); yields in order."""
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]

    def work(chunk: Sequence[File]) -> list[list[Problem]]:
        return [look(file) for file in chunk]

    # Odd Exif data and large images are worth a warning to Pillow: thousands of lines here.
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(files), unit="image", disable=None if progress else True) as bar,
    ):
        warnings.simplefilter("ignore")
        try:
            for chunk, problems in zip(chunks, pool.map(work, chunks), strict=True):
                bar.update(len(chunk))
                yield from zip(chunk, problems, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for 100,000 images


def _look(file: File, decode: bool) -> list[Problem]:
    try:
        if not file.path.exists():
            return [("missing-image", {})]
        if not file.path.is_file():  # a folder; a pipe or a device would be read for ever
            return [("unreadable-image", {"problem": "it is no ordinary file"})]
        with Image.open(file.path) as image:
            stored = image.size
            if decode:
                image.load()
            return [
                *_pixels(image),
                *_size(file, stored, _orientation(image) if file.orientation else 1),
            ]
    # Pillow's decoders let through whatever a damaged file makes them raise: struct.error,
    # SyntaxError, ValueError, ZeroDivisionError, its own errors of too large images.
    except Exception as error:
        kind = "truncated-image" if "truncated" in str(error).lower() else "unreadable-image"
        return [(kind, {"problem": str(error).replace(str(file.path), file.path.name)})]


def _pixels(image: Image.Image) -> list[Problem]:
    problems: list[Problem] = []
    if image.format not in _BY_BOTH:
        problems.append(("image-format", {"format": image.format}))
    if image.mode not in _MODES:
        problems.append(("image-mode", {"mode": image.mode}))
    elif image.has_transparency_data:
        problems.append(("image-alpha", {"mode": image.mode}))
    return problems


def _orientation(image: Image.Image) -> int:
    """Exif's: 1 for upright, 2 to 8 for mirrored and turned images."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged Exif data; both frameworks take the image as it is then
        return 1
    return orientation if orientation in range(2, 9) else 1


def _size(file: File, stored: tuple[int, int], orientation: int) -> list[Problem]:
    width, height = stored
    turned = (height, width) if orientation >= 5 else stored
    if file.size is None:
        return []
    if file.size == turned:
        ambiguous = orientation in (2, 3, 4) or (orientation >= 5 and width == height)
        return [("exif-orientation", {"orientation": orientation})] if ambiguous else []
    sizes = {"file says": list(file.size), "image has": list(stored)}
    if file.size == stored:
        return [("exif-rotated", {"orientation": orientation, **sizes})]
    return [("image-size-differs", sizes)]
