"""Sweeps of small networks: six dense and six convolutional ones on two workers, beside plain Keras one by one.

    python -m benchmarks.networks [--quick] [--full-length]

Both sides start as processes of their own and are timed from there: imports, cluster, tracing and all. They train the
same architectures from the same initial weights on the same spectra, in batches of the same size, with the same
optimizer, class weights and validation data. Keras has TensorFlow's default threads.

An epoch of Keras takes seconds, so it runs fewer than ours, and the missing ones are added: each model's seconds an
epoch, the first one left out, times the epochs that are missing. `--full-length` runs them instead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import MEASURED_SEED, training_table
from benchmarks.measure import REPETITIONS, Row, print_rows, ratio, take_turns

BASES = ("fcnn-1", "cnn-1")
N_TRAIN, N_VALIDATION, EPOCHS = 7599, 1000, 100
TARGETS = {32: 3.5, 512: 2.5}  # batch size -> how many times as fast
PEER_EPOCHS = {32: 10, 512: 30}
EQUAL_ACCURACY = 0.005
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}  # two-sided, by the number of differences


@dataclass(frozen=True)
class Sweep:
    """What one side trains."""

    directory: str  # spectra.npy, labels.npy, rows.npy, and weights-<base>-<seed>.npz to start from
    seeds: list[int]
    epochs: int
    batch_size: int
    dropout: float | None = None  # None: that of each base

    def params(self) -> dict[str, float]:
        return {} if self.dropout is None else {"dropout": self.dropout}


def train_ours(sweep: Sweep) -> list[dict[str, Any]]:
    """As a study does it: a job for each training, two Dask workers of one thread."""
    from distributed import Client, LocalCluster

    from eelsflow.executors import DaskExecutor
    from eelsflow.models.training import TrainingJob, run_training

    where = Path(sweep.directory)
    limits = {"epochs": sweep.epochs, "batch_size": sweep.batch_size, "patience": sweep.epochs}
    jobs = [
        TrainingJob(
            spectra=where / "spectra.npy",
            labels=where / "labels.npy",
            rows=where / "rows.npy",
            base=base,
            n_classes=2,
            params={**limits, **sweep.params()},
            seed=seed,
        )
        for seed in sweep.seeds
        for base in BASES
    ]
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0")
    with cluster, Client(cluster) as client:
        trainings = DaskExecutor(client).map(run_training, jobs, label="train")
    return [
        {
            "base": job.base,
            "seed": job.seed,
            "loss": training.history["train_loss"],
            "accuracy": training.history["validation_accuracy"],
            "epoch_seconds": [training.seconds / sweep.epochs] * sweep.epochs,
        }
        for job, training in zip(jobs, trainings, strict=True)
    ]


def train_theirs(sweep: Sweep) -> list[dict[str, Any]]:
    """As one writes it with Keras: compile and fit, one model after the other."""
    import keras

    from eelsflow.models.networks import describe_network

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            self.times = [time.perf_counter()]

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.times.append(time.perf_counter())

    where = Path(sweep.directory)
    X, y, rows = (np.load(where / f"{name}.npy") for name in ("spectra", "labels", "rows"))
    train, validation = rows[1 : 1 + rows[0]], rows[1 + rows[0] :]
    targets = np.eye(2, dtype=np.float32)[y]
    weights = len(train) / (2 * np.bincount(y[train]))
    results = []
    for seed in sweep.seeds:
        for base in BASES:
            keras.utils.set_random_seed(seed)
            model = keras.models.model_from_json(describe_network(base, X.shape[1], 2, sweep.params()))
            with np.load(where / f"weights-{base}-{seed}.npz") as start:
                model.set_weights([start[name] for name in start.files])
            model.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy", metrics=["accuracy"])
            clock = Clock()
            history = model.fit(
                X[train],
                targets[train],
                batch_size=sweep.batch_size,
                epochs=sweep.epochs,
                class_weight=dict(enumerate(weights)),
                validation_data=(X[validation], targets[validation]),
                callbacks=[clock],
                verbose=0,
            ).history
            results.append(
                {
                    "base": base,
                    "seed": seed,
                    "loss": history["loss"],
                    "accuracy": history["val_accuracy"],
                    "epoch_seconds": np.diff(clock.times).tolist(),
                }
            )
    return results


def run_side(side: str, sweep: Sweep) -> list[dict[str, Any]]:
    """Train in a fresh process and return what every training gave."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "benchmarks.networks", "--side", side, "--sweep", json.dumps(asdict(sweep))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}:\n{done.stderr}")
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def write_inputs(directory: Path, n_train: int, n_validation: int, seeds: list[int]) -> None:
    """Write spectra, labels, rows, and the initial weights of every network of the sweep."""
    from eelsflow.models.layers import Trainer
    from eelsflow.models.networks import describe_network

    X, y = training_table(n_train + n_validation, MEASURED_SEED)
    np.save(directory / "spectra.npy", X)
    np.save(directory / "labels.npy", y.astype(np.intp))
    np.save(directory / "rows.npy", np.concatenate(([n_train], np.arange(len(y)))))
    for base in BASES:
        for seed in seeds:
            trainer = Trainer(describe_network(base, X.shape[1], 2), seed=seed, learning_rate=1e-3)
            np.savez(directory / f"weights-{base}-{seed}.npz", *trainer.weights())


def same_losses(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, bool]:
    """Gate: epochs of one batch each, without dropout, have the losses of Keras, to rounding."""
    same = all(np.allclose(a["loss"], b["loss"], rtol=2e-3) for a, b in zip(ours, theirs, strict=True))
    return {"losses without dropout equal Keras'": same}


