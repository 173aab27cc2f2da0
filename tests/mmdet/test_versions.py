"""The version check, and the code paths on which supported versions differ."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradaug_det.errors import GradAugError
from gradaug_det.mmdet.versions import check_stack, check_version

ROOT = Path(__file__).parents[2]


def test_what_is_installed_is_supported():
    check_stack()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("mmengine", "0.10.7"),
        ("mmengine", "0.10.12"),
        ("mmcv", "2.1.0"),
        ("mmcv", "2.0.0rc4"),
        ("mmdet", "3.3.0"),
        ("mmdet", "3.5.1"),
        ("mmcv", "2.1.0rc1"),
        ("mmdet", "3.5.1+cpu"),
    ],
)
def test_supported(name, version):
    check_version(name, version)


@pytest.mark.parametrize(
    ("name", "version"),
    [("mmengine", "0.6.0"), ("mmcv", "1.7.2"), ("mmcv", "3.0"), ("mmdet", "2.28.2")],
)
def test_unsupported_names_what_to_install(name, version):
    with pytest.raises(GradAugError, match=rf"{name} {version} is installed.*needs {name}>="):
        check_version(name, version)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"mmdet/__init__.py": "__version__ = '2.28.2'"}, r"mmdet 2\.28\.2 is installed"),
        (
            {"mmdet/__init__.py": "assert False, 'MMCV==2.3.6 is used but incompatible'"},
            "MMCV==2.3.6 is used but incompatible",
        ),
        ({"mmcv/__init__.py": "__version__ = '2.1.0'"}, r"No module named 'mmcv\.ops'"),
    ],
    ids=["MMDetection 2", "MMDetection's own check of MMCV", "MMCV without ops"],
)
def test_importing_the_adapter_says_what_is_wrong(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from gradaug_det.errors import GradAugError\n"
        "try:\n    import gradaug_det.mmdet\nexcept GradAugError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert re.search(message, result.stdout), result.stdout + result.stderr
    assert "onedl-mmdetection" in result.stdout
