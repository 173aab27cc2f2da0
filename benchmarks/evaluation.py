"""Time of COCO's metrics as a ratio to pycocotools'; writes evaluation.json and evaluation.md."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gradaug_det.evaluation.coco import COCO_METRICS, IOU_TYPES, evaluate_coco
from gradaug_det.utils.environment import describe_environment, machine_line
from gradaug_det.utils.files import atomic_path

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]

HEIGHT, WIDTH = 480, 640
CATEGORIES = 80
TASKS = {"boxes": ("bbox",), "masks": ("segm",), "both": IOU_TYPES}
OBJECTS, DETECTIONS = 7, 20
"""An image, on average. COCO val 2017 has 7.3 objects an image; a detector that keeps scores above
0.05 finds about 20."""


def synthetic_results(images: int, seed: int = 0) -> tuple[dict, list[dict]]:
    """Ground truth and detections with the counts of COCO val 2017: boxes, masks, crowds.

    Args:
        images: how many of 480 x 640 pixels.
        seed: the same seed gives the same.

    Returns:
        COCO's annotation dict, and COCO result dicts with boxes and run-length encoded masks.
        Two thirds of the objects are found, with some error; the other detections are wrong.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [
            {"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i:012}.jpg"}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": c, "name": f"category {c}"} for c in range(1, CATEGORIES + 1)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        objects = [_box(rng) for _ in range(rng.poisson(OBJECTS))]
        categories = rng.integers(1, CATEGORIES + 1, len(objects)).tolist()
        for box, category in zip(objects, categories, strict=True):
            polygon = _polygon(box)
            crowd = bool(rng.random() < 0.01)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [round(v, 2) for v in box],
                    "segmentation": _rle(polygon) if crowd else [polygon],
                    "area": round(_area(polygon), 2),
                    "iscrowd": int(crowd),
                }
            )
        found = [
            (_jitter(box, rng), category)
            for box, category in zip(objects, categories, strict=True)
            if rng.random() < 2 / 3
        ]
        wrong = max(0, rng.poisson(DETECTIONS) - len(found))
        # Wrong detections are mostly of categories that the image has, as a detector's are.
        pool = categories or [1]
        found += [(_box(rng), int(rng.choice(pool))) for _ in range(wrong)]
        results += [
            {
                "image_id": image["id"],
                "category_id": category,
                "bbox": [round(v, 2) for v in box],
                "segmentation": _rle(_polygon(box)),
                "score": round(float(rng.uniform(0.05, 1)), 5),
            }
            for box, category in found
        ]
    return truth, results


def measure_evaluation(folder: Path, images: int, rounds: int, seed: int = 0) -> dict[str, Any]:
    """Times both evaluators in turns, from the files to the numbers, and compares the numbers.

    Args:
        folder: for the two files.
        images, seed: see :func:`synthetic_results`.
        rounds: of one evaluation each; ratios are taken within a round.

    Returns:
        ``images``, ``objects``, ``detections``; under ``tasks`` for boxes, masks and both together
        ``ratio`` (median over rounds of our processor time over pycocotools'), ``wall_ratio``,
        ``largest_difference`` in per cent of any of the twelve numbers; ``environment``.
    """
    truth, results = synthetic_results(images, seed)
    truth_file, results_file = folder / "instances.json", folder / "results.json"
    truth_file.write_text(json.dumps(truth))
    results_file.write_text(json.dumps(results))
    content: dict[str, Any] = {
        "images": images,
        "objects": len(truth["annotations"]),
        "detections": len(results),
        "rounds": rounds,
        "tasks": {},
        "environment": describe_environment(),
    }
    for name, iou_types in TASKS.items():
        ratios, wall_ratios, differences = [], [], []
        for number in range(rounds):
            ours, our_times = _time_run(lambda t=iou_types: _ours(truth_file, results_file, t))
            theirs, their_times = _time_run(
                lambda t=iou_types: _theirs(truth_file, results_file, t)
            )
            ratios.append(our_times[0] / their_times[0])
            wall_ratios.append(our_times[1] / their_times[1])
            differences.append(float(np.abs(ours - theirs).max()))
            logger.info("%s, round %d: ratio %.3f", name, number + 1, ratios[-1])
        content["tasks"][name] = {
            "ratio": statistics.median(ratios),
            "wall_ratio": statistics.median(wall_ratios),
            "largest_difference": max(differences),
        }
    return content


