"""The benchmark of real detectors of both frameworks, against the frameworks' own evaluators."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadAnnotations
from mmengine.runner import Runner

from gradaug_det.benchmark.changes import FGSM, Clean, Corruption
from gradaug_det.benchmark.cost import at_detector_width, count_parameters, measure_costs
from gradaug_det.benchmark.detector import training_losses
from gradaug_det.benchmark.run import (
    BenchmarkSettings,
    load_data,
    run_benchmark,
)
from gradaug_det.commands.cli import main
from gradaug_det.core.slimming import slim_plan
from gradaug_det.d2.data import register_coco
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import evaluate_coco
from gradaug_det.frameworks import load_detector
from gradaug_det.mini_coco import build_mini_coco
from gradaug_det.mmdet.benchmark import _with_ground_truth
from gradaug_det.mmdet.values import type_name
from gradaug_det.utils.detector_files import DetectorFiles
from tests.cross.helpers import ROOT, configs, detectors

FRAMEWORKS = ("detectron2", "mmdet")
IMAGES = 10
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset, and one detector's weights in the files of both frameworks."""
    folder = tmp_path_factory.mktemp("benchmark")
    coco = build_mini_coco(folder / "mini_coco", train=1, val=IMAGES)
    (_, ours), (_, theirs) = detectors()
    torch.save({"model": ours.state_dict()}, folder / "detectron2.pth")
    torch.save({"state_dict": theirs.state_dict()}, folder / "mmdet.pth")
    return folder, load_data(coco / "annotations/instances_val.json", coco / "val", "mini-COCO")


def files(world, framework):
    config = {
        "detectron2": "configs/detectron2/mini_mask_rcnn_R_18_FPN_plain.yaml",
        "mmdet": "configs/mmdet/mini_mask-rcnn_r18_fpn_plain.py",
    }[framework]
    return DetectorFiles(ROOT / config, str(world[0] / f"{framework}.pth"), framework)


def benchmark(files, data, out, settings, **more):
    return run_benchmark([load_detector(files, data, "cpu")], data, out, settings, **more)


@pytest.fixture(scope="module")
def measured(world):
    """Framework -> the result of a detector at two widths."""
    settings = BenchmarkSettings(
        widths=(1.0, 0.9),
        corruptions=("contrast",),
        severities=(1, 5),
        epsilons=(4.0,),
        cost_images=1,
        repeats=1,
    )
    return {
        name: benchmark(files(world, name), world[1], world[0] / name, settings).detectors[0]
        for name in FRAMEWORKS
    }


def by_score(results):
    return sorted(results, key=lambda r: (r["image_id"], -r["score"], r["bbox"]))


def assert_same_results(ours, theirs):
    assert len(ours) == len(theirs) > 50
    for one, other in zip(by_score(ours), by_score(theirs), strict=True):
        assert one["image_id"] == other["image_id"] and one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-7)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-4)
        assert one["segmentation"] == other["segmentation"]


def test_equals_detectron2s_own_evaluator(world, measured):
    cfg, _ = configs()
    _, data = world
    name = "benchmark_own_evaluator"
    register_coco(name, data.path, data.folder)
    model = build_model(cfg)
    model.load_state_dict(torch.load(world[0] / "detectron2.pth", weights_only=True)["model"])
    out = world[0] / "own"
    evaluator = COCOEvaluator(name, output_dir=str(out), use_fast_impl=False, distributed=False)
    loader = build_detection_test_loader(cfg, name)
    expected = inference_on_dataset(model, loader, evaluator)
    result = measured["detectron2"].widths[0]
    assert_same_results(
        result.predictions, json.loads((out / "coco_instances_results.json").read_text())
    )
    for task, metrics in expected.items():
        for key, value in metrics.items():
            assert result.metrics[task][key] == pytest.approx(value, abs=1e-6, nan_ok=True), key
    assert result.metrics["bbox"]["AR100"] > 0  # there was something to agree about


