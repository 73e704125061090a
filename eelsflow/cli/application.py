"""The application: its commands are of the modules beside this one."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from eelsflow.cli.terminal import say
from eelsflow.errors import EelsflowError

app = typer.Typer(
    name="eelsflow",
    help="From EELS acquisitions to oxidation-state maps, with the evidence behind them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_debug = False


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    global _debug
    _debug = debug


def main() -> None:
    """Run the command line and exit."""
    try:
        app()  # exits by itself when done (0), for misuse (2) and for Ctrl-C (130)
    except SystemExit as exit_:
        if exit_.code == INTERRUPTED:  # typer makes this of Ctrl-C, and says nothing
            say("interrupted; what was finished is kept, and the same command goes on from there")
        raise
    except EelsflowError as error:
        _report(error, f"error: {error}")
        sys.exit(2)
    except Exception as error:  # the one place that may catch everything: it turns a fault into a message
        _report(error, f"fault: {type(error).__name__}: {error} (a fault of eelsflow; --debug shows where)")
        sys.exit(1)


def _report(error: BaseException, text: str) -> None:
    if _debug:
        traceback.print_exception(error)
    say(text)
