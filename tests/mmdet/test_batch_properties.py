"""MMDetection's samples go where the image's pixels go, whatever sizes, padding and transform."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData

from gradaug_det.mmdet.batch import (
    Padding,
    image_sizes,
    make_batch,
    masks_on_device,
    transform_batch,
)
from gradaug_det.mmdet.masks import DeviceMasks
from tests.properties import FIXED, drawn, extent, rectangles, sizes, transforms

BATCHES = st.lists(
    sizes(most=50).flatmap(
        lambda size: st.tuples(st.just(size), st.lists(rectangles(size), min_size=1, max_size=3))
    ),
    min_size=1,
    max_size=2,
)
PADDINGS = st.sampled_from([Padding(), Padding(1), Padding(16, 7.0)])


def make(cases, divisor):
    """A padded batch with every kind of field, of the same rectangles."""
    whole = tuple(-(-max(size[d] for size, _ in cases) // divisor) * divisor for d in (0, 1))
    inputs, samples = torch.zeros(len(cases), 3, *whole), []
    for index, (size, boxes) in enumerate(cases):
        masks = drawn(boxes, whole)
        inputs[index, :, masks.any(dim=0)] = 1
        tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sample = DetDataSample(
            metainfo={
                "img_shape": size,
                "scale_factor": (1.0, 1.0),
                "flip": False,
                "flip_direction": None,
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=tensor,
            labels=torch.arange(len(boxes)),
            masks=BitmapMasks(masks.numpy().astype(np.uint8), *whole),
        )
        polygons = [[np.array([a, b, c, b, c, d, a, d], float)] for a, b, c, d in boxes]
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(tensor.clone()), masks=PolygonMasks(polygons, *size)
        )
        sample.proposals = InstanceData(bboxes=tensor.clone())
        labels = torch.full((1, *whole), 255)
        labels[:, : size[0], : size[1]] = masks.any(dim=0)[: size[0], : size[1]].long()
        sample.gt_sem_seg = PixelData(sem_seg=labels)
        samples.append(sample)
    return make_batch(inputs, samples)


@FIXED
@given(BATCHES, transforms(), PADDINGS)
def test_everything_follows_the_image(cases, transform, padding):
    new = transform_batch(make(cases, padding.divisor), transform, padding)
    shape = tuple(new.inputs.shape[-2:])
    assert all(side % padding.divisor == 0 for side in shape)
    assert new.inputs.isfinite().all()
    for index, ((size, boxes), sample) in enumerate(zip(cases, new.samples, strict=True)):
        height, width = image_sizes(new)[index]
        assert (height, width) == transform.output_size(size)
        assert sample.metainfo["flip"] is transform.flip
        exact = transform.boxes(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), size)
        found = sample.gt_instances
        assert (found.bboxes - exact).abs().max() < 1e-3
        assert torch.equal(sample.proposals.bboxes, found.bboxes)
        assert torch.equal(sample.ignored_instances.bboxes.tensor, found.bboxes)
        assert found.labels.tolist() == list(range(len(boxes)))
        assert (found.masks.height, found.masks.width) in (shape, (height, width))
        # Unlike core's, MMDetection's own resizing of bitmaps is that of cv2: a pixel more.
        for box, mask in zip(exact, found.masks.masks, strict=True):
            seen = extent(torch.from_numpy(mask).float())
            assert seen is not None or (box[2:] - box[:2]).min() < 1
            assert seen is None or (seen - box).abs().max() <= 1 + 1e-6
        for box, (polygon,) in zip(exact, sample.ignored_instances.masks.masks, strict=True):
            x, y = polygon.reshape(-1, 2).T
            assert np.allclose([x.min(), y.min(), x.max(), y.max()], box, atol=1e-3)
        labels = sample.gt_sem_seg.sem_seg
        assert labels.shape == (1, *shape)
        assert (labels[0, height:] == padding.semantic).all()
        assert (labels[0, :, width:] == padding.semantic).all()
        inside = labels[0, :height, :width]
        assert ((inside == 0) | (inside == 1)).all()
        assert (new.inputs[index, :, height:] == padding.image).all()


@FIXED
@given(BATCHES, transforms(), PADDINGS)
def test_scale_factor_and_areas(cases, transform, padding):
    old = make(cases, padding.divisor)
    new = transform_batch(old, transform, padding)
    for (size, boxes), sample in zip(cases, new.samples, strict=True):
        height, width = transform.output_size(size)
        assert np.allclose(sample.metainfo["scale_factor"], (width / size[1], height / size[0]))
        ratio = height / size[0] * width / size[1]
        before = np.array([(c - a) * (d - b) for a, b, c, d in boxes])
        assert np.allclose(sample.ignored_instances.masks.areas, before * ratio, rtol=1e-4)
    again = make(cases, padding.divisor)
    assert torch.equal(old.inputs, again.inputs)  # the batch itself is as it was
    for one, two in zip(old.samples, again.samples, strict=True):
        assert torch.equal(one.gt_instances.bboxes, two.gt_instances.bboxes)
        assert np.array_equal(one.gt_instances.masks.masks, two.gt_instances.masks.masks)


@FIXED
@given(BATCHES, transforms(), PADDINGS)
def test_bitmaps_on_a_device_are_mmdetections_own_to_the_pixel(cases, transform, padding):
    batch = make(cases, padding.divisor)
    moved = masks_on_device(batch)
    on_host, on_device = (transform_batch(b, transform, padding) for b in (batch, moved))
    assert type(batch.samples[0].gt_instances.masks) is BitmapMasks
    for ours, theirs in zip(on_device.samples, on_host.samples, strict=True):
        polygons = ours.ignored_instances.masks
        assert type(polygons) is PolygonMasks
        ours, theirs = ours.gt_instances, theirs.gt_instances
        assert torch.equal(ours.bboxes, theirs.bboxes)
        ours, theirs = ours.masks, theirs.masks
        assert isinstance(ours, DeviceMasks) and type(theirs) is BitmapMasks
        assert (ours.height, ours.width, len(ours)) == (theirs.height, theirs.width, len(theirs))
        assert np.array_equal(ours.masks, theirs.masks)


@FIXED
@given(BATCHES, st.booleans())
def test_heads_get_the_same_of_bitmaps_on_a_device(cases, binarize):
    sample = make(cases, 1).samples[0].gt_instances
    theirs, ours = sample.masks, DeviceMasks.of(sample.masks, "cpu")
    index = torch.arange(len(theirs)).repeat(2)
    boxes = torch.cat([sample.bboxes, sample.bboxes * 0.7])
    for these in (boxes, boxes[:0]):
        crops = (
            m.crop_and_resize(these, (7, 5), index[: len(these)], "cpu", binarize=binarize)
            for m in (ours, theirs)
        )
        assert np.array_equal(*(m.to_ndarray() for m in crops))
    assert torch.equal(*(m.to_tensor(torch.float32, "cpu") for m in (ours, theirs)))
    assert np.array_equal(ours.areas, theirs.areas)
    assert np.array_equal(ours[0].masks, theirs[0].masks)
    for direction in ("horizontal", "vertical", "diagonal"):
        assert np.array_equal(ours.flip(direction).masks, theirs.flip(direction).masks)
    gt = InstanceData(bboxes=sample.bboxes, masks=ours)
    for index in (torch.tensor([0, 0]), torch.ones(len(ours), dtype=torch.bool)):
        assert np.array_equal(gt[index].masks.masks, theirs.masks[index.numpy()])
    both = InstanceData.cat([gt, gt]).masks
    assert np.array_equal(both.masks, np.concatenate([theirs.masks, theirs.masks]))
    none = DeviceMasks.of(theirs[np.zeros(len(theirs), bool)], "cpu")
    assert len(none.pad((90, 90)).resize((20, 30))) == 0
    assert len(none.crop_and_resize(boxes, (7, 5), index)) == 0
