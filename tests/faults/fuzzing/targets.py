"""The readers that are fuzzed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from tests.faults.fuzzing import checkpoints, coco, trainings, zoo
from tests.faults.fuzzing.inputs import Input


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Args:
        title: for readers.
        inputs: folder -> strategy of inputs; may put files into the folder that inputs refer to.
        read: (folder, path of the input): reads it, raises what it raises.
        modules: what importing starts programs for, so it comes before the first input.
    """

    title: str
    inputs: Callable[[Path], st.SearchStrategy[Input]]
    read: Callable[[Path, Path], None]
    modules: tuple[str, ...] = ()


_FRAMEWORKS = ("gradaug_det.d2.replay", "gradaug_det.mmdet.replay")
TARGETS = {
    "zoo-index": Target("the zoo's index.json", zoo.index_inputs, zoo.read_index),
    "backbone": Target(
        "a backbone file: safetensors header and description",
        zoo.backbone_inputs,
        zoo.read_backbone_file,
    ),
    "checkpoint": Target(
        "checkpoints: zips, old files and pickles, safetensors; converter",
        checkpoints.checkpoint_inputs,
        checkpoints.read_checkpoint,
    ),
    "detectron2": Target(
        "Detectron2's checkpointer: .pkl, .pth, .pyth; start and resume",
        trainings.inputs_like(trainings.detectron2_state),
        trainings.read_detectron2,
        _FRAMEWORKS,
    ),
    "mmengine": Target(
        "MMEngine's loader after load_files_safely: local and URL, message hub",
        trainings.inputs_like(trainings.mmengine_state),
        trainings.read_mmengine,
        _FRAMEWORKS,
    ),
    "replay": Target(
        "steps for gradaug-det replay",
        trainings.inputs_like(trainings.step_state),
        trainings.read_step,
        _FRAMEWORKS,
    ),
    "pretraining": Target(
        "pretraining's resume",
        trainings.inputs_like(trainings.pretraining_state),
        trainings.read_pretraining,
        ("gradaug_det.pretrain.engine",),
    ),
    "coco": Target(
        "COCO annotation files and images (check-data)", coco.coco_inputs, coco.read_coco
    ),
}
