"""Small real trainings that note every loss, to be killed and resumed.

Each is ``train(folder, data, resume)``: it appends a line of JSON a step to ``folder/losses.jsonl``
and leaves its final weights in ``folder``. They import their framework when they are called.
"""

import json
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
STEPS = 12
STEPS_AN_EPOCH = 6
"""Of two of the twelve images."""
CHECKPOINT_EVERY = 3
DETECTRON2_CONFIG = "mini_mask_rcnn_R_18_FPN_gradaug.yaml"


def note(folder, step, losses):
    """Whole lines, on the disk before the step's checkpoint is."""
    with (Path(folder) / "losses.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **losses}) + "\n")


def detectron2(folder, data, resume=True, workers=1):
    import os

    from detectron2.engine import HookBase, default_argument_parser

    from gradaug_det.d2 import train

    class Note(HookBase):
        def after_step(self):
            latest = self.trainer.storage.latest()
            step = self.trainer.iter
            note(folder, step, {k: v for k, (v, i) in latest.items() if "loss" in k and i == step})

    class Noting(train.Trainer):
        def build_hooks(self):
            first, *others = super().build_hooks()
            return [first, Note(), *others]

    os.environ["DETECTRON2_DATASETS"] = str(Path(data).parent)
    overrides = [
        *("MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "BN", "MODEL.WEIGHTS", ""),
        *("INPUT.MIN_SIZE_TRAIN", (64, 80, 96), "INPUT.MIN_SIZE_TEST", 64),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", STEPS, "SOLVER.STEPS", (8,)),
        *("SOLVER.WARMUP_ITERS", 5, "SOLVER.CHECKPOINT_PERIOD", CHECKPOINT_EVERY),
        *("DATALOADER.NUM_WORKERS", workers, "DATASETS.TEST", (), "OUTPUT_DIR", str(folder)),
        *("GRADAUG.NUM_SUBNETS", 1, "GRADAUG.SUPERVISION", "both", "GRADAUG.FLIP_PROB", 0.5),
    ]
    args = default_argument_parser().parse_args(
        [
            *(
                "--config-file",
                str(ROOT / "configs/detectron2/mini_mask_rcnn_R_18_FPN_gradaug.yaml"),
            ),
            *(["--resume"] if resume else []),
            *map(str, overrides),
        ]
    )
    args.register = []
    train.Trainer = Noting
    train.run(args)


def mmdetection(folder, data, resume=True, workers=1):
    import os

    from mmengine.hooks import Hook

    os.environ["MMDET_DATASETS"] = str(Path(data).parent)
    import gradaug_det.mmdet  # noqa: F401  registers
    from gradaug_det.mmdet.train import build_runner

    class Note(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            latest = {k: float(torch.as_tensor(v).detach()) for k, v in outputs.items()}
            scalars = runner.message_hub.log_scalars
            latest |= {k: float(v.current()) for k, v in scalars.items() if "gradaug" in k}
            note(folder, runner.iter, latest)

    runner = build_runner(
        ROOT / "configs/mmdet/mini_mask-rcnn_r18_fpn_gradaug.py",
        folder,
        {
            "model.backbone.norm_cfg.requires_grad": True,
            "model.backbone.norm_eval": False,
            "train_pipeline.2.scale": (128, 96),
            "train_dataloader.dataset.pipeline.2.scale": (128, 96),
            "train_dataloader.batch_size": 2,
            "train_dataloader.num_workers": workers,
            "train_dataloader.persistent_workers": workers > 0,
            "train_dataloader.batch_sampler": {
                "_delete_": True,
                "type": "AspectRatioBatchSampler",
            },
            "train_cfg": {
                "_delete_": True,
                "type": "EpochBasedTrainLoop",
                "max_epochs": STEPS // STEPS_AN_EPOCH,
                "val_interval": 1000,
            },
            "train_dataloader.sampler": {"type": "DefaultSampler", "shuffle": True},
            "custom_hooks": [
                {"type": "GradAugHook", "num_subnets": 1, "supervision": "both"},
                {"type": "EMAHook", "momentum": 0.1},
            ],
            "default_hooks.checkpoint.interval": CHECKPOINT_EVERY,
            "log_level": "ERROR",
        },
        resume=resume,
    )
    runner.register_hook(Note(), priority="VERY_HIGH")
    runner.train()


def pretraining(folder, data, resume=True, workers=1):
    from gradaug_det.pretrain.engine import Pretraining
    from tests.pretrain.helpers import pretraining as make
    from tests.pretrain.helpers import tiny_recipe

    class Noting(Pretraining):
        def train_step(self, step, images, labels):
            losses = super().train_step(step, images, labels)
            note(folder, step, {k: float(v) for k, v in losses.items()})
            return losses

    recipe = tiny_recipe(
        "gradaug_cutmix",
        *("ema_decay=0.9", "stochastic_depth=0.8", "epochs=3"),
        *(f"checkpoint_steps={CHECKPOINT_EVERY}", f"data.workers={workers}"),
    )
    training = make(recipe, folder)
    training.__class__ = Noting
    training.run()


TRAININGS = {
    "Detectron2": (detectron2, "model_final.pth"),
    "MMDetection": (mmdetection, f"iter_{STEPS}.pth"),
    "pretraining": (pretraining, "backbone.safetensors"),
}
"""Training, and the file of its final weights."""


def weights(file):
    """All tensors of a final file: momentum, statistics and moving averages where it has them."""
    from gradaug_det.utils.checkpoints import load_checkpoint

    if file.suffix == ".safetensors":
        return load_checkpoint(file)
    content = torch.load(file, map_location="cpu", weights_only=False)
    optimizer = content.get("optimizer") or content["trainer"]["_trainer"]["optimizer"]
    momentum = {
        f"{k}.{name}": v
        for k, state in optimizer["state"].items()
        for name, v in state.items()
        if isinstance(v, torch.Tensor)
    }
    average = {f"ema.{k}": v for k, v in content.get("ema_state_dict", {}).items()}
    return {**(content.get("model") or content["state_dict"]), **momentum, **average}


def losses(folder):
    """Losses by step; where a step was done more than once, all its lines must agree.

    Raises:
        AssertionError: a step that was done again gave something else.
    """
    found = {}
    for line in (Path(folder) / "losses.jsonl").read_text().splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line in which the process was killed
        step = content.pop("step")
        assert found.setdefault(step, content) == content, f"step {step} differs when done again"
    return found
