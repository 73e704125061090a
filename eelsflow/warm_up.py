"""Compile what numba compiles, once after an installation: ``python -m eelsflow.warm_up``.

Without it the first study compiles as it goes (about a minute). The compiled loops are kept on disk beside the source,
or in the user's cache directory where that cannot be written.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from eelsflow.executors import LoopExecutor


def warm_up() -> None:
    """Run every compiled loop once, on small problems of the types that a study uses; two processes share the work."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(prepare), pool.submit(train)]:
            done.result()


def prepare() -> None:
    """Simulate an acquisition and prepare it by the presets."""
    from eelsflow.edges import O_K
    from eelsflow.preprocess.blocks import prepare_blocks
    from eelsflow.preprocess.presets import PRESETS
    from eelsflow.simulator import simulate_directory

    with tempfile.TemporaryDirectory(prefix="eelsflow-") as directory:
        scratch = Path(directory)
        simulate_directory(scratch / "raw", n_acquisitions=1, seed=0, shape=(24, 24))
        (raw,) = (path for path in (scratch / "raw").glob("*.zarr") if "truth" not in path.name)
        for name in ("recommended", "paper", "paper-raw"):
            prepare_blocks(raw, scratch / f"{name}.zarr", edge=O_K, preset=PRESETS[name])


def train() -> None:
    """Search and fit machines and networks."""
    from eelsflow.models.fitting import fit_model
    from eelsflow.models.spec import resolve_model

    random = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 60)
    spectra = (random.normal(size=(120, 300)) + 0.2 * (labels == "b")[:, None]).astype(np.float32)
    rows = np.arange(120)
    folds = [(rows[rows % 4 != part], rows[rows % 4 == part]) for part in range(4)]
    # At a large C the solver takes Newton steps as well.
    grids = {
        "svm-rbf": {"C": [1.0, 1e5], "gamma": [0.01, 1.0]},
        "svm-linear": {"C": [1e5]},
        "fcnn-1": {},
        "cnn-1": {},
    }
    with tempfile.TemporaryDirectory(prefix="eelsflow-") as directory:
        for base, grid in grids.items():
            fit_model(
                resolve_model(base),
                spectra,
                labels,
                folds=folds,
                validation=folds[0],
                grid=grid,
                seed=0,
                executor=LoopExecutor(),
                scratch=Path(directory),
                epochs=1,
                batch_size=32,
                patience=1,
            )


if __name__ == "__main__":
    warm_up()
