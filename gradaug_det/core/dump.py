"""The file that a step leaves whose losses are not finite: all that is needed to run it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

FORMAT = 2
FOLDER = "nonfinite"  # in the training's output folder


@dataclass(frozen=True)
class Dump:
    """A step before its optimizer stepped."""

    framework: str  # ``detectron2`` or ``mmdet``
    config: str | None  # the training's, as text; None if it had none in a file's form
    iteration: int
    rank: int  # of the process
    subs: Sequence[SubNetwork]
    bad: int | None  # index of the sub-network with such losses; None if it is the gradient
    options: Mapping[str, Any]  # GradAug's settings, by name
    rng: Tensor  # state of torch's CPU generator before the step
    weights: Mapping[str, Tensor]  # of the detector
    batch: Any  # tensors and plain values, of which the framework's adapter makes its batch
    images: Sequence[Any]  # names or ids, for readers

    def write(self, output_dir: str | Path) -> Path:
        """Writes it into the output folder's :data:`FOLDER`; returns the path."""
        what = "gradient" if self.bad is None else f"sub{self.bad}"
        name = f"iter_{self.iteration:07d}_{what}_rank{self.rank}.pt"
        path = Path(output_dir) / FOLDER / name
        content = vars(self) | {"format": FORMAT, "subs": [asdict(sub) for sub in self.subs]}
        with explain_write_errors("the step", path), atomic_path(path) as temporary:
            torch.save(to_plain(content), temporary)
        return path


def read_dump(path: str | Path) -> Dump:
    """Returns what :meth:`Dump.write` wrote; no code in the file runs.

    Raises:
        GradAugError: it is no such file.
    """
    content = load_checkpoint(path)
    kinds = {"framework": str, "config": (str, type(None)), "options": dict}
    kinds |= {"rng": Tensor, "weights": dict, "images": list}
    try:
        subs = [
            SubNetwork(**{**sub, "transform": BatchTransform(**sub["transform"])})
            for sub in content.pop("subs")
        ]
        for sub in subs:
            check_number("scale", sub.transform.scale, high=4.0, above=0.0)  # or it fills memory
        if content.pop("format") != FORMAT:
            raise ValueError
        dump = Dump(subs=subs, **content)
        if all(isinstance(getattr(dump, name), kind) for name, kind in kinds.items()):
            return dump
    except (GradAugError, KeyError, RuntimeError, TypeError, ValueError):
        pass  # whatever else a file may hold
    raise GradAugError(
        f"{path} is not a step that a training left in its folder {FOLDER!r} (of this version)"
    )


def with_replay_hint(
    error: NonFiniteLossError, dump: Dump, output_dir: str | Path | None
) -> NonFiniteLossError:
    """Returns the error with the images' names and the file to replay, which it writes."""
    images, left = ", ".join(map(str, dump.images)), ""
    if output_dir is not None:
        left = f" Run the step again with: gradaug-det replay {dump.write(output_dir)}"
        if dump.framework == "mmdet" or dump.config is None:
            left += " --config FILE, the training's"
        left += "."
    return NonFiniteLossError(
        f"{error} (images {images}).{left} Lower the learning rate or the loss weights, or set "
        "nonfinite to 'skip'",
        error.sub,
        error.losses,
    )


# What takes an object apart, and what makes one of those parts.
Kind = tuple[Callable[[Any], Sequence], Callable[..., Any]]


def to_plain(value: Any, kinds: Mapping[type, Kind] = {}) -> Any:
    """Returns containers of tensors, numbers and text, copied to the CPU: what can be loaded
    without running code.

    Args:
        value: what is neither of these nor of ``kinds`` becomes text.
        kinds: objects of these classes are taken apart.
    """
    for kind, (take_apart, _) in kinds.items():
        if isinstance(value, kind):
            return {"kind": kind.__name__, "parts": to_plain(list(take_apart(value)), kinds)}
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if hasattr(value, "__array__"):  # of NumPy, which the core does not import
        is_numeric = value.ndim and value.dtype.kind in "biuf"
        return torch.tensor(value) if is_numeric else value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, kinds) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, kinds) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def from_plain(value: Any, kinds: Mapping[type, Kind]) -> Any:
    """Returns the value that :func:`to_plain` was given, tuples as lists.

    Raises:
        Exception: whatever the classes raise, if the parts are not those of an object.
    """
    if isinstance(value, list):
        return [from_plain(item, kinds) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"kind", "parts"}:
        makers = {kind.__name__: make for kind, (_, make) in kinds.items()}
        return makers[value["kind"]](*from_plain(value["parts"], kinds))
    return {key: from_plain(item, kinds) for key, item in value.items()}
