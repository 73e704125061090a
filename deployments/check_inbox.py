"""Send files of every kind through `eelsflow watch`, kill what can be killed, and count what came out.

    python deployments/check_inbox.py --model RESULTS [--files 190] [--kills 20]

Good files, one that is written slowly, one with the content of another, and eight bad ones are put into an inbox while
the watcher runs: first undisturbed, then with `kill -9` of the watcher and of its workers at random moments. All must
end with the same catalogue and byte-identical maps: none lost, none twice. Further runs:

--services    The catalogue on PostgreSQL, store and results in a bucket of an S3 endpoint, the work on a Dask cluster;
              killed are the watcher, the scheduler and the Dask workers.
--scheduled   `eelsflow up --inbox`, begun again whenever it ends, as systemd does; killed are Prefect's server and
              worker, the scheduled run, and `eelsflow up`. A run a minute, so it takes a while.
--full-disk   Root alone: results lie on a small file system that is full for a while.

Where this is run by root, the watcher runs as the user "nobody", since nothing is unreadable for root. Exit status 0:
all of it holds; 1: what does not is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deployments.processes import describe, processes_of
from deployments.services import BUCKET, DaskCluster, object_store, postgresql
from eelsflow.bucket import Bucket

NOBODY = 65534
AS_NOBODY = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
SHAPE = (8, 8)
REGISTER = """
import sys
from eelsflow.maps.registry import find_model, register_model
register_model(find_model(sys.argv[1]), name="check", registered="2026-01-01T00:00:00+00:00", champion=True)
"""
BAD = {  # name: part of the reason that is expected
    "truncated.hspy": "",
    "random.dm3": "not a readable DigitalMicrograph file",
    "wrong-edge.hspy": "edge",
    "half-nan.hspy": "NaN",
    "zero.dm4": "holds no bytes",
    "locked.hspy": "Permission denied",
    "link.hspy": "leads out of the inbox",
    "bomb.zspy": "times as many",
}


def main() -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(description="Send files through `eelsflow watch`, and kill it meanwhile.")
    parser.add_argument("--model", type=Path, required=True, help="a study's results or a model directory")
    parser.add_argument("--files", type=int, default=190, help="good files")
    parser.add_argument("--kills", type=int, default=20, help="in each run that is disturbed so")
    parser.add_argument("--services", action="store_true", help="a run on PostgreSQL, S3 and Dask")
    parser.add_argument("--scheduled", action="store_true", help="a run by the schedule of a Prefect server")
    parser.add_argument("--full-disk", action="store_true", help="a run on a file system that gets full")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="where; a temporary folder by default")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        work.chmod(0o755)
        model = shutil.copytree(options.model, work / "model", dirs_exist_ok=True)
        files = make_files(work / "files", options.files)
        if os.geteuid() == 0 and not can_be_nobody():
            print('"nobody" cannot run this Python: everything runs as root, for whom no file is unreadable')
            del BAD["locked.hspy"], files["locked.hspy"]
        runs = [
            Run(work / "undisturbed", model, files),
            Run(work / "killed", model, files, options.kills, options.seed),
        ]
        if options.services:
            runs.append(RunOnServices(work / "services", model, files, options.kills, options.seed))
        if options.scheduled:
            runs.append(RunBySchedule(work / "scheduled", model, files, options.kills, options.seed))
        if options.full_disk:
            runs.append(RunOnFullDisk(work / "full-disk", model, files))
        outcomes = {}
        for run in runs:
            with run.surroundings():
                outcomes[run.name] = run.outcome()
            print(f"{run.name}: {run.say(outcomes[run.name])}", flush=True)
        return judge(outcomes, options.files)


# ---------------------------------------------------------------------- files


def make_files(folder: Path, n_good: int) -> dict[str, Path]:
    """Write the files that are put into the inbox, by their names there; slow ones and copies among them."""
    from eelsflow.io.read import read_spectrum_image
    from eelsflow.simulator import simulate_directory

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    n_simulated = min(n_good, 6)
    simulate_directory(folder / "simulated", n_acquisitions=n_simulated, seed=3, shape=SHAPE, preset="paper")
    images = [
        read_spectrum_image(path) for path in sorted((folder / "simulated").glob("*.zarr")) if ".truth" not in path.name
    ]
    rng = np.random.default_rng(0)
    for number in range(n_good):
        image = images[number % len(images)]
        counts = np.asarray(image.values, dtype=np.float32)
        counts = counts + rng.normal(scale=1.0, size=counts.shape).astype(np.float32)  # no two have one content
        write_hspy(folder / f"good-{number:03d}.hspy", counts, image)
    first = images[0]
    values = np.asarray(first.values, dtype=np.float32)
    write_hspy(folder / "slow.hspy", values * np.float32(1.5), first)
    shutil.copy(folder / "good-000.hspy", folder / "copy-of-000.hspy")
    content = (folder / "good-000.hspy").read_bytes()
    (folder / "truncated.hspy").write_bytes(content[: len(content) // 2])
    (folder / "random.dm3").write_bytes(rng.bytes(5000))
    write_hspy(folder / "wrong-edge.hspy", values, first, start=1500.0)
    values = values.copy()
    values[: SHAPE[0] // 2] = np.nan
    write_hspy(folder / "half-nan.hspy", values, first)
    (folder / "zero.dm4").touch()
    shutil.copy(folder / "good-000.hspy", folder / "locked.hspy")
    (folder / "locked.hspy").chmod(0)
    with (
        zipfile.ZipFile(folder / "bomb.zspy", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("Experiments/0/data/0.0.0", "w", force_zip64=True) as member,
    ):
        for _ in range(1100):
            member.write(bytes(1 << 20))
    names = [f"good-{number:03d}.hspy" for number in range(n_good)]
    return {name: folder / name for name in [*names, "slow.hspy", "copy-of-000.hspy", *BAD]}


def write_hspy(path: Path, counts: Any, like: Any, *, start: float | None = None) -> None:
    """Write a spectrum image as HyperSpy does."""
    from rsciio.hspy import file_writer

    energies = like["energy_loss"].values
    calibrations = [("y", "nm", 1.0, 0.0), ("x", "nm", 1.0, 0.0)]
    offset = float(energies[0] if start is None else start)
    calibrations.append(("Energy loss", "eV", float(energies[1] - energies[0]), offset))
    axes = [
        {"_type": "UniformDataAxis", "name": name, "units": unit, "scale": scale, "offset": first, "size": size}
        | {"navigate": unit == "nm", "is_binned": False, "index_in_array": index}
        for index, ((name, unit, scale, first), size) in enumerate(zip(calibrations, counts.shape, strict=True))
    ]
    signal_dict = {
        "data": counts,
        "axes": axes,
        "metadata": {"General": {"title": path.stem}, "Signal": {"signal_type": "EELS"}},
        "original_metadata": {},
        "attributes": {"_lazy": False, "ragged": False},
        "learning_results": {},
        "package_info": {"package": "eelsflow", "package_version": "0"},
        "models": {},
        "tmp_parameters": {},
    }
    file_writer(str(path), signal_dict)


# ---------------------------------------------------------------------- one run


class Run:
    """A watcher, an inbox of its own, and who disturbs them."""

    pause_seconds = 8.0  # at most, between two kills
    kinds: tuple[str, ...] = ("watcher", "worker")  # each is killed once before chance decides
    parts: Mapping[str, tuple[str, ...]] = {"worker": ("spawn_main",)}  # of command lines
    ends_by_itself = False  # and is begun again then

    def __init__(self, folder: Path, model: Path, files: dict[str, Path], kills: int = 0, seed: int = 0) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.name = folder.name
        self.home, self.inbox, self.model = folder / "home", folder / "inbox", model
        for path in (self.home, self.inbox):
            path.mkdir(parents=True)
        self.files, self.kills, self.random = files, kills, random.Random(seed)
        self.killed: list[str] = []
        self.log = folder / "watch.log"
        caches = folder.parent / "caches"  # compiled code and fonts: made once, by whoever is first
        caches.mkdir(exist_ok=True)
        for path in (self.home, caches):
            if os.geteuid() == 0:
                os.chown(path, NOBODY, NOBODY)
        self.environment = {
            **os.environ, "EELSFLOW_HOME": str(self.home), "HOME": str(self.home), "MPLCONFIGDIR": str(caches),
            "NUMBA_CACHE_DIR": str(caches),
        }  # fmt: skip
        self.as_user = AS_NOBODY if "locked.hspy" in BAD and os.geteuid() == 0 else []
        self.arguments = ["watch", str(self.inbox), "--model", str(model), "--interval", "1"]

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Provide what the watcher needs around it."""
        yield

    def disturb(self, n_ended: int) -> bool:
        """Do what is not killing, told how many files have come to an end; return whether there is more to come."""
        return False

    def _command(self, *arguments: str) -> list[str]:
        return [*self.as_user, sys.executable, "-m", "eelsflow.cli", *arguments]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the watcher."""
        with self.log.open("ab") as log:
            return subprocess.Popen(self._command(*self.arguments), env=self.environment, stdout=log, stderr=log)

    def status(self) -> list[dict[str, Any]]:
        """Ask what became of everything."""
        done = subprocess.run(
            self._command("status", "--json"), env=self.environment, capture_output=True, text=True, check=False
        )
        return json.loads(done.stdout) if done.returncode == 0 else []

    def outcome(self) -> dict[str, Any]:
        """Put the files into the inbox and wait until each has come to an end."""
        began = time.monotonic()
        feeding = threading.Thread(target=self._feed)
        feeding.start()
        watcher = self.start()
        kills_left, expected = self.kills, len(self.files)
        try:
            while True:
                time.sleep(self.random.uniform(0.2, self.pause_seconds) if kills_left else 1.0)
                if watcher.poll() is not None:
                    if not self.ends_by_itself:
                        raise SystemExit(f"the watcher ended by itself:\n{self.log.read_text()[-3000:]}")
                    watcher = self.start()
                if kills_left:
                    left = [kind for kind in self.kinds if kind not in self.killed]
                    name = self.random.choice(left or self.kinds)
                    if self._kill(name, watcher):
                        self.killed.append(name)
                        kills_left -= 1
                    else:
                        name = ""
                    if name == "watcher":
                        watcher.wait()
                        watcher = self.start()
                    continue
                n_ended = sum(row["state"] in ("classified", "quarantined") for row in self.status())
                more = self.disturb(n_ended)
                if n_ended >= expected and not feeding.is_alive() and not more:
                    break
                if time.monotonic() - began > 300 + 6 * expected + 2 * self.pause_seconds * self.kills:
                    raise SystemExit(f"{n_ended} of {expected} ended:\n{self.log.read_text()[-3000:]}")
        finally:
            watcher.send_signal(signal.SIGINT)
            watcher.wait(90)
        return {
            "rows": {Path(row["path"]).name: row for row in self.status()},
            "maps": self.maps(),
            "notes": self.notes(),
            "seconds": time.monotonic() - began,
            "left": self._left_behind(),
            "spared": [kind for kind in self.kinds if self.kills >= len(self.kinds) and kind not in self.killed],
        }

    def maps(self) -> dict[str, str]:
        """Return the digest of each map."""
        folder = self.home / "maps"
        return {path.name: digest(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}

    def notes(self) -> list[str]:
        """Return the names of the notes in the quarantine."""
        return sorted(path.name for path in (self.home / "quarantine").glob("*.txt"))

    def _feed(self) -> None:
        rng = random.Random(1)
        for name, source in self.files.items():
            target = self.inbox / name
            if name == "link.hspy":
                target.symlink_to("../../files/good-001.hspy")
            elif name == "slow.hspy":
                slowly = threading.Thread(target=write_slowly, args=(source, target))
                slowly.start()
            else:
                shutil.copy(source, target)
            if name == "locked.hspy":
                target.chmod(0)
            time.sleep(rng.uniform(0, 0.1))
        slowly.join()

    def _kill(self, kind: str, watcher: subprocess.Popen[bytes]) -> bool:
        """Kill something of a kind; return whether there was one."""
        if kind == "watcher":
            watcher.kill()
            return True
        found = processes_like(watcher, *self.parts[kind])
        if found:
            self.random.choice(found).kill()
        return bool(found)

    def _left_behind(self) -> list[str]:
        deadline = time.monotonic() + 15
        while (left := processes_of(self.home)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return describe(left)

    def say(self, outcome: dict[str, Any]) -> str:
        """Say in a line what came out."""
        rows = outcome["rows"].values()
        states = [row["state"] for row in rows]
        kills = Counter(self.killed)
        return (
            f"{len(outcome['maps'])} maps, {states.count('quarantined')} quarantined, "
            f"{sum(row['alias_of'] is not None for row in rows)} alias, {outcome['seconds']:.0f} s"
            + (f", {len(self.killed)} kills (" if kills else "")
            + ", ".join(f"{what} {number}" for what, number in sorted(kills.items()))
            + ")" * bool(kills)
        )


class RunOnServices(Run):
    """The catalogue on PostgreSQL, store and results in a bucket, and the work on a Dask cluster."""

    kinds = ("watcher", "scheduler", "dask worker")
    parts: Mapping[str, tuple[str, ...]] = {"scheduler": (), "dask worker": ()}  # until the cluster has begun

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Start the services."""
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(postgresql(self.home.parent / "postgresql", "catalogue"))
            bucket = stack.enter_context(object_store())
            self.environment |= bucket | {
                "EELSFLOW_CATALOGUE": f"postgresql+psycopg://{server}/catalogue",
                "EELSFLOW_STORE": f"s3://{BUCKET}/store",
            }
            os.environ.update(bucket)
            self.cluster = stack.enter_context(DaskCluster(2, self.environment, self.as_user))
            results = f"s3://{BUCKET}/results"
            self._results = Bucket(results)
            self.arguments += ["--out", results, "--cluster", self.cluster.address]
            yield

    def _kill(self, kind: str, watcher: subprocess.Popen[bytes]) -> bool:
        names = [name for name in self.cluster.processes if name.startswith(kind)]
        if not names:
            return super()._kill(kind, watcher)
        self.cluster.kill(self.random.choice(names))
        return True

    def maps(self) -> dict[str, str]:
        """Return the digest of each map that is in the bucket."""
        with tempfile.TemporaryDirectory() as folder:
            self._results.get_folder("maps", Path(folder))
            return {path.name: digest(path) for path in sorted(Path(folder).iterdir())}

    def notes(self) -> list[str]:
        """Return the names of the notes in the bucket."""
        with tempfile.TemporaryDirectory() as folder:
            self._results.get_folder("quarantine", Path(folder))
            return sorted(path.name for path in Path(folder).iterdir())

    def _left_behind(self) -> list[str]:
        self.cluster.__exit__()
        return super()._left_behind()


