"""Exported Detectron2 detectors: plain Detectron2 finds with them what the sliced ones find."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from gradaug_det.benchmark.run import BenchmarkSettings, run_benchmark
from gradaug_det.core.slimming import at_width
from gradaug_det.d2.backbone import slimmable_part
from gradaug_det.d2.config import load_config
from gradaug_det.d2.export import Detectron2Exporter
from gradaug_det.errors import ConfigError, UnslimmableError, ZooError
from gradaug_det.export.calibration import find_images
from gradaug_det.export.programs import FORMATS
from gradaug_det.frameworks import load_detector
from gradaug_det.utils.detector_files import DetectorFiles
from tests.cross.helpers import ROOT
from tests.d2.helpers import calibrate
from tests.export.conftest import CONFIGS
from tests.export.helpers import (
    BLOCK,
    WIDTH,
    assert_detections_and_ap_of_the_slice,
    export,
    exported_files,
    load_program,
    run_plainly,
)

pytestmark = pytest.mark.integration
RUN = """
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

class Strict(DetectionCheckpointer):
    def _log_incompatible_keys(self, incompatible):
        if any(incompatible):
            raise SystemExit(str(incompatible))

def detect(config, weights, image):
    if config.endswith(".py"):
        model = instantiate(LazyConfig.load(config).model)
    else:
        cfg = get_cfg()
        cfg.merge_from_file(config)
        model = build_model(cfg)
    Strict(model).load(weights)
    with torch.no_grad():
        found = model.eval()([{"image": image}])[0]["instances"]
    return found.pred_boxes.tensor, found.scores
