"""Transforms of padded batches and of all that data samples hold."""

import copy

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import PolygonMasks
from mmengine.structures import InstanceData, PixelData

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.errors import GradAugError
from gradaug_det.mmdet.batch import Padding, image_sizes, make_batch, transform_batch
from tests.mmdet.helpers import collated, tiny_items, tiny_model

SIZES = ((96, 128), (80, 112))
PADDING = Padding(divisor=32)


@pytest.fixture(scope="module")
def preprocessor():
    return tiny_model("mask_rcnn").data_preprocessor


@pytest.fixture
def batch(preprocessor):
    def build(masks="bitmap"):
        data = preprocessor(collated(tiny_items(masks=masks)), True)
        return make_batch(data["inputs"], data["data_samples"])

    return build


def test_identity_is_the_same_batch(batch):
    old = batch()
    new = transform_batch(old, BatchTransform(), Padding.of(None))
    assert torch.equal(new.inputs, old.inputs)
    for a, b in zip(new.samples, old.samples, strict=True):
        assert a.metainfo == b.metainfo | {"pad_shape": (96, 128)}
        assert torch.equal(a.gt_instances.bboxes, b.gt_instances.bboxes)
        assert np.array_equal(a.gt_instances.masks.masks, b.gt_instances.masks.masks)


@pytest.mark.parametrize("masks", ["bitmap", "polygon"])
def test_mirror_stays_inside_each_image(batch, masks):
    old = batch(masks)
    new = transform_batch(old, BatchTransform(flip=True), PADDING)
    for i, (height, width) in enumerate(SIZES):
        assert torch.equal(
            new.inputs[i, :, :height, :width], old.inputs[i, :, :height, :width].flip(-1)
        )
        assert not new.inputs[i, :, height:].any() and not new.inputs[i, :, :, width:].any()
        before, after = old.samples[i].gt_instances, new.samples[i].gt_instances
        assert torch.equal(after.bboxes[:, 0], width - before.bboxes[:, 2])
        assert torch.equal(after.labels, before.labels)
        assert after.masks.masks is not before.masks.masks
        # Masks and boxes still belong together.
        drawn = after.masks.to_tensor(torch.float32, "cpu")
        for mask, (x0, y0, x1, y1) in zip(drawn, after.bboxes, strict=True):
            rows, columns = mask.nonzero().T
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.allclose(found, [x0, y0, x1, y1], atol=1.5)
        assert new.samples[i].metainfo["flip"] is True
        assert new.samples[i].metainfo["flip_direction"] == "horizontal"


def test_scale_pads_again_and_updates_meta_information(batch):
    old = batch()
    new = transform_batch(old, BatchTransform(scale=0.571), PADDING)
    assert tuple(new.inputs.shape) == (2, 3, 64, 96)
    assert image_sizes(new) == [(55, 73), (46, 64)]
    for sample, (height, width), old_size in zip(new.samples, image_sizes(new), SIZES, strict=True):
        meta = sample.metainfo
        assert meta["batch_input_shape"] == meta["pad_shape"] == (64, 96)
        assert meta["scale_factor"] == (width / old_size[1], height / old_size[0])
        masks = sample.gt_instances.masks
        assert masks.masks.shape[1:] == (masks.height, masks.width) == (64, 96)
        assert (sample.gt_instances.bboxes <= torch.tensor([width, height] * 2) + 1).all()


def test_masks_that_are_not_padded_stay_so(batch):
    old = batch("polygon")
    sample = old.samples[1]
    sample.gt_instances.masks = sample.gt_instances.masks.resize((80, 112))  # pad_mask=False
    new = transform_batch(old, BatchTransform(scale=0.571), PADDING).samples[1]
    assert (new.gt_instances.masks.height, new.gt_instances.masks.width) == (46, 64)


def test_the_batch_itself_never_changes(batch):
    old = batch()
    inputs, samples = old.inputs.clone(), copy.deepcopy(old.samples)
    new = transform_batch(old, BatchTransform(0.714, flip=True), PADDING)
    for sample in new.samples:
        sample.gt_instances.bboxes.zero_()
        sample.gt_instances.masks.masks[:] = 0
        sample.gt_instances.labels = sample.gt_instances.labels + 1
    assert torch.equal(old.inputs, inputs)
    for a, b in zip(old.samples, samples, strict=True):
        assert a.metainfo == b.metainfo
        assert torch.equal(a.gt_instances.bboxes, b.gt_instances.bboxes)
        assert torch.equal(a.gt_instances.labels, b.gt_instances.labels)
        assert np.array_equal(a.gt_instances.masks.masks, b.gt_instances.masks.masks)


