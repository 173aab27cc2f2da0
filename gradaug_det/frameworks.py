"""The one table of the two frameworks, and what the programs get from it: built detectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gradaug_det.benchmark.detector import Detector
from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.evaluation.coco_data import CocoData
from gradaug_det.export.run import Exporter
from gradaug_det.utils.detector_files import DetectorFiles


class Framework(NamedTuple):
    """The adapters of a framework.

    Attributes:
        detector: makes a :class:`gradaug_det.benchmark.detector.Detector` of (files, data, device).
        exporter: makes a :class:`gradaug_det.export.run.Exporter` of (files).
        replay: module with ``build`` (of a config's text or file: the detector), ``network`` (of
            detector and settings), ``decode`` (of a step's batch), ``training_context`` (which
            models need around them) and ``RUNS_CONFIG`` (a config is a program).
    """

    detector: Callable[[DetectorFiles, CocoData, str], Detector]
    exporter: Callable[[DetectorFiles], Exporter]
    replay: ModuleType


def _detectron2() -> Framework:
    from gradaug_det.d2 import replay
    from gradaug_det.d2.benchmark import Detectron2Detector
    from gradaug_det.d2.export import Detectron2Exporter

    return Framework(Detectron2Detector, Detectron2Exporter, replay)


def _mmdet() -> Framework:
    from gradaug_det.mmdet import replay
    from gradaug_det.mmdet.benchmark import MMDetectionDetector
    from gradaug_det.mmdet.export import MMDetectionExporter

    return Framework(MMDetectionDetector, MMDetectionExporter, replay)


# Functions, because a framework is an optional dependency: it is imported when it is asked for.
FRAMEWORKS = {"detectron2": _detectron2, "mmdet": _mmdet}
_NAMES = " or ".join(FRAMEWORKS)


def load_detector(files: DetectorFiles, data: CocoData, device: str) -> Detector:
    """Builds a detector, in evaluation mode, for a benchmark on the data.

    Raises:
        ConfigError, ZooError: config or weights cannot be used.
    """
    return _framework_of(files).detector(files, data, device)


def load_exporter(files: DetectorFiles) -> Exporter:
    """Builds a detector on the CPU, to be written as a narrow one.

    Raises:
        ConfigError, ZooError: config or weights cannot be used.
    """
    if files.weights is None:
        raise ConfigError("--weights", "is missing: the checkpoint of a trained detector")
    return _framework_of(files).exporter(files)


def load_replay(name: str) -> ModuleType:
    """Returns the adapter that builds the network and batch of a step's file again.

    Raises:
        GradAugError: the file names no framework that there is.
    """
    if name not in FRAMEWORKS:
        raise GradAugError(f"the step is of the framework {name!r}, not of {_NAMES}")
    return FRAMEWORKS[name]().replay


def guess_framework(config: Path) -> str:
    """Returns the framework of a config: yaml is Detectron2's, and Python that imports it; other
    Python is MMDetection's.

    Raises:
        ConfigError: the file does not exist or is neither.
    """
    if not config.is_file():
        raise ConfigError("--config", f"names a file that does not exist: {str(config)!r}")
    if config.suffix in (".yaml", ".yml"):
        return "detectron2"  # MMDetection reads yaml too, but nobody writes it
    if config.suffix == ".py":
        # Read, not run: the framework that could run it is what is looked for.
        lazy = re.search(r"^(from|import) detectron2\b", config.read_text("utf-8"), re.MULTILINE)
        return "detectron2" if lazy else "mmdet"
    raise ConfigError("--config", f"must be a .yaml or .py file, got {str(config)!r}")


def _framework_of(files: DetectorFiles) -> Framework:
    name = files.framework or guess_framework(files.config)
    if name not in FRAMEWORKS:
        raise ConfigError("--framework", f"must be {_NAMES}, got {name!r}")
    return FRAMEWORKS[name]()
