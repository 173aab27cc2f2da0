"""``gradaug://NAME`` in a config: a backbone of the zoo, delivered as a framework wants it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.zoo.backbone import METADATA_KEY, read_backbone, read_info
from gradaug_det.zoo.convert import convert
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.info import BackboneInfo
from gradaug_det.zoo.naming import check_order
from gradaug_det.zoo.sources import find

SCHEME = "gradaug://"


@dataclass(frozen=True)
class ZooURL:
    """A parsed ``gradaug://NAME`` or ``gradaug://NAME?format=BGR``.

    Args:
        text: the whole URL.
        name: of the zoo's entry, or the path of a file that ``save_backbone`` wrote
            (``gradaug://output/backbone.safetensors``).
        order: "RGB" or "BGR", the channel order in which the weights are delivered.
    """

    text: str
    name: str
    order: str

    @property
    def is_file(self) -> bool:
        return self.name.endswith(".safetensors")

    def path(self) -> Path:
        """The verified file on this machine, downloaded if need be. Raises ZooError."""
        if not self.is_file:
            return fetch(self.name)
        read_info(self.name)  # refuses what is no backbone file
        return Path(self.name)

    def info(self) -> BackboneInfo:
        """The weights' description as they are delivered, without a download. Raises ZooError."""
        info = read_info(self.name) if self.is_file else find(self.name).info
        if info.channel_order == self.order:
            return info
        # The first convolution is delivered reversed, so the images are the other way round, too.
        mean, std = info.pixel_mean[::-1], info.pixel_std[::-1]
        return replace(info, channel_order=self.order, pixel_mean=mean, pixel_std=std)

    def load(self, target: str) -> dict[str, Tensor]:
        """The weights under a framework's names (see ``convert``), without the classifier.

        Raises:
            ZooError: there is no such backbone or its file cannot be used.
            ConfigError: the framework has no such network.
        """
        state, info = read_backbone(self.path())
        orders = {"source_format": info.channel_order, "target_format": self.order}
        return convert(state, info.framework, target, **orders)


def parse_url(text: object, usual_order: str) -> ZooURL | None:
    """The URL in a config's value; None if it is another kind of value.

    Args:
        usual_order: "RGB" or "BGR", for a URL that does not say it.

    Raises:
        ConfigError: it has no name, or something but ``format=RGB`` or ``format=BGR`` after the ?.
    """
    if not isinstance(text, str) or not text.startswith(SCHEME):
        return None
    name, _, query = text.removeprefix(SCHEME).partition("?")
    if not name:
        raise ConfigError(text, f"has no name; write {SCHEME}NAME, see `gradaug-det zoo list`")
    order = usual_order
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != "format":
            problem = f"has an unknown key {key!r} after the ?; allowed is format=RGB or format=BGR"
            raise ConfigError(text, problem)
        order = check_order(f"format in {text}", value)
    return ZooURL(text, name, order)


def refuse_bare_backbone(path: str | Path) -> None:
    """Raises ZooError for a file that ``save_backbone`` wrote: its names are torchvision's, and a
    framework that loads it without ``gradaug://`` would fill little or nothing of a detector."""
    if not str(path).endswith(".safetensors") or not Path(path).is_file():
        return
    try:
        with safe_open(path, framework="pt") as file:
            is_backbone = METADATA_KEY in (file.metadata() or {})
    except SafetensorError:
        return  # whoever reads it says so
    if is_backbone:
        raise ZooError(
            f"{path} is a backbone under torchvision's names; write {SCHEME}{path} to have it "
            "converted and the config compared with it"
        )
