#!/usr/bin/env python
"""Trains or evaluates a Detectron2 detector, with or without GradAug.

    tools/train_net.py --config-file configs/detectron2/mask_rcnn_R_50_FPN_1x_gradaug.yaml \\
        --num-gpus 8 [--resume] [--eval-only MODEL.WEIGHTS model.pth] [KEY VALUE ...]

The flags are those of Detectron2's own tools/train_net.py; processes that torchrun starts find each
other without them. ``--register NAME ANNOTATIONS IMAGES``
(repeatable) makes a COCO-format dataset known under a name for DATASETS.TRAIN and DATASETS.TEST.
MODEL.WEIGHTS may be a backbone of the model zoo, gradaug://NAME; a config that prepares images
otherwise than it needs is an error, unless ``--fix-preprocessing`` may change it.
A LazyConfig (.py) works as well.

On SIGTERM the step is finished, a checkpoint is saved and the exit code is 75: run the same command
with ``--resume``.
"""

import multiprocessing
import signal
import sys

from detectron2.engine import default_argument_parser, launch
from torch.multiprocessing import ProcessExitedException

from gradaug_det.core.preemption import EXIT_CODE
from gradaug_det.d2.checks import check_gpus
from gradaug_det.d2.launch import join_processes, started_by_torchrun
from gradaug_det.d2.train import run
from gradaug_det.errors import GradAugError


def main(argv: list[str] | None = None) -> int:
    parser = default_argument_parser()
    parser.add_argument(
        "--register",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "ANNOTATIONS", "IMAGES"),
        help="register a COCO-format dataset",
    )
    parser.add_argument(
        "--fix-preprocessing",
        action="store_true",
        help="set channel order, mean, std and network to what a gradaug:// backbone needs",
    )
    args = parser.parse_args(argv)
    try:
        if started_by_torchrun():
            with join_processes():
                run(args)
        else:
            check_gpus(args.num_gpus)
            if args.num_gpus * args.num_machines > 1:  # the trainings are this process' children
                signal.signal(signal.SIGTERM, _tell_children)
            launch(
                run,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except (GradAugError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ProcessExitedException as error:
        if error.exit_code not in (EXIT_CODE, -signal.SIGTERM):
            raise
        return EXIT_CODE if error.exit_code == EXIT_CODE else _TOLD_TOO_EARLY
    return 0


_TOLD_TOO_EARLY = 128 + signal.SIGTERM
"""By SIGTERM, before there was anything to save."""


def _tell_children(*_) -> None:
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    if not children:
        raise SystemExit(_TOLD_TOO_EARLY)


if __name__ == "__main__":
    sys.exit(main())
