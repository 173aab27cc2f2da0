"""Being told to go: SIGTERM, which cluster schedulers send before they take a machine back."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from gradaug_det.core.processes import Meeting

logger = logging.getLogger(__name__)

_SECONDS = 2  # between two times that processes agree; torchrun kills after 30
# Of a training that has saved itself and wants to be resumed: EX_TEMPFAIL of sysexits.h, "try again
# later". 143 would be that of a training that saved nothing, too.
EXIT_CODE = 75


class TerminationNotice:
    """Notes SIGTERM instead of dying from it, from :meth:`listen` to :meth:`close`.

    Meanwhile the processes that load images outlive a SIGTERM that is sent to the whole process
    group, as ``torchrun`` does.
    """

    _listening: ClassVar[TerminationNotice | None] = None

    def __init__(self) -> None:
        self._noted = False
        self._cleanup = ExitStack()
        self._process = 0
        self._meeting: Meeting | None = None
        self._steps, self._period, self._asked = 0, 1, time.monotonic()

    def listen(self) -> None:
        """Begins; signals are noted in a process' main thread alone. All processes of a training
        must call it, at about the same time."""
        self._meeting = Meeting()
        if threading.current_thread() is not threading.main_thread():
            return  # Python refuses other threads' handlers
        if TerminationNotice._listening is not None:
            # Of a training that ended with an exception, of which MMEngine tells no hook.
            TerminationNotice._listening.close()
        TerminationNotice._listening = self
        self._process = os.getpid()
        # None is a handler that was not set from Python.
        before = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        self._cleanup.callback(self._restore, before)
        self._cleanup.enter_context(workers_outlive_sigterm())

    def close(self) -> None:
        self._cleanup.close()
        if self._meeting is not None:
            self._meeting.close()
        if TerminationNotice._listening is self:
            TerminationNotice._listening = None

    def _restore(self, before: Any) -> None:
        # A process that was told is to end by itself: another SIGTERM would end it while it saves.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self._noted else before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork of the training, which somebody wants to end
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if not self._noted:
            logger.warning("SIGTERM: this step is the last; a checkpoint follows")
        self._noted = True

    def received(self) -> bool:
        """Returns whether any process was told to go: the same in all, which must all ask, once a
        step. Several processes agree every other second, on the host."""
        if self._meeting is None or not self._meeting.several:
            return self._noted
        self._steps += 1
        if self._steps < self._period:
            return False
        now = time.monotonic()
        steps = int(self._steps * _SECONDS / max(now - self._asked, 1e-6))
        noted, steps = self._meeting.largest([int(self._noted), -min(max(steps, 1), 1000)])
        self._steps, self._period, self._asked = 0, -steps, now
        if not noted:
            return False  # one that came meanwhile is for the next time
        self._noted = True
        return True


@contextmanager
def workers_outlive_sigterm() -> Iterator[None]:
    """Processes that any ``DataLoader`` starts within the block have process groups of their own.

    Who tells the training's group to go does not end them before the training has saved. They end
    when the training does, however it ends.
    """
    if not hasattr(os, "setpgid"):  # Windows has no process groups
        yield
        return
    for child in multiprocessing.active_children():
        if child.daemon:  # as those are that a loader started before
            with suppress(OSError):  # it has ended, or is not a fork
                os.setpgid(child.pid, child.pid)
    original = DataLoader._get_iterator

    def start(loader: DataLoader) -> Any:
        if not loader.num_workers:
            return original(loader)
        init = loader.worker_init_fn
        loader.worker_init_fn = _OwnGroup(init)
        if (loader.multiprocessing_context or multiprocessing).get_start_method() != "fork":
            # Python's tracker, begun with the first such worker, would take SIGTERM off the mask.
            resource_tracker.ensure_running()
        # Until it has its group, SIGTERM must wait: a worker inherits the mask, and takes it off.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return original(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            loader.worker_init_fn = init

    DataLoader._get_iterator = start
    try:
        yield
    finally:
        DataLoader._get_iterator = original


class _OwnGroup:
    """A ``worker_init_fn``, in front of the user's own."""

    def __init__(self, init: Callable[[int], None] | None) -> None:
        self.init = init

    def __call__(self, worker: int) -> None:
        os.setpgid(0, 0)
        if signal.SIGTERM in signal.sigpending():
            signal.sigwait({signal.SIGTERM})  # sent to the group that it was in
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
        if self.init is not None:
            self.init(worker)


def _end_with_parent() -> None:
    """PyTorch's own watch is not enough: a worker waits for ever to hand over its last images."""
    parent = multiprocessing.parent_process()
    own = os.getppid() == parent.pid  # not if a fork server started it
    while parent.is_alive() and (not own or os.getppid() == parent.pid):
        parent.join(timeout=1)  # a pipe, which other processes may hold open
    os._exit(1)
