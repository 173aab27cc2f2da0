"""Which versions of the MMDetection stack this package works with.

``onedl-mmengine``, ``onedl-mmcv`` and ``onedl-mmdetection`` are the maintained continuations; they
have the import names, the classes and the config layout of MMEngine, MMCV 2 and MMDetection 3.

Where upstream's last releases (mmengine 0.10.7, mmcv 2.1, mmdet 3.3) differ on a training's path,
none of it in what this package calls or wraps (``OptimWrapper.update_params/backward/scale_loss``,
``train_step``, the detectors' ``loss`` and the heads' ``forward`` are the same lines):

- ``mmdet`` 3.3 asserts ``mmcv < 2.2`` at import; the continuation does not.
- ``IterBasedTrainLoop`` 0.10.7 resumes by loading and dropping data, the continuation skips
  in the sampler.
- ``AmpOptimWrapper`` 0.10.7 takes ``GradScaler`` from ``torch.cuda.amp``, the continuation from
  ``torch.amp``; the attribute ``loss_scaler`` and its use are the same.
- 0.10.7 cannot read its own checkpoints with torch >= 2.6;
  :func:`gradaug_det.mmdet.checkpoint.load_files_safely` can.
"""

from __future__ import annotations

import re

from gradaug_det.errors import GradAugError

SUPPORTED = {"mmengine": ((0, 7, 1), (1, 0)), "mmcv": ((2, 0), (3, 0)), "mmdet": ((3, 0), (4, 0))}
"""Import name -> lowest supported version and the first that is not: MMDetection 3's own range of
MMEngine and MMCV, whose 2.3 is allowed too. MMDetection 2 has no ``data_samples``."""


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``"2.1.0rc1"`` -> (2, 1, 0)."""
    return tuple(int(n) for n in re.match(r"\d+(?:\.\d+)*", text)[0].split("."))


def check_version(name: str, version: str) -> None:
    """Raises GradAugError if this version of the package is not one that GradAug works with."""
    low, high = SUPPORTED[name]
    if not low <= parse_version(version) < high:
        allowed = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        raise GradAugError(
            f"{name} {version} is installed, gradaug_det.mmdet needs {name}{allowed}: install "
            "onedl-mmengine, onedl-mmcv and onedl-mmdetection, or mmcv 2.1 with mmdet 3.3"
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
