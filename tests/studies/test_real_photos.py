"""The study of real photographs: folds, trainings that go on, archives, one table."""

import copy
import io
import json
import random
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from gradaug_det.check_data.check import check_before_training
from gradaug_det.d2.config import gradaug_options, load_config
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.evaluation.coco_data import CocoData
from studies.real_photos import __main__ as program
from studies.real_photos import table, train
from studies.real_photos.study import FOLDER, read_cells, read_results, split_fold
from studies.real_photos.table import make_rows, write_table
from studies.real_photos.train import ROOT, CellTrainer, prepare_cell, train_cell
from tests.d2.dataset import annotation, write_coco

CELLS = read_cells()
NAME = "pennfudan-adamw-3e-4-0.05-1x-seed1-fold0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A set of six images, as the study reads one."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    objects = [[annotation(8 * i, 10, 40, 50)] for i in range(6)]
    file, _ = write_coco(folder, objects, classes=1)
    content = json.loads(file.read_text())
    for split, ids in (("train", {1, 2, 3, 4}), ("dev", {5, 6})):
        images = [one for one in content["images"] if one["id"] in ids]
        kept = [one for one in content["annotations"] if one["image_id"] in ids]
        part = {**content, "images": images, "annotations": kept}
        (folder / f"{split}.json").write_text(json.dumps(part))
    return folder.parent


def tiny_cell(**changes):
    sizes = {
        f"INPUT.{size}_SIZE_{part}": 64 for size in ("MIN", "MAX") for part in ("TRAIN", "TEST")
    }
    cell = CELLS[NAME]
    overrides = {**cell["overrides"], **sizes, "INPUT.MIN_SIZE_TRAIN": [48, 64]}
    overrides |= {"SOLVER.MAX_ITER": 3, "SOLVER.STEPS": [2], "SOLVER.CHECKPOINT_PERIOD": 1}
    overrides |= {"TEST.DETECTIONS_PER_IMAGE": 10, "MODEL.RPN.POST_NMS_TOPK_TEST": 20}
    small = {"set": "tiny", "folds": 2, "widths": [1, 0.5], "match": 1}
    return {**cell, **small, "overrides": overrides, **changes}


def test_cells_have_their_settings():
    cell = CELLS["pennfudan-sgd-0.02-1x-seed1-fold0"]
    assert cell["optimizer"] == "SGD" and cell["match"] == 40 and cell["images"] == 1
    assert cell["overrides"]["SOLVER.BASE_LR"] == 0.02
    assert cell["overrides"]["SOLVER.CLIP_GRADIENTS.CLIP_TYPE"] == "norm"
    long = CELLS["pennfudan-any-plain-2x-seed1-fold0"]["overrides"]
    assert long["SOLVER.MAX_ITER"] == 3600 and long["SOLVER.STEPS"] == [2700]
    third = CELLS["pennfudan-any-plain-1x-seed3-fold1"]["overrides"]
    assert third["SEED"] == third["GRADAUG.SEED"] == 3
    late = [CELLS[f"pennfudan-any-late-{s}x-seed1-fold0"]["overrides"] for s in (1, 2)]
    assert [one["GRADAUG.START"] for one in late] == [900, 1800]
    clips = {
        c["optimizer"]: c["overrides"]["SOLVER.CLIP_GRADIENTS.ENABLED"] for c in CELLS.values()
    }
    assert clips == {"AdamW": False, "SGD": True}
    arms = yaml.safe_load((FOLDER / "cells.yaml").read_text())["arms"]
    for name, arm in arms.items():
        keys = [str(x) for pair in arm.items() if pair[0].isupper() for x in pair]
        options = gradaug_options(load_config(ROOT / cell["base"], keys))
        assert options.num_subnets == arm.get("GRADAUG.NUM_SUBNETS", 3), name


def test_folds_are_disjoint_and_complete(data):
    seen = []
    for fold in range(3):
        train, test = split_fold(data / "tiny", tiny_cell(fold=fold, folds=3))
        ids = [{image["id"] for image in part["images"]} for part in (train, test)]
        assert not ids[0] & ids[1] and ids[0] | ids[1] == {1, 2, 3, 4, 5, 6}
        assert [{a["image_id"] for a in p["annotations"]} for p in (train, test)] == ids
        seen += ids[1]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    half, same = split_fold(data / "tiny", tiny_cell(fold=2, folds=3, images=0.5))
    assert len(half["images"]) == 2 and same == test
    assert {i["id"] for i in half["images"]} < {i["id"] for i in train["images"]}


