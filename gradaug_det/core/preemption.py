"""Being told to go: SIGTERM, which cluster schedulers send before they take a machine back."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""With which a training ends that has saved itself and wants to be resumed (EX_TEMPFAIL of
sysexits.h: "try again later"); not 143, which is also that of a training that saved nothing."""


class TerminationNotice:
    """Notes SIGTERM instead of dying from it, from :meth:`listen` to :meth:`close`.

    A second SIGTERM does what it would have done without this.
    """

    def __init__(self) -> None:
        self._noted = False
        self._before: Any = None

    def listen(self) -> None:
        """Only a process' main thread can; elsewhere this does nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def close(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        self.close()
        logger.warning("SIGTERM: this step is the last; a checkpoint follows")

    def received(self, device: torch.device) -> bool:
        """Whether any process was told to go. All processes must ask, once a step: they answer
        alike.

        Args:
            device: that the process group can reduce on.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._noted
        noted = torch.tensor([self._noted], dtype=torch.int32, device=device)
        dist.all_reduce(noted, op=dist.ReduceOp.MAX)
        return bool(noted.item())
