"""The process that reads: draws inputs until it is killed, and says what came of each."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.faults.fuzzing.inputs import Input
from tests.faults.fuzzing.outcome import sentence_problem
from tests.faults.fuzzing.targets import TARGETS

INPUT_SECONDS = 10.0
"""An input that takes longer hangs."""
MEMORY_BYTES = 512 * 2**20
"""A reader whose memory grows by more than this over an input of a few kilobytes blows up."""
ADDRESS_BYTES = 12 * 2**30
"""Limit of a reader's address space, so that a blow-up ends it and not the machine."""

_WATCHED = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"),
    *("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.chmod", "os.link", "os.symlink"),
    *("os.kill", "pickle.find_class", "open"),
)
_AT_HOME = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod")


class Canary:
    """Notes and stops what a file must not bring about while it is read: programs that are
    started, an unpickler that is not ours, files that are touched outside of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran, self.on = str(folder), [], False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.on or event not in _WATCHED:
            return
        path = str(arguments[0]) if arguments else ""
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return  # reading
        if event in _AT_HOME and (path.startswith(self.folder) or "__pycache__" in path):
            return
        self.ran.append(f"{event}{arguments!r:.100}")
        raise PermissionError(f"{event} while a file is read")


def read_forever(name: str, folder: Path, first_seed: int) -> None:
    """Draws and reads inputs until it is killed; one line of JSON before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    target = TARGETS[name]
    inputs, place = target.inputs(folder), folder / "input"
    place.mkdir(exist_ok=True)
    tempfile.tempdir = os.environ["MPLCONFIGDIR"] = str(folder)
    # What is read may print and log: our lines go another way.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable()
    for module in target.modules:
        importlib.import_module(module)
    canary = Canary(folder)
    peaks: list[int] = []  # of memory, after each input
    kept: set[str] = set()  # where findings happened whose inputs are kept

    def attempt(drawn: Input) -> None:
        for old in place.iterdir():
            old.unlink()
        path = place / drawn[0]
        path.write_bytes(drawn[1])
        print(json.dumps({"begin": True}), file=lines, flush=True)
        begin = time.monotonic()
        canary.ran, canary.on = [], True
        try:
            target.read(folder, path)
            answer: dict[str, Any] = {"accepted": True}
        except Exception as error:
            answer = _judge(error, folder)
        canary.on = False
        if canary.ran:
            answer |= {"finding": f"something ran: {canary.ran[0]}"}
            answer |= {"at": canary.ran[0].partition("(")[0]}
        answer["seconds"] = time.monotonic() - begin
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        # The first inputs import what the target needs.
        if len(peaks) > 21 and (grown := peaks[-1] - peaks[-2]) > MEMORY_BYTES:
            answer |= {"finding": f"memory grew by {grown >> 20} MiB", "at": "memory"}
        # The next input is written before the watching process has heard of this one.
        if "at" in answer and answer["at"] not in kept:
            kept.add(answer["at"])
            answer["input"] = str(shutil.copytree(place, folder / f"finding{len(kept)}"))
        print(json.dumps(answer), file=lines, flush=True)

    quiet = settings(
        max_examples=300,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    number = first_seed
    while True:
        seed(number)(quiet(given(inputs)(attempt)))()
        number += 1


def _judge(error: Exception, folder: Path) -> dict[str, Any]:
    problem = sentence_problem(error)
    if problem is None:
        return {"sentence": _shape(str(error), folder)}
    frame = traceback.extract_tb(error.__traceback__)[-1]
    found = {"finding": problem, "at": f"{Path(frame.filename).name}:{frame.lineno}"}
    return found | {"traceback": "".join(traceback.format_exception(error))}


def _shape(text: str, folder: Path) -> str:
    """Returns a sentence without what differs from input to input, to count kinds of it."""
    text = text.replace(str(folder), "").split("got ")[0]
    return re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\[[^\]]*\]|[\d.]+", "_", text)[:90]
