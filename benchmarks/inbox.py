"""How fast `eelsflow watch` takes files to their maps, what it costs when there is nothing to do, and what it keeps.

    python -m benchmarks.inbox --model RESULTS [--files 1000] [--workers 2]

One watcher, as a person starts it, on an inbox of its own. Measured, on the machine as it is:

1. warm files of 64 x 64 x 2048, one after the other: from the moment that the file is stable to its map
2. tiny files (8 x 8 pixels), all at once: how many a minute
3. memory of the watcher and its workers while these are done, 200 files after 200
4. processor time of looks at the full inbox, at which nothing is new

Writes docs/benchmarks/inbox.json and a picture beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import describe_machine
from deployments.check_inbox import write_hspy
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.states import State
from eelsflow.io.read import read_spectrum_image
from eelsflow.simulator import PRESETS, simulate_directory
from eelsflow.simulator.acquisition import AxisParameters

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
BATCH = 200
N_LARGE, N_POLLS = 7, 100
INTERVAL = 0.5  # s between two looks while files are timed; the default is 5


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description="Time `eelsflow watch`.")
    parser.add_argument("--model", type=Path, required=True, help="a study's results or a model directory")
    parser.add_argument("--files", type=int, default=1000, help="tiny ones")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["EELSFLOW_HOME"] = str(work / "home")
        tiny, large = make_images(work / "simulated")
        found: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
        with watching(work / "inbox", options.model, options.workers) as process:
            catalogue = Catalogue()
            found["large_seconds"] = time_large(work, large, catalogue)
            print(f"64 x 64 x 2048, warm: {found['large_seconds']} s, median {median(found['large_seconds'][1:]):.2f}")
            found |= time_tiny(work, tiny, catalogue, process, options.files)
        with watching(work / "inbox", options.model, options.workers) as process:
            found["idle"] = time_idle(process, n_files=len(catalogue.select()))
    (OUT / "inbox.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, OUT / "inbox.png")


def make_images(folder: Path) -> tuple[list[Any], list[Any]]:
    """Simulate what files are made of: tiny spectrum images, and one of 64 x 64 x 2048."""
    wide = PRESETS["paper"].model_copy(update={"axis": AxisParameters(start=430.0, n_channels=2048)})
    simulate_directory(folder / "tiny", n_acquisitions=4, seed=3, shape=(8, 8), preset="paper")
    simulate_directory(folder / "large", n_acquisitions=1, seed=4, shape=(64, 64), preset=wide)
    return tuple(
        [
            read_spectrum_image(path).load()
            for path in sorted((folder / name).glob("*.zarr"))
            if ".truth" not in path.name
        ]
        for name in ("tiny", "large")
    )


def put(image: Any, inbox: Path, name: str, rng: np.random.Generator) -> None:
    """Write a file of a content of its own beside the inbox, and rename it into it."""
    counts = image.values + rng.normal(scale=1.0, size=image.shape)
    unfinished = inbox.parent / name
    write_hspy(unfinished, counts.astype(np.float32), image)
    unfinished.rename(inbox / name)


@contextlib.contextmanager
def watching(inbox: Path, model: Path, workers: int) -> Iterator[psutil.Process]:
    """Run `eelsflow watch` for the time of a block."""
    inbox.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "eelsflow.cli", "watch", str(inbox), "--model", str(model.resolve())]
    command += ["--workers", str(workers), "--interval", str(INTERVAL)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(5)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def seconds_to_map(catalogue: Catalogue, path: str) -> float:
    """Return how long a file took from being stable to its map, s."""
    one = catalogue.find(path)
    assert one is not None
    when = {state: at for at, state, _ in catalogue.history(one.id)}
    return when[State.CLASSIFIED] - when[State.STABLE]


def wait_for(catalogue: Catalogue, n_ended: int) -> None:
    """Wait until so many files are mapped."""
    while len(ended := catalogue.select()) < n_ended or any(one.state is not State.CLASSIFIED for one in ended):
        if any(one.state is State.QUARANTINED for one in ended):
            raise SystemExit(f"quarantined: {[one.reason for one in ended if one.state is State.QUARANTINED]}")
        time.sleep(0.2)


def time_large(work: Path, images: list[Any], catalogue: Catalogue) -> list[float]:
    """Put large files into the inbox one after the other; the first two wake the workers up."""
    rng, seconds = np.random.default_rng(1), []
    for number in range(N_LARGE + 1):
        put(images[0], work / "inbox", f"large-{number}.hspy", rng)
        wait_for(catalogue, number + 1)
        seconds.append(round(seconds_to_map(catalogue, str(work / "inbox" / f"large-{number}.hspy")), 2))
        time.sleep(1)
    return seconds


def time_tiny(
    work: Path, images: list[Any], catalogue: Catalogue, process: psutil.Process, n_files: int
) -> dict[str, Any]:
    """Put tiny files into the inbox at once; return how many a minute were done, and what memory was used."""
    rng, before = np.random.default_rng(2), len(catalogue.select())
    waiting = work / "waiting" / "x"
    waiting.mkdir(parents=True)
    for number in range(n_files):
        put(images[number % len(images)], waiting, f"tiny-{number:04d}.hspy", rng)
    shutil.move(waiting, work / "inbox" / "tiny")
    memory, began = [], None
    while True:
        states = [one.state for one in catalogue.select()[before:]]
        done = states.count(State.CLASSIFIED)
        if done and began is None:
            began = time.monotonic()
            first = done
        if done >= BATCH * len(memory) + (0 if memory else 1) or done == n_files:
            family = [process, *process.children(recursive=True)]
            memory.append({"files": done, "MB": round(sum(memory_of(one) for one in family) / 1e6)})
            print(f"{done} files: {memory[-1]['MB']} MB", flush=True)
        if done == n_files:
            break
        time.sleep(2)
    assert began is not None
    rate = 60 * (n_files - first) / (time.monotonic() - began)
    print(f"{rate:.0f} tiny files a minute")
    return {"tiny_a_minute": round(rate, 1), "tiny_files": n_files, "memory": memory}


def memory_of(process: psutil.Process) -> int:
    """Return the memory of a process, shared pages in parts; 0 if it is gone."""
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def time_idle(process: psutil.Process, *, n_files: int) -> dict[str, Any]:
    """Measure the processor time of looks at which nothing is new."""
    time.sleep(20)  # what is done at the start

    def used() -> float:
        times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
        return sum(one.user + one.system for one in times)

    before = used()
    time.sleep(N_POLLS * INTERVAL)
    a_look = (used() - before) / N_POLLS
    share = {f"every {seconds:g} s": round(100 * a_look / seconds, 2) for seconds in (INTERVAL, 1.0, 5.0)}
    print(f"{N_POLLS} looks at {n_files} files: {1e3 * a_look:.1f} ms each; of a core: {share} %")
    return {"files": n_files, "polls": N_POLLS, "ms_a_look": round(1e3 * a_look, 2), "percent_of_a_core": share}


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw time to the map, and memory against files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    seconds = found["large_seconds"]
    left.plot(range(1, len(seconds) + 1), seconds, "o-", color="0.2")
    left.axhline(3, color="tab:red", linestyle="--", label="target")
    left.set(xlabel="file since the start", ylabel="from stable to map (s)", ylim=(0, None))
    left.set_title("64 x 64 x 2048, one after the other")
    left.legend()
    right.plot([one["files"] for one in found["memory"]], [one["MB"] for one in found["memory"]], "o-", color="0.2")
    right.set(xlabel="files done", ylabel="memory of all processes (MB)", ylim=(0, None))
    right.set_title(f"8 x 8 pixels, {found['tiny_a_minute']:.0f} a minute")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
