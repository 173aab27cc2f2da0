"""Losses of a sub-network against the full network's soft targets.

Each is zero when the two agree and has the normalisation of the hard-label loss that it stands
beside, so that one loss weight fits all. Targets are detached by the caller's recording; none of
these functions sends a gradient into a target.

Source: GradAug, Algorithm 1 (KL divergence to the full network's output), carried over to the
outputs of detectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Returns float32 for what autocast made shorter, as PyTorch's own losses do."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def class_kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Returns the mean over samples of KL(softmax target || softmax prediction); 0 for N = 0.

    Args:
        logits, target_logits: (N, K).
    """
    target = at_least_float32(target_logits.detach()).softmax(dim=1)
    log_probability = at_least_float32(logits).log_softmax(dim=1)
    total = F.kl_div(log_probability, target, reduction="sum")
    return total / max(1, logits.shape[0])


def bernoulli_kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Returns the elementwise KL between the Bernoulli distributions of two arrays of logits."""
    logits, target_logits = at_least_float32(logits), at_least_float32(target_logits.detach())
    target = target_logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(target_logits, target, reduction="none")
    return cross_entropy - entropy


def confidence(target_logits: Tensor) -> Tensor:
    """Returns max(0, 2p - 1) of a probability given by its logit."""
    # 0 where the network only guesses: an untrained RPN gives every anchor p = 0.5, and its box
    # deltas there mean nothing.
    return (2 * at_least_float32(target_logits.detach()).sigmoid() - 1).clamp(min=0)


def unsampled_logits(target_logits: Tensor, valid: Tensor, samples: float) -> Tensor:
    """Returns objectness logits as an RPN would give them had it learned from all anchors.

    Args:
        target_logits, valid: (N, A) logits, and which anchors count.
        samples: anchors of the batch that the RPN samples.
    """
    # Learning from all objects but only a sample of the background multiplies the odds of an object
    # by how much background was left out, about anchors / samples: what is an object for one anchor
    # in a hundred is one for every second that was sampled.
    kept = max(1.0, samples) / valid.sum().clamp(min=1)
    return at_least_float32(target_logits.detach()) + kept.clamp(max=1.0).log()


def objectness_kl(
    logits: Tensor, target_logits: Tensor, valid: Tensor, samples: float, positive_share: float
) -> Tensor:
    """Returns the mean KL divergence of objectness over the anchors that an RPN's own loss would
    sample; 0 where no anchor is valid.

    Args:
        logits, target_logits, valid: (N, A): logits, and which anchors have a soft target.
        samples: anchors of the batch that the RPN samples.
        positive_share: largest share of objects among them, in [0, 1].
    """
    # The RPN samples the objects it has, up to a share, and fills up with background; this is the
    # mean that such a sample has on average if each anchor is an object with the probability that
    # the full network gives it. A sum over all anchors is mostly background, and its gradient was
    # many times that of the RPN's own loss: the RPN did not learn.
    probability = unsampled_logits(target_logits, valid, samples).sigmoid()
    object_, background = probability * valid, (1 - probability) * valid
    divergence = bernoulli_kl(logits, target_logits)
    share = (object_.sum() / max(1.0, samples)).clamp(max=positive_share)
    return share * weighted_mean(divergence, object_) + (1 - share) * weighted_mean(
        divergence, background
    )


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean; 0 if there is no weight."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def expected_box_l1(
    deltas: Tensor, target_deltas: Tensor, weights: Tensor, normalizer: Tensor | float
) -> Tensor:
    """Returns the sum of |deltas - target|, each box weighted by its probability of being that
    object.

    Args:
        deltas, target_deltas: (..., 4).
        weights: (...) probability of the foreground (class) that the deltas belong to.
        normalizer: what the sum is divided by; at least 1 is used.
    """
    difference = at_least_float32(deltas) - at_least_float32(target_deltas.detach())
    total = (difference.abs().sum(dim=-1) * at_least_float32(weights.detach())).sum()
    return total / torch.as_tensor(normalizer, device=total.device).clamp(min=1.0)


def class_box_l1(deltas: Tensor, target_deltas: Tensor, target_logits: Tensor) -> Tensor:
    """Returns a proposal's expected L1 distance of box deltas under the soft class target.

    Args:
        deltas, target_deltas: (R, K * 4), or (R, 4) for class-agnostic regression.
        target_logits: (R, K + 1) class logits of the full network, background last.
    """
    foreground = at_least_float32(target_logits.detach()).softmax(dim=1)[:, :-1]
    deltas, target_deltas = (x.reshape(len(x), x.shape[1] // 4, 4) for x in (deltas, target_deltas))
    if deltas.shape[1] == 1:
        foreground = foreground.sum(dim=1, keepdim=True)
    return expected_box_l1(deltas, target_deltas, foreground, float(len(deltas)))


def mask_kl(logits: Tensor, target_logits: Tensor, classes: Tensor) -> Tensor:
    """Returns the mean per-pixel KL between the masks of each proposal's class; 0 for R = 0.

    Args:
        logits, target_logits: (R, K, M, M), or (R, 1, M, M) for class-agnostic masks.
        classes: (R,) class of each proposal, in [0, K).
    """
    if logits.shape[1] > 1:
        rows = torch.arange(len(classes), device=classes.device)
        logits, target_logits = logits[rows, classes], target_logits[rows, classes]
    return bernoulli_kl(logits, target_logits).sum() / max(1, logits.numel())


def quality_focal(
    logits: Tensor,
    target_logits: Tensor,
    valid: Tensor,
    normalizer: Tensor | float,
    gamma: float = 2.0,
) -> Tensor:
    """Returns the focal KL of dense class scores: |p - q|^gamma * KL, over valid anchors.

    Args:
        logits, target_logits: (N, A, K).
        valid: (N, A).
        normalizer: divides the sum, e.g. the number of positive anchors; at least 1 is used.

    Source: the quality focal loss (Li et al., Generalized Focal Loss, 2020, eq. 3) carries focal
        loss over to soft labels.
    """
    target = at_least_float32(target_logits.detach()).sigmoid()
    modulation = (at_least_float32(logits).sigmoid() - target).abs().pow(gamma)
    total = (modulation * bernoulli_kl(logits, target_logits) * valid[..., None]).sum()
    return total / torch.as_tensor(normalizer, device=total.device).clamp(min=1.0)
