"""Soft losses: zero at agreement, the right value elsewhere, no gradient into the target."""

import pytest
import torch
import torch.nn.functional as F

from gradaug_det.core import losses

N, A, K = 3, 7, 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pairs():
    """name -> (loss(prediction, target), prediction shape)."""
    valid = torch.ones(N, A, dtype=torch.bool)
    scores = torch.randn(N, K + 1)
    classes = torch.tensor([0, 3, 1])
    return {
        "class_kl": (losses.class_kl, (N, K)),
        "objectness_kl": (lambda p, t: losses.objectness_kl(p, t, valid, 4.0, 0.5), (N, A)),
        "quality_focal": (lambda p, t: losses.quality_focal(p, t, valid, 4.0), (N, A, K)),
        "class_box_l1": (lambda p, t: losses.class_box_l1(p, t, scores), (N, K * 4)),
        "class_box_l1_agnostic": (lambda p, t: losses.class_box_l1(p, t, scores), (N, 4)),
        "mask_kl": (lambda p, t: losses.mask_kl(p, t, classes), (N, K, 5, 5)),
        "mask_kl_agnostic": (lambda p, t: losses.mask_kl(p, t, classes), (N, 1, 5, 5)),
    }


@pytest.mark.parametrize("name", pairs())
def test_zero_at_agreement_and_descends_towards_it(name):
    loss, shape = pairs()[name]
    target = torch.randn(shape, requires_grad=True)
    assert loss(target.detach().clone(), target).abs() < 1e-6
    prediction = torch.randn(shape, requires_grad=True)
    before = loss(prediction, target)
    assert before > 0
    before.backward()
    assert target.grad is None
    assert prediction.grad.abs().sum() > 0
    with torch.no_grad():
        after = loss(prediction - 1e-3 * prediction.grad / prediction.grad.norm(), target)
    assert after < before


@pytest.mark.parametrize("name", pairs())
def test_half_precision_inputs_give_float32_losses(name):
    loss, shape = pairs()[name]
    prediction, target = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    value = loss(prediction, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(prediction.float(), target.float()).item(), rel=1e-5)


def test_class_kl_is_the_authors():
    prediction, target = torch.randn(N, K).double(), torch.randn(N, K).double()
    expected = torch.nn.KLDivLoss(reduction="batchmean")(
        F.log_softmax(prediction, dim=1), F.softmax(target, dim=1)
    )
    assert losses.class_kl(prediction, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_nothing_to_compare_is_zero_with_a_graph():
    empty = torch.zeros(0, K, requires_grad=True)
    masks = torch.zeros(0, K, 5, 5, requires_grad=True)
    deltas = torch.zeros(0, K * 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    for loss in (
        losses.class_kl(empty, empty.detach()),
        losses.mask_kl(masks, masks.detach(), none),
        losses.class_box_l1(deltas, deltas.detach(), torch.zeros(0, K + 1)),
    ):
        assert loss.item() == 0
        loss.backward()


def test_invalid_anchors_do_not_count():
    prediction, target = torch.randn(1, A), torch.randn(1, A)
    valid = torch.arange(A)[None] < 3
    part = losses.objectness_kl(prediction[:, :3], target[:, :3], valid[:, :3], 2.0, 0.5)
    assert torch.isclose(losses.objectness_kl(prediction, target, valid, 2.0, 0.5), part)
    nowhere = torch.zeros(1, A, dtype=torch.bool)
    assert losses.objectness_kl(prediction, target, nowhere, 2.0, 0.5) == 0
    scores, soft = torch.randn(1, A, K), torch.randn(1, A, K)
    part = losses.quality_focal(scores[:, :3], soft[:, :3], valid[:, :3], 8.0)
    assert torch.isclose(losses.quality_focal(scores, soft, valid, 8.0), part)


def test_odds_of_an_rpn_that_learned_from_a_sample_are_those_of_all_anchors():
    """An RPN that saw every object and a tenth of the background: Bayes gives the odds of all."""
    objects, background, kept = 20.0, 1000.0, 0.1
    sampled = torch.logit(torch.tensor(objects / (objects + kept * background)))
    valid = torch.ones(2, 510, dtype=torch.bool)
    logits = losses.unsampled_logits(sampled.expand(2, 510), valid, kept * 1020)
    assert logits.sigmoid().sum().item() == pytest.approx(objects, rel=0.02)
    # All anchors sampled: nothing to correct.
    same = losses.unsampled_logits(sampled.expand(2, 510), valid, 5000.0)
    assert torch.equal(same, sampled.expand(2, 510))


def test_objectness_is_averaged_as_an_rpn_samples():
    """Two objects and 98 background anchors, 10 sampled: 2 of the one, 8 of the other."""
    is_object = torch.arange(100)[None] < 2
    target = torch.where(is_object, 20.0, -20.0)
    valid = torch.ones(1, 100, dtype=torch.bool)
    prediction = torch.where(is_object, 0.0, -1.0)
    of_object, of_background = (
        losses.bernoulli_kl(torch.tensor(p), torch.tensor(t)).item()
        for p, t in ((0.0, 20.0), (-1.0, -20.0))
    )
    loss = losses.objectness_kl(prediction, target, valid, 10.0, 0.5).item()
    assert loss == pytest.approx(0.2 * of_object + 0.8 * of_background, rel=1e-4)
    capped = losses.objectness_kl(prediction, target, valid, 10.0, 0.1).item()
    assert capped == pytest.approx(0.1 * of_object + 0.9 * of_background, rel=1e-4)


def test_confidence():
    logits = torch.tensor([-3.0, 0.0, torch.logit(torch.tensor(0.75)).item()])
    assert torch.allclose(losses.confidence(logits), torch.tensor([0.0, 0.0, 0.5]))


def test_box_distance_is_weighted_by_the_class_distribution():
    scores = torch.log(torch.tensor([[0.5, 0.2, 0.3]]))  # two classes and background
    deltas = torch.tensor([[1.0, 0, 0, 0, 0, 0, 2, 0]])
    loss = losses.class_box_l1(deltas, torch.zeros(1, 8), scores)
    assert loss.item() == pytest.approx(0.5 * 1 + 0.2 * 2)
    agnostic = losses.class_box_l1(torch.tensor([[1.0, 0, 0, 1]]), torch.zeros(1, 4), scores)
    assert agnostic.item() == pytest.approx(0.7 * 2)
