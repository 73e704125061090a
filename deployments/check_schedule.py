"""Start everything that scheduled processing needs, see one scheduled run complete, and leave nothing behind.

    python deployments/check_schedule.py [--home DIR] [--model MODEL --acquisition FILE] [--services]

With a model and an acquisition, a scheduled run must prepare and classify that file; without, find an empty folder.
Two faults of dependencies are only seen this way: one lets the server die at import, the other lets cron schedules
never fire. `deployments/prefect.yaml` is what is deployed, with a short interval instead of its own, and a second
time with a cron schedule; a run of either must complete. With --services, Prefect and the catalogue are on PostgreSQL
(and so is the registry that is asked for a champion), and maps and store in a bucket of an S3 endpoint. Exit status 0:
all of it worked; 1: what did not is printed with the logs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
import yaml

from deployments.processes import describe, processes_of
from deployments.services import BUCKET, object_store, postgresql
from eelsflow.bucket import Bucket, read_from
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.status import describe_status
from eelsflow.store import home
from flows.server import running_server

INTERVAL_SECONDS = 10
WORKER_QUERY_SECONDS = 2
CRON = "* * * * *"
LIMIT_SECONDS = 240
POOL = "eelsflow"


def main() -> int:
    """Run the check in a given or a temporary home folder."""
    parser = argparse.ArgumentParser(description="See one scheduled run complete.")
    parser.add_argument("--home", type=Path, help="home folder; a temporary one by default")
    parser.add_argument("--model", type=Path, help="a study's results or a model directory")
    parser.add_argument("--acquisition", type=Path, help="an acquisition to put into the folder")
    parser.add_argument("--services", action="store_true", help="on PostgreSQL and an S3 endpoint")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = (options.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        inbox, out, worker_log = folder / "inbox", str(folder / "maps"), folder / "worker.log"
        inbox.mkdir(parents=True, exist_ok=True)
        if options.services:
            out = f"s3://{BUCKET}/results"
            os.environ |= stack.enter_context(services())
        os.environ |= {"EELSFLOW_HOME": str(folder), "EELSFLOW_INBOX": str(inbox), "EELSFLOW_OUT": out}
        os.environ |= {"PREFECT_WORKER_QUERY_SECONDS": str(WORKER_QUERY_SECONDS)}
        if options.acquisition is not None:
            copy_acquisition(options.acquisition, inbox)
        started = time.monotonic()
        try:
            with running_server(folder, preferred_port=0) as server:
                print(f"{time.monotonic() - started:5.1f} s  server answers at {server.api_url}")
                run_prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
                run_prefect("deploy", "--prefect-file", str(short_schedules(folder, options.model)), "--all")
                print(f"{time.monotonic() - started:5.1f} s  deployed")
                with worker(worker_log):
                    wait_for_scheduled_run(worker_log)
                    wait_until_idle(worker_log)
                print(f"{time.monotonic() - started:5.1f} s  runs completed, by interval and by cron")
                if options.acquisition is not None:
                    check_map(options.acquisition)
                if options.services:
                    check_services()
        except CheckFailedError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
        print(f"{time.monotonic() - started:5.1f} s  stopped")
        if left := describe([one for one in processes_of(folder) if one.pid != os.getpid()]):
            print("FAILED: left running:\n" + "\n".join(left), file=sys.stderr)
            return 1
    return 0


class CheckFailedError(RuntimeError):
    """What did not work, with the log that shows it."""


def run_prefect(*arguments: str) -> None:
    """Run a command of Prefect's command line."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CheckFailedError(
            f"prefect {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def copy_acquisition(path: Path, inbox: Path) -> None:
    """Put an acquisition, a file or a zarr folder, into the inbox."""
    if path.is_dir():
        shutil.copytree(path, inbox / path.name)
    else:
        shutil.copy(path, inbox)


def short_schedules(folder: Path, model: Path | None) -> Path:
    """Write the deployments with schedules that a check can wait for; return the file."""
    project: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("prefect.yaml").read_text())
    for deployment in [one for one in project["deployments"] if one["name"] == "inbox"]:
        by_cron = copy.deepcopy(deployment)
        deployment["schedules"] = [{"interval": INTERVAL_SECONDS}]
        deployment["parameters"]["settle_seconds"] = 1
        if model is not None:
            deployment["parameters"]["model"] = str(model.resolve())
        by_cron |= {"name": f"{deployment['name']}-cron", "schedules": [{"cron": CRON, "timezone": "UTC"}]}
        project["deployments"] = [deployment, by_cron]
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(project))
    return path


