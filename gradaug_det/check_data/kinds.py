"""What ``gradaug-det check-data`` can find, and how findings are counted and shown.

What a kind says about the frameworks was seen with Detectron2's DatasetMapper and MMDetection's
CocoDataset; tests/cross/test_check_data.py shows each the broken annotation again.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SEVERITIES = ("error", "warning", "note")
"""Error: training or evaluation stops, or something wrong is learned. Warning: an annotation is
lost, or the frameworks differ over it. Note: worth knowing."""

MAX_EXAMPLES = 5  # of a kind; the count goes on


class Kind(NamedTuple):
    """One thing that can be wrong: its identifier, severity, and who does what with it."""

    name: str
    severity: str
    meaning: str
    detectron2: str
    mmdetection: str


_LOST = "leaves the object out"
_STOPS_LOADING = "stops while it loads the file"
_STOPS_LATER = "stops when the image's turn comes"
_FINE = "goes on"

_KINDS = [
    # The file's structure
    Kind(
        "missing-key",
        "error",
        "an image lacks id, file_name, width or height, an annotation id, image_id, category_id "
        "or bbox, a category id or name",
        "stops while it loads the file; without bbox when the image's turn comes",
        _STOPS_LOADING,
    ),
    Kind(
        "wrong-type",
        "error",
        "a value or an entry of a list has a type that it must not have, or a size is not positive",
        "stops, or takes the value for another",
        "stops, or takes the value for another",
    ),
    Kind(
        "empty-list",
        "error",
        "there are no images or no categories",
        "stops before training",
        "stops without images; without categories there are no objects",
    ),
    Kind(
        "no-annotations",
        "warning",
        "there are no annotations: COCO's test sets have none, nothing can be learned from them",
        "finds no image to train on",
        "has no objects",
    ),
    # Ids
    Kind(
        "id-not-integer",
        "warning",
        "an id is a string or a fraction; COCO's are integers, and the evaluators keep annotation "
        "ids in arrays of numbers",
        "sorts ids: strings among numbers stop it",
        _FINE,
    ),
    Kind(
        "ids-mixed",
        "error",
        "some ids of a list are texts and others numbers: write all as numbers",
        "stops while it loads the file: it sorts them",
        "goes on; an evaluation compares texts with numbers",
    ),
    Kind(
        "annotation-id-text",
        "warning",
        "an annotation id is a text that is no number: the evaluators keep ids in arrays of "
        "numbers",
        "trains, and stops in the evaluation",
        "trains, and stops in the evaluation",
    ),
    Kind(
        "duplicate-image-id",
        "error",
        "images share an id: the last one gets the annotations of all",
        "learns wrong objects",
        "learns wrong objects",
    ),
    Kind(
        "duplicate-annotation-id",
        "error",
        "annotations share an id",
        _STOPS_LOADING,
        _STOPS_LOADING,
    ),
    Kind(
        "duplicate-category-id",
        "error",
        "categories share an id: the class indices shift",
        "learns the later name, with indices that begin above 0",
        "numbers it by the last of them that its config names",
    ),
    Kind(
        "duplicate-category-name",
        "warning",
        "categories share a name",
        "has two classes of one name",
        "has one class more than names",
    ),
    Kind(
        "duplicate-file-name",
        "warning",
        "images with different ids show the same file",
        "takes the other image's objects for background",
        "takes the other image's objects for background",
    ),
    Kind(
        "annotation-id-zero",
        "warning",
        "an annotation has the id 0, with which pycocotools marks what is not matched: its object "
        "counts as missed in an evaluation",
        _FINE,
        _FINE,
    ),
    Kind(
        "unknown-image",
        "warning",
        "an annotation belongs to an image that the file does not have",
        _LOST + " and logs how many",
        _LOST,
    ),
    Kind(
        "image-id-differs",
        "error",
        'image_id is another spelling of an image\'s id, such as the text "1" for the number '
        "1: write the same value",
        _LOST,
        _LOST,
    ),
    # Categories
    Kind(
        "unknown-category",
        "error",
        "an annotation is of a category that the file does not have",
        _STOPS_LOADING,
        _LOST,
    ),
    Kind(
        "too-many-categories",
        "error",
        "the file has more categories than the model has classes",
        "gets class indices out of range: the loss stops, or is of another class",
        "keeps the classes that its config names",
    ),
    Kind(
        "too-few-categories",
        "warning",
        "the file has fewer categories than the model has classes",
        "trains classes that never occur",
        "trains classes that never occur",
    ),
    Kind(
        "class-not-in-file",
        "error",
        "a class that the config names is no category of the file",
        "does not take names from its config",
        "gives the other classes other indices; if none is in the file, it has no objects",
    ),
    Kind(
        "class-order-differs",
        "error",
        "the classes of a config stand in another order than in the file: write them in the "
        "file's order",
        "does not take names from its config",
        "numbers classes by position in the file: names are exchanged",
    ),
    Kind(
        "categories-not-sorted",
        "warning",
        "the categories do not stand in the order of their ids",
        "numbers classes by id",
        "numbers classes by position in the file, which the names in its config do not change",
    ),
    Kind(
        "classes-differ",
        "error",
        "a class index stands for one class in a file and for another in the next",
        "learns by the one and is scored by the other",
        "learns by the one and is scored by the other",
    ),
    Kind(
        "non-contiguous-categories",
        "note",
        "category ids are not 1, 2, ... n (COCO's own are not)",
        "maps them to 0 ... n-1",
        "maps them to 0 ... n-1",
    ),
    Kind(
        "category-without-instances",
        "note",
        "a category has no annotation",
        "cannot learn it",
        "cannot learn it",
    ),
    Kind(
        "image-without-annotations",
        "note",
        "an image has no annotation",
        "leaves it out, unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False",
        "leaves it out if filter_cfg.filter_empty_gt is True",
    ),
    # Boxes: x, y, width, height
    Kind("box-malformed", "error", "bbox is not a list of 4 numbers", "stops", _STOPS_LOADING),
    Kind(
        "box-not-finite",
        "error",
        "bbox has a NaN or an infinity",
        _LOST + " for NaN; an infinite side reaches to the image's edge",
        _LOST + " for NaN; an infinite side reaches to the image's edge",
    ),
    Kind(
        "box-negative-size",
        "error",
        "bbox has a negative width or height: begin at the corner with the smaller x and y",
        "learns the box on the other side of the corner",
        _LOST,
    ),
    Kind("box-zero-area", "warning", "bbox has width or height 0", _LOST, _LOST),
    Kind(
        "box-below-one-pixel",
        "note",
        "bbox is narrower or lower than one pixel",
        "learns it",
        _LOST,
    ),
    Kind("box-outside-image", "warning", "bbox has nothing in common with the image", _LOST, _LOST),
    Kind(
        "box-partly-outside",
        "warning",
        "bbox reaches more than 1 pixel over the image's edge",
        "cuts it off there",
        "cuts it off there",
    ),
    Kind(
        "box-differs-from-mask",
        "warning",
        "a side of bbox is more than 2 pixels and 5 % of its length away from the mask's",
        "learns both; mask targets are cut at the box",
        "learns both; mask targets are cut at the box",
    ),
    Kind(
        "not-in-pixels",
        "error",
        "most coordinates lie within 1 pixel of the image's corner: are they fractions? "
        "COCO's unit is pixels, multiply by width and height",
        "learns from the corner's pixel",
        "leaves the objects out, and trains on background",
    ),
    Kind(
        "box-in-another-format",
        "warning",
        "nearly all boxes make sense in another format, and not in COCO's, x, y, width, "
        "height in pixels (borders, masks and areas are compared)",
        "learns wrong boxes",
        "learns wrong boxes",
    ),
    Kind(
        "boxes-in-corner",
        "warning",
        "all boxes lie in the top left part of their images: are they in percent, or of "
        "smaller images?",
        "learns them as they are",
        "learns them as they are",
    ),
    Kind(
        "many-objects",
        "note",
        "an image has more objects than an evaluation counts detections of an image, which "
        "COCO's evaluators set to 100: its AP cannot reach 100",
        "finds DETECTIONS_PER_IMAGE; the evaluator counts as many",
        "finds test_cfg's max_per_img; the evaluator counts proposal_nums",
    ),
    # Area and flags
    Kind(
        "area-missing",
        "error",
        "area is missing or no finite number; an evaluation needs it",
        "trains, and stops in the evaluation if it is missing",
        "stops while it loads the file, except for NaN",
    ),
    Kind("area-not-positive", "warning", "area is 0 or negative", _FINE, _LOST),
    Kind(
        "iscrowd-missing",
        "warning",
        'iscrowd is missing: the evaluators need it; write "iscrowd": 0',
        "trains, and stops in the evaluation",
        "trains, and stops in the evaluation",
    ),
    Kind(
        "iscrowd-invalid",
        "warning",
        "iscrowd is neither 0 nor 1",
        _LOST,
        "takes what is true in Python for a crowd, the rest for an object",
    ),
    Kind(
        "iscrowd-with-polygon",
        "warning",
        "a crowd has polygons, COCO's have run lengths: is it an ordinary object?",
        _LOST,
        "ignores it, as every crowd",
    ),
    Kind("ignore-set", "error", "an annotation has ignore set", _STOPS_LOADING, _LOST),
    # Masks; not looked at for a detector of boxes
    Kind(
        "no-segmentations",
        "note",
        "no annotation has a segmentation: good for boxes only",
        "cannot train masks",
        "cannot train masks",
    ),
    Kind(
        "segmentation-missing",
        "error",
        "an annotation has no segmentation, others have",
        _STOPS_LATER + ", or leaves out all masks of the image",
        _STOPS_LATER + ", for crowds too",
    ),
    Kind(
        "segmentation-malformed",
        "error",
        "segmentation is neither a list of lists of numbers nor run lengths with size and counts",
        "stops; leaves out what is a text",
        "stops; ignores run lengths without size or counts",
    ),
    Kind(
        "polygon-too-short",
        "warning",
        "a polygon has fewer than 6 numbers or an odd count",
        "leaves out the polygon; if there is no other, the object",
        "leaves out the polygon; if there is no other, ignores the object",
    ),
    Kind(
        "polygon-not-finite",
        "error",
        "a polygon has a NaN, an infinity or a coordinate beyond a million: pycocotools ends the "
        "process when it draws it, with no Python error",
        "the process dies with MASK_FORMAT bitmask",
        "the process dies",
    ),
    Kind(
        "polygon-outside",
        "warning",
        "a polygon reaches more than 1 pixel over the image's edge",
        "cuts it off there",
        "cuts it off there",
    ),
    Kind(
        "rle-instance",
        "note",
        "an ordinary object has run lengths, not polygons",
        "needs INPUT.MASK_FORMAT bitmask; with its default, polygon, it stops",
        _FINE,
    ),
    Kind(
        "rle-wrong-size",
        "error",
        "run lengths have another size than the image; it is [height, width]",
        _STOPS_LATER + ", except for crowds",
        _STOPS_LATER + ", for crowds too",
    ),
    Kind(
        "rle-unreadable",
        "error",
        "run lengths are damaged, or do not sum to the image's pixels",
        "stops if there are too many pixels; the missing ones are whatever was in memory",
        "stops if there are too many pixels; the missing ones are whatever was in memory",
    ),
    Kind("rle-empty", "warning", "run lengths of no pixel", _LOST, "learns the box, no mask"),
    # Keypoints; not looked at for a detector without
    Kind(
        "keypoints-malformed",
        "error",
        "keypoints are no list of x, y, visibility for each keypoint of the category, or of "
        "the detector",
        "stops when the image's turn comes",
        "does not read keypoints",
    ),
    Kind(
        "keypoints-missing",
        "warning",
        "an annotation has no keypoints, its category or the detector has some: write 0, 0, 0"
        " for each",
        "stops when the image's turn comes, or in the evaluation",
        "does not read keypoints",
    ),
    Kind(
        "keypoint-names-missing",
        "warning",
        'annotations have keypoints, their category has no names: give it "keypoints": [...]',
        "stops before training, unless the names are registered",
        "does not read keypoints",
    ),
    Kind(
        "num-keypoints-missing",
        "warning",
        "num_keypoints is missing: the evaluators need it for the AP of keypoints",
        "trains, and stops in the evaluation",
        "does not read keypoints",
    ),
    Kind(
        "num-keypoints-differs",
        "warning",
        "num_keypoints is not the number of keypoints with a visibility above 0",
        "leaves the object out of the AP of keypoints if it says 0",
        "does not read keypoints",
    ),
    Kind(
        "keypoint-visibility",
        "warning",
        "a visibility is not 0 (not labelled), 1 (hidden) or 2 (visible)",
        "takes what is above 0 for labelled",
        "does not read keypoints",
    ),
    Kind(
        "keypoints-outside-image",
        "warning",
        "a labelled keypoint is more than 1 pixel outside the image",
        "does not learn it if it is outside the box",
        "does not read keypoints",
    ),
    # What all of these leave
    Kind(
        "no-objects-left",
        "error",
        "nothing is left to learn from: a framework leaves out every object, most for the cause "
        "that is shown",
        "finds no image to train on",
        "trains on background to the end",
    ),
    Kind(
        "most-objects-lost",
        "warning",
        "a framework keeps less than half of the objects, or of those of a class",
        "learns from the rest",
        "learns from the rest",
    ),
    # Image files
    Kind("missing-image", "error", "the image file is not there", _STOPS_LATER, _STOPS_LATER),
    Kind(
        "unreadable-image",
        "error",
        "the file cannot be opened or decoded as an image",
        _STOPS_LATER,
        _STOPS_LATER,
    ),
    Kind(
        "truncated-image",
        "error",
        "the image file ends too early",
        _STOPS_LATER,
        "stops when the image's turn comes (seen with OpenCV 5)",
    ),
    Kind(
        "image-size-differs",
        "error",
        "the image has another size than the annotation file says",
        _STOPS_LATER,
        "learns boxes of another scale",
    ),
    Kind(
        "exif-rotated",
        "error",
        "Exif turns the image by 90 degrees, the annotation file has the size before that: if "
        "the boxes are of the image as stored, remove the tag from the file",
        "turns the image, and stops since the size differs",
        "turns the image and not the boxes: learns wrong ones",
    ),
    Kind(
        "exif-orientation",
        "warning",
        "Exif turns or mirrors the image, and the size cannot tell whether the boxes are turned",
        "turns the image and not the boxes",
        "turns the image and not the boxes",
    ),
    Kind(
        "orientation-differs",
        "error",
        "the orientation stands where one framework looks and the other does not (XMP, TIFF, "
        "AVIF), so that they see different pictures: save the image upright, without an "
        "orientation",
        "turns all but TIFF, where only 6 and 8 change: upside down",
        "turns by Exif in JPEG, PNG, WebP and TIFF, not by XMP nor AVIF (OpenCV)",
    ),
    Kind(
        "image-mode",
        "warning",
        "pixels are not 8-bit grey or RGB (16-bit grey, 32-bit, CMYK, LAB)",
        "clips 16-bit grey, which turns nearly white; converts others",
        "scales 16-bit grey to 8; converts CMYK and LAB by other rules; stops at 32-bit",
    ),
    Kind(
        "image-alpha",
        "note",
        "the image has transparency",
        "drops it: hidden colours show",
        "drops it: hidden colours show",
    ),
    Kind(
        "image-format",
        "warning",
        "a file format that OpenCV may not read (Pillow does)",
        "reads it",
        "stops, unless imdecode_backend is pillow",
    ),
    # Class folders
    Kind("class-empty", "error", "a class folder has no image: torchvision refuses it", "-", "-"),
    Kind(
        "class-sets-differ",
        "error",
        "train and val have different class folders, so that labels differ; pretraining refuses it",
        "-",
        "-",
    ),
    Kind("file-ignored", "note", "a file that torchvision takes for no image", "-", "-"),
]
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}


@dataclass
class Finding:
    """All occurrences of one kind: how many, and the first ones."""

    kind: Kind
    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**self.kind._asdict(), "count": self.count, "examples": self.examples}


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        source: the annotation file, or the root of the class folders.
        images: the images' folder; None if no file was looked at.
        counts: how much there is: images, annotations, categories (or classes).
        findings: errors first, then by the order of `KINDS`.
        classes: names in the order of the category ids, as Detectron2 numbers them.
        file_order: names in the order in which the file lists them.
        objects: how many annotations each of these has.
    """

    source: str
    images: str | None
    counts: dict[str, int]
    findings: tuple[Finding, ...]
    classes: tuple[str, ...] = ()
    file_order: tuple[str, ...] = ()
    objects: dict[str, int] = field(default_factory=dict)

    def at_least(self, severity: str) -> list[Finding]:
        """The findings of a severity or a worse one."""
        worst = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return [finding for finding in self.findings if finding.kind.severity in worst]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "source": self.source,
            "images": self.images,
            "counts": self.counts,
            "findings": [finding.to_dict() for finding in self.findings],
        }


