"""Run the benchmarks and write what they gave.

    python -m benchmarks [--quick] [--only search,scaling,networks,preprocessing,storage,orchestration]

The full run takes two hours and writes docs/benchmarks/results.json and results.png after every row; what it does not
measure again is kept from the last run. The quick one takes minutes, writes nothing, and ends with status 1 if an
answer is not equal to the peer's. Either ends with a table of the rows and the targets that are not met.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import networks, orchestration, preprocessing, scaling_search, search, storage
from benchmarks.data import MEASURED_SEED
from benchmarks.measure import Row, describe_machine, print_row, print_table

SUITES = {
    "search": search.rows,
    "scaling": scaling_search.rows,
    "networks": networks.rows,
    "preprocessing": preprocessing.rows,
    "storage": storage.rows,
    "orchestration": orchestration.rows,
}
OUT = Path(__file__).parents[1] / "docs" / "benchmarks"


def write(suite: str, row: Row, machine: dict[str, Any]) -> None:
    """Replace what results.json says of one row, and draw the figure again."""
    path = OUT / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": []}
    measured = {
        **row.as_dict(),
        "suite": suite,
        "date": datetime.now(UTC).date().isoformat(),
        "data_seed": MEASURED_SEED,
        "machine": machine,
    }
    places = {old["work"]: place for place, old in enumerate(results["rows"])}
    if row.work in places:
        results["rows"][places[row.work]] = measured
    else:
        results["rows"].append(measured)
    results["rows"].sort(key=lambda one: list(SUITES).index(one["suite"]))
    OUT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    draw(results["rows"], OUT / "results.png")


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Draw every ratio that has a target as a share of it, with the ratio and the target beside the bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row["target"] is not None]
    figure, axes = plt.subplots(figsize=(10, 0.55 * len(shown) + 1.2), layout="constrained")
    for place, row in enumerate(reversed(shown)):
        ratio, target = float(row["ratio"]), float(row["target"])  # type: ignore[arg-type]
        share = target / ratio if row["at_most"] else ratio / target
        axes.barh(place, share - 1, left=1, color="#2a6f97" if row["met"] else "#c1666b", height=0.6)
        text = f"{ratio:.3g} ({'at most' if row['at_most'] else 'at least'} {target:g})"
        axes.annotate(text, (max(share, 1), place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    names = [textwrap.fill(str(row["work"]), 62) for row in reversed(shown)]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("share of the target reached: right of 1 it is met")
    axes.margins(x=0.1, y=0.01)
    axes.set_xlim(right=axes.get_xlim()[1] * 30)  # room for the words beside the longest bar
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description="Ours beside its peers, in one run.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="suites, separated by commas; search:rbf is one row")
    options = parser.parse_args()
    measured: list[Row] = []
    machine = describe_machine()
    print(f"seed of the spectra: {MEASURED_SEED}; {json.dumps(machine)}", flush=True)
    # That the flow gives the numbers of the loop is for the tests to show.
    suites = [suite for suite in SUITES if not (options.quick and suite == "orchestration")]
    for item in options.only.split(",") if options.only else suites:
        print(f"=== {item}", flush=True)
        suite, _, one = item.partition(":")
        rows = SUITES[suite](options.quick, one) if one else SUITES[suite](options.quick)
        if options.quick:  # so small a job says nothing about a target
            rows = (replace(row, target=None) for row in rows)
        for row in rows:
            print_row(row)
            measured.append(row)
            if not options.quick:
                write(suite, row, machine)
    print_table(measured)
    right = all(all(row.gates.values()) for row in measured)
    if not right:
        print("a gate does not hold: an answer differs from the peer's by more than it may", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
