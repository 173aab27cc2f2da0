"""The frameworks' own scripts, as the mini detector is trained with them.

Trainings run as processes: no framework is imported here.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from gradaug_det.errors import ConfigError, GradAugError
from studies.report.curves import Curves, read_detectron2_metrics, read_mmengine_metrics


@dataclass(frozen=True)
class FineTuning:
    """One fine-tuning of a small Mask R-CNN, whatever the framework.

    Args:
        method: ``plain``, ``gradaug`` or ``anywidth``, the ending of the config's name.
        weights: of the backbone: ``gradaug://NAME``, a path or a URL, in the framework's names;
            None: the config's.
        iterations: optimizer steps; the learning rate falls to a tenth after three quarters. None:
            the config's.
        seed: of new layers, image order and sub-networks.
        opts: further overrides, as the framework's script takes them.
        experiment: ``mini`` or ``demo``, the beginning of the config's name.
    """

    method: str
    weights: str | None
    iterations: int | None
    seed: int
    opts: tuple[str, ...] = ()
    experiment: str = "mini"


class Detectron2:
    """The command line of a training with ``tools/train_net.py``, and where it leaves its numbers.

    Attributes:
        name: as ``make demo FRAMEWORK=`` takes it.
        title: for readers.
        datasets_variable: environment variable that names the folder with ``mini_coco`` in it.
        script_in_shell: the training script as a reader of a report can type it.
    """

    name = "detectron2"
    title = "Detectron2"
    datasets_variable = "DETECTRON2_DATASETS"
    script_in_shell = "tools/train_net.py"

    def script(self) -> str:
        """Returns the path of the training script, absolute or from the project's folder."""
        return self.script_in_shell

    def config(self, method: str, experiment: str = "mini") -> str:
        """Returns the path of a config, from the project's folder."""
        return f"configs/detectron2/{experiment}_mask_rcnn_R_18_FPN_{method}.yaml"

    def arguments(self, job: FineTuning, folder: Path) -> list[str]:
        """Returns the script's: train into ``folder``, or go on where that was interrupted."""
        settings = {"MODEL.WEIGHTS": job.weights, "OUTPUT_DIR": folder}
        if job.iterations:
            settings["SOLVER.MAX_ITER"] = job.iterations
            settings["SOLVER.STEPS"] = f"({job.iterations * 3 // 4},)"
        settings["SEED"] = job.seed
        settings["GRADAUG.SEED"] = None if job.method == "plain" else job.seed
        pairs = [(key, str(value)) for key, value in settings.items() if value is not None]
        config = ("--resume", "--config-file", self.config(job.method, job.experiment))
        return [*config, *itertools.chain(*pairs), *job.opts]

    def weights(self, folder: Path) -> Path:
        """Returns the weights of a finished training."""
        return folder / "model_final.pth"

    def curves(self, folder: Path) -> Curves:
        """Returns the logged scalars of a finished training."""
        return read_detectron2_metrics(folder / "metrics.json")

    def predictions(self, folder: Path) -> Path:
        """Returns the COCO results of the validation that ends a training."""
        return folder / "inference" / "mini_coco_val" / "coco_instances_results.json"

    def progress(self, line: str) -> str | None:
        """Returns what is worth showing of an output line while a training runs, or None."""
        if "eta: " not in line:
            return None
        return line.split("]: ", 1)[-1].split("  data_time")[0].strip()


class MMDetection:
    """The same for MMDetection's own script, which ``mim train mmdet`` runs too."""

    name = "mmdet"
    title = "MMDetection"
    datasets_variable = "MMDET_DATASETS"
    script_in_shell = '"$(python -c "import mmdet; print(*mmdet.__path__)")/.mim/tools/train.py"'

    def script(self) -> str:
        spec = importlib.util.find_spec("mmdet")  # finds it without importing it
        for folder in (spec and spec.submodule_search_locations) or ():
            script = Path(folder) / ".mim" / "tools" / "train.py"
            if script.is_file():
                return str(script)
        raise GradAugError(
            "MMDetection's training script (mmdet/.mim/tools/train.py) is not installed; "
            'make env-test, or pip install -e ".[mmdet]"'
        )

    def config(self, method: str, experiment: str = "mini") -> str:
        return f"configs/mmdet/{experiment}_mask-rcnn_r18_fpn_{method}.py"

    def arguments(self, job: FineTuning, folder: Path) -> list[str]:
        settings = {"model.backbone.init_cfg.checkpoint": job.weights}
        if job.iterations:
            settings["train_cfg.max_iters"] = job.iterations
            settings["param_scheduler.1.milestones"] = f"[{job.iterations * 3 // 4}]"
        settings["randomness.seed"] = job.seed
        settings["val_evaluator.outfile_prefix"] = folder / "val"
        settings["custom_hooks.0.seed"] = None if job.method == "plain" else job.seed
        options = [f"{key}={value}" for key, value in settings.items() if value is not None]
        work = ["--work-dir", str(folder), "--resume"]
        config = self.config(job.method, job.experiment)
        return [config, *work, "--cfg-options", *options, *job.opts]

    def weights(self, folder: Path) -> Path:
        return Path((folder / "last_checkpoint").read_text("utf-8").strip())

    def curves(self, folder: Path) -> Curves:
        return read_mmengine_metrics(folder)

    def predictions(self, folder: Path) -> Path:
        return folder / "val.segm.json"  # CocoMetric writes masks with their boxes

    def progress(self, line: str) -> str | None:
        if "Iter(train)" not in line:
            return None
        loss = re.search(r"  (loss: [\d.]+)", line)
        start = line.split("Iter(train)", 1)[-1].split("  data_time")[0].strip()
        return f"{start}  {loss[1]}" if loss else start


Framework = Detectron2 | MMDetection
FRAMEWORKS: dict[str, Framework] = {f.name: f for f in (Detectron2(), MMDetection())}


def get_framework(name: str) -> Framework:
    """The framework of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FRAMEWORKS:
        raise ConfigError("framework", f"{name!r} is unknown; choose one of {list(FRAMEWORKS)}")
    return FRAMEWORKS[name]
