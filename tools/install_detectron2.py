"""Install Detectron2 0.6 where only a package registry is reachable.

Detectron2 is normally built from its repository, C++ and all. The registry has only a sdist of the
0.6 Python files, without the C++ sources and with metadata that pip refuses. This script turns it
into a pure-Python wheel (FIXES and C_MODULE are what is changed) and installs that into the
interpreter that runs the script. A Detectron2 that already works, of any version, is left alone.

    python tools/install_detectron2.py [--sdist FILE]
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath

PROJECT = "pb1-detectron2"
SDIST = "pb1-detectron2-0.6.tar.gz"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# The local part tells this wheel from a compiled build; raise its number when what the wheel holds
# changes, so that an older one of ours is replaced.
VERSION = "0.6+gradaug.1"
DIST_INFO = f"detectron2-{VERSION}.dist-info"
WHEEL = f"detectron2-{VERSION}-py3-none-any.whl"

# What the 0.6 Python files import. The sdist's own pins (black==21.4b2, iopath<0.1.10) are of 2021.
REQUIRES = (
    "torch>=1.8",
    "torchvision",
    "numpy",
    "pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "black",
    "setuptools<81",
)

# Where Detectron2's own setup.py puts these folders.
PROJECTS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}

# Aliases of builtins that NumPy 1.24 dropped; np.int64, np.bool_ and the like are other words.
NUMPY_ALIAS = re.compile(r"(?<![\w.])(?:np|numpy)\.(int|float|bool|str|object|complex)\b")
# Pillow 10 dropped the alias.
PILLOW_ALIAS = re.compile(r"\bImage\.LINEAR\b")

# The main branch's fallback to pycocotools where the C++ evaluator is missing. Without it the stock
# COCOEvaluator, whose default is the C++ one, would fail at the end of an evaluation.
FIXES = (
    (
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "try:\n"
        "    from detectron2._C import COCOevalEvaluateImages  # noqa: F401\n"
        "    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:\n"
        "    COCOeval_opt = COCOeval\n",
    ),
    (
        "detectron2/evaluation/coco_evaluation.py",
        "        self._use_fast_impl = use_fast_impl\n",
        "        self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval\n",
    ),
)

C_MODULE = '''\
"""Stands in for Detectron2's compiled module, which this pure-Python build does not have.

Detectron2 imports this module when it is itself imported, so that must work; using an operator
must not.
"""

has_cuda = bool  # called as a function: False


def get_compiler_version():
    return "none (pure-Python build without C++ operators)"


def get_cuda_version():
    return "not available"


def __getattr__(name):
    if name.startswith("_"):  # copy, pickle, inspect and doctest look for optional dunders
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise ImportError(
        f"detectron2._C.{name} needs Detectron2's C++ build, and this is a pure-Python build:"
        " deformable convolution, rotated boxes and the C++ COCO evaluator are missing. Use a model"
        " and an evaluator without them, or run `pip uninstall detectron2` and build it from its"
        " repository, facebookresearch/detectron2."
    )
'''


class InstallError(Exception):
    """Says in one sentence what went wrong and what to do."""


def probe(python: str = sys.executable) -> tuple[str | None, str]:
    """Import detectron2 in a fresh interpreter.

    Returns:
        (version, where it is) if the import works, (None, "") if there is no detectron2,
        (None, last line of the error) if there is one and its import fails.
    """
    code = (
        "import importlib.util as u, sys\n"
        "if u.find_spec('detectron2') is None: sys.exit(3)\n"
        "import detectron2, detectron2.layers\n"
        "print(detectron2.__version__, detectron2.__path__[0], sep='\\n')"
    )
    # An empty working directory: a clone of Detectron2 in the current one is not an installation.
    with tempfile.TemporaryDirectory() as cwd:
        run = subprocess.run([python, "-c", code], cwd=cwd, capture_output=True, text=True)
    if run.returncode == 0:
        version, where = run.stdout.strip().splitlines()[-2:]
        return version, where
    if run.returncode == 3:
        return None, ""
    return None, (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]


def installed_version() -> str | None:
    """The version in detectron2's package metadata in the running interpreter, None without one."""
    try:
        return metadata.version("detectron2")
    except metadata.PackageNotFoundError:
        return None


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder that keeps the verified sdist for the next time."""
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gradaug_det"


def configured_index(env: Mapping[str, str] = os.environ) -> str | None:
    """The package index that uv or pip is set up to use, None if it is the default one."""
    for key in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if env.get(key):
            return re.sub(r"^[\w.-]+=", "", env[key])  # uv allows name=url
    # Mirrors are often named in pip's configuration file only.
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    run = subprocess.run(command, capture_output=True, text=True)
    return (run.returncode == 0 and run.stdout.strip()) or None


def check_digest(path: Path, expected: str = SHA256) -> None:
    """Refuse a file whose SHA-256 is another one."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{path.name} has the SHA-256 {actual} instead of {expected}, so it was not used:"
            " download it again, or ask who serves your package index."
        )


