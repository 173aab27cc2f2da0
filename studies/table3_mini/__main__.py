"""Trains every cell of the study of table 3 over seeds; goes on where it was stopped."""

import argparse
import logging
import sys
from pathlib import Path

from gradaug_det.errors import GradAugError
from studies.table3_mini.study import PARTS, SEEDS, Study, all_cells, finals
from studies.table3_mini.tables import write_study

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "studies" / "table3_mini"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.table3_mini", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "table3_mini")
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", default="", metavar="TEXT", help="cells with it in their name")
    parser.add_argument("--iterations", type=int, default=Study.iterations, help="of the 1x length")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each training; 0: all cores")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="name the cells and what is missing")
    action.add_argument("--tables", action="store_true", help="only write the tables anew")
    action.add_argument(
        "--robustness", action="store_true", help="measure what was trained under corruptions"
    )
    action.add_argument(
        "--redo", metavar="NAME", help="train a cell from nothing and compare with its result"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    study = Study(ROOT, args.out.resolve(), args.results.resolve(), args.iterations)
    try:
        cells = [c for c in all_cells(args.seeds, args.parts) if args.only in c.name]
        if args.list:
            for cell in cells:
                print(f"{'done   ' if study.result(cell) else 'missing'} {cell.name}")
            return 0
        if args.redo:
            return _redo(study, args.redo)
        try:
            if args.robustness:
                chosen = [c for c in finals(args.seeds) if args.only in c.name]
                study.measure_robustness(chosen, jobs=args.jobs)
            elif not args.tables:
                study.run(cells, jobs=args.jobs, threads=args.threads or None)
        finally:
            _write_tables(study)
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write_tables(study: Study) -> None:
    found = study.found(all_cells(study.seeds()))
    readme = write_study(study.results.parent, study, found, study.seeds())
    print(f"{len(found)} results; tables in {readme}")


def _redo(study: Study, name: str) -> int:
    cells = {cell.name: cell for cell in all_cells(study.seeds())}
    if name not in cells:
        raise GradAugError(f"{name!r} is not a cell; --list names them")
    different = study.redo(cells[name])
    print("\n".join(different) or f"{name}: the same to the last digit")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
