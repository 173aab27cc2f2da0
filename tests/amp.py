"""Mixed precision on a CPU, of which torch 2.1 has less than later ones."""

import pytest
import torch

PARTIAL = not hasattr(torch.amp, "GradScaler")  # before torch 2.3
needs_bfloat16_nms = pytest.mark.skipif(
    PARTIAL, reason="torchvision before 0.18 suppresses no boxes in bfloat16 on a CPU"
)


def cpu_scaler(enabled=True, **options):
    """Returns torch's gradient scaler for a CPU; skips the test where there is none."""
    if PARTIAL and enabled:
        pytest.skip("torch before 2.3 scales gradients on GPUs only")
    if PARTIAL:
        return torch.cuda.amp.GradScaler(enabled=False)
    return torch.amp.GradScaler("cpu", enabled=enabled, **options)