def write_evaluation_speed(content: dict[str, Any], out: Path, command: str) -> Path:
    """Writes ``evaluation.json`` and ``evaluation.md`` into a folder; returns the second."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "evaluation.json") as temporary:
        temporary.write_text(json.dumps({"command": command, **content}, indent=1) + "\n")
    rows = [
        f"| {t} | {m['ratio']:.2f} | {m['wall_ratio']:.2f} | {m['largest_difference']:.1e} |"
        for t, m in content["tasks"].items()
    ]
    text = f"""# COCO's metrics: time as a ratio to pycocotools'

`evaluate_coco` (faster-coco-eval, predictions checked first) and pycocotools as its documentation
shows it, from the files to the twelve numbers: {content["images"]} images, {content["objects"]} \
objects, {content["detections"]}
detections (synthetic, with the counts of COCO val 2017). Medians over {content["rounds"]} rounds \
in turns.
`{command}` on {machine_line(content["environment"])}.

| | processor time | wall time | largest difference of a number, % |
|:--|--:|--:|--:|
"""
    with atomic_path(out / "evaluation.md") as temporary:
        temporary.write_text(text + "\n".join(rows) + "\n")
    return out / "evaluation.md"


def _ours(truth: Path, results: Path, iou_types: tuple[str, ...]) -> np.ndarray:
    metrics = evaluate_coco(truth, results, iou_types)
    return np.array([[metrics[t][name] for name in COCO_METRICS] for t in iou_types])


def _theirs(truth: Path, results: Path, iou_types: tuple[str, ...]) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    stats = []
    with contextlib.redirect_stdout(io.StringIO()):
        api, content = COCO(str(truth)), json.loads(results.read_text())
        for iou_type in iou_types:
            # Results that have a box are small or large by it, also where masks are scored.
            field = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
            kept = ("image_id", "category_id", "score", field)
            found = api.loadRes([{key: result[key] for key in kept} for result in content])
            evaluator = COCOeval(api, found, iou_type)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            stats.append(100 * evaluator.stats)
    return np.array(stats)


def _time_run(run: Any) -> tuple[np.ndarray, tuple[float, float]]:
    cpu, wall = time.process_time(), time.perf_counter()
    value = run()
    return value, (time.process_time() - cpu, time.perf_counter() - wall)


def _box(rng: np.random.Generator) -> list[float]:
    """XYWH in pixels; sides from 8 pixels to half the image, small ones more often."""
    width, height = np.exp(rng.uniform(np.log(8), np.log([WIDTH / 2, HEIGHT / 2])))
    x, y = rng.uniform(0, [WIDTH - width, HEIGHT - height])
    return [float(x), float(y), float(width), float(height)]


def _jitter(box: list[float], rng: np.random.Generator) -> list[float]:
    x, y, width, height = box
    dx, dy, dw, dh = rng.normal(0, 0.08, 4)
    width, height = width * np.exp(dw), height * np.exp(dh)
    x, y = max(0.0, x + dx * width), max(0.0, y + dy * height)
    return [float(x), float(y), float(min(width, WIDTH - x)), float(min(height, HEIGHT - y))]


def _polygon(box: list[float], points: int = 24) -> list[float]:
    x, y, width, height = box
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    xs = x + width / 2 * (1 + np.cos(angles))
    ys = y + height / 2 * (1 + np.sin(angles))
    return np.stack([xs, ys], axis=1).round(2).ravel().tolist()


def _area(polygon: list[float]) -> float:
    x, y = np.array(polygon).reshape(-1, 2).T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _rle(polygon: list[float]) -> dict[str, Any]:
    import pycocotools.mask

    (rle,) = pycocotools.mask.frPyObjects([polygon], HEIGHT, WIDTH)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="COCO val 2017 has 5000 (5000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    command = f"python -m benchmarks.evaluation --images {args.images} --rounds {args.rounds}"
    with tempfile.TemporaryDirectory() as folder:
        content = measure_evaluation(Path(folder), args.images, args.rounds)
    print(write_evaluation_speed(content, args.out, command).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
