"""Tries every bad input of tests/faults/corpus.py and writes what came of it.

    python -m tests.faults.bad_inputs

Writes docs/faults/bad_inputs.md: case, way in, and the first line of what it gave, with
``FOLDER`` for the temporary folder. Exit code: 1 if a case gives something else than it should.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

from gradaug_det.utils.files import atomic_path
from tests.faults.corpus import CASES
from tests.faults.entries import outcome

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m tests.faults.bad_inputs"
SHOWN = 240


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "faults" / "bad_inputs.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows, wrong = [], 0
    for case in CASES.values():
        with tempfile.TemporaryDirectory(prefix="gradaug_faults_") as folder:
            try:
                line = outcome(case.run, Path(folder))
            except Exception as error:
                traceback.print_exc()
                line = f"FAILS: {type(error).__name__}: {error}"
        pattern = ".*".join(map(re.escape, case.gives.split(" ... ")))
        if not re.match(pattern, line):
            wrong += 1
            print(f"{case.id}\n  should give {case.gives}\n  gives       {line}")
        rows.append((case.category, case.name, case.entry, line.replace(str(ROOT), "REPOSITORY")))
    with atomic_path(args.out) as path:
        path.write_text(document(rows), encoding="utf-8")
    print(f"{len(rows)} cases, {wrong} not as they should be: {args.out}")
    return int(wrong > 0)


def document(rows: list[tuple[str, str, str, str]]) -> str:
    """The page: what the lines mean, counts, the table."""
    kinds = Counter(line.split(":")[0] for *_, line in rows)
    lines = [
        "# Bad input, and what it gives",
        "",
        f"{len(rows)} cases, made by tests/faults/corpus.py and tried by",
        "tests/faults/test_corpus.py.",
        "",
        f"```bash\n{COMMAND}  # wrote this page\n```",
        "",
        "- `DataError`, `ConfigError`, `ZooError`: the package's own sentence; scripts print it",
        "  and end with exit code 2.",
        "- `warning`: the first one logged, then what is learned from: per image its boxes",
        "  (x0,y0,x1,y1:class).",
        "- `works`: what came of it; of check-data its exit code and the worst finding.",
        "- `Detectron2's ...`, `MMDetection's ...`: the framework's own error when the image's",
        "  turn comes; `gradaug-det check-data`, which decodes every image, finds what is damaged",
        "  before.",
        "",
        "| outcome | cases |",
        "|---|---|",
        *(f"| {_cell(kind)} | {count} |" for kind, count in kinds.most_common()),
        "",
        "| category | case | way in | gives |",
        "|---|---|---|---|",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