def download(target: Path) -> None:
    """Fetch the sdist from the package index to `target`."""
    try:
        import requests
        from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedRepoVersionError
    except ImportError as error:
        raise InstallError(
            f"{error.name} is needed to download Detectron2: install requirements/demo.lock first,"
            f" or pass the file {SDIST} with --sdist."
        ) from None
    index = configured_index()
    # Not the exception's text: it holds the index's address, which may hold a password.
    try:
        with PyPISimple(index) if index else PyPISimple() as client:
            packages = client.get_project_page(PROJECT).packages
            found = next((p for p in packages if p.filename == SDIST), None)
            if found is None:
                raise InstallError(f"the package index has no {SDIST}: pass one with --sdist.")
            client.download_package(
                found, target, verify=False
            )  # the digest pinned here is checked
    except NoSuchProjectError:
        raise InstallError(
            f"the package index has no project {PROJECT}: pass {SDIST} with --sdist."
        ) from None
    except (requests.RequestException, UnsupportedRepoVersionError) as error:
        raise InstallError(
            f"{SDIST} could not be downloaded ({type(error).__name__}): check the network and"
            " the index that pip or uv is set up to use, then run this again, or pass the file"
            " with --sdist."
        ) from None


def fetch_sdist(cache: Path, fetch=download, expected: str = SHA256) -> Path:
    """The verified sdist from the cache, downloaded first if it is not there (or is damaged)."""
    path = cache / SDIST
    try:
        check_digest(path, expected)
        return path
    except (OSError, InstallError):
        pass
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
            partial = Path(scratch) / SDIST
            fetch(partial)
            check_digest(partial, expected)
            partial.replace(path)
    except OSError as error:
        raise InstallError(
            f"{cache} cannot be written ({error.strerror}): make it writable or point"
            " XDG_CACHE_HOME elsewhere."
        ) from None
    return path


def modernize(source: str) -> str:
    """Replace the aliases that NumPy and Pillow dropped, as Detectron2's main branch did."""
    return PILLOW_ALIAS.sub("Image.BILINEAR", NUMPY_ALIAS.sub(r"\1", source))


def apply_fixes(files: dict[str, bytes]) -> None:
    """Edit the sources in place; a line that is not found once: not the 0.6 known here."""
    for name in files:
        if name.endswith(".py"):
            files[name] = modernize(files[name].decode()).encode()
    for name, old, new in FIXES:
        text = files.get(name, b"").decode()
        if text.count(old) != 1:
            raise InstallError(f"the sdist is not Detectron2 0.6: {name} lacks the line to fix.")
        files[name] = text.replace(old, new).encode()


def wheel_path(member: str) -> str | None:
    """Returns where a file of the sdist (below its top folder) goes in the wheel, if anywhere."""
    for source, target in {**PROJECTS, "detectron2": "detectron2"}.items():
        if member.startswith(source + "/"):
            return target + member[len(source) :]
    return None


