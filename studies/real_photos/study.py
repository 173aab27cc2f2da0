"""The study's cells, as cells.yaml lists them, and the folds of their images."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import yaml

from gradaug_det.core.options import ITERATION_KEYS

FOLDER = Path(__file__).parent
TASKS = {"bbox": "box", "segm": "mask"}
_OWN = {"optimizer": "SGD", "images": 1, "match": 0}  # keys of an arm that are not Detectron2's


def read_cells(file: Path = FOLDER / "cells.yaml") -> dict[str, dict[str, Any]]:
    """Returns all that each training depends on besides its images, by its name."""
    study = yaml.safe_load(file.read_text("utf-8"))
    common = {key: study[key] for key in ("base", "folds", "widths", "divisor")}
    cells = {}
    for group in study["cells"]:
        # Seed by seed: what is there when a run is stopped is balanced.
        for schedule, seed, arm, of_set, fold in itertools.product(
            *(group.get(key, [1]) for key in ("schedules", "seeds", "arms", "sets")),
            group.get("folds", range(study["folds"])),
        ):
            options = {**study["all"], **study["sets"][of_set], **study["arms"][arm]}
            steps = round(options["steps"] * schedule)
            own = {"SOLVER.MAX_ITER": steps, "SOLVER.STEPS": [steps * 3 // 4]}
            own |= {"SEED": seed, "GRADAUG.SEED": seed}
            counted = [f"GRADAUG.{key.upper()}" for key in ITERATION_KEYS]
            own |= {key: round(options[key] * schedule) for key in counted if key in options}
            cells[f"{of_set}-{arm}-{schedule:g}x-seed{seed}-fold{fold}"] = {
                **{"set": of_set, "arm": arm, "schedule": schedule, "seed": seed, "fold": fold},
                **{key: options.get(key, default) for key, default in _OWN.items()},
                # Not in older results, whose settings have to be the same.
                **{key: options[key] for key in ("ema", "views") if key in options},
                **common,
                "overrides": {k: v for k, v in options.items() if k.isupper()} | own,
            }
    return cells


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Returns what each training measured, with its settings."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]


def split_fold(source: Path, cell: dict[str, Any]) -> tuple[dict, dict]:
    """Returns the COCO contents that a cell is trained on and tested on: folds of the set's
    train.json and dev.json together, which are the same for all cells."""
    parts = [json.loads((source / f"{split}.json").read_text()) for split in ("train", "dev")]
    ids = sorted(image["id"] for part in parts for image in part["images"])
    random.Random(0).shuffle(ids)
    tested = set(ids[cell["fold"] :: cell["folds"]])
    trained = [one for one in ids if one not in tested]
    return tuple(
        {
            "images": [one for part in parts for one in part["images"] if one["id"] in chosen],
            "annotations": [
                one for part in parts for one in part["annotations"] if one["image_id"] in chosen
            ],
            "categories": parts[0]["categories"],
        }
        for chosen in (set(trained[: round(cell["images"] * len(trained))]), tested)
    )
