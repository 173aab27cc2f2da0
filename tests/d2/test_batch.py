"""Batches as sub-networks see them."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, Keypoints, RotatedBoxes

from gradaug_det.core.transforms import BatchTransform
from gradaug_det.d2.batch import transform_batch, transform_instances
from gradaug_det.errors import GradAugError

from .helpers import instances, tiny_batch

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
    with pytest.raises(GradAugError, match=r"'gt_keypoints' \(Keypoints\).*FLIP_PROB to 0"):
        transform_instances(target, HALF, SIZE)


def test_what_is_not_known_is_refused():
    target = Instances(SIZE, gt_boxes=RotatedBoxes(torch.zeros(1, 5)))
    with pytest.raises(GradAugError, match=r"'gt_boxes' \(RotatedBoxes\)"):
        transform_instances(target, HALF, SIZE)
