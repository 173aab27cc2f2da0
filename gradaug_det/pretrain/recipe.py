"""How a backbone is pretrained: one recipe, read from yaml, validated once.

The values of ``configs/pretrain/resnet50_in1k_gradaug.yaml`` are the authors' (GradAug, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gradaug_det.core.checks import check_integer, check_number
from gradaug_det.core.options import GradAugOptions
from gradaug_det.errors import ConfigError
from gradaug_det.zoo.info import DEPTHS, NAME


def _setting(default: Any, check: Callable[..., Any], **allowed: Any) -> Any:
    """A field that holds its own check beside its default; Recipe.check calls them all."""
    return field(default=default, metadata={"check": partial(check, **allowed)})


def _check_choice(key: str, value: str, among: Iterable[str]) -> None:
    if value not in among:
        raise ConfigError(key, f"must be one of {', '.join(among)}, got {value!r}")


@dataclass
class DataSettings:
    """Images and what is done to them.

    Args:
        kind: ``garments`` (Fashion-MNIST's, drawn on textured canvases) or ``imagefolder``
            (``root/train/CLASS/*`` and ``root/val/CLASS/*``, as ImageNet is laid out).
        root: folder of the images; of Fashion-MNIST's idx files for garments, or empty for the
            embedded 4000 training and 1200 test garments.
        fraction: share of each class's training images that is used, in (0, 1].
        size: side of an image in pixels.
        augment: ``light`` (mirror, shift by up to an eighth) or ``imagenet`` (random resized crop,
            mirror, colour jitter, lighting noise: the authors').
        workers: processes that load images.
        holdout: share of the *training* images that is kept from training and evaluated in place
            of the validation split: for choosing settings. In [0, 1).
    """

    kind: str = _setting("garments", _check_choice, among=("garments", "imagefolder"))
    root: str = ""
    fraction: float = _setting(1.0, check_number, above=0.0, high=1.0)
    size: int = _setting(32, check_integer, low=16)
    augment: str = _setting("light", _check_choice, among=("light", "imagenet"))
    workers: int = _setting(0, check_integer, low=0)
    holdout: float = _setting(0.0, check_number, high=0.9)


@dataclass
class OptimSettings:
    """Optimizer; the learning rate falls to 0 along a cosine.

    Args:
        name: ``sgd`` (Nesterov momentum) or ``adamw``.
        lr: the highest learning rate, for the whole batch of all processes.
        momentum: of SGD.
        weight_decay: of all parameters.
        warmup_epochs: in which the learning rate rises linearly.
    """

    name: str = _setting("sgd", _check_choice, among=("sgd", "adamw"))
    lr: float = _setting(0.1, check_number, above=0.0)
    momentum: float = _setting(0.9, check_number, high=1.0)
    weight_decay: float = _setting(1e-4, check_number)
    warmup_epochs: float = _setting(0.0, check_number)


@dataclass
class GradAugSettings:
    """GradAug's sub-networks: the settings of :class:`gradaug_det.core.options.GradAugOptions`
    that a classifier has too.

    Args:
        views: what a sub-network sees before its scale: ``same``, the image as the full network
            sees it, cut, mirrored and coloured alike; or ``own``, the image through the training
            augmentation once more. The authors' published ImageNet models were trained with own
            views; their CIFAR code, and their ImageNet code since, has the same ones.
        rotations: angles in degrees that a sub-network's batch may be turned by.
    """

    num_subnets: int = 0
    views: str = _setting("same", _check_choice, among=("same", "own"))
    min_width: float = GradAugOptions.min_width
    scales: list[float] = field(default_factory=lambda: list(GradAugOptions.scales))
    rotations: list[float] = field(default_factory=lambda: [0.0])
    block_survival: float = GradAugOptions.block_survival
    divisor: int = GradAugOptions.divisor
    passes: str = GradAugOptions.passes
    widths: list[float] = field(default_factory=list)
    full_share: float = GradAugOptions.full_share
    smallest_share: float = GradAugOptions.smallest_share


@dataclass
class Recipe:
    """A pretraining.

    Args:
        name: of the backbone, as in the zoo.
        model: builder of a torchvision ResNet.
        epochs: passes over the training images.
        batch_size: images a step, over all processes.
        mix: ``mixup``, ``cutmix`` (torchvision.transforms.v2) or ``none``.
        mix_alpha: parameter of its beta distribution.
        stochastic_depth: probability that the last residual branch is kept while training the
            full network; 1 is a plain network.
        label_smoothing: of the full network's cross-entropy.
        ema_decay: of the moving average of weights that is evaluated and saved; 0 for none.
        precision: Lightning Fabric's: ``32-true``, ``bf16-mixed`` or ``16-mixed``. On CPUs,
            ``bf16-mixed`` wants images of 64 pixels or more: torch 2.9 leaves gradients of kernel
            taps that only ever meet padding uninitialised.
        channels_last: weights, and so activations, are (N, H, W, C) in memory: faster for narrow
            networks on CPUs, and for ``16-mixed`` and ``bf16-mixed`` on CUDA. Differs by rounding.
        seed: everything random depends on it.
        checkpoint_steps: steps between checkpoints; 0 for one an epoch.
        eval_epochs: epochs between evaluations on the validation images; 0 for one at the end.

    Raises (from :meth:`check`):
        ConfigError: names the key, its value and the values allowed.
    """

    name: str = "pretrained"
    model: str = _setting("resnet18", _check_choice, among=DEPTHS)
    epochs: int = _setting(10, check_integer, low=1)
    batch_size: int = _setting(64, check_integer, low=2)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    gradaug: GradAugSettings = field(default_factory=GradAugSettings)
    mix: str = _setting("none", _check_choice, among=("none", "mixup", "cutmix"))
    mix_alpha: float = _setting(1.0, check_number, above=0.0)
    stochastic_depth: float = _setting(1.0, check_number, high=1.0)
    label_smoothing: float = _setting(0.0, check_number, high=1.0)
    ema_decay: float = _setting(0.0, check_number, high=1.0)
    precision: str = _setting("32-true", _check_choice, among=("32-true", "bf16-mixed", "16-mixed"))
    channels_last: bool = False
    seed: int = _setting(0, check_integer, low=0)
    checkpoint_steps: int = _setting(0, check_integer, low=0)
    eval_epochs: int = _setting(0, check_integer, low=0)

    def check(self) -> Recipe:
        """Returns the recipe itself, if every value is allowed."""
        _check_fields(self)
        if len(self.name) > 100 or not NAME.fullmatch(self.name):
            # Said now: the backbone's file, which is written at the end, refuses it.
            problem = "must be lower-case letters, digits and single hyphens (at most 100)"
            raise ConfigError("name", f"{problem}, got {self.name!r}")
        for angle in self.gradaug.rotations:
            if not -360 <= angle <= 360:  # nor NaN
                problem = f"must be angles from -360 to 360 degrees, got {angle!r}"
                raise ConfigError("gradaug.rotations", problem)
        if not self.gradaug.rotations:
            raise ConfigError("gradaug.rotations", "must list at least one angle; [0] never turns")
        try:
            options = self.options  # checks the settings that a detector's training has too
        except ConfigError as error:
            raise ConfigError(f"gradaug.{error.key}", error.problem) from None
        if self.gradaug.views == "own" and (options.passes != "added" or not options.num_subnets):
            problem = "needs sub-networks with added passes (num_subnets 1 or more), got 'own'"
            raise ConfigError("gradaug.views", problem)
        if options.passes == "alternating" and any(self.gradaug.rotations):
            problem = "turn added passes alone, and passes are 'alternating'; leave them out"
            raise ConfigError("gradaug.rotations", f"{problem}, got {self.gradaug.rotations!r}")
        return self

    @property
    def options(self) -> GradAugOptions:
        """The settings by which this training's sub-networks are sampled."""
        own = {k: v for k, v in vars(self.gradaug).items() if k not in ("rotations", "views")}
        if self.gradaug.passes == "alternating" and not own["num_subnets"]:
            del own["num_subnets"]  # a recipe's default
        return GradAugOptions(**own, seed=self.seed)

    @property
    def views(self) -> int:
        """The number of differently augmented images that a step makes of each image."""
        return 1 + self.gradaug.num_subnets if self.gradaug.views == "own" else 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the yaml file."""
        values = asdict(self)
        # As in recipes written before there were these, so that their trainings can be resumed.
        for name in ("views", "divisor", "passes", "widths", "full_share", "smallest_share"):
            if values["gradaug"][name] == getattr(GradAugSettings(), name):
                del values["gradaug"][name]
        for name in ("channels_last", "eval_epochs"):
            if not values[name]:
                del values[name]
        return values

    def same_training(self, other: dict[str, Any]) -> bool:
        """Returns whether a checkpoint of the recipe ``other`` can be gone on with."""
        own, other = (
            # None of the three changes what is trained.
            {**recipe, "data": {**recipe["data"], "workers": 0}, "checkpoint_steps": 0}
            | {"eval_epochs": 0}
            for recipe in (self.as_dict(), other)
        )
        return own == other


def _check_fields(settings: Any, prefix: str = "") -> None:
    for f in fields(settings):
        key, value = prefix + f.name, getattr(settings, f.name)
        if is_dataclass(value):
            _check_fields(value, f"{key}.")
        elif "check" in f.metadata:
            f.metadata["check"](key, value)


def load_recipe(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a yaml file.

    Args:
        file: may name another file, relative to itself, under the key ``base``, whose values it
            replaces.
        overrides: ``key=value`` with dotted keys, e.g. ``data.fraction=0.1``.

    Raises:
        ConfigError: the file or an override cannot be used, or a value is not allowed.
    """
    for text in overrides:
        if "=" not in text:
            raise ConfigError("overrides", f"must be key=value, got {text!r}")
    try:
        layers = [OmegaConf.structured(Recipe), *_load_layers(Path(file))]
        merged = OmegaConf.merge(*layers, OmegaConf.from_dotlist(list(overrides)))
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        known = ", ".join(f.name for f in fields(Recipe))
        problem = str(error).splitlines()[0]
        raise ConfigError(str(error.full_key or file), f"{problem}; keys: {known}") from None
    except YAMLError as error:
        problem = f"must have values in yaml: {' '.join(str(error).split())}"
        raise ConfigError("overrides", problem) from None
    return recipe.check()


def _load_layers(file: Path | None) -> list[DictConfig]:
    """The file's values, after those of the files that it is based on."""
    layers: list[DictConfig] = []
    while file is not None:
        if not file.is_file():
            raise ConfigError("--config", f"names a file that does not exist: {file}")
        if len(layers) > 10:
            raise ConfigError("base", f"of {file} never ends: files name each other in a circle")
        try:
            own = OmegaConf.load(file)
        except (YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(str(file), f"is not valid yaml: {error}") from None
        except OSError as error:  # OmegaConf has one for a file that is no mapping or list, too
            problem = f"cannot be read as a mapping of keys: {error}"
            raise ConfigError(str(file), problem) from None
        if not OmegaConf.is_dict(own):
            raise ConfigError(str(file), "must be a mapping of keys, it is a list")
        base = own.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise ConfigError("base", f"of {file} must be the name of another file, got {base!r}")
        layers.insert(0, own)
        file = file.parent / base if base else None
    return layers
