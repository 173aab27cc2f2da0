"""Batches as sub-networks see them."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, RotatedBoxes
from PIL import Image

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.d2.batch import transform_batch, transform_instances
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.errors import GradAugError

from .helpers import instances, tiny_batch, tiny_model

HALF = BatchTransform(0.5, True)
SIZE = (40, 60)
BOXES = [[4.0, 6, 24, 30], [10, 0, 60, 40]]


def test_the_batch_itself_is_not_changed():
    for masks in ("polygon", "bitmask"):
        batch, same = tiny_batch(1, masks), tiny_batch(1, masks)
        new = transform_batch(batch, HALF)
        for old, item, original in zip(batch, new, same, strict=True):
            assert torch.equal(old["image"], original["image"])
            fields, expected = old["instances"], original["instances"]
            assert torch.equal(fields.gt_boxes.tensor, expected.gt_boxes.tensor)
            assert item["image"].shape[-2:] == tuple(n // 2 for n in old["image"].shape[-2:])
            assert item["instances"].image_size == tuple(item["image"].shape[-2:])
            assert item["height"] == old["height"]


def test_a_batch_moves_to_the_detectors_device():
    detector = GradAugDetector(tiny_model(), GradAugOptions())
    detector.module.to("meta")
    polygons, bits = (
        detector.on_device(tiny_batch(1, masks))[0] for masks in ("polygon", "bitmask")
    )
    assert {polygons["image"].device.type, polygons["instances"].gt_boxes.device.type} == {"meta"}
    assert bits["instances"].gt_masks.tensor.device.type == "meta"
    assert isinstance(polygons["instances"].gt_masks.polygons[0][0], np.ndarray)
    assert polygons["height"] == tiny_batch(1)[0]["height"]
    # And is transformed there.
    assert transform_batch([bits], HALF)[0]["instances"].gt_masks.tensor.device.type == "meta"


@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
def test_masks_and_boxes_stay_together(masks):
    new = transform_instances(instances(BOXES, SIZE, masks=masks), HALF, SIZE)
    expected = torch.tensor([[18.0, 3, 28, 15], [0, 0, 25, 20]])
    assert torch.allclose(new.gt_boxes.tensor, expected)
    assert torch.allclose(new.gt_masks.get_bounding_boxes().tensor, expected)
    assert new.gt_classes.tolist() == [0, 1]


def test_proposals_and_semantic_labels():
    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(BOXES)))
    proposals.objectness_logits = torch.tensor([1.0, 2.0])
    labels = torch.zeros(SIZE, dtype=torch.long)
    labels[:, :30] = 7
    item = {
        "image": torch.zeros(3, *SIZE, dtype=torch.uint8),
        "proposals": proposals,
        "sem_seg": labels,
    }
    (new,) = transform_batch([item], HALF)
    assert torch.allclose(
        new["proposals"].proposal_boxes.tensor[0], torch.tensor([18.0, 3, 28, 15])
    )
    assert new["proposals"].objectness_logits.tolist() == [1.0, 2.0]
    assert new["sem_seg"].shape == (20, 30)
    assert (new["sem_seg"][:, 15:] == 7).all()
    assert (new["sem_seg"][:, :15] == 0).all()


def test_keypoints_scale_but_do_not_mirror():
    target = Instances(SIZE, gt_keypoints=Keypoints(np.array([[[10.0, 20.0, 2.0]]])))
    new = transform_instances(target, BatchTransform(0.5), SIZE)
    assert new.gt_keypoints.tensor.tolist() == [[[5.0, 10.0, 2.0]]]
    refusal = r"'gt_keypoints' \(Keypoints\).*FLIP_PROB to 0"
    with pytest.raises(GradAugError, match=refusal):
        transform_instances(target, HALF, SIZE)
    with pytest.raises(GradAugError, match=refusal):  # in the first step, mirrored or not
        transform_instances(target, BatchTransform(0.5), SIZE, GradAugOptions(flip_prob=0.1))


@pytest.mark.parametrize("name, dtype", [("gt_masks", torch.float32), ("whole", torch.uint8)])
@pytest.mark.parametrize("transform", [HALF, BatchTransform(1.5), BatchTransform(1.0, True)])
def test_plain_tensors_of_masks_are_those_of_bitmasks(name, dtype, transform):
    """As Mask2Former's mappers make them, also for an image without objects."""
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 4:20, 6:30], masks[1, 0:40, 50:] = True, True
    expected = transform_instances(Instances(SIZE, m=BitMasks(masks)), transform, SIZE).m.tensor
    for kind in (torch.bool, dtype):
        new = transform_instances(Instances(SIZE, **{name: masks.to(kind)}), transform, SIZE)
        assert new.get(name).dtype is kind
        assert torch.equal(new.get(name).bool(), expected)
    none = transform_instances(Instances(SIZE, gt_masks=torch.zeros(0, *SIZE)), transform, SIZE)
    assert none.gt_masks.shape == (0, *transform.output_size(SIZE))


