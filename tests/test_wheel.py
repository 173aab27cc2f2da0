"""What a release hands out: the wheel and the sdist, built, and tried in a new environment."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.core.test_imports import PACKAGE, tops
from tests.documents import blocks
from tests.tools.test_repo_hygiene import ROOT, tracked_files

MEGABYTES = 5
# Installed apart, from one of several sources.
FRAMEWORKS = {"detectron2", "mmdet", "mmcv", "mmengine"}


def run(*command, **options):
    """What the command prints; the test fails with it if the command does."""
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def contents(wheel):
    """The files of a wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def tracked():
    """What the repository has, relative to it."""
    return {path.relative_to(ROOT) for path in tracked_files() if path.is_file()}


@pytest.fixture(scope="module")
def dist(tracked, tmp_path_factory):
    """A folder with the sdist, the wheel built from it, and the sdist unpacked."""
    folder = tmp_path_factory.mktemp("dist")
    for path in tracked:
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / "source" / path)
    build(folder / "source", "--out-dir", folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    run("tar", "-xf", sdist, "-C", folder)
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    return SimpleNamespace(source=folder / "source", sdist=sdist, wheel=wheel, unpacked=unpacked)


def build(*arguments):
    options = ("--no-build-isolation", "--offline", "--python", sys.executable)
    run(sys.executable, "-m", "uv", "build", *options, *arguments)


def test_an_index_takes_both(dist):
    run(sys.executable, "-m", "twine", "check", "--strict", dist.wheel, dist.sdist)
    for path in (dist.wheel, dist.sdist):
        assert path.stat().st_size <= MEGABYTES * 1_000_000


def test_the_wheel_holds_the_package_alone(dist, tracked):
    held = {Path(name) for name in contents(dist.wheel) if ".dist-info/" not in name}
    assert held == {path for path in tracked if path.parts[0] == "gradaug_det"}


def test_the_sdist_is_the_repository_without_the_zoos_weights(dist, tracked):
    held = {p.relative_to(dist.unpacked) for p in dist.unpacked.rglob("*") if p.is_file()}
    made = {p for p in held if p.name in ("PKG-INFO", "setup.cfg") or "egg-info" in p.parts[0]}
    assert held - made == {path for path in tracked if path.parts[0] != "zoo"}


def test_the_repository_and_its_sdist_make_equal_wheels(dist, tmp_path):
    build(dist.source, "--wheel", "--out-dir", tmp_path)
    assert contents(tmp_path / dist.wheel.name) == contents(dist.wheel)


def test_the_metadata_says_what_is_known(dist):
    (text,) = (t for name, t in contents(dist.wheel).items() if name.endswith("/METADATA"))
    found = message_from_bytes(text)
    assert {Path(name).name for name in found.get_all("License-File")} == {
        *("LICENSE", "NOTICE", "LICENSE-fashion-mnist.txt")
    }
    citation, changes = ((ROOT / name).read_text() for name in ("CITATION.cff", "CHANGELOG.md"))
    assert f"\nversion: {found['Version']}\n" in citation
    assert re.search(r"^## \[(.+?)\]", changes, flags=re.MULTILINE)[1] == found["Version"]
    # Pictures and pages of the repository are not on a package index.
    assert not re.findall(r"\]\((?!https:).*?\)", found.get_payload())
    users = [Requirement(line) for line in found.get_all("Requires-Dist")]
    declared = {canonicalize_name(r.name) for r in users if "dev" not in str(r.marker)}
    owners = metadata.packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for name in tops(path) - sys.stdlib_module_names - FRAMEWORKS - {"gradaug_det"}:
            names = {canonicalize_name(owner) for owner in owners[name]}
            assert names & declared, f"{path} imports {name}, which setup.py does not declare"


# ---- a new environment ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def user(dist, tmp_path_factory):
    """Runs programs of a new environment: the wheel, and all packages of this one but ours."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "MMDET_DATASETS": "datasets/",  # Detectron2's default
        "GRADAUG_CACHE": str(folder / "cache"),
    }
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", dist.wheel, env=environment)
    # After the installation, which must see no other gradaug_det. A folder that is named here is
    # searched, but what its own .pth files do is not done: no editable installation is found.
    (packages,) = (folder / "venv").glob("lib/*/site-packages")
    lines = [*site.getsitepackages(), "import _distutils_hack; _distutils_hack.add_shim()"]
    (packages / "frameworks.pth").write_text("\n".join(lines))  # with what setuptools has there

    def run_there(*command):
        return run(*command, cwd=folder, env=environment)

    where = "import gradaug_det; print(gradaug_det.__file__)"
    assert run_there("python", "-c", where).strip() == str(packages / "gradaug_det/__init__.py")
    data = ("--out", "datasets/mini_coco", "--train", 2, "--val", 1)
    run_there("gradaug-det", "build-mini-coco", *data)
    return SimpleNamespace(run=run_there, folder=folder)


def test_the_program_works(user):
    assert "check-data" in user.run("gradaug-det", "--help")
    assert "mini-resnet18-gradaug" in user.run("gradaug-det", "zoo", "list")
    printed = user.run("gradaug-det", "check-data", "--coco", "datasets/mini_coco")
    assert "passed: 0 errors" in printed


def test_detectron2_trains(user, dist):
    config = dist.unpacked / "configs/detectron2/mini_mask_rcnn_R_18_FPN_gradaug.yaml"
    printed = user.run(
        *("python", dist.unpacked / "tools" / "train_net.py", "--config-file", config),
        *("OUTPUT_DIR", "detectron2", "MODEL.WEIGHTS", ""),
        *("SOLVER.MAX_ITER", 1, "GRADAUG.LOG_PERIOD", 1),
    )
    assert "GradAug iter 0: sub0 width" in printed
    assert (user.folder / "detectron2" / "model_final.pth").is_file()


def test_mmdetection_trains_with_the_readmes_lines(user, dist):
    (lines,) = (b.text for b in blocks(ROOT / "README.md") if "custom_imports" in b.text)
    base = dist.unpacked / "configs" / "mmdet" / "mini_mask-rcnn_r18_fpn_plain.py"
    (user.folder / "mine.py").write_text(f'_base_ = "{base}"\n{lines}')
    train = Path(find_spec("mmdet").origin).parent / ".mim" / "tools" / "train.py"
    printed = user.run(
        *("python", train, "mine.py", "--work-dir", "mmdet"),
        *("--cfg-options", "model.backbone.init_cfg=None", "train_cfg.max_iters=1"),
        "custom_hooks.0.log_period=1",
    )
    assert re.search(r"GradAug iter 1: width [\d.]+ loss", printed)
    assert (user.folder / "mmdet" / "iter_1.pth").is_file()