def test_equals_mmdetections_own_metric(world, measured):
    _, config = configs()
    _, data = world
    config.model.backbone.init_cfg = None
    config.load_from = str(world[0] / "mmdet.pth")
    config.work_dir = str(world[0] / "work")
    config.test_dataloader.dataset.update(
        data_root="", ann_file=str(data.path), data_prefix={"img": str(data.folder)}
    )
    config.test_evaluator.update(
        ann_file=str(data.path), outfile_prefix=str(world[0] / "own_mmdet")
    )
    expected = Runner.from_cfg(config).test()
    result = measured["mmdet"].widths[0]
    assert_same_results(
        result.predictions, json.loads((world[0] / "own_mmdet.segm.json").read_text())
    )
    for task in ("bbox", "segm"):
        for theirs, ours in (("", "AP"), ("_50", "AP50"), ("_s", "APs"), ("_l", "APl")):
            value = 100 * expected[f"coco/{task}_mAP{theirs}"]  # rounded to three digits there
            if value >= 0:
                assert result.metrics[task][ours] == pytest.approx(value, abs=0.0501), ours


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_equals_pycocotools(world, measured, framework):
    result = measured[framework].widths[0]
    expected = evaluate_coco(world[1].path, result.predictions, backend="pycocotools")
    for task, metrics in expected.items():
        for key, value in metrics.items():
            assert result.metrics[task][key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


def test_one_detector_in_both_frameworks(measured):
    """Same weights, same data, other code: nearly the same detections."""
    one, other = (measured[name].widths[0] for name in FRAMEWORKS)
    assert len(one.predictions) == len(other.predictions)
    for task in ("bbox", "segm"):
        for key in ("AP", "AR100"):
            assert one.metrics[task][key] == pytest.approx(other.metrics[task][key], abs=0.3)
    # Detectron2's frozen norms have buffers where MMDetection's have parameters.
    assert one.cost.parameters == pytest.approx(other.cost.parameters, rel=1e-3)
    # The same convolutions; the heads see as many proposals and detections, give or take a few.
    assert one.cost.gflops == pytest.approx(other.cost.gflops, rel=0.05)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_narrow_detectors_cost_less(world, measured, framework):
    full, narrow = measured[framework].widths
    assert (full.width, narrow.width) == (1.0, 0.9)
    assert narrow.predictions != full.predictions
    assert 0.8 < narrow.cost.gflops / full.cost.gflops < 0.97
    assert narrow.cost.parameters < full.cost.parameters
    assert full.cost.milliseconds > 0
    # Not less than the image and one full-resolution feature map of 64 channels.
    assert full.cost.peak_megabytes > 4 * 64 * 96 * 128 / 1e6
    assert not narrow.corruptions and not narrow.fgsm


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_was_done_to_the_images_is_measured(measured, framework):
    result = measured[framework].widths[0]
    assert set(result.corruptions) == {"contrast"} and set(result.corruptions["contrast"]) == {1, 5}
    assert set(result.fgsm) == {4.0}
    assert set(result.fgsm[4.0]) == {"bbox", "segm"}
    assert result.mpc("bbox") == pytest.approx(
        np.mean([result.corruptions["contrast"][s]["bbox"] for s in (1, 5)])
    )


def test_an_interrupted_run_goes_on(world, measured):
    out = world[0] / "detectron2"
    (store,) = out.glob("detections/*/width-1/clean/rank0.jsonl")
    lines = store.read_text().splitlines(keepends=True)
    assert len(lines) == IMAGES
    # Killed while writing the fourth image.
    store.write_text("".join(lines[:3]) + lines[3][:40])
    settings = BenchmarkSettings(cost_images=1, repeats=0)
    again = benchmark(files(world, "detectron2"), world[1], out, settings, resume=True)
    after = store.read_text().splitlines(keepends=True)
    assert after[:3] == lines[:3] and sorted(after[4:]) == sorted(lines[3:])
    old, new = measured["detectron2"].widths[0], again.detectors[0].widths[0]
    assert new.predictions == old.predictions
    assert new.metrics["segm"]["AR100"] == old.metrics["segm"]["AR100"]


def test_other_weights_are_detected_anew(world, tmp_path):
    settings = BenchmarkSettings(limit=1, cost_images=1, repeats=0)
    first = benchmark(files(world, "detectron2"), world[1], tmp_path, settings)
    state = torch.load(world[0] / "detectron2.pth", weights_only=True)["model"]
    state["roi_heads.box_predictor.cls_score.bias"] += torch.linspace(-3, 3, 11)
    torch.save({"model": state}, tmp_path / "detectron2.pth")
    other = DetectorFiles(
        files(world, "detectron2").config, str(tmp_path / "detectron2.pth"), "detectron2"
    )
    second = benchmark(other, world[1], tmp_path, settings, resume=True)
    assert first.detectors[0].widths[0].predictions != second.detectors[0].widths[0].predictions
    assert len(list((tmp_path / "detections").iterdir())) == 2


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_fgsm_raises_the_training_loss(world, framework):
    """More than noise of the same size does, within epsilon, and the detector is as before."""
    detector = load_detector(files(world, framework), world[1], "cpu")
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    image_ids = [1_000_001, 1_000_002]
    change = FGSM(4.0)
    dataset = detector.dataset(image_ids, change)
    key = "image" if framework == "detectron2" else "inputs"
    generator = torch.Generator().manual_seed(0)
    for index in range(len(image_ids)):
        sample = dataset[index]
        moved = detector.attack(sample, change)
        again = detector.attack(sample, change)
        assert torch.equal(moved[key], again[key])
        step = (moved[key] - sample[key].float()).abs()
        assert step.max() == 4 and (step == 4).float().mean() > 0.5
        assert moved[key].min() >= 0 and moved[key].max() <= 255
        sign = torch.randint(0, 2, sample[key].shape, generator=generator) * 2 - 1
        noisy = {**sample, key: (sample[key] + 4.0 * sign).clamp(0, 255)}
        clean, noise, attacked = (loss(detector, s, change) for s in (sample, noisy, moved))
        assert attacked > max(clean, noise) * 1.02
    assert not detector.model.training
    for name, value in detector.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def loss(detector, sample, change):
    from detectron2.utils.events import EventStorage
    from mmengine.dataset import pseudo_collate

    with torch.no_grad(), training_losses(detector.model, change.seed, "cpu"), EventStorage():
        if "image" in sample:
            return float(sum(detector.model([sample]).values()))
        data = detector.model.data_preprocessor(pseudo_collate([sample]), training=True)
        total, _ = detector.model.parse_losses(detector.model(**data, mode="loss"))
        return float(total)


def test_corruptions_are_the_same_in_both_frameworks(world):
    change = Corruption("snow", 3)  # knows red from blue
    one, other = (
        load_detector(files(world, name), world[1], "cpu").dataset([1_000_003], change)[0]
        for name in FRAMEWORKS
    )
    clean = load_detector(files(world, "mmdet"), world[1], "cpu").dataset([1_000_003], Clean())[0]
    assert torch.equal(one["image"], other["inputs"])
    assert not torch.equal(other["inputs"], clean["inputs"])


def parameters_in_use(detector, width):
    """As many as the slimmed modules hold at that width, and those of the rest."""
    plan = slim_plan(detector.slimmed)
    used = 0
    with at_detector_width(detector, width):
        for name in plan.tensors:
            tensor = detector.slimmed.get_submodule(name.rpartition(".")[0])
            parameter = tensor._parameters.get(name.rpartition(".")[2])
            used += 0 if parameter is None else parameter.numel()
    others = sum(p.numel() for p in detector.model.parameters()) - sum(
        p.numel() for p in detector.slimmed.parameters()
    )
    return used + others


@pytest.mark.parametrize(
    ("framework", "overrides", "divisor"),
    [
        ("detectron2", ("GRADAUG.ENABLED", "True", "GRADAUG.DIVISOR", "16"), 16),
        ("detectron2", ("GRADAUG.ENABLED", "False", "GRADAUG.DIVISOR", "16"), 1),
        ("mmdet", ("custom_hooks.0.divisor=16",), 16),
        ("mmdet", (), 1),
        ("detectron2", ("GRADAUG.ENABLED", "True", "GRADAUG.SLIM", "detector"), 1),
        ("mmdet", ("custom_hooks.0.divisor=16", "custom_hooks.0.slim=detector"), 16),
    ],
)
def test_sub_networks_have_the_channels_that_were_trained(world, framework, overrides, divisor):
    plain = files(world, framework)
    config = plain.config.with_name(plain.config.name.replace("plain", "gradaug"))
    own = replace(plain, config=config, overrides=overrides)
    detector = load_detector(own, world[1], "cpu")
    with at_detector_width(detector, 0.9):
        layers = [m for m in detector.slimmed.modules() if isinstance(m, torch.nn.Conv2d)]
        kept = [layer.weight.shape[0] for layer in layers]
    # Predictions stay as they are, and what a divisor rounds up to all there were.
    channels = {n for n, m in zip(kept, layers, strict=True) if n < m.weight.shape[0]}
    assert all(count % divisor == 0 for count in channels)
    assert (58 in channels) == (divisor == 1)
    assert count_parameters(detector, 0.9) == parameters_in_use(detector, 0.9)


def test_cost_is_that_of_the_sliced_network(world):
    from fvcore.nn import FlopCountAnalysis

    detector = load_detector(files(world, "detectron2"), world[1], "cpu")
    assert count_parameters(detector, 0.9) == parameters_in_use(detector, 0.9)

    samples = [[detector.dataset([1_000_001], Clean())[0]]]
    ((cost,),) = measure_costs([detector], [1.0], samples, repeats=0)
    assert cost.milliseconds is None
    image = samples[0][0]["image"][None].float()
    backbone = FlopCountAnalysis(detector.model.backbone, image).unsupported_ops_warnings(False)
    convolutions = backbone.by_operator()["conv"] / 1e9
    assert convolutions < cost.gflops < 4 * convolutions  # and the heads


def test_the_command_in_two_processes(world, tmp_path):
    """The same report as one process writes, every image detected once."""
    config = files(world, "detectron2")
    arguments = [
        *("--config", str(config.config), "--weights", config.weights, "--label", "tiny"),
        *("--annotations", str(world[1].path), "--images", str(world[1].folder)),
        *("--cost-images", "1", "--repeats", "0", "--workers", "0", "--limit", "6"),
    ]
    assert main(["benchmark", *arguments, "--out", str(tmp_path / "one")]) == 0
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"),
            *("tools/benchmark.py", *arguments, "--out", str(tmp_path / "two")),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text())["detectors"]
        for name in ("one", "two")
    )
    assert one[0]["widths"][0]["metrics"] == two[0]["widths"][0]["metrics"]
    counts = [
        len(file.read_text().splitlines())
        for file in sorted((tmp_path / "two").glob("detections/*/*/*/rank*.jsonl"))
    ]
    assert counts == [3, 3]


