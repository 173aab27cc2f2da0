"""Tiny recipes on the real data and networks."""

from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from gradaug_det.pretrain.engine import Pretraining
from gradaug_det.pretrain.recipe import load_recipe
from tests.amp import cpu_scaler

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "pretrain"
# 160 images of 16 pixels, 5 steps an epoch.
TINY = ("data.size=16", "data.fraction=0.04", "epochs=2", "batch_size=32", "seed=3")


def tiny_recipe(method="gradaug", *overrides):
    return load_recipe(CONFIGS / f"mini_resnet18_{method}.yaml", [*TINY, *overrides])


def pretraining(recipe, out):
    fabric = Fabric(accelerator="cpu", devices=1, **precision_of(recipe))
    fabric.launch()
    return Pretraining(recipe, out, fabric)


def precision_of(recipe):
    if recipe.precision != "16-mixed":
        return {"precision": recipe.precision}
    # By its name alone Fabric takes bfloat16 on CPUs.
    return {"plugins": MixedPrecision("16-mixed", device="cpu", scaler=cpu_scaler())}
