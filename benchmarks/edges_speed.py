"""What two edges cost against one, from a file to the saved map with its pages, by the same model.

    OMP_NUM_THREADS=1 python -m benchmarks.edges_speed [--pairs 5]

A small study of O K and Fe L3 leaves a model of both and, beside it, one of O K alone. Either maps the same DM3 file of
64 x 64 x 1024, in turn; the first pair is not counted, for it loads libraries.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

PIXELS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="What two edges cost against one.")
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EELSFLOW_HOME"] = f"{scratch}/home"
        file = write_file(Path(scratch))
        for model in ("mlls", "svm-rbf"):
            measure(file, model, pairs, Path(scratch) / model)


def write_file(scratch: Path) -> Path:
    """Write a simulated core-shell field that shows both edges as DM3."""
    from eelsflow.simulator import plan_directory, simulate_acquisition
    from tests.io.dm_files import write_dm

    (planned,) = plan_directory(
        n_acquisitions=1,
        seed=61616,
        shape=(PIXELS, PIXELS),
        preset="wide",
        scenes=("core_shell",),
        window=(495.0, 745.0),
    )
    image = simulate_acquisition(planned.parameters, planned.seed).image
    energies = image["energy_loss"].values
    path = scratch / "field.dm3"
    write_dm(path, image.values, start=energies[0], step=float(energies[1] - energies[0]), pixel_nm=1.0)
    print(f"{path.name}: {' x '.join(map(str, image.shape))}")
    return path


def measure(file: Path, model: str, pairs: int, out: Path) -> None:
    """Print the times of pairs of maps, of O K alone and of both, and the ratio of their medians."""
    import yaml

    import eelsflow
    from eelsflow.models.bundle import ModelBundle

    out.mkdir()
    (out / "study.yaml").write_text(
        yaml.safe_dump({
            "name": "both", "edges": ["O_K", "Fe_L3"], "classes": ["FeO", "Fe3O4"], "models": [model], "grids": "small",
            "data": {"simulate": {"acquisitions": 12, "seed": 4141, "pixels": 12}},
            "split": {"by": "group", "seeds": 1, "folds": 2},
        })
    )  # fmt: skip
    eelsflow.run_study(out / "study.yaml", out / "results", say=lambda text: None)
    bundles = [
        ModelBundle.load(out / "results" / "model" / "alone" / "O_K"),
        ModelBundle.load(out / "results" / "model"),
    ]
    times = np.empty((pairs + 1, 2, 2))
    for pair in times:
        for row, bundle in zip(pair, bundles, strict=True):
            began = time.perf_counter(), time.process_time()
            eelsflow.classify(file, model=bundle).save(out / "map")
            row[:] = time.perf_counter() - began[0], time.process_time() - began[1]
    for what, number in (("processor time", 1), ("by the clock", 0)):
        one, both = (median(times[1:, which, number]) for which in (0, 1))
        print(f"{model}, {what}: O K {one:.2f} s, both {both:.2f} s, {both / one:.2f} times (target at most 2)")


if __name__ == "__main__":
    main()
