"""Recipes: every shipped file is valid, and a wrong value is named."""

import pytest

from gradaug_det.errors import ConfigError
from gradaug_det.pretrain.recipe import load_recipe
from studies.mini_zoo.study import METHODS
from tests.pretrain.helpers import CONFIGS

FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_shipped_recipes_are_valid_and_named_after_their_file(file):
    recipe = load_recipe(file)
    assert recipe.name == file.stem.replace("_in1k", "").replace("_", "-")


def test_the_authors_recipe():
    recipe = load_recipe(CONFIGS / "resnet50_in1k_gradaug.yaml")
    assert (recipe.model, recipe.epochs, recipe.batch_size) == ("resnet50", 120, 256)
    own = recipe.optim
    assert (own.name, own.lr, own.momentum, own.weight_decay) == ("sgd", 0.2, 0.9, 1e-4)
    assert (recipe.gradaug.num_subnets, recipe.gradaug.min_width) == (3, 0.9)
    assert recipe.views == 4  # as their published models saw them
    sizes = [round(224 * scale) for scale in recipe.gradaug.scales]
    assert sizes == [224, 192, 160, 128]


def test_the_mini_recipes_differ_in_the_method_alone():
    plain = load_recipe(CONFIGS / "mini_resnet18_baseline.yaml").as_dict()
    for method in METHODS:
        recipe = load_recipe(CONFIGS / f"mini_resnet18_{method}.yaml").as_dict()
        changed = {key for key in plain if recipe[key] != plain[key]} - {"name"}
        assert changed <= {"mix", "mix_alpha", "stochastic_depth", "gradaug"}
        assert bool(changed - {"mix_alpha"}) == (method != "baseline")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=vgg11", r"model must be one of .*resnet18.*, got 'vgg11'"),
        ("mix=blend", r"mix must be one of none, mixup, cutmix, got 'blend'"),
        ("data.kind=coco", "data.kind must be one of garments, imagefolder"),
        ("precision=8-bit", "precision must be one of 32-true"),
        ("epochs=0", "epochs must be an integer of at least 1, got 0"),
        ("epochs=many", "epochs .*'many'.*Integer"),
        ("batch_size=1", "batch_size must be an integer of at least 2, got 1"),
        ("data.size=8", "data.size must be an integer of at least 16, got 8"),
        ("data.fraction=0", r"data.fraction must be a number in \(0, 1\]"),
        ("data.holdout=1", r"data.holdout must be a number in \[0, 0.9\]"),
        ("optim.lr=-1", "optim.lr must be a number"),
        ("stochastic_depth=1.5", r"stochastic_depth must be a number in \[0, 1\], got 1.5"),
        ("gradaug.min_width=0", r"gradaug.min_width must be a number in \(0, 1\], got 0"),
        ("gradaug.block_survival=2", r"gradaug.block_survival must be a number in \[0, 1\]"),
        ("gradaug.rotations=[]", "gradaug.rotations must list at least one angle"),
        ("gradaug.views=new", "gradaug.views must be one of same, own, got 'new'"),
        ("gradaug.depth=0.9", "gradaug.depth"),
        ("gradaug.widths=[1.5]", r"gradaug.widths must be a number in \(0, 1\], got 1.5"),
        ("gradaug.full_share=0.5", r"full_share must be left .* 0.75, got 0.5: passes are 'added'"),
        ("gradaug.passes=alternating", "gradaug.num_subnets must be left at its default, .*got 2"),
        ("learning_rate=1", "learning_rate .*keys: name, model"),
        ("epochs", "overrides must be key=value, got 'epochs'"),
    ],
)
def test_a_wrong_value_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(CONFIGS / "mini_resnet18_gradaug.yaml", [override])


@pytest.mark.parametrize("method", ["baseline", "anywidth"])
def test_views_are_of_added_sub_networks(method):
    with pytest.raises(ConfigError, match=r"gradaug.views needs sub-networks .* got 'own'"):
        load_recipe(CONFIGS / f"mini_resnet18_{method}.yaml", ["gradaug.views=own"])


def test_wrong_files(tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist: .*nowhere.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
    file = tmp_path / "circle.yaml"
    file.write_text("base: circle.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_recipe(file)
    file.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="is not valid yaml"):
        load_recipe(file)
