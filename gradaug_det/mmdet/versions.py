"""Which versions of the MMDetection stack this package works with.

``onedl-mmengine``, ``onedl-mmcv`` and ``onedl-mmdetection`` are the maintained continuations; they
have the import names, the classes and the config layout of MMEngine, MMCV 2 and MMDetection 3.
"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from gradaug_det.errors import GradAugError

# MMDetection 3's own range of MMEngine and MMCV, whose 2.3 is allowed too. MMDetection 2 has no
# data_samples.
SUPPORTED = {"mmengine": ">=0.7.1,<1", "mmcv": ">=2.0.0rc1,<3", "mmdet": ">=3.0.0rc0,<4"}


def check_version(name: str, version: str) -> None:
    """Raises GradAugError if this version of the package is not one that GradAug works with."""
    if not SpecifierSet(SUPPORTED[name]).contains(version, prereleases=True):
        raise GradAugError(
            f"{name} {version} is installed, gradaug_det.mmdet needs {name}{SUPPORTED[name]}: "
            "install onedl-mmengine, onedl-mmcv and onedl-mmdetection, or mmcv 2.1 with mmdet 3.3"
        )


def check_stack() -> None:
    """Checks what is installed, before anything of it is used.

    Raises:
        GradAugError: a package is missing, too old or too new, or MMCV has no compiled ops.
    """
    try:
        import mmcv
        import mmengine

        check_version("mmengine", mmengine.__version__)
        check_version("mmcv", mmcv.__version__)
        # MMDetection 3.3 asserts its own range of MMCV (below 2.2) when it is imported.
        import mmdet

        check_version("mmdet", mmdet.__version__)
        import mmcv.ops
    except (ImportError, AssertionError) as error:
        raise GradAugError(
            f"MMDetection cannot be used: {error}. Install onedl-mmengine, onedl-mmcv (built with "
            "its ops, not onedl-mmcv-lite) and onedl-mmdetection; `make env-test` does"
        ) from error
