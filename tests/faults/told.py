"""A training under torchrun that says who it is and how it ended.

python -m torch.distributed.run --standalone -m tests.faults.told NAME FOLDER DATA WORKERS
"""

import contextlib
import logging
import os
import sys
from pathlib import Path

from tests.faults.trainings import TRAININGS


def main(name, folder, data, workers):
    logging.disable(logging.WARNING)
    folder = Path(folder)
    (folder / "pid").write_text(str(os.getpid()))
    joined = contextlib.nullcontext()
    if name == "Detectron2":
        from gradaug_det.d2.launch import join_processes

        joined = join_processes()
    try:
        with joined:
            TRAININGS[name][0](folder, data, workers=int(workers))
    except SystemExit as end:
        (folder / "exit").write_text(str(end.code))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
