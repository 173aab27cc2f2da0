"""Scores of a classifier on a recipe's validation images, as they are and under attack."""

from __future__ import annotations

from itertools import islice

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchvision.models import get_model

from gradaug_det.core.slimming import at_width
from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.export.calibration import recalibrate
from gradaug_det.pretrain.data import (
    PIXEL_MEAN,
    PIXEL_STD,
    Images,
    StatelessBatches,
    load_images,
    normalize,
    train_loader,
    val_loader,
)
from gradaug_det.pretrain.recipe import Recipe
from gradaug_det.zoo.backbone import read_backbone
from gradaug_det.zoo.preprocessing import Setting
from gradaug_det.zoo.url import SCHEME, ZooURL

EPSILONS = (1, 2, 4)
"""Steps of FGSM on the 0-255 scale."""
MEASURED_BATCHES = 40
"""Training batches over which a width's BatchNorm statistics are averaged."""


def score(
    model: nn.Module, images: Images, recipe: Recipe, fabric: Fabric, epsilon: float = 0.0
) -> dict[str, float]:
    """Returns ``top1`` and ``top5`` in per cent of all processes' validation images, and ``loss``.

    Args:
        model: takes normalized RGB images; all processes get the first one's running statistics.
        epsilon: of FGSM on the 0-255 scale; 0 leaves the images as they are.
    """
    broadcast_buffers(model)
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=fabric.device)
    for batch in val_loader(images, recipe, fabric.global_rank, fabric.world_size):
        pixels, labels = fabric.to_device(batch)
        if epsilon:
            pixels = fgsm(model, pixels, labels, epsilon)
        with torch.no_grad(), fabric.autocast():
            logits = model(normalize(pixels)).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        own = [best[:, 0].sum(), best.sum(), loss, len(labels)]
        sums += torch.stack([torch.as_tensor(v, device=sums.device).double() for v in own])
    top1, top5, loss, count = fabric.all_reduce(sums, reduce_op="sum").tolist()
    model.train()
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count}


def score_widths(
    model: nn.Module, images: Images, recipe: Recipe, fabric: Fabric
) -> dict[str, float]:
    """Returns ``top1_w0.5`` and the like: top-1 of the recipe's fixed widths, for each with
    BatchNorm statistics of its own, measured on training images."""
    batches = StatelessBatches(len(images.train), recipe)  # the same in all processes
    found = {}
    for width in recipe.options.widths:
        loader = islice(train_loader(images, recipe, batches), MEASURED_BATCHES)
        with at_width(model, width, "frozen", recipe.gradaug.divisor):
            recalibrate(model.eval(), (normalize(fabric.to_device(batch)) for batch, _ in loader))
            found[f"top1_w{width:g}"] = score(model, images, recipe, fabric)["top1"]
    return found


def score_backbone(name: str, recipe: Recipe, fabric: Fabric) -> dict[str, float]:
    """Returns a backbone's :func:`score`, and top-1 under attack: ``fgsm1``, ``fgsm2``, ``fgsm4``.

    Args:
        name: see :func:`load_classifier`.
        recipe: names the images; ``data.size`` is what they are cut to.

    Raises:
        ZooError: there is no such classifier.
        ConfigError: the images are of another number of classes.
    """
    model = fabric.to_device(load_classifier(name))
    images = load_images(recipe.data, recipe.seed)
    known = model.fc.out_features
    if known != len(images.classes):
        raise ConfigError("data", f"has {len(images.classes)} classes, {name} knows {known}")
    attacked = {
        f"fgsm{epsilon}": score(model, images, recipe, fabric, epsilon)["top1"]
        for epsilon in EPSILONS
    }
    return score(model, images, recipe, fabric) | attacked


def load_classifier(name: str) -> nn.Module:
    """Returns a backbone with its classifier, in evaluation mode, for normalized RGB images.

    Args:
        name: of the zoo's entry, or the path of a ``.safetensors`` file of the zoo's kind.

    Raises:
        ZooError: there is no such file, or no classifier for such images in it.
    """
    name = name.removeprefix(SCHEME)  # as configs name it
    url = ZooURL(f"{SCHEME}{name}", name, "RGB")
    state, info = read_backbone(url.path())
    if "fc.bias" not in state or info.framework != "torchvision":
        raise ZooError(f"{name} has no classifier under torchvision's names (fc), so no accuracy")
    if info.channel_order == "BGR":
        state["conv1.weight"] = state["conv1.weight"].flip(1)
    info = url.info()  # with mean and std in RGB
    ours = {"pixel_mean": list(PIXEL_MEAN), "pixel_std": list(PIXEL_STD)}
    for key, given in {**ours, "stride_in": "3x3"}.items():
        wanted = getattr(info, key)
        if not Setting(key, given, list(wanted) if key in ours else wanted).agrees:
            raise ZooError(f"{name} wants {key} {wanted}; top-1 is measured here with {given}")
    model = get_model(info.architecture, weights=None, num_classes=len(state["fc.bias"]))
    model.load_state_dict(state, strict=True)
    return model.eval()


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Returns images moved by ``epsilon`` up the sign of the loss's gradient, within [0, 255].

    Args:
        model: attacked with its own gradient (white box), in evaluation mode.
        images: (N, 3, H, W) on the 0-255 scale.
        labels: (N,) true classes.
        epsilon: on the 0-255 scale.

    Source: Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015.
    """
    pixels = images.float().requires_grad_()
    loss = F.cross_entropy(model(normalize(pixels)), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    return (images + epsilon * gradient.sign()).clamp(0, 255)


@torch.no_grad()
def broadcast_buffers(model: nn.Module) -> None:
    """Gives all processes the running statistics of the first, as DDP does."""
    if dist.is_available() and dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