"""
# A bottleneck ResNet with few channels: stem 16, stages 64, 128, 256, 512.
SMALL_R50 = (
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"),
)
SMALL_X50 = (*SMALL_R50[:-1], "2", "MODEL.RESNETS.NUM_GROUPS", "8")
RETINA = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "10"),
    *("MODEL.BACKBONE.NAME", "build_slimmable_retinanet_resnet_fpn_backbone"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "MODEL.FPN.IN_FEATURES", "['res3','res4','res5']"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.005"),
)
CASCADE = (
    *(
        "MODEL.ROI_HEADS.NAME",
        "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "True",
    ),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.RPN.CONV_DIMS", "[32,32]"),
)
NARROW_HEADS = ("GRADAUG.ENABLED", "True", "GRADAUG.SLIM", "detector")
WHOLE_MASKS = (*NARROW_HEADS, "GRADAUG.KEEP_WHOLE", "['roi_heads.mask_head']")
MINI = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "30")


def files(checkpoint, *opts):
    return DetectorFiles(CONFIGS["detectron2"], str(checkpoint), "d", overrides=opts)


@pytest.fixture(scope="module")
def mini(checkpoints, tmp_path_factory):
    """The mini detector, and its export."""
    source = files(checkpoints["detectron2"], *MINI)
    return source, export(source, WIDTH, tmp_path_factory.mktemp("d2") / "narrow")


def random_checkpoint(path, *opts, seed=0):
    """The checkpoint of another detector with random weights; and the detector."""
    torch.manual_seed(seed)
    cfg = load_config(CONFIGS["detectron2"], list(opts))
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg).eval()
    calibrate(model)
    torch.save({"model": model.state_dict()}, path)
    return model


def test_detections_and_ap_are_the_sliced_networks(mini, data):
    assert_detections_and_ap_of_the_slice(*mini, data)


def test_benchmark_measures_it(mini, data, tmp_path):
    source, exported = mini
    settings = BenchmarkSettings(limit=1, cost_images=1, repeats=0, epsilons=(1.0,))
    result = run_benchmark(
        [load_detector(exported_files(exported), data, "cpu")], data, tmp_path, settings
    ).detectors[0]
    sliced = run_benchmark(
        [load_detector(source, data, "cpu")],
        data,
        tmp_path,
        BenchmarkSettings(widths=(WIDTH,), limit=1, cost_images=1, repeats=0),
    ).detectors[0]
    # The sliced network's FPN reads padded channels, and counts them.
    ours, theirs = result.widths[0].cost, sliced.widths[0].cost
    assert 0.95 < ours.gflops / theirs.gflops < 1
    assert ours.parameters == theirs.parameters - 64 * (64 + 128 + 256 + 512) * (1 - WIDTH)
    assert ours.parameters == exported.record["parameters"]["exported"]
    assert set(result.widths[0].fgsm[1.0]) == {"bbox", "segm"}


def test_plain_detectron2_loads_them(mini, tmp_path):
    """A ResNet-18 and a ResNet-50 in a process where importing gradaug_det fails."""
    random_checkpoint(tmp_path / "full.pth", *SMALL_R50)
    source = files(tmp_path / "full.pth", *SMALL_R50, *MINI)
    pairs = [mini, (source, export(source, WIDTH, tmp_path / "narrow"))]
    assert [exported.config.name for _, exported in pairs] == ["config.py", "config.yaml"]
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    found = run_plainly(RUN, image, [exported for _, exported in pairs], tmp_path)
    for (source, _), (boxes, scores) in zip(pairs, found, strict=True):
        model = build_model(load_config(source.config, list(source.overrides))).eval()
        model.load_state_dict(torch.load(source.weights, weights_only=True)["model"])
        with torch.no_grad(), at_width(slimmable_part(model.backbone), WIDTH, norm="frozen"):
            expected = model([{"image": image}])[0]["instances"]
        assert len(scores) == len(expected) > 5
        torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=1e-4, atol=0.01)


@pytest.mark.parametrize(
    "opts, channels",
    [
        (SMALL_X50, [56, 112, 224, 448]),
        ((*SMALL_R50, *RETINA), [56, 112, 224, 448]),
        (RETINA, [56, 112, 224, 448]),
        (("MODEL.RESNETS.NORM", "BN"), [56, 112, 224, 448]),
        (NARROW_HEADS, [56, 112, 224, 448]),
        ((*SMALL_R50, *NARROW_HEADS, *RETINA), [56, 112, 224, 448]),
        ((*SMALL_R50, *NARROW_HEADS, *CASCADE), [56, 112, 224, 448]),
    ],
    ids=["resnext50", "retinanet50", "retinanet18", "batchnorm18", "all18", "all-r", "all-c"],
)
def test_other_detectors(opts, channels, tmp_path):
    """The export itself compares feature maps; what it says of them is in the record."""
    model = random_checkpoint(tmp_path / "full.pth", *opts)
    exported = export(files(tmp_path / "full.pth", *opts), WIDTH, tmp_path / "narrow")
    assert exported.record["channels"]["exported"] == channels
    assert exported.record["largest_difference_to_sub_network"] < 1e-5
    weights = torch.load(exported.weights, weights_only=True)["model"]
    assert weights.keys() == model.state_dict().keys()
    reader = (
        "backbone.top_block.p6.weight" if "RetinaNet" in opts else "backbone.fpn_lateral5.weight"
    )
    assert weights[reader].shape[1] == 448
    heads = 0.875 if "detector" in opts else 1
    for name, tensor in model.state_dict().items():
        if re.search(r"fpn_output5.weight|fc1.weight|mask_fcn1.weight|cls_subnet.0.weight", name):
            assert len(weights[name]) == heads * len(tensor), name
    assert exported.weights.stat().st_size < 0.95 * (tmp_path / "full.pth").stat().st_size


def test_full_width(checkpoints, tmp_path):
    exported = export(files(checkpoints["detectron2"]), 1.0, tmp_path / "full")
    before = torch.load(checkpoints["detectron2"], weights_only=True)["model"]
    after = torch.load(exported.weights, weights_only=True)["model"]
    assert exported.config.name == "config.yaml"
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    cfg = get_cfg()
    cfg.merge_from_file(str(exported.config))
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone" and "GRADAUG" not in cfg
    assert str(exported.weights) == cfg.MODEL.WEIGHTS


def test_calibrated_statistics_are_those_of_the_images(checkpoints, coco, tmp_path):
    """Each frozen norm's first statistics: of what it sees, when those before it are calibrated."""
    source = files(checkpoints["detectron2"])
    kept = export(source, WIDTH, tmp_path / "kept")
    both = [
        export(source, WIDTH, tmp_path / name, images=find_images(coco / "val", 4))
        for name in ("one", "two")
    ]
    states = [torch.load(e.weights, weights_only=True)["model"] for e in (kept, *both)]
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed == {name for name in states[0] if name.endswith(("running_mean", "running_var"))}
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    assert both[0].record["calibration"] == {"source": "val", "images": 4, "matched": False}

    exporter = Detectron2Exporter(source)
    model = exporter.build(both[0].config)
    model.load_state_dict(states[1])
    (images,) = exporter.batches(model, find_images(coco / "val", 4))
    stem = model.backbone.bottom_up.stem.conv1
    assert isinstance(stem.norm, FrozenBatchNorm2d)
    with torch.no_grad():
        seen = torch.nn.functional.conv2d(images, stem.weight, stride=2, padding=3)
    np.testing.assert_allclose(stem.norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stem.norm.running_var, seen.var((0, 2, 3)), rtol=1e-4)


