"""Trains and measures every method of the mini zoo over seeds; goes on where it was stopped."""

import argparse
import json
import logging
import sys
from pathlib import Path

from gradaug_det.errors import GradAugError
from gradaug_det.utils.files import atomic_path
from studies.mini_zoo.study import (
    METHODS,
    SPLITS,
    all_runs,
    read_result,
    run_study,
    train_accuracies,
)
from studies.mini_zoo.tables import write_tables

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "studies" / "mini_zoo"
FIT = STUDY / "fit.json"
SEEDS = [0, 1, 2]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.mini_zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "mini_zoo")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--splits", choices=SPLITS, nargs="+", default=list(SPLITS))
    parser.add_argument("--budgets", choices=["epochs", "compute", "long"], nargs="+")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a thread each")
    parser.add_argument("--tables", action="store_true", help="only write the tables anew")
    parser.add_argument(
        "--fit", action="store_true", help="measure how well backbones fit their training images"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    runs = [
        run
        for run in all_runs(args.seeds)
        if run.split in args.splits
        and run.method in args.methods
        and (not args.budgets or run.budget in args.budgets)
    ]
    try:
        if args.fit:
            with atomic_path(FIT) as temporary:
                measured = train_accuracies(runs, args.out)
                temporary.write_text(json.dumps(measured, indent=1) + "\n")
        elif not args.tables:
            run_study(runs, ROOT, args.out, STUDY / "results", jobs=args.jobs)
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        seeds = sorted({*SEEDS, *args.seeds})
        everything = all_runs(seeds)
        found = {run.name: read_result(run, ROOT, STUDY / "results") for run in everything}
        done = {name: result for name, result in found.items() if result}
        fit = json.loads(FIT.read_text()) if FIT.is_file() else None
        write_tables(STUDY / "README.md", done, seeds, fit)
        print(f"{len(done)} of {len(everything)} runs done; tables in studies/mini_zoo/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