def compare_accuracy(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """Compare validation accuracy of the best epoch, which a study keeps, training by training: gates and a sentence.

    Epochs that the peer did not run do not count. Of a single epoch the accuracy of the convolutional network jumps by
    half on either side: the running averages of five batch normalisations lag behind.
    """
    gates, sentences = {}, []
    epochs = len(theirs[0]["accuracy"])
    for base in BASES:
        own, other = (
            np.array([max(one["accuracy"][:epochs]) for one in side if one["base"] == base]) for side in (ours, theirs)
        )
        differences = own - other
        interval = T_95.get(len(own), 2.5) * differences.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else 0.0
        equal = bool(abs(differences.mean()) <= max(EQUAL_ACCURACY, interval))
        gates[f"equal accuracy of {base}"] = equal
        sentences.append(
            f"{base} {own.mean():.4f} (sd {own.std():.4f}) v {other.mean():.4f} (sd {other.std():.4f}), paired "
            f"difference {differences.mean():+.4f} +- {interval:.4f}"
        )
    return gates, f"validation accuracy of the best of {epochs} epochs, {len(own)} seeds each: {'; '.join(sentences)}"


def measure(
    directory: Path, batch_size: int, *, seeds: list[int], epochs: int, peer_epochs: int, repetitions: int
) -> Row:
    """Time the sweep on both sides in turn."""
    results: dict[str, list[list[dict[str, Any]]]] = {"ours": [], "theirs": []}
    processor_seconds: dict[str, list[float]] = {"ours": [], "theirs": []}

    def run(side: str, n_epochs: int) -> None:
        before = _processor_seconds()
        results[side].append(run_side(side, Sweep(str(directory), seeds, n_epochs, batch_size)))
        processor_seconds[side].append(_processor_seconds() - before)

    ours, measured, _, _ = take_turns(
        lambda: run("ours", epochs), lambda: run("theirs", peer_epochs), repetitions=repetitions
    )
    missing = epochs - peer_epochs
    theirs = [
        seconds + missing * sum(_an_epoch(one) for one in sweep)
        for seconds, sweep in zip(measured, results["theirs"], strict=True)
    ]
    gates, accuracy = compare_accuracy(results["ours"][-1], results["theirs"][-1])
    pace = ", ".join(f"{side} {base} {_pace(results[side], base):.3f}" for side in results for base in BASES)
    notes = [
        f"seconds an epoch: {pace}",
        f"processor seconds: ours {np.median(processor_seconds['ours']):.0f} for {epochs} epochs, theirs "
        f"{np.median(processor_seconds['theirs']):.0f} for {peer_epochs}",
        *([f"{missing} of the peer's {epochs} epochs are added at its pace"] if missing else []),
        accuracy,
    ]
    return Row(
        work=f"{len(seeds)} dense and {len(seeds)} convolutional trainings, batch {batch_size}, {epochs} epochs",
        peer="Keras fit, one by one",
        ratio=ratio(ours, theirs),
        target=TARGETS[batch_size],
        ours=ours,
        theirs=theirs,
        gates=gates,
        note="; ".join(notes),
    )


def _an_epoch(training: dict[str, Any]) -> float:
    """Seconds of an epoch but for the first, which compiles."""
    return float(np.mean(training["epoch_seconds"][1:]))


def _pace(sweeps: list[list[dict[str, Any]]], base: str) -> float:
    return float(np.median([_an_epoch(one) for sweep in sweeps for one in sweep if one["base"] == base]))


def _processor_seconds() -> float:
    """Of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows(quick: bool, *, full_length: bool = False) -> Iterator[Row]:
    """Yield a row for each batch size; quick: one row of a sweep so small that start-up is all of it."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if quick:
            yield _quick_row(directory)
            return
        write_inputs(directory, N_TRAIN, N_VALIDATION, list(range(6)))
        once = Sweep(str(directory), seeds=[0], epochs=3, batch_size=N_TRAIN, dropout=0.0)
        same = same_losses(run_side("ours", once), run_side("theirs", once))  # compiles ours, too
        for batch_size in TARGETS:
            row = measure(
                directory,
                batch_size,
                seeds=list(range(6)),
                epochs=EPOCHS,
                peer_epochs=EPOCHS if full_length else PEER_EPOCHS[batch_size],
                repetitions=1 if full_length else REPETITIONS,
            )
            yield replace(row, gates={**same, **row.gates})


def _quick_row(directory: Path) -> Row:
    n_spectra = 600
    write_inputs(directory, n_spectra, 200, [0])
    sweep = Sweep(str(directory), seeds=[0], epochs=3, batch_size=n_spectra, dropout=0.0)
    ours, theirs, own, other = take_turns(
        lambda: run_side("ours", sweep), lambda: run_side("theirs", sweep), repetitions=1
    )
    return Row(
        work=f"one dense and one convolutional training of {n_spectra} spectra, 3 epochs",
        peer="Keras fit, one by one",
        ratio=ratio(ours, theirs),
        target=None,
        ours=ours,
        theirs=theirs,
        gates=same_losses(own, other),
        note="start-up is most of it: no target; only that the answers are equal",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Sweeps of small networks beside plain Keras.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full-length", action="store_true", help="run every epoch of the peer, once")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--sweep", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        train = train_ours if options.side == "ours" else train_theirs
        print(json.dumps(train(Sweep(**options.sweep))))
        return
    print_rows(rows(options.quick, full_length=options.full_length))


if __name__ == "__main__":
    main()