def loads_as_the_page_says(program):
    """In a process of its own, which has nothing but what the page's snippet imports."""
    page = (ROOT / "docs" / "export.md").read_text("utf-8")
    (snippet,) = re.findall(r"^```python\n(import torch\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert "output/narrow/model.torchscript.pt" in snippet
    snippet = snippet.replace("output/narrow/model.torchscript.pt", str(program))
    snippet += "import sys\nassert 'detectron2' not in sys.modules and boxes.shape[1] == 4\n"
    subprocess.run([sys.executable, "-W", "ignore", "-c", BLOCK + snippet], check=True)
    alone = snippet.replace("import torchvision", "#")
    ended = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True)
    assert "Unknown builtin op: torchvision::" in ended.stderr


@pytest.mark.parametrize("program", FORMATS)
def test_the_traced_program_finds_the_same(program, checkpoints, tmp_path):
    """On images of other sizes, also where nothing is found."""
    opts = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3")
    source = files(checkpoints["detectron2"], *opts)
    exported = export(source, WIDTH, tmp_path / "narrow", program=program)
    assert "pred_boxes, pred_classes, pred_masks, scores" in exported.record["program"]["note"]
    if program == "torchscript":
        assert "imports torchvision before" in exported.record["program"]["note"]
        loads_as_the_page_says(exported.program)
    run = load_program(exported.program)
    model = Detectron2Exporter(source).build(exported.config)
    model.load_state_dict(torch.load(exported.weights, weights_only=True)["model"])
    counts = []
    generator = torch.Generator().manual_seed(1)
    for size, threshold in (((96, 128), 0.3), ((160, 96), 0.3)):
        image = torch.randint(0, 256, (3, *size), generator=generator).float()
        with torch.no_grad():
            boxes, classes, _, scores, _ = run(image)
            expected = model.inference([{"image": image}], do_postprocess=False)[0]
        torch.testing.assert_close(scores, expected.scores)
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
        assert torch.equal(classes, expected.pred_classes)
        assert scores.numel() == 0 or scores.min() > threshold
        counts.append(len(scores))
    assert len(set(counts)) == 2, counts


@pytest.mark.parametrize(
    "opts, width, error, message",
    [
        ((), 0.9, ConfigError, "nearest widths that it can express are 0.890625 or 0.90625"),
        ((), 0.0, ConfigError, r"--width must be a number in \(0, 1\], got 0.0"),
        (("MODEL.BACKBONE.NAME", "build_resnet_backbone"), 1.0, ConfigError, "BACKBONE.NAME is"),
        (("MODEL.ROI_BOX_HEAD.FC_DIM", "128"), 1.0, ZooError, "'roi_heads.box_head.fc1"),
        (("GRADAUG.ENABLED", "True", "GRADAUG.DIVISOR", "32"), 0.875, ConfigError, "are 0.5 or 1"),
        (
            WHOLE_MASKS,
            0.875,
            UnslimmableError,
            "'backbone.fpn_output2.weight' is 64x56x3x3 in .* keep_whole",
        ),
        (SMALL_R50, 1.0, ZooError, "tensors of backbone.bottom_up were taken from"),
    ],
)
def test_refusals(checkpoints, tmp_path, opts, width, error, message):
    with pytest.raises(error, match=message):
        export(files(checkpoints["detectron2"], *opts), width, tmp_path / "narrow")
    assert not (tmp_path / "narrow").exists()


def test_group_norm_has_no_narrow_config(tmp_path):
    for part, *more in (("RESNETS",), ("FPN", "GRADAUG.SLIM", "detector")):
        opts = (f"MODEL.{part}.NORM", "GN", *more)
        random_checkpoint(tmp_path / "full.pth", *opts)
        with pytest.raises(ConfigError, match=f"MODEL.{part}.NORM is GN, whose 32 groups no key"):
            export(files(tmp_path / "full.pth", *opts), WIDTH, tmp_path / "narrow")


def test_a_lazy_config_is_refused(checkpoints, tmp_path):
    config = ROOT / "configs/detectron2/mask_rcnn_R_50_FPN_1x_gradaug.py"
    source = DetectorFiles(config, str(checkpoints["detectron2"]), "lazy")
    with pytest.raises(ConfigError, match="is a LazyConfig, which this command does not rewrite"):
        export(source, WIDTH, tmp_path)
