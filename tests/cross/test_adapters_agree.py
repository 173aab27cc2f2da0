"""The two adapters do the same: features, gradients and a whole GradAug step, in float64."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn
from torchvision.ops import roi_align

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import sample_sub_networks
from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.d2.detector import GradAugDetector as D2Detector
from gradaug_det.mmdet.batch import Batch
from gradaug_det.mmdet.detector import GradAugDetector as MMDetector
from gradaug_det.zoo.convert import rename
from tests.mmdet.helpers import calibrate_backbone

KINDS = {
    "R-18": dict(type="SlimmableResNet", depth=18),
    "R-50": dict(type="SlimmableResNet", depth=50),
    "X-50": dict(type="SlimmableResNeXt", depth=50, groups=32, base_width=4),
}
STAGES = ("res2", "res3", "res4", "res5")


def backbones(kind):
    """The same weights in MMDetection's backbone and in Detectron2's."""
    torch.manual_seed(0)
    ours = MODELS.build(dict(KINDS[kind], norm_eval=True))
    calibrate_backbone(ours, torch.randn(2, 3, 96, 128))
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = KINDS[kind]["depth"]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if kind == "R-18" else 256
    cfg.MODEL.RESNETS.NUM_GROUPS = KINDS[kind].get("groups", 1)
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = KINDS[kind].get("base_width", 64)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    theirs.load_state_dict(rename(ours.state_dict(), "mmdet", "detectron2"), strict=True)
    for module in (ours, theirs):
        module.double()
        module.train()
    return ours, theirs


def assert_same_gradients(ours, theirs):
    names = {n: p.grad for n, p in ours.named_parameters() if p.dim() == 4}
    converted = rename(names, "mmdet", "detectron2")
    compared = 0
    for name, parameter in theirs.named_parameters():
        ours_, theirs_ = converted[name], parameter.grad
        assert theirs_.abs().max() > 0
        error = (ours_ - theirs_).abs().max() / theirs_.abs().max()
        assert error < 1e-6, (name, error.item())
        compared += 1
    assert compared == len(names)  # Detectron2's frozen norms have no gradient


@pytest.mark.parametrize("width", [1.0, 0.9, 0.7, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_gradients_at_a_width(kind, width):
    ours, theirs = backbones(kind)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    outputs = []
    for module in (ours, theirs):
        with at_width(module, width):
            features = module(image)
            features = features.values() if isinstance(features, dict) else features
            features = list(features)
            sum(x.square().mean() for x in features).backward()
        outputs.append(features)
    for a, b in zip(*outputs, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-6 * b.abs().max()
    assert_same_gradients(ours, theirs)
    plans = [slim_plan(m) for m in (ours, theirs)]
    shapes = [
        {n: p.tensor_shape(n, w.shape, width) for n, w in m.named_parameters() if w.dim() == 4}
        for p, m in zip(plans, (ours, theirs), strict=True)
    ]
    assert rename(shapes[0], "mmdet", "detectron2") == shapes[1]


# ---- a whole step -----------------------------------------------------------------------------

MEAN, STD = torch.tensor([103.5, 116.3, 123.7]), torch.tensor([57.4, 57.1, 58.4])
SIZES = ((96, 128), (80, 112))


class Head(nn.Module):
    """Classifies the given boxes of the last stage: it needs images and boxes in one frame."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(512, 3)

    def forward(self, feature, boxes, classes):
        boxes = [b.float().to(feature) for b in boxes]  # Detectron2's Boxes are float32
        pooled = roi_align(feature, boxes, 2, spatial_scale=1 / 32, sampling_ratio=2).mean((2, 3))
        return {"loss_cls": F.cross_entropy(self.classifier(pooled), torch.cat(classes))}


class InDetectron2(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def preprocess_image(self, batch):
        images = [(item["image"] - MEAN[:, None, None]) / STD[:, None, None] for item in batch]
        return ImageList.from_tensors(images, 32)

    def forward(self, batch):
        feature = self.backbone(self.preprocess_image(batch).tensor)["res5"]
        found = [item["instances"] for item in batch]
        return self.head(feature, [i.gt_boxes.tensor for i in found], [i.gt_classes for i in found])


class InMMDetection(BaseDetector):
    def __init__(self, backbone, head):
        super().__init__(data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32))
        self.backbone, self.head = backbone, head

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def loss(self, inputs, samples):
        found = [sample.gt_instances for sample in samples]
        feature = self.extract_feat(inputs)[-1]
        return self.head(feature, [i.bboxes for i in found], [i.labels for i in found])

    def predict(self, *_):
        raise NotImplementedError

    _forward = predict


def images_boxes_classes():
    g = torch.Generator().manual_seed(1)
    for height, width in SIZES:
        image = 255 * torch.rand(3, height, width, generator=g, dtype=torch.float64)
        corner = torch.rand(3, 2, generator=g, dtype=torch.float64) * torch.tensor(
            [width / 2, height / 2]
        )
        extent = 16 + 24 * torch.rand(3, 2, generator=g, dtype=torch.float64)
        yield image, torch.cat([corner, corner + extent], dim=1), torch.arange(3)


def d2_batch():
    batch = []
    for image, boxes, classes in images_boxes_classes():
        instances = Instances(tuple(image.shape[-2:]))
        instances.gt_boxes, instances.gt_classes = Boxes(boxes), classes
        instances.gt_boxes.tensor = boxes  # Boxes() makes it float32
        batch.append({"image": image, "instances": instances})
    return batch


def mm_batch():
    images, samples = [], []
    for image, boxes, classes in images_boxes_classes():
        images.append((image - MEAN[:, None, None]) / STD[:, None, None])
        sample = DetDataSample(metainfo=dict(img_shape=tuple(image.shape[-2:])))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=classes)
        samples.append(sample)
    return Batch(ImageList.from_tensors(images, 32).tensor, samples)


def test_a_gradaug_step_gives_the_same_gradients():
    ours, theirs = backbones("R-18")
    torch.manual_seed(2)
    head = Head().double()
    options = GradAugOptions(num_subnets=3, min_width=0.6, flip_prob=0.5, supervision="labels")
    subs = sample_sub_networks(options, 1)
    assert {s.transform.flip for s in subs} == {True, False}
    assert min(s.transform.scale for s in subs) < 1

    other_head = Head().double()
    other_head.load_state_dict(head.state_dict())
    losses, results = gradaug_step(MMDetector(InMMDetection(ours, head), options), mm_batch(), subs)
    with EventStorage(0):
        other_losses, other_results = gradaug_step(
            D2Detector(InDetectron2(theirs, other_head), options), d2_batch(), subs
        )
    assert losses["loss_cls"].item() == pytest.approx(other_losses["loss_cls"].item(), rel=1e-9)
    for a, b in zip(results, other_results, strict=True):
        assert a.losses.keys() == b.losses.keys() == {"labels_cls"}
        assert a.total.item() == pytest.approx(b.total.item(), rel=1e-9)
    assert_same_gradients(ours, theirs)
    a, b = head.classifier.weight.grad, other_head.classifier.weight.grad
    assert (a - b).abs().max() < 1e-6 * b.abs().max()
