"""Timing two ways of doing one job fairly: one after the other in turn, several times, medians and ratios."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPETITIONS = 3
THREADS = 2
"""Threads in all that either side may use."""

_PACKAGES = (
    "numpy", "scipy", "numba", "scikit-learn", "scikit-learn-intelex", "tensorflow", "tensorflow-cpu", "keras",
    "hyperspy", "dask", "distributed", "joblib", "prefect", "mlflow", "xarray", "zarr", "tensorstore",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    work, peer
        What was done, and what with beside ours; an empty peer where a target is absolute.
    ratio
        The figure that the target is about, by default the median of the peer's seconds over the median of ours.
    target
        What `ratio` should be: at least so much, or at most with `at_most`; None where only the gates matter.
    ours, theirs
        Seconds of every repetition.
    gates
        What was checked before the times count: name -> whether it holds. A row whose gates do not hold is not met.
    note
        What a reader must know to repeat or to doubt the figure.
    """

    work: str
    peer: str
    ratio: float
    target: float | None
    at_most: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    gates: dict[str, bool] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is reached by an answer that is right."""
        if self.target is None:
            return all(self.gates.values())
        return all(self.gates.values()) and (self.ratio <= self.target if self.at_most else self.ratio >= self.target)

    def as_dict(self) -> dict[str, Any]:
        """Return what is written to results.json."""
        return {**asdict(self), "met": self.met}


def take_turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], *, repetitions: int = REPETITIONS
) -> tuple[list[float], list[float], Any, Any]:
    """Run both in turn and return the seconds of each and what each returned last.

    Whatever else the machine does in a minute hits both sides.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for _ in range(repetitions):
        for side, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            results[side] = run()
            seconds[side].append(time.perf_counter() - start)
    return *seconds, *results


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times longer theirs took, by medians."""
    return statistics.median(theirs) / statistics.median(ours)


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, versions and the commit that is measured; "dirty" if files were changed."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


def print_row(row: Row) -> None:
    """Print a row of the table, with what was checked."""
    seconds = ", ".join(
        f"{name} {statistics.median(values):.3g} s"
        for name, values in (("ours", row.ours), ("peer", row.theirs))
        if values
    )
    print(f"{row.work}\n    {row.peer or 'no peer'}: {row.ratio:.3g} (target {_target(row)}), "
          f"{'met' if row.met else 'NOT MET'}; {seconds}\n    {row.note}")  # fmt: skip
    for gate, holds in row.gates.items():
        print(f"    {'ok' if holds else 'DOES NOT HOLD'}: {gate}")
    sys.stdout.flush()


def print_table(rows: Sequence[Row]) -> None:
    """Print a line a row, then every target that is not met and how much of it was reached."""
    lines = [("work", "peer", "ratio", "target", "met")]
    for row in rows:
        met = "-" if row.target is None else "yes" if row.met else "NO"
        work = textwrap.shorten(row.work, 80, placeholder=" ...")
        lines.append((work, row.peer or "no peer", f"{row.ratio:.3g}", _target(row), met))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    print()
    for work, peer, *figures in lines:
        right = (figure.rjust(width) for figure, width in zip(figures, widths[2:], strict=True))
        print("  ".join((work.ljust(widths[0]), peer.ljust(widths[1]), *right)))
    for row in rows:
        if row.target is not None and not row.met:
            share = row.target / row.ratio if row.at_most else row.ratio / row.target
            print(f"not met: {row.work}: {row.ratio:.3g} (target {_target(row)}), {share:.0%} of the target"
                  f"{'' if all(row.gates.values()) else ', and a gate does not hold'}")  # fmt: skip
    if any(row.target is not None and not row.met for row in rows):
        print("What was tried is in docs/benchmarks/README.md.")
    sys.stdout.flush()


def print_rows(rows: Iterable[Row]) -> None:
    """Print rows as they come."""
    for row in rows:
        print_row(row)


def _target(row: Row) -> str:
    return "-" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g}"


def _processor() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