class RunBySchedule(Run):
    """The flow of a Prefect server's schedule, everything started by `eelsflow up`."""

    pause_seconds = 40.0
    kinds = ("watcher", "Prefect server", "Prefect worker", "scheduled run", "scheduler", "dask worker")
    parts: Mapping[str, tuple[str, ...]] = {
        "Prefect server": ("server_process.py",), "Prefect worker": ("worker start",),
        "scheduled run": ("prefect.engine", "prefect.flow_engine", "flow-run execute"),
        "scheduler": ("dask_scheduler",), "dask worker": ("spawn_main",),
    }  # fmt: skip
    ends_by_itself = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.arguments = ["up", "--inbox", str(self.inbox)]

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Make the model the one that is taken where none is named."""
        program = [*self.as_user, sys.executable, "-c", REGISTER, str(self.model)]
        subprocess.run(program, env=self.environment, check=True)
        yield


class RunOnFullDisk(Run):
    """Results on a file system that is full for a while."""

    _full_until: float | None = None
    _is_over = False

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Put the home folder on a small file system."""
        size = 200 + 4 * len(self.files)  # MiB; a map has less than three
        options = ["-t", "tmpfs", "-o", f"size={size}m,mode=777", "tmpfs", str(self.home)]
        subprocess.run(["mount", *options], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.home)], check=True)

    def disturb(self, n_ended: int) -> bool:
        """Fill the file system when some files have come to an end, and free it again."""
        ballast = self.home / "ballast"
        if self._full_until is None and n_ended > len(self.files) // 8:
            self._full_until = time.monotonic() + 20
            with contextlib.suppress(OSError), ballast.open("wb") as stream:
                while True:
                    stream.write(bytes(1 << 16))
                    stream.flush()
        if self._full_until and time.monotonic() > self._full_until and not self._is_over:
            ballast.unlink()
            self._is_over = True
        return not self._is_over


