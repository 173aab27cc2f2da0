"""Makes the sets, trains the study's cells, or writes its table from their results."""

import argparse
import json
import re
import signal
import sys
from pathlib import Path

from gradaug_det.errors import GradAugError
from studies.real_photos.prepare import prepare_bccd, prepare_pennfudan
from studies.real_photos.study import FOLDER, read_cells, read_results
from studies.real_photos.table import write_table
from studies.real_photos.train import ROOT, train_cell, train_cells


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.real_photos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="make the sets of the published archives")
    prepare.add_argument("--pennfudan", type=Path, metavar="ZIP", help="PennFudanPed.zip")
    prepare.add_argument("--bccd", type=Path, metavar="ZIP", help="of the repository BCCD_Dataset")
    prepare.add_argument("--out", type=Path, required=True, help="folder for --data")
    train = commands.add_parser("train", help="train what has no result yet")
    train.add_argument("--only", default="", metavar="REGEX", help="of the cells' names")
    train.add_argument("--jobs", type=int, default=1, help="cells at a time, a thread each")
    train.add_argument("--list", action="store_true", help="name the cells and train nothing")
    cell = commands.add_parser("cell", help="train one cell in this process")
    cell.add_argument("name")
    for one in (train, cell):
        one.add_argument("--data", type=Path, required=True, help="folder of the sets")
        one.add_argument("--out", type=Path, default=ROOT / "output" / "real_photos")
    table = commands.add_parser("table", help="write table.md and table.json")
    for one in (train, cell, table):
        one.add_argument("--results", type=Path, default=FOLDER / "results")
    args = parser.parse_args(argv)
    # As Ctrl-C: the cells' own processes are told.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if args.command == "prepare":
            if args.pennfudan:
                prepare_pennfudan(args.pennfudan, args.out / "pennfudan")
            if args.bccd:
                prepare_bccd(args.bccd, args.out / "bccd")
        elif args.command == "table":
            write_table(read_results(args.results), FOLDER)
        elif args.command == "cell":
            train_cell(args.name, read_cells()[args.name], args.data, args.out, args.results)
        else:
            return _train(args)
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _train(args: argparse.Namespace) -> int:
    cells = {name: cell for name, cell in read_cells().items() if re.search(args.only, name)}
    waiting = []
    for name, cell in cells.items():
        file = args.results / f"{name}.json"
        if not file.is_file():
            waiting.append(name)
        elif json.loads(file.read_text("utf-8"))["settings"] != cell:
            problem = "has other settings than cells.yaml: remove it, or rename the arm"
            raise GradAugError(f"{file} {problem}")
    print(f"{len(cells) - len(waiting)} of {len(cells)} cells are done", flush=True)
    if args.list:
        print("\n".join(waiting))
        return 0
    paths = {key: getattr(args, key).resolve() for key in ("data", "out", "results")}
    arguments = [text for key, path in paths.items() for text in (f"--{key}", str(path))]
    return bool(train_cells(waiting, arguments, paths["out"] / "logs", args.jobs))


if __name__ == "__main__":
    sys.exit(main())