def read_sdist(path: Path) -> tuple[dict[str, bytes], bytes]:
    """The package's files by their path in the wheel, and the licence text."""
    files: dict[str, bytes] = {}
    licence = None
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                inside = PurePosixPath(member.name).parts[1:]
                if not member.isfile() or not inside or ".." in inside:
                    continue
                name = "/".join(inside)
                if name == "LICENSE":
                    licence = tar.extractfile(member).read()
                elif target := wheel_path(name):
                    files[target] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(f"{path} cannot be read as a .tar.gz file: {error}.") from None
    if licence is None or "detectron2/__init__.py" not in files:
        raise InstallError(
            f"{path} holds no detectron2/ and LICENSE: it is not the sdist of Detectron2 0.6."
        )
    return files, licence


def dist_info(licence: bytes) -> dict[str, bytes]:
    """The wheel's metadata files but RECORD."""
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2 0.6 without its C++ operators, repackaged by gradaug-det",
        "License: Apache-2.0",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    wheel = "Wheel-Version: 1.0\nGenerator: gradaug-det\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return {
        f"{DIST_INFO}/METADATA": ("\n".join(lines) + "\n").encode(),
        f"{DIST_INFO}/WHEEL": wheel.encode(),
        f"{DIST_INFO}/LICENSE": licence,
    }


def write_wheel(files: Mapping[str, bytes], target: Path) -> None:
    """Write a wheel with its RECORD; equal files give an equal wheel."""
    record = []
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(data)}\n")
    record_name = f"{DIST_INFO}/RECORD"
    record.append(f"{record_name},,\n")
    contents = {**dict(sorted(files.items())), record_name: "".join(record).encode()}
    partial = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name, date_time=(2021, 11, 15, 0, 0, 0))
            info.external_attr = 0o100644 << 16
            wheel.writestr(info, data, zipfile.ZIP_DEFLATED)
    partial.replace(target)


def build_wheel(sdist: Path, folder: Path) -> Path:
    """Turn the sdist into a wheel in `folder` and return its path."""
    files, licence = read_sdist(sdist)
    apply_fixes(files)
    files["detectron2/_C.py"] = C_MODULE.encode()
    target = folder / WHEEL
    write_wheel({**files, **dist_info(licence)}, target)
    return target


def install_command(wheel: Path, python: str = sys.executable) -> list[str]:
    """The offline command that installs the wheel: by uv if there is one (its venvs lack pip)."""
    beside = Path(python).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv:
        options = ["--no-deps", "--no-index", "--reinstall", "--compile-bytecode"]
        return [uv, "pip", "install", "--python", python, *options, str(wheel)]
    return [
        *(python, "-m", "pip", "install"),
        *("--no-deps", "--no-index", "--force-reinstall", str(wheel)),
    ]


def install(wheel: Path) -> None:
    """Install the wheel into the running interpreter's environment."""
    run = subprocess.run(install_command(wheel), capture_output=True, text=True)
    if run.returncode != 0:
        reason = (run.stderr.strip() or run.stdout.strip()).splitlines()[-1:]
        raise InstallError(
            f"Detectron2 could not be installed into {sys.prefix} ({' '.join(reason)}):"
            " run this with the Python of a virtual environment that you may write to."
        )


def setup(sdist: Path | None) -> str:
    """Do the whole job unless there is nothing to do; returns what was done."""
    version, detail = probe()
    ours = (installed_version() or "").startswith("0.6+gradaug")
    if version and not (ours and installed_version() != VERSION):
        return f"detectron2 {version} is installed in {detail}: left alone."
    if detail and not ours:
        raise InstallError(
            f"a Detectron2 is installed but its import fails ({detail}): repair it,"
            " or uninstall it and run this again."
        )
    if sdist:
        if not sdist.is_file():
            raise InstallError(f"there is no file {sdist}: pass the path of {SDIST}.")
        check_digest(sdist)
    with tempfile.TemporaryDirectory() as folder:
        install(build_wheel(sdist or fetch_sdist(cache_dir()), Path(folder)))
    version, detail = probe()
    if version is None:
        raise InstallError(
            f"detectron2 was installed but its import fails ({detail}):"
            " install requirements/demo.lock and run this again."
        )
    return f"installed detectron2 {VERSION} (pure Python) in {detail}."


def main(argv: list[str] | None = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, help=f"use this copy of {SDIST} (digest is checked)")
    try:
        print(setup(parser.parse_args(argv).sdist))
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
