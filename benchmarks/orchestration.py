"""What the flow and the cluster cost: a study of ten minutes beside the plain loop, and many tiny acquisitions.

    python -m benchmarks.orchestration [--quick] [--only study] [--repetitions 3]

The plain loop is `eelsflow study --runner loop` on one core. The flow runs on that one core too, with one worker, and
on two cores with two; its Prefect server is up before, as that of a user is who runs more than one study. A study is
long, so it is run once unless more repetitions are asked for; the three ways take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import yaml

from benchmarks.data import CLASSES, MEASURED_SEED
from benchmarks.measure import Row, print_rows, ratio
from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.simulator import simulate_directory

if TYPE_CHECKING:
    from distributed import Client

N_ACQUISITIONS, PIXELS = 6, 64
STUDY = {"split": {"by": "pixel", "folds": 10, "seeds": 20}, "grids": "paper", "training": {"epochs": 200}}
QUICK = {"split": {"by": "pixel", "folds": 3, "seeds": 1}, "grids": "small", "training": {"epochs": 5}}
QUICK_MODELS = ["svm-linear", "svm-rbf"]
SHORTEST = 600.0  # seconds of the plain loop
TINY = (10, 100, 1000)
TINY_PIXELS = 24
ANSWER_SECONDS = 1.0  # an answer of Prefect's API or of Dask's scheduler that takes longer keeps a person waiting
CONSTANT = 1.3  # how much more one more acquisition may cost among many than among few


def rows(quick: bool, only: str = "", *, repetitions: int = 1) -> Iterator[Row]:
    """Measure row by row."""
    with tempfile.TemporaryDirectory(prefix="eelsflow-benchmark-") as directory:
        scratch = Path(directory)
        with of_its_own(scratch / "home"):
            if only in ("", "study"):
                yield from compare_study(scratch, quick=quick, repetitions=repetitions)
            if only in ("", "tiny"):
                yield measure_tiny(scratch, (4, 8, 12) if quick else TINY)


@contextlib.contextmanager
def of_its_own(home: Path) -> Iterator[None]:
    """Keep what studies leave behind out of the user's home folder."""
    before = os.environ.get("EELSFLOW_HOME")
    os.environ["EELSFLOW_HOME"] = str(home)
    try:
        yield
    finally:
        os.environ.pop("EELSFLOW_HOME")
        if before is not None:
            os.environ["EELSFLOW_HOME"] = before


def compare_study(scratch: Path, *, quick: bool, repetitions: int) -> Iterator[Row]:
    manifest = simulate_directory(
        scratch / "acquisitions",
        n_acquisitions=N_ACQUISITIONS,
        seed=MEASURED_SEED,
        shape=(24 if quick else PIXELS,) * 2,
    )
    content: dict[str, Any] = {
        "name": "orchestration", "edge": "O_K", "classes": list(CLASSES), "data": {"manifest": str(manifest)},
        "preprocess": "paper", **(QUICK if quick else STUDY),
    }  # fmt: skip
    if quick:
        content["models"] = QUICK_MODELS
    study = scratch / "study.yaml"
    study.write_text(yaml.safe_dump(content))
    ways = {"loop": ([0], ["--runner", "loop"]), "one worker": ([0], []), "two workers": ([0, 1], [])}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    tables: dict[str, Any] = {}
    with prefect_server(scratch / "server"):
        for repetition in range(repetitions):
            for way, (cores, options) in ways.items():
                out = scratch / f"{way}-{repetition}".replace(" ", "-")
                seconds[way].append(run_study(study, out, cores, options))
                tables[way] = scores_of(out / "results")
        beside = "" if quick else f"; {two_loops(content, scratch)}"
    split, side = content["split"], 24 if quick else PIXELS
    note = (
        f"{N_ACQUISITIONS} acquisitions of {side} x {side} pixels, {len(QUICK_MODELS) if quick else 'all'} models, "
        f"{split['seeds']} seed(s), {split['folds']} folds, grids {content['grids']}; {repetitions} repetition(s)"
        + beside
    )
    for way, target, at_most in (("one worker", 1.05, True), ("two workers", 1.8, False)):
        gates = {"the same numbers as the loop": tables[way] == tables["loop"]}
        if not quick:
            gates[f"the loop takes {SHORTEST:g} s or more"] = min(seconds["loop"]) >= SHORTEST
        faster = ratio(seconds[way], seconds["loop"])
        yield Row(
            work=f"a whole study, server up, on {way}" + (": seconds in units of the loop's" if at_most else ""),
            peer="the same stages in a plain loop on one core",
            ratio=1 / faster if at_most else faster,
            target=target,
            at_most=at_most,
            ours=seconds[way],
            theirs=seconds["loop"],
            gates=gates,
            note=f"{note}{differences(tables[way], tables['loop'])}",
        )


