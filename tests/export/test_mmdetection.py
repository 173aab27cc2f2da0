"""Exported MMDetection detectors: plain MMDetection finds with them what the sliced ones find."""

import pytest
import torch
from mmdet.models import MaskRCNN
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope

from gradaug_det.benchmark.run import BenchmarkSettings, run_benchmark
from gradaug_det.core.slimming import at_width
from gradaug_det.errors import ConfigError, UnslimmableError, ZooError
from gradaug_det.export.calibration import find_images
from gradaug_det.export.programs import FORMATS
from gradaug_det.frameworks import load_detector
from gradaug_det.mmdet.export import MMDetectionExporter
from gradaug_det.utils.detector_files import DetectorFiles
from tests.export.conftest import CONFIGS
from tests.export.helpers import (
    WIDTH,
    assert_detections_and_ap_of_the_slice,
    export,
    exported_files,
    load_program,
    run_plainly,
)
from tests.mmdet.helpers import calibrate_backbone

pytestmark = pytest.mark.integration
RUN = """
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

def detect(config, weights, image):
    init_default_scope("mmdet")
    model = MODELS.build(Config.fromfile(config).model).eval()
    load_checkpoint(model, weights, strict=True)
    size = tuple(image.shape[1:])
    meta = dict(img_id=0, scale_factor=(1.0, 1.0), img_shape=size, ori_shape=size)
    with torch.no_grad():
        (found,) = model.test_step(
            dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])
        )
    return found.pred_instances.bboxes, found.pred_instances.scores
"""
NARROW_HEADS = ("custom_hooks.0.slim=detector",)
FC = "roi_head.bbox_head.shared_fcs.0.weight"
MINI = ("model.test_cfg.rcnn.score_thr=0.0", "model.test_cfg.rcnn.max_per_img=30")
# A bottleneck ResNet with few channels: stem 16, stages 64, 128, 256, 512.
SMALL = (
    *("model.backbone.depth=50", "model.backbone.base_channels=16"),
    "model.neck.in_channels=[64,128,256,512]",
)


def files(checkpoint, *opts):
    return DetectorFiles(CONFIGS["mmdet"], str(checkpoint), "m", overrides=opts)


def random_checkpoint(path, *opts):
    """The checkpoint of another detector with random weights; and the detector."""
    from gradaug_det.mmdet.benchmark import options
    from gradaug_det.mmdet.config import load_config

    init_default_scope("mmdet")
    torch.manual_seed(0)
    config = load_config(CONFIGS["mmdet"], options(opts))
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    channels = next(model.backbone.parameters()).shape[1]
    calibrate_backbone(model.backbone, torch.randn(2, channels, 64, 96))
    torch.save({"state_dict": model.state_dict()}, path)
    return model.eval()


@pytest.fixture(scope="module")
def mini(checkpoints, tmp_path_factory):
    """The mini detector, and its export."""
    source = files(checkpoints["mmdet"], *MINI)
    out = tmp_path_factory.mktemp("mmdet") / "narrow"
    return source, export(source, WIDTH, out)


def test_detections_and_ap_are_the_sliced_networks(mini, data):
    assert_detections_and_ap_of_the_slice(*mini, data)


def test_images_of_one_channel(tmp_path):
    gray = ("model.backbone.in_channels=1", "model.data_preprocessor.bgr_to_rgb=False")
    gray += ("model.data_preprocessor.mean=[100.0]", "model.data_preprocessor.std=[50.0]")
    opts = (*MINI, *gray, *NARROW_HEADS)
    random_checkpoint(tmp_path / "gray.pth", *opts)
    exported = export(files(tmp_path / "gray.pth", *opts), 0.5, tmp_path / "narrow")
    state = torch.load(exported.weights)["state_dict"]
    assert state["backbone.conv1.weight"].shape == (32, 1, 7, 7)


def test_benchmark_measures_it(mini, data, tmp_path):
    _, exported = mini
    settings = BenchmarkSettings(limit=1, cost_images=1, repeats=0)
    (result,) = run_benchmark(
        [load_detector(exported_files(exported), data, "cpu")], data, tmp_path, settings
    ).detectors
    assert result.widths[0].cost.parameters == exported.record["parameters"]["exported"]


