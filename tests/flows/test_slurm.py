"""A study on a real SLURM of one node.

Opt-in: ``EELSFLOW_SLURM=1 pytest tests/flows/test_slurm.py``; needs SLURM, munge and dask-jobqueue. SLURM itself is set
up and run by the test, in a folder of its own.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from eelsflow.errors import InputError
from eelsflow.store import read_json
from flows import jobs
from flows.cluster import cluster_client
from tests.flows.slurm import PROGRAMS, Slurm, missing_programs, processes_of, running_slurm

SBATCH = Path(__file__).parents[2] / "deployments" / "slurm" / "study.sbatch"
# 2 GiB: a worker that trains networks has 1.1 GiB, .47 of it TensorFlow's libraries; of machines alone .4.
WORKERS = {"n_workers": 2, "cores": 1, "processes": 1, "memory": "2GiB", "queue": "short", "walltime": "00:10:00"}
STUDY_SECONDS = 300

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("EELSFLOW_SLURM") != "1", reason="starts a SLURM: set EELSFLOW_SLURM=1"),
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs {', '.join(PROGRAMS)}: install slurm-wlm and munge"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    pytest.importorskip("distributed", reason="needs the extra 'orchestration'")
    if not any((Path(folder) / "dask_jobqueue").is_dir() for folder in sys.path):
        pytest.skip("needs dask-jobqueue: pip install dask-jobqueue")
    with running_slurm() as slurm:
        yield slurm
    assert processes_of(slurm) == []


@pytest.fixture(autouse=True)
def nothing_left_in_the_queue(slurm: Slurm) -> Iterator[None]:
    yield
    left = slurm.jobs()
    if left:
        slurm.run("scancel", "--me")
    slurm.wait_until_empty()
    assert not left


@pytest.fixture
def here(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, for clusters that this process starts."""
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    return tmp_path