def check_map(acquisition: Path) -> None:
    """Make sure that a scheduled run has classified the acquisition."""
    rows = describe_status(Catalogue())
    found = [row for row in rows if row["path"].endswith(acquisition.name) and row["state"] == "classified"]
    if not found or read_from(found[0]["map"], "summary.json") is None:
        raise CheckFailedError(f"{acquisition.name} was not classified: {rows}")


@contextlib.contextmanager
def services() -> Iterator[dict[str, str]]:
    """Start PostgreSQL and an object store; provide the environment in which everything uses them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        server = stack.enter_context(postgresql(folder / "postgresql", "prefect", "mlflow", "catalogue"))
        yield stack.enter_context(object_store()) | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{server}/prefect",
            "MLFLOW_TRACKING_URI": f"postgresql+psycopg://{server}/mlflow",
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"s3://{BUCKET}/mlflow",
            "EELSFLOW_CATALOGUE": f"postgresql+psycopg://{server}/catalogue",
            "EELSFLOW_STORE": f"s3://{BUCKET}/store",
        }


def check_services() -> None:
    """Make sure that the databases are what everything was written to, and no other one."""
    for name, table in (("PREFECT_SERVER_DATABASE_CONNECTION_URL", "flow_run"), ("EELSFLOW_CATALOGUE", "acquisitions")):
        engine = sa.create_engine(os.environ[name].replace("+asyncpg", "+psycopg"))
        with engine.connect() as connection:
            if not connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar():
                raise CheckFailedError(f"{name}: its table {table} is empty")
        engine.dispose()
    local = [path.name for path in home().rglob("*.db")]
    if local:
        raise CheckFailedError(f"databases are in the home folder: {local}")
    if Bucket(f"s3://{BUCKET}/store").is_empty():
        raise CheckFailedError("nothing is in the bucket's store")


@contextlib.contextmanager
def worker(log: Path) -> Iterator[None]:
    """Run a process worker for the time of a block."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            process.terminate()
            _, alive = psutil.wait_procs(family, timeout=20)
            for member in alive:
                member.kill()
            process.wait()


def wait_for_scheduled_run(log: Path) -> None:
    """Wait until a run by interval and one by cron have completed."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    deadline = time.monotonic() + LIMIT_SECONDS
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            states = {
                name: [
                    run.state_type
                    for run in client.read_flow_runs(
                        deployment_filter=filters.DeploymentFilter(name=filters.DeploymentFilterName(any_=[name]))
                    )
                    if run.auto_scheduled
                ]
                for name in ("inbox", "inbox-cron")
            }
            if {StateType.FAILED, StateType.CRASHED} & {state for each in states.values() for state in each}:
                break
            if all(StateType.COMPLETED in each for each in states.values()):
                return
            time.sleep(1)
        lines = [f"{entry.timestamp:%H:%M:%S} {entry.message}" for entry in client.read_logs(limit=50)]
    raise CheckFailedError(
        f"runs: {states}; expected a COMPLETED one of each, and none FAILED\n"
        + "\n".join(lines)
        + "\n"
        + log.read_text(errors="replace")
    )


def wait_until_idle(log: Path) -> None:
    """Give the worker no more runs, and wait for those it has: one that it is just starting would outlive it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    run_prefect("work-pool", "pause", POOL)
    begun = filters.FlowRunFilter(
        state=filters.FlowRunFilterState(
            type=filters.FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
        )
    )
    deadline = time.monotonic() + LIMIT_SECONDS
    with get_client(sync_client=True) as client:
        time.sleep(2 * WORKER_QUERY_SECONDS)  # what it had asked for before shows as pending by then
        while runs := client.read_flow_runs(flow_run_filter=begun):
            if time.monotonic() > deadline:
                raise CheckFailedError(f"{len(runs)} runs do not end\n{log.read_text(errors='replace')}")
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
