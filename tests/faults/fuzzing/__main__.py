"""Feeds broken and hostile files to what reads files from anywhere, and watches what happens.

    python -m tests.faults.fuzzing zoo-index --minutes 10
    python -m tests.faults.fuzzing --list

Inputs are drawn by Hypothesis: sound files with parts replaced, removed, repeated or cut off, and
programs of pickle's own opcodes. The good outcome is a result, or one of the package's errors with
a sentence that can be printed. A finding is anything else: something that ran (an audit hook looks
for programs, files outside of the folder and other unpicklers), another exception, a dead process,
an input that takes more than 10 s, or memory out of proportion.

The reading happens in a process of its own. What was found is printed, the input is kept under
``--keep``, and tests/faults/results/fuzzing/TARGET.json and docs/faults/fuzzing.md (a table of all
targets) are written. Exit code: 0 without findings, 1 with some.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.faults.fuzzing.reader import read_forever
from tests.faults.fuzzing.report import write
from tests.faults.fuzzing.targets import TARGETS
from tests.faults.fuzzing.watch import ROOT, watch


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.fuzzing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="?", choices=TARGETS, metavar="TARGET")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same inputs")
    parser.add_argument("--out", type=Path, default=ROOT, help="with docs and tests in it")
    parser.add_argument("--keep", type=Path, default=ROOT / "output" / "fuzz", help="of findings")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list or args.target is None:
        for name, target in TARGETS.items():
            print(f"{name:12} {target.title}")
        return 0
    if args.read is not None:
        read_forever(args.target, args.read, args.seed)
    report = watch(args.target, args.minutes, args.seed, args.keep)
    write(report, args.out)
    values = report.to_dict()
    print(
        f"{report.target}: {values['inputs']} inputs in {report.seconds:.0f} s: "
        f"{values['accepted']} accepted, {values['refused']} refused with one of "
        f"{values['kinds_of_sentences']} sentences, slowest {report.slowest:.2f} s; "
        f"{len(report.findings)} findings" + (f" in {args.keep}" if report.findings else "")
    )
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