def test_proposals_box_types_ignored_and_semantic_labels(batch):
    old = batch()
    for sample in old.samples:
        boxes = sample.gt_instances.bboxes
        sample.proposals = InstanceData(bboxes=boxes.clone(), scores=torch.ones(3))
        sample.ignored_instances = InstanceData(bboxes=HorizontalBoxes(boxes.clone()))
        labels = torch.full((1, 96, 128), 255, dtype=torch.uint8)
        height, width = sample.metainfo["img_shape"]
        labels[:, :height, : width // 2], labels[:, :height, width // 2 : width] = 1, 2
        sample.gt_sem_seg = PixelData(sem_seg=labels)
    new = transform_batch(old, BatchTransform(0.5, flip=True), PADDING)
    for sample, (height, width) in zip(new.samples, image_sizes(new), strict=True):
        boxes = sample.gt_instances.bboxes
        assert torch.equal(sample.proposals.bboxes, boxes)
        assert torch.equal(sample.proposals.scores, torch.ones(3))
        assert isinstance(sample.ignored_instances.bboxes, HorizontalBoxes)
        assert torch.equal(sample.ignored_instances.bboxes.tensor, boxes)
        labels = sample.gt_sem_seg.sem_seg
        assert labels.shape[-2:] == new.inputs.shape[-2:]
        assert (labels[0, :height, : width // 2] == 2).all()
        assert (labels[0, :height, width // 2 : width] == 1).all()
        assert (labels[0, height:] == 255).all()


def test_a_detector_may_rename_fields_of_what_it_is_given(preprocessor):
    data = preprocessor(collated(tiny_items()), True)
    for sample in data["data_samples"]:
        sample.proposals = InstanceData(bboxes=torch.ones(2, 4))
    batch = make_batch(data["inputs"], data["data_samples"])
    proposals = data["data_samples"][0].proposals
    proposals.priors = proposals.pop("bboxes")  # StandardRoIHead.loss does
    assert torch.equal(batch.samples[0].proposals.bboxes, torch.ones(2, 4))


def test_images_without_objects(batch):
    old = batch("polygon")
    for sample in old.samples:
        height, width = sample.metainfo["img_shape"]
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.long),
            masks=PolygonMasks([], height, width),
        )
    new = transform_batch(old, BatchTransform(0.5, flip=True), PADDING)
    assert all(len(sample.gt_instances) == 0 for sample in new.samples)


@pytest.mark.parametrize("padded", [True, False])
def test_tensors_of_masks_under_any_name(batch, padded):
    old = batch()
    for sample in old.samples:
        masks = sample.gt_instances.masks.to_tensor(torch.bool, "cpu")
        height, width = (96, 128) if padded else sample.metainfo["img_shape"]
        sample.gt_instances.soft_masks = masks[:, :height, :width].float()
        sample.gt_instances.visible = masks[:, :height, :width]
    new = transform_batch(old, BatchTransform(0.5, flip=True), PADDING)
    assert new.samples[1].gt_instances.visible.shape[-2:] == ((64, 64) if padded else (40, 56))
    for sample, (height, width) in zip(new.samples, image_sizes(new), strict=True):
        found = sample.gt_instances
        expected = found.masks.to_tensor(torch.bool, "cpu")
        for mask in (found.visible, found.soft_masks.bool()):
            same = mask[:, :height, :width] == expected[:, :height, :width]
            assert same.float().mean() > 0.99  # MMCV resizes by another rule of rounding


IN_PIXELS = {
    "keypoints": torch.zeros(3, 17, 2),
    "anchors": torch.rand(3, 4),
    "pairwise_masks": torch.zeros(3, 8, 24, 32),  # BoxInst
    "areas": torch.rand(3),
    "rotated": [np.ones((4, 2)) for _ in range(3)],
    "points": torch.ones(3, 2, dtype=torch.long),
}


@pytest.mark.parametrize("name", IN_PIXELS)
def test_what_may_live_in_pixels_is_refused(batch, name):
    old = batch()
    old.samples[0].gt_instances[name] = IN_PIXELS[name]
    for transform in (BatchTransform(), BatchTransform(0.5)):
        with pytest.raises(GradAugError, match=rf"'{name}' \(.*GradAugHook's not_in_pixels"):
            transform_batch(old, transform, PADDING)
    declared = GradAugOptions(not_in_pixels=[name])
    for options in (declared, GradAugOptions(scales=[1.0])):
        new = transform_batch(old, BatchTransform(), PADDING, options)
        assert new.samples[0].gt_instances[name] is IN_PIXELS[name]


def test_maps_and_meta_information_that_may_live_in_pixels(batch):
    def refused(name, change):
        old = batch()
        change(old.samples[0])
        with pytest.raises(GradAugError, match=rf"'{name}' \("):
            transform_batch(old, BatchTransform(0.5), PADDING)
        transform_batch(old, BatchTransform(0.5), PADDING, GradAugOptions(not_in_pixels=[name]))

    depth = PixelData(depth_map=torch.rand(1, 96, 128))
    refused("depth_map", lambda sample: sample.set_data({"gt_depth": depth}))
    refused("flow", lambda sample: sample.set_metainfo({"flow": np.ones((96, 128, 2))}))
    with pytest.raises(GradAugError, match=r"takes dict.*semi-supervised"):
        make_batch({"sup": torch.zeros(1)}, [])


def test_what_does_not_live_in_pixels_passes(batch):
    old = batch()
    fields = {
        "positive_maps": torch.rand(3, 256),  # GLIP, Grounding DINO
        "keypoints_visible": torch.ones(3, 17),
        "text": ["bolt", "nut", "bolt"],
        "scores": torch.rand(3),
    }
    meta = {"homography_matrix": np.eye(3), "tokens_positive": [[[0, 4]]], "border": np.ones(4)}
    for name, value in fields.items():
        old.samples[0].gt_instances[name] = value
    old.samples[0].set_metainfo(meta)
    new = transform_batch(old, BatchTransform(0.5, flip=True), PADDING).samples[0]
    for name, value in fields.items():
        assert new.gt_instances[name] is value
    assert new.metainfo["tokens_positive"] == [[[0, 4]]]