@pytest.mark.integration
def test_an_added_pass_sees_the_images_augmented_anew(data, tmp_path, monkeypatch):
    seen = []

    def spy(detector, batch, transform):
        seen.append((batch, second_view(detector, batch, transform)))
        return seen[-1][1]

    second_view = train.second_view
    monkeypatch.setattr(GradAugDetector, "transform", GradAugDetector.transform)  # put back later
    monkeypatch.setattr(train, "second_view", spy)
    cell = tiny_cell(views="own", match=0)
    cell["overrides"] |= (
        CELLS["bccd-tenth-views-1x-seed1-fold0"]["overrides"] | tiny_cell()["overrides"]
    )
    train_cell("views", cell, data, tmp_path, tmp_path / "results")
    assert len(seen) == 3
    for batch, views in seen:
        for item, view in zip(batch, views, strict=True):
            assert view["file_name"] == item["file_name"]
            assert torch.equal(view["image"], item["view"]["image"])
            assert len(view["instances"]) == len(item["instances"])
    views = [view for _, batch in seen for view in batch]
    images = [item for batch, _ in seen for item in batch]
    mirrored = [
        torch.equal(item["image"].flip(-1), view["image"])
        for item, view in zip(images, views, strict=True)
    ]
    assert True in mirrored and False in mirrored


@pytest.mark.integration
def test_a_stopped_cell_goes_on_and_has_the_same_result(data, tmp_path):
    whole = train_cell("whole", tiny_cell(ema=0.5), data, tmp_path, tmp_path / "results")
    for steps, kept in ((2, "model_0000001.pth"), (3, "model_0000002.pth")):  # killed twice
        cfg = prepare_cell("stopped", tiny_cell(ema=0.5), data / "tiny", tmp_path)
        trainer = CellTrainer(cfg, ema=0.5)
        trainer.resume_or_load(resume=True)
        trainer.max_iter = steps
        trainer.train()
        left = {path.name for path in Path(cfg.OUTPUT_DIR).glob("model_*.pth")}
        assert left >= {"model_final.pth", kept} and "model_0000000.pth" not in left
    assert type(trainer.optimizer).__mro__[0] is torch.optim.AdamW
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.05}
    stopped = train_cell("stopped", tiny_cell(ema=0.5), data, tmp_path, tmp_path / "results")
    folders = [next(tmp_path.glob(f"{name}-*")) for name in ("whole", "stopped")]
    assert not [*folders[0].glob("model_*.pth"), *folders[1].glob("model_*.pth")]
    weights = [torch.load(folder / "model.pth")["model"] for folder in folders]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    one, other = (json.loads(path.read_text()) for path in (whole, stopped))
    assert one["ap"] == other["ap"]
    cuts = [f"{cut}{how}" for cut in ("backbone", "detector") for how in ("", ", matched")]
    assert [*one["ap"]] == cuts
    assert [*one["ap"]["detector"]] == ["box 1", "mask 1", "box 0.5", "mask 0.5"]
    assert [*one["ap"]["detector, matched"]] == ["box 0.5", "mask 0.5"]
    assert one["steps"] == other["steps"] == 3 and other["processor_seconds"] > 0
    # Nothing of other settings is resumed.
    cfg = prepare_cell("stopped", tiny_cell(optimizer="SGD"), data / "tiny", tmp_path)
    assert cfg.SOLVER.OPTIMIZER == "SGD" and cfg.OUTPUT_DIR not in map(str, folders)


def test_cells_that_are_there_are_skipped(tmp_path, capsys):
    arguments = ["train", "--data", "none", "--list", "--results", str(tmp_path), "--only", NAME]
    assert program.main(arguments) == 0 and NAME in capsys.readouterr().out
    record = {"settings": copy.deepcopy(CELLS[NAME])}
    (tmp_path / f"{NAME}.json").write_text(json.dumps(record))
    assert program.main(arguments) == 0
    assert capsys.readouterr().out == "1 of 1 cells are done\n\n"
    record["settings"]["overrides"]["SOLVER.BASE_LR"] = 1.0
    (tmp_path / f"{NAME}.json").write_text(json.dumps(record))
    assert program.main(arguments) == 2 and "rename the arm" in capsys.readouterr().err