def test_overrides_are_the_frameworks_own(world):
    none = {"detectron2": ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")}
    none["mmdet"] = ("model.test_cfg.rcnn.score_thr=1.0", "model.test_cfg.rcnn.max_per_img=5")
    for framework in FRAMEWORKS:
        changed = replace(files(world, framework), overrides=none[framework])
        detector = load_detector(changed, world[1], "cpu")
        assert detector.detect(detector.dataset([1_000_001], Clean())[0]) == []
    with pytest.raises(ConfigError, match=r"--opts must be key=value for 'a.b'"):
        load_detector(replace(files(world, "mmdet"), overrides=("a.b",)), world[1], "cpu")


def test_a_lazy_config(world, tmp_path):
    config = ROOT / "configs/detectron2/mask_rcnn_R_50_FPN_1x_gradaug.py"
    overrides = (
        "model.roi_heads.num_classes=10",
        "dataloader.test.mapper.augmentations.0.short_edge_length=96",
    )
    model = instantiate(
        LazyConfig.apply_overrides(LazyConfig.load(str(config)), [overrides[0]]).model
    )
    torch.save({"model": model.state_dict()}, tmp_path / "lazy.pth")
    lazy = DetectorFiles(config, str(tmp_path / "lazy.pth"), "lazy", overrides=overrides)
    settings = BenchmarkSettings(
        widths=(1.0, 0.9), epsilons=(1.0,), limit=1, cost_images=1, repeats=0
    )
    full, narrow = benchmark(lazy, world[1], tmp_path, settings).detectors[0].widths
    assert narrow.cost.parameters < full.cost.parameters
    assert full.fgsm[1.0].keys() == full.metrics.keys()


def test_nothing_found_under_a_change_on_data_without_masks(world, tmp_path):
    """A detector of boxes: what it does not find has no mask AP of 0."""
    content = json.loads(Path(world[1].path).read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = load_data(tmp_path / "boxes.json", world[1].folder, "boxes")
    opts = ("MODEL.MASK_ON", "False", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999")
    detector = replace(files(world, "detectron2"), overrides=opts)
    settings = BenchmarkSettings(epsilons=(1.0,), limit=2, cost_images=1, repeats=0)
    result = benchmark(detector, data, tmp_path, settings).detectors[0].widths[0]
    assert result.predictions == [] and result.metrics["bbox"]["AP"] == 0
    assert set(result.metrics) == set(result.fgsm[1.0]) == {"bbox"}


def test_data_with_other_classes_is_refused(world, tmp_path):
    content = json.loads(Path(world[1].path).read_text())
    content["categories"].append({"id": 11, "name": "hat"})
    (tmp_path / "more.json").write_text(json.dumps(content))
    data = load_data(tmp_path / "more.json", world[1].folder, "more")
    said = {
        "detectron2": "num_classes .* is 10, but more.json has 11",
        "mmdet": "class 10 is no class in test_dataloader.dataset and 'hat' in .*more.json",
    }
    for framework in FRAMEWORKS:
        with pytest.raises((ConfigError, DataError), match=said[framework]):
            load_detector(files(world, framework), data, "cpu")


def test_transforms_may_be_named_by_their_class():
    steps = [{"type": LoadImageFromFile}, {"type": "mmdet.Resize"}, {"type": LoadAnnotations}]
    found = _with_ground_truth(steps, masks=False)
    assert [type_name(step) for step in found] == ["LoadImageFromFile", "LoadAnnotations", "Resize"]
