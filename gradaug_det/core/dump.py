"""The file that a step leaves whose losses are not finite: all that is needed to run it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradaug_det.core.checks import check_number
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.errors import GradAugError, NonFiniteLossError
from gradaug_det.utils.checkpoints import load_checkpoint
from gradaug_det.utils.files import atomic_path, explain_write_errors

FORMAT = 1
FOLDER = "nonfinite"
"""In the training's output folder."""


@dataclass(frozen=True)
class Dump:
    """A step before its optimizer stepped.

    Args:
        framework: ``detectron2`` or ``mmdet``.
        config: the training's, as text; None if it had none in a file's form.
        iteration, rank: of the step and of the process.
        subs: its sub-networks.
        bad: index of the sub-network whose losses are not finite; None if it is the gradient.
        options: GradAug's settings, by name.
        rng: state of torch's CPU generator before the step.
        weights: of the detector.
        batch: tensors and plain values; the framework's adapter makes its batch of them.
        images: names or ids of the batch's images, for readers.
    """

    framework: str
    config: str | None
    iteration: int
    rank: int
    subs: Sequence[SubNetwork]
    bad: int | None
    options: Mapping[str, Any]
    rng: Tensor
    weights: Mapping[str, Tensor]
    batch: Any
    images: Sequence[Any]

    @property
    def name(self) -> str:
        what = "gradient" if self.bad is None else f"sub{self.bad}"
        return f"iter_{self.iteration:07d}_{what}_rank{self.rank}.pt"

    def write(self, output_dir: str | Path) -> Path:
        """Writes it into the output folder's :data:`FOLDER`; returns the path."""
        path = Path(output_dir) / FOLDER / self.name
        content = vars(self) | {"format": FORMAT, "subs": [asdict(sub) for sub in self.subs]}
        with explain_write_errors("the step", path), atomic_path(path) as temporary:
            torch.save(to_plain(content), temporary)
        return path


def read_dump(path: str | Path) -> Dump:
    """What :meth:`Dump.write` wrote; no code in the file runs.

    Raises:
        GradAugError: it is no such file.
    """
    content = load_checkpoint(path)
    try:
        if content.pop("format") != FORMAT:
            raise ValueError
        subs = [
            SubNetwork(**{**sub, "transform": BatchTransform(**sub["transform"])})
            for sub in content.pop("subs")
        ]
        for sub in subs:
            check_number("scale", sub.transform.scale, high=4.0, above=0.0)  # or it fills memory
        dump = Dump(subs=subs, **content)
        for value, kinds in (
            (dump.framework, str),
            (dump.config, (str, type(None))),
            (dump.options, dict),
            (dump.rng, Tensor),
            (dump.weights, dict),
            (dump.images, list),
        ):
            if not isinstance(value, kinds):
                raise TypeError
    except (GradAugError, KeyError, RuntimeError, TypeError, ValueError):
        raise GradAugError(
            f"{path} is not a step that a training left in its folder {FOLDER!r} (of this version)"
        ) from None
    return dump


def with_replay_hint(
    error: NonFiniteLossError, dump: Dump, output_dir: str | Path | None
) -> NonFiniteLossError:
    """The error with the images' names and the file to replay."""
    shown = ", ".join(map(str, dump.images))
    left = ""
    if output_dir is not None:
        left = f" Run the step again with: gradaug-det replay {dump.write(output_dir)}"
        if dump.framework == "mmdet" or dump.config is None:
            left += " --config FILE, the training's"
        left += "."
    return NonFiniteLossError(
        f"{error} (images {shown}).{left} Lower the learning rate or the loss weights, or set "
        "nonfinite to 'skip'",
        error.sub,
        error.losses,
    )


def to_plain(value: Any) -> Any:
    """Containers of tensors, numbers and text, copied to the CPU: what can be loaded without
    running code."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if hasattr(value, "__array__"):  # of NumPy, which the core does not import
        numbers = value.ndim and value.dtype.kind in "biuf"
        return torch.tensor(value) if numbers else value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