def test_the_stored_table_is_that_of_the_stored_results(tmp_path):
    write_table(read_results(FOLDER / "results"), tmp_path)
    for name in ("table.md", "table.json"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
    stored = read_results(FOLDER / "results")
    assert all(CELLS[file.stem] == of["settings"] for file, of in zip(
        sorted((FOLDER / "results").glob("*.json")), stored, strict=True))  # fmt: skip


def result(arm, seed, fold, ap, seconds=2.0):
    settings = {**CELLS[NAME], "widths": [1, 0.5]}
    settings |= {"arm": arm, "seed": seed, "fold": fold}
    aps = {"box 1": ap, "mask 1": 9.0, "box 0.5": ap / 2, "mask 0.5": 9.0}
    cost = {"steps": 10, "processor_seconds": 10 * seconds, "peak_mib": 900.0}
    matched = {"backbone, matched": {"box 0.5": 7.0}} if arm == "any-plain" else {}
    return {"settings": settings, "ap": {"backbone": aps, **matched}, **cost}


@pytest.mark.parametrize("page", ["docs/any_width.md", "RESULTS.md"])
def test_pages_have_the_tables_numbers(page):
    rows = {
        tuple(row[key] for key in ("set", "arm", "cut", "folds", "steps")): row
        for row in json.loads((FOLDER / "table.json").read_text())
    }
    content = (ROOT / page).read_text("utf-8")
    told = content.partition("| set | training |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(told) > 5
    for line in told:
        name, text, arm, *own = (cell.strip() for cell in line[1:-1].split("|"))
        cut = "backbone, matched" if "matched" in text else "backbone"
        steps, folds, seeds, *cells = own
        row = rows[name.replace("-", "").lower(), arm.strip("`"), cut, folds, int(steps)]
        assert row["seeds"] == int(seeds), arm
        for width, cell in zip(("1", "0.9", "0.75", "0.5"), cells, strict=True):
            wanted = f"{np.mean(row['values'].get(f'box {width}', [np.nan])):.1f}"
            assert cell in ("", wanted), (arm, width)


def test_the_table_has_means_over_folds_and_spreads_over_seeds(tmp_path):
    plain, other, tuned = "any-plain", "decay-0.1", "double-rate"
    results = [
        *(result(plain, s, f, 10 * s + 3 * f) for s in (1, 2, 3) for f in (0, 1, 2)),
        *(result(other, s, f, 10 * s + 3 * f + 5, 3.0) for s in (1, 2, 3) for f in (0, 1, 2)),
        result(other, 4, 0, 99.0),  # its seed has not all folds
        result(tuned, 1, 0, 12.0),
    ]
    random.Random(1).shuffle(results)
    write_table(results, tmp_path)
    lines = [line.strip("| \n").split(" | ") for line in (tmp_path / "table.md").open()]
    rows = {(row[1], row[2], row[4]): row for row in lines[2:]}
    assert lines[0][6:10] == ["box 1", "box 0.5", "mask 1", "mask 0.5"]
    assert rows[plain, "backbone", "all"][5:8] == ["3", "23.0 ± 10.0", "11.5 ± 5.0"]
    assert rows[plain, "backbone", "0"][6] == "20.0 ± 10.0"
    assert rows[plain, "backbone, matched", "all"][7] == "7.0 ± 0.0"
    # Welch, 4 degrees of freedom: 5 +- 2.776 * sqrt(200 / 3)
    assert rows[other, "backbone", "all"][10:13] == [
        "+5.0 [\N{MINUS SIGN}17.7, +27.7]",
        "0.0 [0.0, 0.0]",
        "1.50",
    ]
    assert (other, "backbone", "0") not in rows
    assert rows[tuned, "backbone", "0"][5:7] == ["1", "12.0"]
    assert rows[tuned, "backbone", "0"][10] == "\N{MINUS SIGN}8.0"
    assert len(make_rows(results)) == len(rows) == 6


def encode(image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_the_figures_have_a_curve_of_each_kind(monkeypatch):
    drawn = []
    monkeypatch.setattr(table, "ap_plot", lambda curves, *_, **__: drawn.extend(curves) or "<svg/>")
    widths = (1, 0.9, 0.75, 0.5)
    values = {f"box {width:g}": [width] * 3 for width in widths}
    common = {"cut": "backbone", "folds": "all", "schedule": 1, "values": values}
    rows = [{"arm": arm, **common} for arm in ("any-late", "any-plain", "any-alone-0.5")]
    rows += [{**rows[0], "folds": "0", "values": {}}, {**rows[0], "schedule": 2, "values": {}}]
    assert table.draw_widths(rows) == "<svg/>"
    found = {curve.label: [(p.x, p.values) for p in curve.points] for curve in drawn}
    assert found["any width"] == [(w, [w] * 3) for w in widths]
    assert found["plain, matched"] == []
    assert found["trained at that width alone"] == [(1, [1] * 3), (0.5, [0.5] * 3)]

    drawn.clear()
    costs = {1: {"steps": 100, "seconds": 0.5}, 2: {"steps": 200, "seconds": 0.75}}
    rows += [{**rows[1], "folds": "0", "schedule": s, **cost} for s, cost in costs.items()]
    curves = table.COMPUTE_CURVES["compute"]
    assert table.draw_compute(rows[5:], curves) == ""  # of plain training alone
    rows += [{**rows[0], "folds": "0", **costs[1]}]
    assert table.draw_compute(rows[5:], curves) == "<svg/>"
    found = {curve.label: [(p.x, p.values) for p in curve.points] for curve in drawn}
    assert found["plain"] == [(1, [1] * 3), (3, [1] * 3)] and found["GradAug"] == []
    assert found["any width"] == [(1, [1] * 3)]
    monkeypatch.undo()
    assert table.draw_widths([]) == "" and table.draw_widths(rows).startswith("<svg")
    assert table.draw_compute([], curves) == ""
    assert table.draw_compute(rows[5:], curves).startswith("<svg")


def test_sets_are_made_of_the_published_archives(tmp_path):
    """Tiny archives of the same form."""
    labels = np.zeros((300, 960), np.uint8)
    labels[20:120, 100:200], labels[10:50, 400:600] = 1, 2
    with ZipFile(tmp_path / "people.zip", "w") as files:
        for number in range(1, 8):
            name = f"PennFudanPed/{{}}/FudanPed{number:05}{{}}.png"
            files.writestr(name.format("PNGImages", ""), encode(Image.new("RGB", (960, 300))))
            files.writestr(name.format("PedMasks", "_mask"), encode(Image.fromarray(labels)))
    cell = (
        "<object><name>{}</name><bndbox><xmin>64</xmin><ymin>32</ymin><xmax>128</xmax>"
        "<ymax>96</ymax></bndbox></object>"
    )
    with ZipFile(tmp_path / "cells.zip", "w") as files:
        top = "BCCD_Dataset-master/BCCD"
        for split, numbers in (("train", (7, 1)), ("val", (2,)), ("test", (3,))):
            names = [f"BloodImage_{number:05}" for number in numbers]
            files.writestr(f"{top}/ImageSets/Main/{split}.txt", "\n".join(names) + "\n")
            for name in names:
                picture = encode(Image.new("RGB", (640, 480)), "jpeg")
                files.writestr(f"{top}/JPEGImages/{name}.jpg", picture)
                text = cell.format("RBC") + cell.format("Platelets")
                files.writestr(f"{top}/Annotations/{name}.xml", f"<annotation>{text}</annotation>")
    out = tmp_path / "sets"
    archives = [str(tmp_path / name) for name in ("people.zip", "cells.zip")]
    assert program.main(["prepare", *archives, "--data", str(out)]) == 0

    people = {s: CocoData.read(out / f"pennfudan/{s}.json") for s in ("train", "dev")}
    ids = {split: [i["id"] for i in data.truth["images"]] for split, data in people.items()}
    assert ids == {"train": [3, 4, 5], "dev": [2, 7]}  # 1 and 6 are left out
    image, first = people["dev"].truth["images"][0], people["dev"].truth["annotations"][0]
    assert image["file_name"] == "FudanPed00002.jpg" and (image["width"], image["height"]) == (
        480,
        150,
    )
    assert first["bbox"] == [50, 10, 50, 50] and first["area"] == 2500
    assert coco_mask.area(first["segmentation"]) == 2500
    blood = json.loads((out / "bccd/train.json").read_text())
    assert [i["file_name"] for i in blood["images"]] == [
        "BloodImage_00001.jpg",
        "BloodImage_00007.jpg",
    ]
    assert blood["images"][0]["id"] == 2 and blood["images"][0]["width"] == 480
    assert [a["category_id"] for a in blood["annotations"]] == [1, 3, 1, 3]
    assert blood["annotations"][0]["bbox"] == [48.0, 24.0, 48.0, 48.0]
    for name in ("pennfudan/train", "pennfudan/dev", "bccd/train", "bccd/dev"):
        file = out / f"{name}.json"
        data = CocoData.read(file, file.parent / "images", name)
        check_before_training(data, name=name, masks="penn" in name, trains=True)


def test_another_archive_is_an_error(tmp_path, capsys):
    (tmp_path / "text.zip").write_text("no zip")
    with ZipFile(tmp_path / "other.zip", "w") as files:
        files.writestr("README", "")
    for name, problem in (
        ("text", "cannot be read as a zip archive"),
        ("other", "another archive"),
    ):
        arguments = ["prepare", str(tmp_path / f"{name}.zip"), "--data", str(tmp_path)]
        assert program.main(arguments) == 2 and problem in capsys.readouterr().err