def differences(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    """Name the models and scores that differ."""
    pairs = zip(found, expected, strict=True)
    named = [f"{one['model']}: {name}" for one, other in pairs for name in one if one[name] != other[name]]
    return f"; differing: {', '.join(named)}" if named else ""


def two_loops(content: dict[str, Any], scratch: Path) -> str:
    """Compare the plain loop alone and two of it side by side, which share the memory and nothing else."""
    study = scratch / "one-seed.yaml"
    study.write_text(yaml.safe_dump({**content, "split": {**content["split"], "seeds": 1}}))
    seconds = []
    for cores in ([0], [0, 1]):
        start = time.perf_counter()
        with ThreadPoolExecutor(len(cores)) as pool:
            runs = [
                pool.submit(run_study, study, scratch / f"limit-{len(cores)}-{core}", [core], ["--runner", "loop"])
                for core in cores
            ]
        for run in runs:
            run.result()
        seconds.append(time.perf_counter() - start)
    return (
        f"two plain loops of one seed side by side on two cores take {seconds[1]:.0f} s, one alone {seconds[0]:.0f} s: "
        f"together {2 * seconds[0] / seconds[1]:.2f} times the work of one"
    )


def run_study(study: Path, out: Path, cores: list[int], options: list[str]) -> float:
    """Run a study with an empty store on some cores; return the seconds from start to end of the program."""
    environment = {**os.environ, "EELSFLOW_HOME": str(out / "home")}
    command = [sys.executable, "-m", "eelsflow.cli", "study", str(study), "--out", str(out / "results"), *options]
    start = time.perf_counter()
    subprocess.run(
        command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    return time.perf_counter() - start


def scores_of(results: Path) -> list[dict[str, Any]]:
    names = ("model", "preprocess", "split", "best_params", "accuracy", "translation", "noise")
    table = json.loads((results / "results.json").read_text())["models"]
    return [{name: row[name] for name in names} for row in table]


@contextlib.contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Run a server beside, whose address the programs started meanwhile find in the environment."""
    from flows.server import running_server

    with running_server(home) as server:
        yield server.api_url


def measure_tiny(scratch: Path, numbers: tuple[int, int, int]) -> Row:
    """Prepare few and many small acquisitions as tasks of one flow, and ask the server all the while.

    What a study costs without any acquisition would hide how the cost of each grows, so differences are compared.
    """
    from eelsflow.store import Store
    from eelsflow.study.config import load_study
    from flows.cluster import cluster_client
    from flows.study import study as study_flow

    seconds, slowest = [], dict[str, float]()
    with prefect_server(scratch / "server") as api, cluster_client("local", home=scratch, n_workers=2) as client:
        for number in numbers:
            manifest = write_tiny(scratch / f"tiny-{number}", number)
            content = {
                "name": f"tiny-{number}", "edge": "O_K", "classes": list(CLASSES), "data": {"manifest": str(manifest)},
                "preprocess": "paper-raw", "models": ["svm-sgd"], "grids": "small",
                "split": {"by": "group", "folds": 2, "seeds": 1},
            }  # fmt: skip
            path = scratch / f"tiny-{number}.yaml"
            path.write_text(yaml.safe_dump(content))
            store = Store(scratch / f"store-{number}")
            with asking(api, client) as answers:
                start = time.perf_counter()
                study_flow(
                    load_study(path), out=str(scratch / f"out-{number}"), store=str(store.root),
                    scheduler=client.scheduler.address,
                )  # fmt: skip
                seconds.append(time.perf_counter() - start)
            slowest = {name: max(slowest.get(name, 0.0), *seconds_of) for name, seconds_of in answers.items()}
    added = np.diff(seconds) / np.diff(numbers)
    few, some, many = numbers
    listed = ", ".join(f"{number}: {took:.1f} s" for number, took in zip(numbers, seconds, strict=True))
    return Row(
        work=f"studies of {few}, {some} and {many} acquisitions of {TINY_PIXELS} x {TINY_PIXELS} pixels: cost of one "
        f"more from {some} to {many}, in units of one more from {few} to {some}",
        peer="",
        ratio=float(added[1] / added[0]),
        target=CONSTANT,
        at_most=True,
        ours=seconds,
        gates={f"{name} answers within {ANSWER_SECONDS:g} s": took <= ANSWER_SECONDS for name, took in slowest.items()},
        note=f"seconds of each study: {listed}; one more acquisition {added[0]:.2f} and {added[1]:.2f} s; slowest "
        f"answers: {', '.join(f'{name} {took:.2f} s' for name, took in slowest.items())}",
    )


def write_tiny(directory: Path, number: int) -> Path:
    """Write acquisitions that all differ: a few simulated ones, their pixels moved around."""
    few = min(number, 4)
    manifest = simulate_directory(directory, n_acquisitions=few, seed=MEASURED_SEED, shape=(TINY_PIXELS, TINY_PIXELS))
    lines = manifest.read_text().splitlines()
    head, models = lines[0], [line.split(",") for line in lines[1:]]
    columns = head.split(",")
    for copy in range(few, number):
        model = dict(zip(columns, models[copy % few], strict=True))
        source = directory / model["path"]
        with xr.open_zarr(source, consolidated=False) as store:
            image = store["counts"].load()
        image = image.copy(data=np.roll(image.values, divmod(copy // few, TINY_PIXELS), axis=(0, 1)))
        name = f"copy-{copy:04d}"
        write_spectrum_image(image, directory / f"{name}.zarr")
        row = {**model, "path": f"{name}.zarr", "group": name, "truth": ""}
        lines.append(",".join(row[column] for column in columns))
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


@contextlib.contextmanager
def asking(api: str, client: Client, every: float = 0.5) -> Iterator[dict[str, list[float]]]:
    """Ask the server for the latest flow runs, and the scheduler for its workers, again and again.

    Yields how long each answer took, seconds; infinity for one that did not come.
    """
    request = urllib.request.Request(
        f"{api}/flow_runs/filter", data=b'{"limit": 10}', headers={"Content-Type": "application/json"}
    )

    def ask_server() -> None:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    questions = {"Prefect's API": ask_server, "Dask's scheduler": client.scheduler_info}
    done, answers = threading.Event(), {name: [0.0] for name in questions}

    def ask(name: str) -> None:
        while not done.wait(every):
            start = time.perf_counter()
            try:
                questions[name]()
            except Exception:
                answers[name].append(float("inf"))
                raise
            answers[name].append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in questions]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="What orchestration costs.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="study or tiny")
    parser.add_argument("--repetitions", type=int, default=1)
    options = parser.parse_args()
    print_rows(rows(options.quick, options.only, repetitions=options.repetitions))


if __name__ == "__main__":
    main()