class Findings:
    """Collects findings, in addition to those ``found`` before."""

    def __init__(self, found: Iterable[Finding] = ()) -> None:
        self._found = {finding.kind.name: finding for finding in found}

    def add(self, kind: str, **example: Any) -> None:
        """Counts one occurrence; ``example`` is kept if it is among the first."""
        self.add_all(kind, (example,), lambda found: found)

    def add_all(
        self, kind: str, places: Iterable[Any], example: Callable[[Any], dict[str, Any]]
    ) -> None:
        """Counts an occurrence at each place; ``example`` describes the first ones."""
        for place in places:
            finding = self._found.setdefault(kind, Finding(KINDS[kind]))
            finding.count += 1
            if len(finding.examples) < MAX_EXAMPLES:
                finding.examples.append(
                    {key: plain(value) for key, value in example(place).items()}
                )

    def __contains__(self, kind: str) -> bool:
        return kind in self._found

    def sorted(self) -> tuple[Finding, ...]:
        order = list(KINDS)
        return tuple(
            sorted(
                self._found.values(),
                key=lambda f: (SEVERITIES.index(f.kind.severity), order.index(f.kind.name)),
            )
        )


def plain(value: Any) -> Any:
    """A value from a file as a short JSON value that can be printed: a broken one may be long,
    deep, NaN, or a text of control characters or half a surrogate pair."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 3)
    if isinstance(value, str) and len(value) <= 400 and value.isprintable():
        return value
    if isinstance(value, list) and len(value) <= 4:
        return [plain(item) if not isinstance(item, list) else reprlib.repr(item) for item in value]
    return reprlib.repr(value)


def describe_example(example: dict[str, Any]) -> str:
    """``image_id 3, file_name "7.jpg", bbox [1, 2, 0, 4]``: what is a text has quotation marks."""
    return ", ".join(
        f"{key} {json.dumps(value, ensure_ascii=False)}"
        for key, value in example.items()
        if value is not None
    )


def kinds_table() -> str:
    """The table of docs/check_data.md."""
    rows = [
        "| kind | severity | what is wrong | Detectron2 | MMDetection |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| `{kind.name}` | {kind.severity} | {kind.meaning} | {kind.detectron2} "
        f"| {kind.mmdetection} |"
        for kind in KINDS.values()
    ]
    return "\n".join(rows) + "\n"
