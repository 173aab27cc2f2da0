"""State of trainings: what both frameworks, pretraining and replay load again."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from gradaug_det.errors import GradAugError
from tests.faults.fuzzing.checkpoints import checkpoint_inputs
from tests.faults.fuzzing.inputs import HOSTILE, Input, mangled, mutated, seeded
from tests.faults.fuzzing.outcome import raise_first_error, run_all

ROOT = Path(__file__).resolve().parents[3]


def _trained() -> tuple[Any, ...]:
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 7), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)


def inputs_like(sound: Callable[[], dict[str, Any]]) -> Callable[..., Any]:
    """Files of a training's state with parts replaced, and those of every checkpoint."""

    def inputs(folder: Path) -> st.SearchStrategy[Input]:
        import numpy as np
        import torch

        other, state = checkpoint_inputs(folder), sound()
        news = [*HOSTILE, torch.ones(1), torch.ones(1).expand(2**40), np.ones(2), np.float32(1)]

        @st.composite
        def drawn(draw: Callable) -> Input:
            rng = draw(seeded())
            if rng.random() < 0.5:
                return draw(other)
            value: Any = state
            for _ in range(rng.choice((0, 1, 1, 2, 4))):
                value = mutated(value, rng, news)
            buffer = io.BytesIO()
            try:
                torch.save(value, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
            except Exception:  # what cannot be saved is no input
                buffer.write(b"x")
            data = buffer.getvalue()
            return "mmdet-timm.pth", mangled(data, rng) if rng.random() < 0.1 else data

        return drawn()

    return inputs


def detectron2_state() -> dict[str, Any]:
    model, optimizer, schedule = _trained()
    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    return state | {"scheduler": schedule.state_dict(), "iteration": 3}


def read_detectron2(folder: Path, path: Path) -> None:
    from gradaug_det.d2.checkpoint import SafeCheckpointer

    model, optimizer, schedule = _trained()
    out = folder / "d2"
    out.mkdir(exist_ok=True)
    resumed = out / f"model{path.suffix}"
    shutil.copy(path, resumed)
    (out / "last_checkpoint").write_text(resumed.name)
    checkpointer = SafeCheckpointer(model, str(out), optimizer=optimizer, scheduler=schedule)
    raise_first_error(
        lambda: checkpointer.resume_or_load(str(path), resume=False),
        lambda: checkpointer.resume_or_load("", resume=True),
    )


def mmengine_state() -> dict[str, Any]:
    from mmengine.logging import MessageHub

    model, optimizer, _ = _trained()
    hub = MessageHub("fuzz")
    hub.update_scalar("train/loss", 1.5)
    hub.update_info("iter", 3)
    meta = {"epoch": 1, "iter": 3, "cfg": "a = 1", "dataset_meta": {"classes": ("a",)}}
    state = {"state_dict": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    return state | {"meta": meta, "message_hub": hub.state_dict()}


def read_mmengine(folder: Path, path: Path) -> None:
    from mmengine.logging import HistoryBuffer, MessageHub
    from mmengine.runner import CheckpointLoader, load_checkpoint

    from gradaug_det.mmdet.checkpoint import load_files_safely, load_from_url

    load_files_safely()
    cached = folder / "hub" / path.name
    cached.parent.mkdir(exist_ok=True)
    shutil.copy(path, cached)
    methods = dict(HistoryBuffer._statistics_methods)
    refused = run_all(
        lambda: CheckpointLoader.load_checkpoint(str(path)),
        lambda: load_from_url(f"https://example.org/{path.name}", str(cached.parent)),
    )
    with contextlib.suppress(Exception):  # MMEngine's own, of what was not refused
        content = load_checkpoint(_trained()[0], str(path))
        MessageHub("fuzz").load_state_dict(content["message_hub"])
    if HistoryBuffer._statistics_methods != (methods or HistoryBuffer([])._statistics_methods):
        raise AssertionError("a file has replaced the methods of a class")
    if refused:
        raise refused


def step_state() -> dict[str, Any]:
    import torch

    from gradaug_det.core.options import GradAugOptions
    from gradaug_det.core.sampling import sample_sub_networks

    subs = [asdict(sub) for sub in sample_sub_networks(GradAugOptions(2, 0.9, (1.0,), 0), 0)]
    content = {"format": 2, "framework": "detectron2", "config": None, "iteration": 0}
    content |= {"rank": 0, "subs": subs, "bad": 0, "options": {}, "rng": torch.get_rng_state()}
    boxes = {"kind": "Boxes", "parts": [torch.ones(1, 4)]}
    polygons = [[[1.0, 1, 2, 2, 3, 1]]]
    fields = {"gt_boxes": boxes, "gt_masks": {"kind": "PolygonMasks", "parts": [polygons]}}
    instances = {"kind": "Instances", "parts": [[4, 4], fields]}
    item = {"image": torch.ones(3, 4, 4), "instances": instances}
    fields = {"bboxes": {**boxes, "kind": "HorizontalBoxes"}}
    fields |= {"masks": {"kind": "PolygonMasks", "parts": [polygons, 4, 4]}}
    part = {"gt_instances": {"kind": "InstanceData", "parts": [{}, fields]}}
    sample = {"kind": "DetDataSample", "parts": [{"img_shape": [4, 4]}, part]}
    batch = {"kind": "Batch", "parts": [torch.ones(1, 3, 4, 4), [sample]]}
    return content | {"weights": {}, "images": ["a"], "batch": [item], "other": batch}


def read_step(folder: Path, path: Path) -> None:
    import torch

    from gradaug_det.commands.replay import replay_file
    from gradaug_det.frameworks import load_replay
    from gradaug_det.utils.checkpoints import load_checkpoint

    with contextlib.suppress(GradAugError):  # a state has a batch of each framework
        content = load_checkpoint(path)
        other = content.pop("other", None)
        for framework, batch in (("detectron2", content.get("batch")), ("mmdet", other)):
            torch.save(content | {"framework": framework, "batch": batch}, folder / "step.pt")
            run_all(lambda: replay_file(folder / "step.pt"))
            with contextlib.suppress(Exception):  # replay says so in a sentence
                load_replay(framework).decode(batch)
    replay_file(path)


def _recipe() -> Any:
    from gradaug_det.pretrain.recipe import load_recipe

    small = ("data.size=16", "data.fraction=0.04", "epochs=2", "batch_size=32")
    return load_recipe(ROOT / "configs" / "pretrain" / "mini_resnet18_gradaug.yaml", small)


def pretraining_state() -> dict[str, Any]:
    return detectron2_state() | {"recipe": _recipe().as_dict(), "step": 3, "precision": {}}


_TRAININGS: dict[Path, Any] = {}


def read_pretraining(folder: Path, path: Path) -> None:
    from lightning_fabric import Fabric

    from gradaug_det.pretrain.engine import Pretraining

    if folder not in _TRAININGS:
        fabric = Fabric(accelerator="cpu", devices=1)
        _TRAININGS[folder] = Pretraining(_recipe(), folder / "pretraining", fabric)
    training = _TRAININGS[folder]
    shutil.copy(path, training._checkpoint)
    training._resume()
