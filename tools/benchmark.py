#!/usr/bin/env python
"""``gradaug-det benchmark`` as a file that ``torchrun`` can start."""

import sys

from gradaug_det.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
