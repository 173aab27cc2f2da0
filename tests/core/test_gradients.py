"""Autocast regions entered again."""

import torch

from gradaug_det.core.gradients import current_autocast


def test_current_autocast():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = current_autocast("cpu")
    outside = current_autocast("cpu")
    with inside:
        assert (x @ x).dtype == torch.bfloat16
    with outside:
        assert (x @ x).dtype == torch.float32