IN_PIXELS = {
    "gt_point_coords": torch.rand(2, 7, 2),  # PointSup
    "gt_whole_points": torch.ones(2, 7, 2, dtype=torch.long),
    "gt_boxes_xywh": torch.rand(2, 4),
    "gt_boxes": RotatedBoxes(torch.zeros(2, 5)),
    "gt_rotated_boxes": torch.rand(2, 5),
    "gt_keypoints": torch.rand(2, 51),
    "beziers": torch.rand(2, 16),  # AdelaiDet's ABCNet
    "gt_centers": torch.ones(2, 2, dtype=torch.long),
    "gt_areas": torch.rand(2),
    "gt_ellipses": torch.rand(2, 5),
    "gt_bitmasks": torch.ones(2, 10, 15, dtype=torch.bool),  # of a stride, AdelaiDet's
    "gt_crops": torch.ones(2, 28, 28, dtype=torch.uint8),
    "gt_original": torch.ones(2, 80, 120, dtype=torch.bool),
    "gt_heat": torch.rand(2, *SIZE),
    "gt_pose": np.eye(4)[[0, 1]],
    "gt_polygons": [[[1.0, 2, 3, 4, 5, 6]], [[1.0, 2, 3, 4, 5, 6, 7, 8], [1.0, 2, 3, 4, 5, 6]]],
    "gt_outlines": [np.ones((5, 2)), np.ones((9, 2))],
}


@pytest.mark.parametrize("name", IN_PIXELS)
def test_objects_fields_that_may_live_in_pixels_are_refused(name):
    target = Instances(SIZE, **{name: IN_PIXELS[name]})
    way_out = rf"'{name}' \((?s:.)*\), which .* name it in GRADAUG.NOT_IN_PIXELS; else .*scales"
    # Whatever this step's transform is: in the first step, not in the one that draws a scale.
    for transform in (HALF, BatchTransform()):
        with pytest.raises(GradAugError, match=way_out):
            transform_instances(target, transform, SIZE)
    declared = GradAugOptions(not_in_pixels=[name])
    for options in (declared, GradAugOptions(scales=[1.0])):
        transform = HALF if options is declared else BatchTransform()
        assert transform_instances(target, transform, SIZE, options).get(name) is IN_PIXELS[name]


MAPS = {
    "center": torch.rand(*SIZE),  # Panoptic-DeepLab
    "center_points": [[np.float64(20.5), 31.0], [4.0, 4.5]],
    "offset": torch.rand(2, *SIZE),
    "sem_seg_weights": torch.ones(*SIZE, dtype=torch.uint8),
    "depth": np.ones((10, 15), np.float32),
    "gt_relations": torch.ones(4, 2, dtype=torch.long),
    "window": torch.rand(4),
    "crop_box": [3, 4, 10, 20],
    "targets": {"rois": {"boxes": torch.rand(3, 4)}},
    "second_view": Image.new("RGB", SIZE[::-1]),
    "boxes_of_crowds": Boxes(torch.rand(1, 4)),
    "instances_of_teacher": Instances(SIZE, gt_boxes=Boxes(torch.rand(1, 4))),
}


@pytest.mark.parametrize("name", MAPS)
def test_items_fields_that_may_live_in_pixels_are_refused(name):
    item = {"image": torch.zeros(3, *SIZE), name: MAPS[name]}
    for transform in (HALF, BatchTransform()):
        with pytest.raises(GradAugError, match=rf"'{name}' \(.*GRADAUG.NOT_IN_PIXELS"):
            transform_batch([item], transform)
    for options in (GradAugOptions(not_in_pixels=(name,)), GradAugOptions(scales=[1.0])):
        assert transform_batch([item], BatchTransform(), options)[0][name] is MAPS[name]


def test_a_padding_mask_moves_with_its_image():
    padding = torch.zeros(SIZE, dtype=torch.bool)
    padding[:, 40:] = True
    (new,) = transform_batch([{"image": torch.zeros(3, *SIZE), "padding_mask": padding}], HALF)
    assert new["padding_mask"].dtype is torch.bool
    assert new["padding_mask"][:, :10].all() and not new["padding_mask"][:, 10:].any()


def test_what_does_not_live_in_pixels_passes():
    """Among it what is image-shaped by accident: as many objects and features as rows, columns."""
    height, width = SIZE
    fields = {
        "gt_classes": torch.arange(height),
        "gt_ids": list(range(height)),
        "gt_embedding": torch.rand(height, width),
        "gt_attributes": torch.ones(height, 4, dtype=torch.long),
        "gt_flags": torch.ones(height, 2, dtype=torch.bool),
        "gt_point_labels": torch.rand(height, 4),  # PointSup with four points
        "gt_box_features": torch.rand(height, 5),
        "viewpoint": torch.rand(height),
        "num_keypoints": torch.ones(height, dtype=torch.long),
        "gt_captions": ["a bolt"] * height,
        "gt_tokens": [[1] * (n % 3) for n in range(height)],
        "gt_score": np.ones(height, np.float32),
    }
    item = {
        "image": torch.zeros(3, *SIZE),
        "height": 480,
        "width": torch.tensor(640),
        "file_name": "a.jpg",
        "image_id": "a-1",
        "gps": (48.1, 11.5),
        "captions": ["two bolts", "a nut"],
        "neg_category_ids": [1, 4],
        "image_embedding": torch.rand(512),
        "orig_size": torch.tensor([480, 640]),
        "segments_info": [{"id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "area": 9.5, "isthing": True}],
        "title": np.array("left"),
        "nothing": np.array(None),
        "regions": [{"phrase": "a bolt", "bbox": [1, 2, 3, 4], "polygon": [[1.0, 2.0], [3, 4]]}],
        "source": {"camera": "left", "gain": 1.5, "mean": np.ones(3)},
        "instances": Instances(SIZE, **fields),
    }
    (new,) = transform_batch([item], HALF)
    for name in item.keys() - {"image", "instances"}:
        assert new[name] is item[name]
    for name, value in fields.items():
        assert new["instances"].get(name) is value
