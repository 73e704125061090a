"""Send files of every kind through `eelsflow watch`, kill what can be killed, and count what came out.

    python deployments/check_inbox.py --model RESULTS [--files 190] [--kills 40] [--full-disk] [--work DIR]

Good files, one that is written slowly, one with the content of another, and eight bad ones are put into an inbox while
the watcher runs: first undisturbed, then with `kill -9` of the watcher and of its workers at random moments. Both must
end with the same catalogue and byte-identical maps: none lost, none twice. Where this is run by root, the watcher runs
as the user "nobody", since nothing is unreadable for root. With --full-disk (root alone) the results lie on a small
file system that is full for a while. Exit status 0: all of it holds; 1: what does not is printed.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

NOBODY = 65534
AS_NOBODY = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
SHAPE = (8, 8)
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
    parser.add_argument("--kills", type=int, default=40, help="of the watcher and its workers, in the second run")
    parser.add_argument("--full-disk", action="store_true", help="a third run, on a file system that gets full")
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
        runs: dict[str, int] = {"undisturbed": 0, "killed": options.kills}
        if options.full_disk:
            runs["full disk"] = 0
        outcomes = {}
        for name, kills in runs.items():
            run = Run(work / name.replace(" ", "-"), model, files, kills=kills, seed=options.seed)
            with small_disk(run.home) if name == "full disk" else contextlib.nullcontext() as fill:
                outcomes[name] = run.outcome(fill)
                print(f"{name}: {run.say(outcomes[name])}", flush=True)
        return judge(outcomes, options.files)


# ---------------------------------------------------------------------- files


def make_files(folder: Path, n_good: int) -> dict[str, Path]:
    """Write the files that are put into the inbox, by their names there; slow ones and copies among them."""
    from eelsflow.io.read import read_spectrum_image
    from eelsflow.simulate import simulate_directory

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

    def __init__(self, folder: Path, model: Path, files: dict[str, Path], *, kills: int, seed: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.home, self.inbox, self.model = folder / "home", folder / "inbox", model
        for path in (self.home, self.inbox):
            path.mkdir(parents=True)
        self.files, self.kills, self.random = files, kills, random.Random(seed)
        self.killed: list[str] = []
        self.log = folder / "watch.log"
        self._own(self.home)

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)

    def _command(self, *arguments: str) -> list[str]:
        command = [sys.executable, "-m", "eelsflow.cli", *arguments]
        return [*AS_NOBODY, *command] if "locked.hspy" in BAD and os.geteuid() == 0 else command

    @property
    def _environment(self) -> dict[str, str]:
        caches = self.home.parent.parent / "caches"  # compiled code and fonts: made once, by whoever is first
        if not caches.exists():
            caches.mkdir()
            self._own(caches)
        own = {"EELSFLOW_HOME": str(self.home), "HOME": str(self.home)}
        return {**os.environ, **own, "MPLCONFIGDIR": str(caches), "NUMBA_CACHE_DIR": str(caches)}

    def start(self) -> subprocess.Popen[bytes]:
        """Start the watcher."""
        arguments = ["watch", str(self.inbox), "--model", str(self.model), "--interval", "1"]
        with self.log.open("ab") as log:
            return subprocess.Popen(self._command(*arguments), env=self._environment, stdout=log, stderr=log)

    def status(self) -> list[dict[str, Any]]:
        """Ask what became of everything."""
        done = subprocess.run(
            self._command("status", "--json"), env=self._environment, capture_output=True, text=True, check=False
        )
        return json.loads(done.stdout) if done.returncode == 0 else []

    def outcome(self, fill: Callable[[bool], None] | None) -> dict[str, Any]:
        """Put the files into the inbox and wait until each has come to an end."""
        began = time.monotonic()
        feeding = threading.Thread(target=self._feed)
        feeding.start()
        watcher = self.start()
        kills_left, expected = self.kills, len(self.files)
        full_until = None
        try:
            while True:
                time.sleep(self.random.uniform(0.2, 8.0) if kills_left else 1.0)
                if watcher.poll() is not None:
                    raise SystemExit(f"the watcher ended by itself:\n{self.log.read_text()[-3000:]}")
                if kills_left:
                    watcher = self._kill_one(watcher)
                    kills_left -= 1
                    continue
                if fill is not None and full_until is None and len(self.maps()) > expected // 8:
                    fill(True)
                    full_until = time.monotonic() + 20
                if fill is not None and full_until and time.monotonic() > full_until:
                    fill(False)
                    fill = None
                rows = self.status()
                ended = sum(row["state"] in ("classified", "quarantined") for row in rows)
                if ended >= expected and not feeding.is_alive() and fill is None:
                    break
                if time.monotonic() - began > 60 + 6 * expected + 10 * self.kills:
                    raise SystemExit(f"{ended} of {expected} ended:\n{self.log.read_text()[-3000:]}")
        finally:
            family = [watcher, *psutil.Process(watcher.pid).children(recursive=True)] if watcher.poll() is None else []
            watcher.send_signal(signal.SIGINT)
            watcher.wait(30)
        left = [one.pid for one in family[1:] if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        return {
            "rows": {Path(row["path"]).name: row for row in self.status()},
            "maps": self.maps(),
            "notes": sorted(path.name for path in (self.home / "quarantine").glob("*.txt")),
            "seconds": time.monotonic() - began,
            "left": left,
            "kills": list(self.killed),
        }

    def maps(self) -> dict[str, str]:
        """Return the digest of each map."""
        folder = self.home / "maps"
        return {path.name: digest(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}

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

    def _kill_one(self, watcher: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        workers = psutil.Process(watcher.pid).children(recursive=True)
        workers = [one for one in workers if "spawn_main" in " ".join(one.cmdline())]
        if workers and self.random.random() < 0.5:
            self.random.choice(workers).kill()
            self.killed.append("worker")
            return watcher
        watcher.kill()
        watcher.wait()
        self.killed.append("watcher")
        return self.start()

    def say(self, outcome: dict[str, Any]) -> str:
        """Say in a line what came out."""
        rows = outcome["rows"].values()
        states = [row["state"] for row in rows]
        kills = ", ".join(f"{outcome['kills'].count(what)} {what}s" for what in ("watcher", "worker"))
        return (
            f"{len(outcome['maps'])} maps, {states.count('quarantined')} quarantined, "
            f"{sum(row['alias_of'] is not None for row in rows)} alias, {outcome['seconds']:.0f} s, killed {kills}"
        )


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


@contextlib.contextmanager
def small_disk(home: Path) -> Iterator[Callable[[bool], None]]:
    """Put a home folder on a small file system; what is provided makes it full, and free again."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=777", "tmpfs", str(home)], check=True)

    def fill(full: bool) -> None:
        ballast = home / "ballast"
        if not full:
            ballast.unlink()
            return
        with contextlib.suppress(OSError), ballast.open("wb") as stream:
            while True:
                stream.write(bytes(1 << 16))
                stream.flush()

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


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
