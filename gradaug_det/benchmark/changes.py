"""What is done to an image before a detector sees it: nothing, a corruption, an attack."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.corruptions import check_corruption, corrupt_image


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
        check_corruption(self.kind, self.severity)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.severity}"

    def apply(self, image: np.ndarray, file_name: str, order: str) -> np.ndarray:
        """The corrupted uint8 (H, W, 3) image; the same for the same file name and pixels.

        Args:
            file_name: without its folder: seeds what is random.
            order: of the channels, ``RGB`` or ``BGR``; corruptions such as snow tell them apart.
        """
        seed = zlib.crc32(f"{file_name}/{self.name}".encode())
        if order == "RGB":
            return corrupt_image(image, self.kind, self.severity, seed)
        return corrupt_image(image[..., ::-1], self.kind, self.severity, seed)[..., ::-1]


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
        """Of what is random in the training loss: which proposals and anchors it samples."""
        return zlib.crc32(self.name.encode())


Change = Clean | Corruption | FGSM
