"""Detectron2's checkpointer, reading files without running what may be in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from gradaug_det.core.resumed import last_checkpoint
from gradaug_det.d2.zoo import zoo_url
from gradaug_det.errors import GradAugError, ZooError
from gradaug_det.utils.checkpoints import load_checkpoint
from gradaug_det.utils.files import atomic_path, explain_write_errors, remove_partial_files
from gradaug_det.utils.text import describe_error, to_printable
from gradaug_det.zoo.url import refuse_bare_backbone


class _SafeFiles(Checkpointer):
    # Below DetectionCheckpointer in the order of classes, so that its super() reads files here.
    def _load_file(self, f: str) -> dict[str, Any]:
        return load_checkpoint(f)


class SafeCheckpointer(DetectionCheckpointer, _SafeFiles):
    """A DetectionCheckpointer for files from anywhere, whose own files are whole or not there.

    Raises:
        ZooError: a file holds more than weights and states, or cannot be read.
        GradAugError: a checkpoint could not be written; the one before it is intact.
    """

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        if self.save_dir and self.save_to_disk and comm.is_main_process():
            remove_partial_files(self.save_dir)
        return super().resume_or_load(path, resume=resume)

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Raises GradAugError if the checkpoint that ``last_checkpoint`` names is not there, or not
        whole."""
        return last_checkpoint(self.save_dir) or ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes under a temporary name and renames; then does the same with what names the last
        checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        with explain_write_errors("the checkpoint", path), atomic_path(path) as temporary:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, temporary)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = Path(self.save_dir) / "last_checkpoint"
        with explain_write_errors("the note of", path), atomic_path(path) as temporary:
            temporary.write_text(last_filename_basename)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Here, because Detectron2's main branch takes what follows the ? for its own.
        if zoo_url(path) is not None:
            path = PathManager.get_local_path(path)
        refuse_bare_backbone(path)
        try:
            return super().load(path, *args, **kwargs)
        # Of Detectron2, where names or values are not what a detector's are, or a file is missing.
        except GradAugError:
            raise
        except Exception as e:
            reason = describe_error(e)
            raise ZooError(
                f"the checkpoint {path} cannot be loaded ({reason}); is it Detectron2's, of this "
                "detector?"
            ) from e

    def _load_model(self, checkpoint: Any) -> Any:
        """Raises ZooError if nothing, or next to nothing, of the backbone was in the file."""
        given = sorted(map(str, checkpoint["model"]))  # before names are matched and changed
        body = _find_body(self.model)
        # Not buffers: of old files, FrozenBatchNorm2d makes up its own.
        names = [name for name, _ in self.model.named_parameters() if name.startswith(body)]
        found = super()._load_model(checkpoint)
        other = {key for key, *_ in found.incorrect_shapes} & set(names)
        taken = set(names) - set(found.missing_keys) - other
        # Of a file that is of no use otherwise, a few fit any network by accident: a stem, or
        # layers of one name and shape.
        few = len(taken) < (0.5 if other else 0.1) * len(names)
        useless = bool(other) or 2 * len(found.unexpected_keys) > len(given)
        if names and (not taken or (few and useless)):
            part = body.rstrip(".") or "the detector"
            first = to_printable(given[0]) if given else "nothing"
            raise ZooError(
                f"{len(taken)} of the {len(names)} tensors of {part} were taken from "
                f"{self._file}: it has {first}, ..., the detector {names[0]}, ...; is it another "
                "network's, or under another library's names? `gradaug-det zoo convert --to "
                f"detectron2 --from torchvision {self._file} OUT.pth` (or timm, mmdet, authors) "
                "writes it under Detectron2's"
            )
        return found

    def _load_file(self, filename: str) -> dict[str, Any]:
        """The content of a checkpoint of any kind as DetectionCheckpointer returns it."""
        self._file = filename
        if not filename.endswith((".pkl", ".pyth")):
            loaded = super()._load_file(filename)
            for key in ("state_dict", "model_state_dict", "model_state"):  # other libraries'
                if isinstance(loaded["model"].get(key), dict):
                    return {"model": loaded["model"][key]}
            return loaded
        # Detectron2 would run what is in a pickle, and read the other with PyTorch itself.
        data = load_checkpoint(filename)
        if "model" in data and "__author__" in data:
            return data  # of its model zoo
        is_pycls = filename.endswith(".pyth")
        blobs = data["model_state"] if is_pycls else data.get("blobs", data)
        unused = "num_batches_tracked" if is_pycls else "_momentum"
        model = {name: value for name, value in blobs.items() if not name.endswith(unused)}
        author = "pycls" if is_pycls else "Caffe2"
        return {"model": model, "__author__": author, "matching_heuristics": True}


def _find_body(model: nn.Module) -> str:
    """The prefix of the part that starting weights are for: all but necks and heads."""
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "backbone"]
    if not names:
        return ""
    parts = dict(model.get_submodule(names[0]).named_children())
    inner = next((f"{part}." for part in ("bottom_up", "net") if part in parts), "")
    return f"{names[0]}.{inner}"
