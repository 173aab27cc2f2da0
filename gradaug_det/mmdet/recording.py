"""Notes calls of modules with their keyword arguments, which MMDetection's losses get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from gradaug_det.core.recording import ForwardRecorder

Select = Callable[[tuple, dict, Any], Any]
"""(positional arguments, keyword arguments, output) of a call -> what to keep of it."""

Modules = Mapping[str, tuple[nn.Module, Select]]


class CallRecorder(ForwardRecorder):
    """A ForwardRecorder whose ``select`` also sees keyword arguments.

    Args:
        modules: name -> (module, select); what ``select`` returns must be detached.
    """

    def __init__(self, modules: Modules) -> None:
        super().__init__({})
        self._names = list(modules)
        self._handles = [
            module.register_forward_hook(self._hook(name, select), with_kwargs=True)
            for name, (module, select) in modules.items()
        ]

    def _hook(self, name: str, select: Select) -> Callable:
        def note(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if self._calls is not None:
                self._calls[name].append(select(args, kwargs, output))

        return note
