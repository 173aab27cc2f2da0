"""Images for pretraining. What a training sees at step t depends on (seed, t) alone.

A resumed training, and one with another number of loader processes, sees the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from gradaug_det.core.resumed import PlacedDataset, PlacedIndex
from gradaug_det.errors import DataError
from gradaug_det.mini_coco import CLASS_NAMES, load_garments, render_garment_crops
from gradaug_det.pretrain.recipe import DataSettings, Recipe
from gradaug_det.utils.seeding import stable_seed

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet's, RGB, on the 0-255 scale: those of torchvision and, reversed, of the detectors."""

# ImageNet's colour covariance (Krizhevsky et al., 2012): eigenvalues, and eigenvectors in columns.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass
class Images:
    """The images of a recipe, and the names of their classes."""

    train: Dataset  # index -> (image, label), not augmented
    val: Dataset  # index -> (uint8 (3, H, W), label)
    classes: list[str]


class Lighting(nn.Module):
    """PCA lighting noise on uint8 (3, H, W) images, on their own 0-255 scale.

    Args:
        std: of the noise in units of the eigenvalues.

    Source: Krizhevsky et al., 2012. The authors' code adds the noise of the 0-1 scale to 0-255
        images, where it rounds to nothing.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.std = std

    def forward(self, image: Tensor) -> Tensor:
        # One number a principal component of the colours, the same for all pixels.
        alpha = torch.randn(3) * self.std * torch.tensor(_EIGENVALUES)
        shift = 255 * torch.tensor(_EIGENVECTORS) @ alpha
        return (image + shift.view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)


def load_images(settings: DataSettings, seed: int) -> Images:
    """The images that the settings name; a DataError if they are not there."""
    if settings.kind == "garments":
        train, val = (_cached_crops(s, settings.root, settings.size) for s in ("train", "test"))
        classes, cut = list(CLASS_NAMES), v2.Identity()  # they are drawn at their size
    else:
        train, val = _load_folders(settings.root)
        classes, shorter = train.classes, round(settings.size * 256 / 224)
        resize = v2.Resize(shorter, antialias=True)
        cut = v2.Compose([resize, v2.CenterCrop(settings.size), v2.PILToTensor()])
    labels = np.asarray(train.targets)
    chosen = _sample_share(labels, settings.fraction, seed)
    if settings.holdout:
        held = _sample_share(labels, settings.holdout, stable_seed("holdout", seed))
        val, chosen = Subset(train, held.tolist()), np.setdiff1d(chosen, held)
    return Images(Subset(train, chosen.tolist()), _Transformed(val, cut), classes)


class Crops(Dataset):
    """Garments on canvases: index -> (uint8 (3, size, size), label), drawn when first asked for.

    Args:
        split: ``train`` or ``test``.
        root: folder of Fashion-MNIST's files; empty for the embedded garments.
        size: side of a crop in pixels.
    """

    def __init__(self, split: str, root: str, size: int) -> None:
        self._garments, labels = load_garments(split, root or None)
        self.targets = torch.from_numpy(labels).long()  # (N,), torchvision's name
        # All trainings learn from, and are compared on, the same pictures.
        self._seed = ("train", "test").index(split)
        self._pixels = torch.empty((len(labels), 3, size, size), dtype=torch.uint8)
        self._drawn = np.zeros(len(labels), bool)

    def pixels(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """uint8 (len(indices), 3, size, size)."""
        indices = np.asarray(indices)
        missing = np.unique(indices[~self._drawn[indices]])
        if len(missing):
            size = self._pixels.shape[-1]
            crops = render_garment_crops(self._garments, self.targets, size, self._seed, missing)
            self._pixels[missing] = torch.from_numpy(crops)
            self._drawn[missing] = True
        return self._pixels[indices]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels([index])[0], self.targets[index]


_cached_crops = lru_cache(maxsize=4)(Crops)


def _load_folders(folder: str) -> list[ImageFolder]:
    root = Path(folder)
    for split in ("train", "val"):
        if not folder or not (root / split).is_dir():
            raise DataError(
                f"data.root {str(root)!r} has no folder {split!r}; give the folder that holds "
                "train/CLASS/*.jpg and val/CLASS/*.jpg"
            )
    try:
        train, val = (ImageFolder(root / split, loader=_load_image) for split in ("train", "val"))
    except FileNotFoundError as error:
        raise DataError(f"data.root {str(root)!r}: {error}") from None
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))[:5]
        raise DataError(f"train and val of {root} have different classes, e.g. {', '.join(odd)}")
    return [train, val]


def _load_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            # Torchvision would clip them to white.
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"the image {path} has pixels of more than 8 bits (mode {image.mode}), which "
                    "would be clipped; convert it to 8 bits"
                )
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders let through whatever a damaged file raises
        raise DataError(
            f"the image {path} cannot be decoded ({error}); to find all such: gradaug-det "
            "check-data --imagefolder ROOT"
        ) from None


def _sample_share(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of a random share of each class, at least one image of each."""
    rng = np.random.default_rng(stable_seed("share", seed))
    chosen = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(own)[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(chosen))