def test_plain_mmdetection_loads_it(mini, checkpoints, tmp_path):
    """In a process where importing gradaug_det fails."""
    source, exported = mini
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    ((boxes, scores),) = run_plainly(RUN, image, [exported], tmp_path)
    exporter = MMDetectionExporter(source)
    size = {"img_shape": (96, 128), "ori_shape": (96, 128), "scale_factor": (1.0, 1.0)}
    sample = DetDataSample(metainfo={"img_id": 0, **size})
    with torch.no_grad(), at_width(exporter.backbone_of(exporter.model), WIDTH, norm="frozen"):
        (expected,) = exporter.model.test_step({"inputs": [image], "data_samples": [sample]})
    assert len(scores) == len(expected.pred_instances) > 5
    torch.testing.assert_close(scores, expected.pred_instances.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(boxes, expected.pred_instances.bboxes, rtol=1e-4, atol=0.01)


def test_what_the_files_say(mini):
    _, exported = mini
    config = Config.fromfile(exported.config)
    assert "custom_imports" not in config and config.custom_hooks == []
    assert config.model.backbone.type == "ResNet" and config.model.backbone.base_channels == 56
    assert config.model.neck.in_channels == [56, 112, 224, 448]
    assert config.model.roi_head.mask_head.type == "FCNMaskHead"
    assert config.load_from == str(exported.weights)
    checkpoint = torch.load(exported.weights, weights_only=True)
    assert checkpoint["meta"]["dataset_meta"] == {"classes": list("abcdefghij")}
    assert checkpoint["meta"]["cfg"] == exported.config.read_text()


@MODELS.register_module()
class ReadsBackbone(MaskRCNN):
    """Its head reads the backbone's last output past the neck, with channels of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.head = torch.nn.Conv2d(512, 1, 1)

    def predict(self, inputs, *args, **kwargs):
        self.head(self.backbone(inputs)[-1])
        return super().predict(inputs, *args, **kwargs)


def test_a_head_that_reads_the_backbone_is_refused(tmp_path):
    opts = ("model.type=ReadsBackbone",)
    random_checkpoint(tmp_path / "full.pth", *opts)
    with pytest.raises(UnslimmableError, match=r"stops with an error .* expected input"):
        export(files(tmp_path / "full.pth", *opts), WIDTH, tmp_path / "narrow")


@pytest.mark.parametrize("program", FORMATS)
def test_traced_feature_maps(program, mini, tmp_path):
    source, _ = mini
    run = load_program(export(source, WIDTH, tmp_path, program=program).program)
    exporter = MMDetectionExporter(source)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad(), at_width(exporter.slimmed, WIDTH, norm="frozen"):
        expected = list(exporter.model.extract_feat(images))
        torch.testing.assert_close(list(run(images)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "opts",
    [
        (
            *(*SMALL, "model.backbone.type=SlimmableResNeXt"),
            *("model.backbone.groups=8", "model.backbone.base_width=2"),
        ),
        (*SMALL, "model.backbone.type=SlimmableResNetV1d"),
        (
            *SMALL,
            "model.backbone.norm_cfg.type=GN",
            "model.backbone.norm_cfg.num_groups=8",
            "model.neck.type=PAFPN",
        ),
        (
            *SMALL,
            *("model.neck.start_level=1", "model.neck.add_extra_convs=on_input"),
        ),
        NARROW_HEADS,
        (*SMALL, *NARROW_HEADS, "model.neck.norm_cfg.type=GN", "model.neck.norm_cfg.num_groups=8"),
    ],
    ids=["resnext", "v1d", "groupnorm-pafpn", "extra-convs-on-input", "all", "all-groupnorm-fpn"],
)
def test_other_backbones_and_necks(opts, tmp_path):
    """The export itself compares feature maps; what it says of them is in the record."""
    model = random_checkpoint(tmp_path / "full.pth", *opts)
    exported = export(files(tmp_path / "full.pth", *opts), WIDTH, tmp_path / "narrow")
    heads = len(torch.load(exported.weights, weights_only=True)["state_dict"][FC])
    assert heads == (0.875 if NARROW_HEADS[0] in opts else 1) * len(model.state_dict()[FC])
    assert exported.record["channels"]["exported"] == [56, 112, 224, 448]
    assert exported.record["largest_difference_to_sub_network"] < 1e-5


def test_calibrated_statistics_are_those_of_the_images(checkpoints, coco, tmp_path):
    images = find_images(coco / "annotations/instances_val.json", 3)
    source = files(checkpoints["mmdet"])
    exported = export(source, WIDTH, tmp_path / "narrow", images=images)
    exporter = MMDetectionExporter(source)
    model = exporter.build(exported.config)
    model.load_state_dict(torch.load(exported.weights, weights_only=True)["state_dict"])
    (images,) = exporter.batches(model, find_images(coco / "val", 3))
    with torch.no_grad():
        seen = model.backbone.conv1(images)
    norm = model.backbone.bn1
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (SMALL, ZooError, "--weights: the checkpoint does not fit mini_mask"),
        (
            ("custom_hooks.0.type=GradAugHook", "test_evaluator.cache=gradaug://x"),
            ConfigError,
            "test_evaluator.cache is 'gradaug://x', which only gradaug_det can read",
        ),
    ],
)
def test_refusals(checkpoints, tmp_path, opts, error, message):
    with pytest.raises(error, match=message):
        export(files(checkpoints["mmdet"], *opts), WIDTH, tmp_path / "narrow")
    assert not (tmp_path / "narrow").exists()
