"""What eelsflow can lean on in production, started for the time of a check.

    with postgresql(folder) as server, object_store() as environment, DaskCluster(2) as cluster:
        ...

PostgreSQL is Debian's package; the object store is moto's server, which answers as S3 does and keeps nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

BUCKET = "eelsflow"
START_SECONDS = 60


class NotInstalledError(RuntimeError):
    """A service is not on this machine."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # where Debian keeps them
    found = shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))
    if found is None:
        raise NotInstalledError(f"{name} is not installed; on Debian: apt-get install postgresql")
    return found


@contextlib.contextmanager
def postgresql(folder: Path, *databases: str) -> Iterator[str]:
    """Provide a PostgreSQL server on 127.0.0.1 with empty databases, for the time of a ``with`` block.

    Parameters
    ----------
    folder
        Where its data are kept; created.
    *databases
        Their names.

    Yields
    ------
    str
        ``USER@HOST:PORT``: what stands between ``postgresql://`` and ``/DATABASE`` in an address.

    Raises
    ------
    NotInstalledError
        If PostgreSQL is not there.
    """
    user, as_user = "postgres", []
    folder.mkdir(parents=True)
    if os.geteuid() == 0:  # it refuses to run as root; the package brings a user
        shutil.chown(folder, user, user)
        as_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
    data, port = folder / "data", _free_port()
    initialise = [_program("initdb"), "--username", user, "--auth", "trust", "--encoding", "UTF8", "--no-sync"]
    subprocess.run([*as_user, *initialise, str(data)], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    command = [_program("postgres"), "-D", str(data), *(f"-c{name}={value}" for name, value in options.items())]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*as_user, *command], stdout=log, stderr=log, cwd=folder)
    try:
        ready = [_program("pg_isready"), "--quiet", "-h", "127.0.0.1", "-p", str(port)]
        _wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, process, folder / "server.log")
        for name in databases:
            create = [_program("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", user, name]
            subprocess.run(create, check=True)
        yield f"{user}@127.0.0.1:{port}"
    finally:
        process.send_signal(2)  # SIGINT: connections are cut off, and it ends
        process.wait(START_SECONDS)


@contextlib.contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """Provide an empty bucket on an S3 endpoint of 127.0.0.1, for the time of a ``with`` block.

    Yields
    ------
    dict
        The environment by which programs find it; the bucket is ``s3://eelsflow``.

    Raises
    ------
    NotInstalledError
        If moto is not there.
    """
    import importlib.util

    if importlib.util.find_spec("moto") is None:
        raise NotInstalledError("moto is not installed; it is among the development dependencies")
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_until(lambda: _answers(f"{endpoint}/moto-api/"), process)
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "MLFLOW_S3_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "check",
            "AWS_SECRET_ACCESS_KEY": "check",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.terminate()
        process.wait(START_SECONDS)


class DaskCluster:
    """A Dask scheduler and workers in processes of their own, each of which can be killed, and is started again.

    Parameters
    ----------
    n_workers
        Of one thread each.
    environment
        Of the processes; by default this one's.
    as_user
        What is put before their commands.
    """

    def __init__(self, n_workers: int, environment: dict[str, str] | None = None, as_user: Sequence[str] = ()) -> None:
        port = _free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        program = [*as_user, sys.executable, "-m"]
        options = ["--no-dashboard", "--host", "127.0.0.1"]
        self._commands = {"scheduler": [*program, "distributed.cli.dask_scheduler", "--port", str(port), *options]}
        worker = [*program, "distributed.cli.dask_worker", self.address, "--nthreads", "1", *options]
        for number in range(n_workers):
            self._commands[f"dask worker {number}"] = [*worker, "--no-nanny", "--local-directory", "/tmp"]
        self._environment = environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._left = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        for process in self.processes.values():
            process.kill()
            process.wait()

    def kill(self, name: str) -> None:
        """End a process with ``kill -9``; it is started again within half a second."""
        with self._lock:
            self.processes[name].kill()

    def _keep(self) -> None:
        while not self._left.wait(0.5 if self.processes else 0):
            with self._lock:
                for name, command in self._commands.items():
                    if name not in self.processes or self.processes[name].poll() is not None:
                        self.processes[name] = subprocess.Popen(
                            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                        )


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path | None = None) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"a service did not start: {log.read_text()[-2000:] if log else process.args}")
        time.sleep(0.1)
