"""The command line: `eelsflow --help` explores it.

Exit status 0: done; 2: bad input or refused, with one clear message; 1: a fault of the program.
"""

from eelsflow.cli.application import app, main

# in the order of the list that --help prints
from eelsflow.cli import maps, studies, labels, services  # isort: skip

__all__ = ["app", "labels", "main", "maps", "services", "studies"]
