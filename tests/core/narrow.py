"""A detector's sub-network against a detector that is built that narrow."""

import torch

from gradaug_det.core.slimming import at_width, slim_plan


def slices(plan, tensors, width):
    """The first channels of each of the named tensors."""
    return {
        name: tensor[tuple(map(slice, plan.tensor_shape(name, tensor.shape, width)))]
        for name, tensor in tensors.items()
    }


def check_against_narrow(detector, narrow, losses_of, width):
    """Losses and gradients, in float64, of the detector at a width and of one of that size."""
    plan = slim_plan(detector)
    narrow.load_state_dict(slices(plan, detector.state_dict(), width))  # strict, with shapes
    found = []
    for model in (detector, narrow):
        torch.manual_seed(0)  # which proposals are sampled
        if model is detector:
            with at_width(model, width):
                losses = losses_of(model)
                sum(losses.values()).backward()
        else:
            losses = losses_of(model)
            sum(losses.values()).backward()
        found.append({name: loss.item() for name, loss in losses.items()})
    assert found[0].keys() == found[1].keys()
    for name, loss in found[0].items():
        assert abs(loss - found[1][name]) <= 1e-9 * abs(loss), name
    gradients = {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}
    first = slices(plan, gradients, width)
    expected = {n: p.grad for n, p in narrow.named_parameters() if p.grad is not None}
    assert first.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = gradient.abs().max()
        # Detectron2 keeps anchors in float32.
        assert (first[name] - gradient).abs().max() <= 1e-7 * largest, name
        # Nothing reaches the other channels.
        assert gradients[name].count_nonzero() == first[name].count_nonzero(), name
