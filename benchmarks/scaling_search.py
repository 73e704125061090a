"""How a search grows with the number of spectra, in time and memory, and what a worker holds of the shared distances.

python -m benchmarks.scaling_search [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.data import MEASURED_SEED, training_table
from benchmarks.measure import Row, print_rows

SIZES = (2000, 4000, 8000, 12000, 30000)
GRID = {"C": np.logspace(1, 5, 4).tolist(), "gamma": np.logspace(-2, 1, 4).tolist()}

_SEARCH = """
import json, sys, tempfile, time
from pathlib import Path
import numpy as np
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits
from eelsflow.executors import ThreadExecutor
from eelsflow.search.grid import search_grid
with np.load(sys.argv[1]) as table:
    X, y = table["X"], table["y"]
grid = json.loads(sys.argv[2])
folds = list(StratifiedKFold(10).split(X, y))
with tempfile.TemporaryDirectory() as scratch, threadpool_limits(1):
    start = time.perf_counter()
    scores = search_grid(X, y, kernel="rbf", grid=grid, folds=folds, executor=ThreadExecutor(2), scratch=Path(scratch))
    seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "converged": bool(scores["converged"].all())}))
"""

_WORKER = """
import json, sys
from pathlib import Path
import numpy as np
def private():
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Private_"))
before = private()
matrix = np.load(sys.argv[1], mmap_mode="r") if sys.argv[2] == "mapped" else np.load(sys.argv[1])
total = float(sum(matrix[first : first + 256].sum() for first in range(0, len(matrix), 256)))
print("read", flush=True)
sys.stdin.readline()  # a page counts as private until the other worker has read it too
print(json.dumps({"private": private() - before, "total": total}), flush=True)
sys.stdin.read()
"""


def rows(quick: bool, only: str = "") -> Iterator[Row]:
    """Measure what is shared and how a search grows; quick: two small sizes."""
    if only in ("", "sharing"):
        yield measure_sharing(500 if quick else 7599)
    if only in ("", "growth"):
        yield from measure_growth(quick)


def measure_growth(quick: bool) -> Iterator[Row]:
    sizes = (300, 600) if quick else SIZES
    X, y = training_table(max(sizes), MEASURED_SEED) if not quick else _noise(max(sizes))
    found = {n: _search(X[:n], y[:n]) for n in sizes}
    size = f"{len(GRID['C'])} C x {len(GRID['gamma'])} gamma x 10 folds"
    for what, unit in (("seconds", "s"), ("peak", "bytes")):
        values = [found[n][what] for n in sizes]
        exponent = float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
        yield Row(
            work=f"rbf grid of {size}: exponent of {what} in spectra",
            peer="",
            ratio=exponent,
            target=None,
            gates={"every fit met libsvm's tolerance": all(found[n]["converged"] for n in sizes)},
            note=", ".join(f"{n}: {value:.3g} {unit}" for n, value in zip(sizes, values, strict=True)),
        )


def _noise(n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(MEASURED_SEED)
    y = (np.arange(n) % 2).astype(np.int32)
    return random.normal(size=(n, 40)) + 0.3 * y[:, np.newaxis], y


def _search(X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Search in a process of its own, whose peak of memory is then the search's."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table.npz"
        np.savez(path, X=X, y=y)
        done = subprocess.run(
            [sys.executable, "-c", _SEARCH, str(path), json.dumps(GRID)], check=True, capture_output=True, text=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def measure_sharing(n: int) -> Row:
    """Private memory of two workers that read the distances from a mapped file, beside two that load a copy each."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "distances.npy"
        np.save(path, np.random.default_rng(MEASURED_SEED).random((n, n)))
        private = {how: _private_bytes(path, how) for how in ("mapped", "copied")}
    return Row(
        work=f"private memory of a worker for the distances of {n} spectra",
        peer="a copy each",
        ratio=private["mapped"] / private["copied"],
        target=0.1 if n > 1000 else None,
        at_most=True,
        note=f"mapped {private['mapped'] / 1e6:.1f} MB, copied {private['copied'] / 1e6:.1f} MB, each of two at once",
    )


def _private_bytes(path: Path, how: str) -> float:
    command = [sys.executable, "-c", _WORKER, str(path), how]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout
            worker.stdout.readline()
        private = []
        for worker in workers:
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write("\n")
            worker.stdin.flush()
            private.append(json.loads(worker.stdout.readline())["private"])
        return float(np.mean(private))
    finally:
        for worker in workers:
            worker.communicate("")


def main() -> None:
    parser = argparse.ArgumentParser(description="Growth of a search with the number of spectra.")
    parser.add_argument("--quick", action="store_true")
    start = time.perf_counter()
    print_rows(rows(parser.parse_args().quick))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
