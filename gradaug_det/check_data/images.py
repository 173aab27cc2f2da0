"""Checks of image files: whether they are there, and what is seen in them."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from PIL import ExifTags, Image
from tqdm import tqdm

_BY_BOTH = {"JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"}
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"}
_TURNED_BY_OPENCV = {"JPEG", "MPO", "PNG", "WEBP"}
_TURNS = {1: "as stored", 3: "upside down"}
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[\\/]|\\\\")
_LABEL_STUDIO = re.compile(r"^[0-9a-f]{8}-")
_CHUNK = 32  # files of one task


class File(NamedTuple):
    """An image file to look at."""

    path: Path  # where it should be
    size: tuple[int, int] | None  # (width, height) in pixels that the annotations say
    frameworks: Collection[str]  # that turn images by an orientation; torchvision's folders do not
    place: dict[str, Any]  # what an example of a finding names


Problem = tuple[str, dict[str, Any]]
"""A kind, and the values that an example of it shows."""

Check = Callable[[File], list[Problem]]
"""A way to look at a file; it raises nothing."""


class Names:
    """Explains why a file is not where its name says, from what the images' folder holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def explain(self, name: str) -> str | None:
        """Returns what is odd about ``file_name``, and the file that is probably meant."""
        clues = {
            "an address, not a file": "://" in name,
            "it has backslashes; write /": "\\" in name,
            "it is URL-encoded; write it decoded": unquote(name) != name,
            "it is a path of another machine": _ABSOLUTE.match(name),
            "it begins or ends with a space": name != name.strip(),
        }
        odd = [clue for clue, is_so in clues.items() if is_so]
        folder, _, last = unquote(name).strip().replace("\\", "/").rpartition("/")
        for how, key in (
            ("", _normalize(last)),
            ("a prefix of Label Studio", _normalize(_LABEL_STUDIO.sub("", last))),
            ("another extension", f"stem {_normalize(last.rpartition('.')[0] or last)}"),
        ):
            found = self._files.get(key)
            if found is None:
                continue
            has, _, theirs = found.rpartition("/")
            if how:
                odd.append(f"it has {how}")
            elif unicodedata.normalize("NFC", theirs) != unicodedata.normalize("NFC", last):
                odd.append("upper and lower case differ")
            elif theirs != last:
                odd.append("its accents are written in another form of Unicode")
            if has != folder and len(odd) < 4:
                odd.append("its folder is another one")
            return f"{', '.join(odd)}; the images' folder has {found}"
        return ", ".join(odd) or None

    @cached_property
    def _files(self) -> dict[str, str]:
        """A name without case and accents' form, or ``stem`` and its stem -> path."""
        found: dict[str, str] = {}
        for folder, _, files in os.walk(self.folder):
            for file in map(Path, sorted(files)):
                path = (Path(folder) / file).relative_to(self.folder).as_posix()
                found.setdefault(_normalize(file.name), path)
                found.setdefault(f"stem {_normalize(file.stem)}", path)
        return found


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def exists(file: File) -> list[Problem]:
    """Looks whether a file is there; does not open it."""
    try:
        return [] if file.path.is_file() else [("missing-image", {})]
    except (OSError, ValueError) as error:  # a name that no file can have
        return [("missing-image", {"problem": str(error)})]


def check_images(
    files: Sequence[File], check: Check, jobs: int, progress: bool
) -> Iterator[tuple[File, list[Problem]]]:
    """Looks at files in ``jobs`` threads (Pillow decodes outside the GIL); yields in order."""
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]

    def work(chunk: Sequence[File]) -> list[list[Problem]]:
        return [check(file) for file in chunk]

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


def check_image(file: File, decode: bool = False) -> list[Problem]:
    """Reads format, mode, size and orientation from a file's header; may decode the pixels too."""
    try:
        if not file.path.exists():
            return [("missing-image", {})]
        if not file.path.is_file():  # a folder; a pipe or a device would be read for ever
            return [("unreadable-image", {"problem": "it is no ordinary file"})]
        with Image.open(file.path) as image:
            stored, orientations = image.size, _read_orientations(image)
            if image.format == "TIFF":  # Pillow has turned the size already
                stored = image.tag_v2[256], image.tag_v2[257]
            if decode:
                image.load()
            return [*_check_format(image), *_check_size(file, stored, orientations)]
    # Pillow's decoders let through whatever a damaged file makes them raise: struct.error,
    # SyntaxError, ValueError, ZeroDivisionError, its own errors of too large images.
    except Exception as error:
        kind = "truncated-image" if "truncated" in str(error).lower() else "unreadable-image"
        return [(kind, {"problem": str(error).replace(str(file.path), file.path.name)})]


def _check_format(image: Image.Image) -> list[Problem]:
    problems: list[Problem] = []
    if image.format not in _BY_BOTH:
        problems.append(("image-format", {"format": image.format}))
    if image.mode not in _MODES:
        problems.append(("image-mode", {"mode": image.mode}))
    elif image.has_transparency_data:
        problems.append(("image-alpha", {"mode": image.mode}))
    return problems


def _read_orientations(image: Image.Image) -> dict[str, int]:
    """Returns how each framework turns the stored image: 1 not at all, 2 to 8 as Exif has it.

    An image that says nothing has 1 for both. Seen with Pillow 13 and OpenCV 5, which MMCV reads
    with unless ``imdecode_backend`` is another one.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)  # in Exif, or in XMP
        if image.format == "TIFF":
            own = image.tag_v2.get(ExifTags.Base.Orientation, 1)
        else:
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            own = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged Exif data; both frameworks take the image as it is then
        found = own = 1
    found, own = (value if value in range(2, 9) else 1 for value in (found, own))
    if image.format == "TIFF":  # Pillow turns it while it loads, and Detectron2 turns it again
        return {"stored": found, "Detectron2": {6: 3, 8: 3}.get(found, 1), "MMDetection": own}
    turned = own if image.format in _TURNED_BY_OPENCV else 1
    return {"stored": found, "Detectron2": found, "MMDetection": turned}


def _check_size(file: File, stored: tuple[int, int], orientations: dict[str, int]) -> list[Problem]:
    """Compares the picture that was annotated with the one that the frameworks at hand see."""
    if file.size is None:
        return []
    orientation = orientations["stored"]
    sizes = {"file says": list(file.size), "image has": list(stored)}
    if file.size not in (stored, stored[::-1]) or (orientation < 5 and file.size != stored):
        return [("image-size-differs", sizes)]
    if not file.frameworks or orientation == 1:
        return []
    views = {framework: orientations[framework] for framework in file.frameworks}
    shown = {"orientation": orientation}
    if stored[0] == stored[1] or orientation < 5:  # the size does not tell what was annotated
        same = set(views.values()) in ({1}, {orientation})
        kind = "exif-orientation" if same else "orientation-differs"
    elif set(views.values()) == {1 if file.size == stored else orientation}:
        return []
    else:
        kind = "exif-rotated" if set(views.values()) == {orientation} else "orientation-differs"
        shown |= sizes
    if kind == "orientation-differs":
        shown |= {name: _TURNS.get(view, "turned") for name, view in views.items()}
    return [(kind, shown)]
