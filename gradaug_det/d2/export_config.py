"""A narrow ResNet-18 or -34 in Detectron2: a LazyConfig, as no yaml config can say it.

``build_resnet_backbone`` asserts 64 channels at these depths. ``ResNet`` itself does not, and a
model that is made from a yaml config takes a backbone beside it: Detectron2's explicit arguments
precede what ``from_config`` reads.
"""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from gradaug_det.errors import ConfigError

_TEMPLATE = Path(__file__).with_name("templates") / "narrow_resnet.py.txt"


def lazy_config(cfg: CfgNode, channels: int) -> str:
    """Returns the LazyConfig's content: ``model``, ``dataloader`` and ``train``, for inference.

    Args:
        cfg: the full detector's yaml config: a ResNet-18 or -34 under an FPN.
        channels: of the stem and the first stage.

    Raises:
        ConfigError: the architecture cannot be given so.
    """
    detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not hasattr(detector, "from_config") or detector.__module__.startswith("gradaug_det"):
        raise ConfigError(
            "MODEL.META_ARCHITECTURE",
            f"is {cfg.MODEL.META_ARCHITECTURE}, which takes no backbone beside a config, as the "
            "export of a ResNet-18 or -34 needs; one of Detectron2's own does",
        )
    text = _TEMPLATE.read_text("utf-8")
    for name, value in (
        ("MODULE", detector.__module__),
        ("CLASS", detector.__name__),
        ("CHANNELS", str(channels)),
        # Whatever a config holds stays within the string that it becomes.
        ("SETTINGS", cfg.dump().rstrip().replace("\\", "\\\\").replace('"""', r"\"\"\"")),
    ):
        text = text.replace(f"<{name}>", value)
    return text