def write_study(path: Path, table: Path, **workers: Any) -> Path:
    content = {
        "name": "manganese",
        "edge": {
            "name": "Mn_placed",
            "reference_energy": 710.0,
            "elnes_window": [700.0, 730.0],
            "pre_edge_window": [690.0, 698.0],
        },
        "data": {"spectra": str(table)},
        "split": {"by": ["group", "pixel"], "folds": 3, "seeds": 2},
        "grids": "small",
        "models": ["svm-linear", "svm-rbf", {"name": "fcnn-1", "base": "fcnn-1", "params": {"epochs": 3}}],
        "robustness": {"shift_ev": [-4, 4, 2], "noise_sigma": [0, 0.3, 0.15]},
        "cluster": {"slurm": {**WORKERS, **workers}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def environment_of(slurm: Slurm, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in slurm.environment.items() if not name.startswith("PREFECT_")}
    return {**kept, "EELSFLOW_HOME": str(home)}


def command(study: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "eelsflow.cli", "study", str(study), "--out", str(out), *more]


def models_of(out: Path) -> list[dict[str, Any]]:
    """Return all that is said of the models, times aside."""
    rows = read_json(out / "results.json")["models"]
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


@pytest.fixture(scope="module")
def loop_models(slurm: Slurm, labelled_table: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("loop")
    study = write_study(folder / "study.yaml", labelled_table)
    environment = environment_of(slurm, folder / "home")
    subprocess.run(
        command(study, folder / "out", "--runner", "loop"), env=environment, check=True, timeout=STUDY_SECONDS
    )
    return models_of(folder / "out")


@contextlib.contextmanager
def started(program: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(program, env=environment, stdout=said, stderr=said, text=True, cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(there: Callable[[], Any], seconds: float = 120, process: subprocess.Popen[str] | None = None) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "it ended first"
        time.sleep(0.1)
    return found


def workers_of(slurm: Slurm) -> dict[int, str]:
    """Return the job of every process of a worker."""
    found = {}
    for process in processes_of(slurm):
        with contextlib.suppress(psutil.Error):
            if "distributed.cli.dask_worker" in process.cmdline():
                found[process.pid] = process.environ()["SLURM_JOB_ID"]
    return found


def listens_beyond_this_machine(slurm: Slurm) -> set[str]:
    found = set()
    for process in processes_of(slurm):
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN and one.laddr.ip not in ("127.0.0.1", "::1"):
                    found.add(f"{process.cmdline()[:4]} at {one.laddr}")
    return found


def running_workers(slurm: Slurm) -> list[str]:
    return [job for job, (name, state) in slurm.jobs().items() if (name, state) == ("dask-worker", "RUNNING")]


def entries(home: Path) -> int:
    return len(list((home / "store" / "entries").glob("*/*")))


def test_a_study_on_slurm_gives_the_numbers_of_the_loop(
    slurm: Slurm, labelled_table: Path, loop_models: list[dict[str, Any]], tmp_path: Path
) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    study = write_study(tmp_path / "study.yaml", labelled_table)
    with started(command(study, out), environment_of(slurm, home), tmp_path) as process:
        wait_until(lambda: len(running_workers(slurm)) == 2 and entries(home) > 3, process=process)
        job_ids = running_workers(slurm)
        assert set(workers_of(slurm).values()) == set(job_ids)
        assert listens_beyond_this_machine(slurm) == set()
        assert process.wait(timeout=STUDY_SECONDS) == 0, (tmp_path / "said.txt").read_text()
    assert models_of(out) == loop_models
    assert read_json(out / "results.json")["runner"] == "prefect"
    assert slurm.jobs() == {}
    assert sorted(name.name for name in (home / "slurm").glob("*.err")) == [
        f"dask-worker-{job}.err" for job in sorted(job_ids)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"home", "out", "study.yaml", "said.txt"}


def test_a_study_ends_with_the_same_numbers_though_a_job_is_cancelled(
    slurm: Slurm, labelled_table: Path, loop_models: list[dict[str, Any]], tmp_path: Path
) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    study = write_study(tmp_path / "study.yaml", labelled_table)
    with started(command(study, out), environment_of(slurm, home), tmp_path) as process:
        # in the middle: the data set is there, models are being fitted
        wait_until(lambda: len(running_workers(slurm)) == 2 and entries(home) >= 5, process=process)
        cancelled = running_workers(slurm)[0]
        slurm.run("scancel", cancelled)
        wait_until(lambda: cancelled not in slurm.jobs(), process=process)
        assert process.poll() is None
        assert process.wait(timeout=STUDY_SECONDS) == 0, (tmp_path / "said.txt").read_text()
    assert models_of(out) == loop_models
    assert slurm.jobs() == {}


def submit(slurm: Slurm, folder: Path, study: Path, *options: str) -> Path:
    """Submit the job script of the deployments; return what its output goes to."""
    environment = environment_of(slurm, folder / "home")
    environment["EELSFLOW"] = str(Path(sys.executable).with_name("eelsflow"))
    printed = folder / "printed.txt"
    printed.touch()
    options = (f"--output={printed}", f"--chdir={folder}", "--job-name=eelsflow", *options)
    Slurm(slurm.folder, environment).run("sbatch", *options, SBATCH, study, folder / "out")
    return printed


def test_the_job_script_runs_a_study(
    slurm: Slurm, labelled_table: Path, loop_models: list[dict[str, Any]], tmp_path: Path
) -> None:
    printed = submit(slurm, tmp_path, write_study(tmp_path / "study.yaml", labelled_table))
    wait_until(lambda: len(slurm.jobs()) == 3)
    slurm.wait_until_empty(STUDY_SECONDS)
    assert "report: " in printed.read_text()
    assert models_of(tmp_path / "out") == loop_models


@pytest.mark.parametrize("how", ["scancel", "the end of its time"])
def test_a_job_script_that_is_ended_leaves_no_jobs(
    how: str, slurm: Slurm, labelled_table: Path, tmp_path: Path
) -> None:
    """It ends while it waits for workers."""
    study = write_study(tmp_path / "study.yaml", labelled_table, queue="closed")
    # The signal comes 120 s before the end, or up to 60 s earlier.
    printed = submit(slurm, tmp_path, study, *(["--time=4"] if how == "the end of its time" else []))
    wait_until(lambda: "pending (PartitionDown)" in printed.read_text())
    wait_until(lambda: "watch this study" in printed.read_text())
    assert len(slurm.jobs()) == 3
    if how == "scancel":
        (job,) = [job for job, (name, _) in slurm.jobs().items() if name == "eelsflow"]
        slurm.run("scancel", job)
    slurm.wait_until_empty(230)
    assert "DUE TO TIME LIMIT" not in printed.read_text()
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_waits_for_the_queue_says_so_and_can_be_ended(
    number: signal.Signals, slurm: Slurm, labelled_table: Path, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study.yaml", labelled_table, queue="closed")
    said = tmp_path / "said.txt"
    with started(command(study, tmp_path / "out"), environment_of(slurm, tmp_path / "home"), tmp_path) as process:
        wait_until(
            lambda: "waiting for the first worker; jobs: 2 pending (PartitionDown)" in said.read_text(), process=process
        )
        wait_until(lambda: "watch this study" in said.read_text(), process=process)
        assert len(slurm.jobs()) == 2
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert slurm.jobs() == {}
    assert "Traceback" not in said.read_text()


def test_a_worker_that_starts_late_is_waited_for(slurm: Slurm, here: Path) -> None:
    said: list[str] = []
    opening = threading.Timer(8, slurm.run, ["scontrol", "update", "PartitionName=closed", "State=UP"])
    opening.start()
    try:
        with cluster_client({"slurm": {**WORKERS, "queue": "closed"}}, home=here, say=said.append) as client:
            assert client.submit(int, "7").result(timeout=60) == 7
            seen = client.run(os.getenv, "SLURM_JOB_PARTITION")
    finally:
        opening.join()
        slurm.run("scontrol", "update", "PartitionName=closed", "State=DOWN")
    assert set(seen.values()) == {"closed"}
    assert "waiting for the first worker; jobs: 2 pending (PartitionDown)" in said


def cancel(slurm: Slurm, job_ids: set[str], client: Any) -> None:
    """Cancel jobs, and wait until their workers are gone."""
    workers = set(client.scheduler_info(n_workers=-1)["workers"])
    slurm.run("scancel", *job_ids)
    wait_until(lambda: not workers & set(client.scheduler_info(n_workers=-1)["workers"]))


def test_jobs_that_end_are_asked_for_again(slurm: Slurm, here: Path) -> None:
    """All of them at once, as at the end of their time."""
    said: list[str] = []
    with cluster_client({"slurm": WORKERS}, home=here, say=said.append) as client:
        client.wait_for_workers(2, timeout=60)
        before = set(client.run(os.getenv, "SLURM_JOB_ID").values())
        cancel(slurm, before, client)
        assert client.submit(int, "7").result(timeout=120) == 7
        client.wait_for_workers(2, timeout=60)
        after = set(client.run(os.getenv, "SLURM_JOB_ID").values())
    assert said[-1] == "no worker is left; their jobs were asked for again"
    assert len(before) == len(after) == 2
    assert not before & after


def test_several_workers_of_one_job_are_asked_for_again(
    slurm: Slurm, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "AGAIN_SECONDS", 2)  # Dask never forgets such a job
    with cluster_client({"slurm": {**WORKERS, "cores": 2, "processes": 2, "memory": "2GiB"}}, home=here) as client:
        client.wait_for_workers(2, timeout=60)
        before = set(client.run(os.getenv, "SLURM_JOB_ID").values())
        cancel(slurm, before, client)
        assert client.submit(int, "7").result(timeout=120) == 7
        client.wait_for_workers(2, timeout=60)
        after = set(client.run(os.getenv, "SLURM_JOB_ID").values())
    assert len(before) == len(after) == 1
    assert before != after


def test_a_queue_that_takes_no_job_is_a_clear_error(slurm: Slurm, here: Path) -> None:
    config = {"slurm": {**WORKERS, "queue": "nosuch"}}
    with pytest.raises(InputError, match=r"(?s)takes no job.*invalid partition specified: nosuch"):
        with_client(config, here)


def test_jobs_that_all_end_before_they_are_workers_are_a_clear_error(slurm: Slurm, here: Path) -> None:
    config = {"slurm": {**WORKERS, "python": "/bin/false"}}
    with pytest.raises(InputError, match=rf"all 2 jobs of workers ended.*{here}/slurm.*`interface:`"):
        with_client(config, here)


def test_a_scheduler_listens_where_the_study_file_says(slurm: Slurm, here: Path) -> None:
    with cluster_client({"slurm": {**WORKERS, "interface": "lo"}}, home=here) as client:
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        assert client.submit(int, "7").result(timeout=60) == 7
    with pytest.raises(InputError, match="eth77"):
        with_client({"slurm": {**WORKERS, "interface": "eth77"}}, here)


def with_client(config: dict[str, Any], home: Path) -> None:
    with cluster_client(config, home=home):
        pass
