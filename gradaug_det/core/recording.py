"""Notes what modules took and gave in a forward pass that somebody else runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Select = Callable[[tuple, dict, Any], Any]
"""(positional arguments, keyword arguments, output) of a module's call -> what to keep of it."""

Modules = Mapping[str, tuple[nn.Module, Select]]


class ForwardRecorder:
    """Keeps a selection of each call of some modules, until :meth:`stop`.

    What is kept must be detached by ``select``: it outlives the pass's graph.

    Args:
        modules: name -> (module, select).
    """

    def __init__(self, modules: Modules) -> None:
        self._calls: dict[str, list[Any]] = {name: [] for name in modules}
        self._handles = [
            module.register_forward_hook(self._hook(name, select), with_kwargs=True)
            for name, (module, select) in modules.items()
        ]

    def _hook(self, name: str, select: Select) -> Callable:
        def note(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._calls[name].append(select(args, kwargs, output))

        return note

    def stop(self) -> dict[str, list[Any]]:
        """Ends the recording; returns by name what was kept of each call, in order."""
        for handle in self._handles:
            handle.remove()
        return self._calls
