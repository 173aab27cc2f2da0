"""Writes the study's tables and plots anew from its stored results."""

import argparse
import sys
from pathlib import Path

from studies.table3_mini.tables import write_study


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m studies.table3_mini", description=__doc__).parse_args(
        argv
    )
    print(write_study(Path(__file__).parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
