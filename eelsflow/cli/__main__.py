"""`python -m eelsflow.cli`."""

from eelsflow.cli import main

main()