class _Transformed(Dataset):
    def __init__(self, images: Dataset, transform: nn.Module, views: int = 1) -> None:
        self.images, self.transform, self.views = images, transform, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        views = [self.transform(image) for _ in range(self.views)]
        return views[0] if self.views == 1 else torch.stack(views), int(label)


def augment_images(images: Dataset, settings: DataSettings, seed: int, views: int = 1) -> Dataset:
    """The images, augmented: uint8 (3, H, W) and label, by a PlacedIndex of (epoch, index). With
    several views, uint8 (views, 3, H, W): the first is what it would be alone."""
    flip = v2.RandomHorizontalFlip()
    if settings.augment == "light":
        shift = v2.RandomCrop(settings.size, padding=settings.size // 8, padding_mode="reflect")
        steps = [v2.Resize(settings.size, antialias=True), v2.PILToTensor(), shift, flip]
    else:
        jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
        # Pillow's images are cut and resized first: the rest of a photo's pixels never become a
        # tensor.
        crop = v2.RandomResizedCrop(settings.size, antialias=True)
        steps = [crop, v2.PILToTensor(), flip, jitter, Lighting()]
    return PlacedDataset(_Transformed(images, v2.Compose(steps), views), "augment", seed)


class StatelessBatches:
    """A batch sampler: for each step from ``first`` on, the share of process ``rank`` of ``world``.

    Args:
        images: number of training images; a last incomplete batch of an epoch is left out.
        recipe: batch size, epochs and seed.

    Raises:
        DataError: there are fewer images than a batch holds.
    """

    def __init__(
        self, images: int, recipe: Recipe, first: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.recipe, self.first = images, recipe, first
        self.rank, self.world = rank, world
        self.steps_per_epoch = images // recipe.batch_size
        if not self.steps_per_epoch:
            raise DataError(
                f"batch_size {recipe.batch_size} is more than the {images} training images"
            )
        self.steps = recipe.epochs * self.steps_per_epoch
        """Steps of the whole training."""

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[PlacedIndex]]:
        whole = self.recipe.batch_size
        size = whole // self.world
        order = None
        for step in range(self.first, self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            # Nothing has a state: an epoch's order can be made in any process, from any step on.
            if order is None or place == 0:
                rng = np.random.default_rng(stable_seed("order", self.recipe.seed, epoch))
                order = rng.permutation(self.images).tolist()
            start = place * whole + self.rank * size
            yield [PlacedIndex(index, (epoch, index)) for index in order[start : start + size]]


def train_loader(images: Images, recipe: Recipe, batches: StatelessBatches) -> DataLoader:
    """Batches of (uint8 (N, 3, H, W), (N,) labels), from ``batches.first`` to the last step; of
    own views uint8 (N, 1 + n, 3, H, W)."""
    if isinstance(images.train.dataset, Crops):
        images.train.dataset.pixels(images.train.indices)  # not in each loader process
    return DataLoader(
        augment_images(images.train, recipe.data, recipe.seed, recipe.views),
        batch_sampler=batches,
        num_workers=recipe.data.workers,
        pin_memory=torch.cuda.is_available(),
    )


def val_loader(images: Images, recipe: Recipe, rank: int = 0, world: int = 1) -> DataLoader:
    """This process's share of the validation images, in order."""
    share = Subset(images.val, range(rank, len(images.val), world))
    return DataLoader(share, batch_size=200, num_workers=recipe.data.workers)


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB (..., 3, H, W) -> float32 with ImageNet's mean and standard deviation."""
    return v2.functional.normalize(images.float(), PIXEL_MEAN, PIXEL_STD)
