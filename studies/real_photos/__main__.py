"""Makes the sets, trains the study's cells, or writes its table from their results."""

import argparse
import json
import re
import sys
from pathlib import Path

from gradaug_det.errors import GradAugError
from studies.real_photos.prepare import prepare_set
from studies.real_photos.study import FOLDER, read_cells, read_results
from studies.real_photos.table import write_table
from studies.real_photos.train import ROOT, train_cell, train_cells


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.real_photos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="make the sets of the published archives")
    prepare.add_argument("archives", type=Path, nargs="+", metavar="ZIP")
    train = commands.add_parser("train", help="train what has no result yet")
    train.add_argument("--only", default="", metavar="REGEX", help="of the cells' names")
    train.add_argument("--jobs", type=int, default=1, help="cells at a time, a thread each")
    train.add_argument("--list", action="store_true", help="name the cells and train nothing")
    cell = commands.add_parser("cell", help="train one cell in this process")
    cell.add_argument("name")
    table = commands.add_parser("table", help="write table.md and table.json")
    for one in (prepare, train, cell):
        one.add_argument("--data", type=Path, required=True, help="folder of the sets")
    for one in (train, cell, table):
        one.add_argument("--out", type=Path, default=ROOT / "output" / "real_photos")
        one.add_argument("--results", type=Path, default=FOLDER / "results")
    args = parser.parse_args(argv)
    try:
        if args.command == "train":
            return _train(args)
        if args.command == "cell":
            train_cell(args.name, read_cells()[args.name], args.data, args.out, args.results)
        elif args.command == "table":
            write_table(read_results(args.results), FOLDER)
        else:
            for archive in args.archives:
                prepare_set(archive, args.data)
    except GradAugError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _train(args: argparse.Namespace) -> int:
    cells = {name: cell for name, cell in read_cells().items() if re.search(args.only, name)}
    waiting = [name for name in cells if not (args.results / f"{name}.json").is_file()]
    for name in cells.keys() - set(waiting):
        file = args.results / f"{name}.json"
        if json.loads(file.read_text("utf-8"))["settings"] != cells[name]:
            raise GradAugError(f"{file} has other settings than cells.yaml: rename the arm")
    print(f"{len(cells) - len(waiting)} of {len(cells)} cells are done", flush=True)
    if args.list:
        print("\n".join(waiting))
        return 0
    paths = {key: getattr(args, key).resolve() for key in ("data", "out", "results")}
    arguments = [text for key, path in paths.items() for text in (f"--{key}", str(path))]
    return int(not train_cells(waiting, arguments, paths["out"] / "logs", args.jobs))


if __name__ == "__main__":
    sys.exit(main())