def processes_like(parent: subprocess.Popen[bytes], *parts: str) -> list[psutil.Process]:
    """Return the descendants of a process whose command line holds one of some parts."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(parent.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(part in " ".join(one.cmdline()) for part in parts):
                    found.append(one)
    return found


def can_be_nobody() -> bool:
    """Tell whether the user "nobody" can run this Python and eelsflow, which may lie in a folder of root's."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import eelsflow.cli'], check=True)"
    command = [*AS_NOBODY, sys.executable, "-c", code]
    return shutil.which("setpriv") is not None and subprocess.run(command, capture_output=True).returncode == 0


def write_slowly(source: Path, target: Path) -> None:
    """Write a file piece by piece, opened anew for each."""
    content = source.read_bytes()
    for first in range(0, len(content), len(content) // 12):
        with target.open("ab") as stream:
            stream.write(content[first : first + len(content) // 12])
        time.sleep(0.7)


def digest(folder: Path) -> str:
    """Return a digest of all bytes below a folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sha.update(f"{path.relative_to(folder)}\0".encode())
            sha.update(path.read_bytes())
    return sha.hexdigest()


def judge(outcomes: dict[str, dict[str, Any]], n_good: int) -> int:
    """Compare what came out with what had to; print what does not hold."""
    wrong = []
    reference = next(iter(outcomes.values()))
    for name, outcome in outcomes.items():
        rows = outcome["rows"]
        quarantined = {one: row["reason"] for one, row in rows.items() if row["state"] == "quarantined"}
        aliases = [row for row in rows.values() if row["alias_of"]]
        if len(outcome["maps"]) != n_good + 1:
            wrong.append(f"{name}: {len(outcome['maps'])} maps, expected {n_good + 1}")
        if set(quarantined) != set(BAD):
            wrong.append(f"{name}: quarantined are {sorted(quarantined)}, expected {sorted(BAD)}")
        wrong += [
            f"{name}: {one} is quarantined because {quarantined.get(one)!r}, expected {part!r} in it"
            for one, part in BAD.items()
            if part not in (quarantined.get(one) or "")
        ]
        if len(set(quarantined.values())) != len(BAD):
            wrong.append(f"{name}: some reasons are the same")
        if len(outcome["notes"]) != len(BAD):
            wrong.append(f"{name}: {len(outcome['notes'])} notes in the quarantine, expected {len(BAD)}")
        if len(aliases) != 1:
            wrong.append(f"{name}: {len(aliases)} aliases, expected 1")
        if outcome["spared"]:
            wrong.append(f"{name}: nothing of these was killed: {outcome['spared']}")
        if outcome["left"]:
            wrong.append(f"{name}: processes left behind: {outcome['left']}")
        if outcome["maps"] != reference["maps"]:
            differ = {one for one in reference["maps"] if outcome["maps"].get(one) != reference["maps"][one]}
            wrong.append(f"{name}: maps differ from those of the undisturbed run: {sorted(differ)}")
        for one, row in rows.items():
            kept = ("state", "sha256", "model")
            if [row[key] for key in kept] != [reference["rows"].get(one, row)[key] for key in kept]:
                wrong.append(f"{name}: {one} is {row}, in the undisturbed run it was {reference['rows'].get(one)}")
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
