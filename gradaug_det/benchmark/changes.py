"""Changes of an image before a detector sees it: none, a corruption, an attack."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.corruptions import SEVERITIES, corrupt_image, corruption_names


@dataclass(frozen=True)
class Clean:
    """Images as they are."""

    name: str = "clean"


@dataclass(frozen=True)
class Corruption:
    """One of ImageNet-C's corruptions, of the image as it is read, before it is resized.

    Args:
        kind: one of :func:`gradaug_det.evaluation.corruptions.corruption_names`.
        severity: 1 to 5.

    Raises:
        ConfigError: there is no such corruption.
    """

    kind: str
    severity: int

    def __post_init__(self) -> None:
        if self.kind not in corruption_names():
            known = ", ".join(corruption_names())
            raise ConfigError("corruption", f"{self.kind!r} is unknown; choose among {known}")
        if self.severity not in SEVERITIES:
            allowed = list(SEVERITIES)
            raise ConfigError("severity", f"must be one of {allowed}, got {self.severity!r}")

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.severity}"

    def apply(self, image: np.ndarray, file_name: str, order: str) -> np.ndarray:
        """Returns the corrupted uint8 (H, W, 3) image, the same for the same file name and pixels.

        Args:
            file_name: without its folder: seeds what is random.
            order: of the channels, ``RGB`` or ``BGR``; corruptions such as snow tell them apart.
        """
        step = 1 if order == "RGB" else -1
        # Every detector, in either framework, sees the same pixels, whatever was drawn before.
        seed = zlib.crc32(f"{file_name}/{self.name}".encode())
        return corrupt_image(image[..., ::step], self.kind, self.severity, seed)[..., ::step]


@dataclass(frozen=True)
class FGSM:
    """One step of ``epsilon`` up the sign of the gradient of the detector's own training loss.

    White box: each detector and width is attacked with its own gradient, on the resized image that
    the network gets, clipped to [0, 255]. Source: Goodfellow et al., 2015.

    Args:
        epsilon: on the 0-255 scale, above 0.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 255:
            raise ConfigError("--fgsm", f"must be above 0, at most 255, got {self.epsilon}")

    @property
    def name(self) -> str:
        return f"fgsm-{self.epsilon:g}"

    @property
    def seed(self) -> int:
        """The seed of the training loss, which samples proposals and anchors."""
        return zlib.crc32(self.name.encode())

    def step(self, pixels: Tensor, loss: Tensor) -> Tensor:
        """Returns the pixels (3, H, W), which require gradients, moved up the loss."""
        (gradient,) = torch.autograd.grad(loss, pixels)
        return (pixels.detach() + self.epsilon * gradient.sign()).clamp(0, 255)


Change = Clean | Corruption | FGSM
