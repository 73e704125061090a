"""TLS between client, scheduler and workers: the switch, and what is refused."""

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eelsflow.dask_tls import SWITCH, tls_settings
from eelsflow.errors import InputError
from flows import cluster
from flows.cluster import cluster_client
from flows.server import free_port

FLAGS = {"ca-file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}

LEAVES_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Dask and Tornado leave a socket open where a handshake fails or is late, dask-jobqueue a process nobody waits for."""


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Find what is left open in the test that left it."""
    yield
    gc.collect()


@pytest.fixture
def switched_on(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SWITCH, str(certificates))
    return certificates


@pytest.fixture
def folder(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Certificates to be damaged at will."""
    for name in ("ca.pem", "ca.key", "cert.pem", "key.pem"):
        shutil.copy2(certificates / name, tmp_path / name)
    monkeypatch.setenv(SWITCH, str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def schedulers(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Ports of a scheduler with TLS and of one without."""
    ports = {"tls": free_port(0), "tcp": free_port(0)}
    tls = [f"--tls-{name}={certificates / file}" for name, file in FLAGS.items()]
    processes = []
    for protocol, more in (("tls", tls), ("tcp", [])):
        command = [sys.executable, "-m", "dask", "scheduler", "--host", f"{protocol}://127.0.0.1"]
        command += ["--port", str(ports[protocol]), "--dashboard-address", "127.0.0.1:0", *more]
        log = (tmp_path_factory.mktemp("scheduler") / "log").open("w+")
        processes.append((subprocess.Popen(command, stderr=log), log))
    for process, log in processes:
        while "dashboard at" not in Path(log.name).read_text():
            assert process.poll() is None, Path(log.name).read_text()
    yield ports
    for process, log in processes:
        process.terminate()
        process.wait()
        log.close()


def test_without_the_switch_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    assert tls_settings() == {}


def test_a_local_cluster_speaks_tls(switched_on: Path, tmp_path: Path) -> None:
    with cluster_client("local", home=tmp_path, n_workers=1) as client:
        assert client.submit(int, "7").result() == 7
        (worker,) = client.scheduler_info()["workers"]
        assert {address.partition(":")[0] for address in (client.scheduler.address, worker)} == {"tls"}
        assert client.dashboard_link.startswith("http://127.0.0.1:")


@LEAVES_OPEN
def test_a_queue_speaks_tls(switched_on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command lines of dask-jobqueue, which a shell runs instead of SLURM."""
    pytest.importorskip("dask_jobqueue", reason="queues need the extra 'slurm'")
    monkeypatch.setitem(cluster._QUEUES, "slurm", ("dask_jobqueue.local", "LocalCluster", "dask-jobqueue"))
    options = {"cores": 1, "memory": "1GiB", "n_workers": 1, "interface": "lo", "local_directory": str(tmp_path)}
    with cluster_client({"slurm": options}, home=tmp_path) as client:
        assert client.submit(int, "7").result() == 7
        (worker,) = client.scheduler_info()["workers"]
        assert {address.partition(":")[0] for address in (client.scheduler.address, worker)} == {"tls"}
        assert client.dashboard_link.startswith("http://127.0.0.1:")
    del client


@pytest.mark.parametrize("name", FLAGS.values())
def test_a_missing_file_is_an_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(
        InputError, match=rf"where {name} cannot be read; expected .*: deployments/make_certificates.sh"
    ):
        tls_settings()


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_can_read_is_an_error(folder: Path, mode: int) -> None:
    (folder / "key.pem").chmod(mode)
    with pytest.raises(InputError, match=rf"key.pem has mode {mode:o}; expected 600, because .*: chmod 600"):
        tls_settings()


def test_a_certificate_of_another_authority_is_an_error(folder: Path, certificates: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        shutil.copy2(certificates / "others" / name, folder / name)
    with pytest.raises(InputError, match=r"do not work with each other.*expected cert.pem to be signed by ca.pem"):
        tls_settings()


def test_a_key_of_another_certificate_is_an_error(folder: Path, certificates: Path) -> None:
    shutil.copy2(certificates / "others" / "key.pem", folder / "key.pem")
    with pytest.raises(InputError, match="KEY_VALUES_MISMATCH"):
        tls_settings()


def test_an_expired_certificate_is_an_error(folder: Path) -> None:
    request = subprocess.run(
        ["openssl", "req", "-new", "-key", "key.pem", "-subj", "/CN=old"], cwd=folder, check=True, capture_output=True
    ).stdout
    sign = ["openssl", "x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "-1"]
    subprocess.run([*sign, "-out", "cert.pem"], cwd=folder, input=request, check=True, capture_output=True)
    with pytest.raises(InputError, match="certificate has expired"):
        tls_settings()


def test_something_else_than_certificates_is_an_error(folder: Path) -> None:
    (folder / "ca.pem").write_text("no certificate\n")
    with pytest.raises(InputError, match="do not work with each other"):
        tls_settings()


def connect(config: Any, home: Path) -> None:
    with cluster_client(config, home=home):
        pass


def test_a_tcp_address_is_refused_with_the_switch(switched_on: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"'tcp://host:8786' and {SWITCH} is .*expected tls://HOST:PORT"):
        connect("tcp://host:8786", tmp_path)


def test_a_kubernetes_operator_is_refused_with_the_switch(switched_on: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dask-kubernetes knows no TLS"):
        connect({"kubernetes": {}}, tmp_path)


def test_a_tls_address_is_refused_without_the_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    with pytest.raises(InputError, match=f"'tls://host:8786' and {SWITCH} is not set; expected a folder"):
        connect("tls://host:8786", tmp_path)


@LEAVES_OPEN
def test_certificates_of_others_do_not_get_in(
    schedulers: dict[str, int], certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, str(certificates / "others"))
    with pytest.raises(InputError, match=r"takes this client at 'tls:.*verify failed.*of the same authority"):
        connect(f"tls://127.0.0.1:{schedulers['tls']}", tmp_path)


@LEAVES_OPEN
def test_no_tls_does_not_get_in(schedulers: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
    with pytest.raises(InputError, match=f"no Dask scheduler answers.* if it speaks TLS, .* set {SWITCH}"):
        connect(f"tcp://127.0.0.1:{schedulers['tls']}", tmp_path)


@LEAVES_OPEN
def test_a_scheduler_without_tls_is_not_used(schedulers: dict[str, int], switched_on: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes this client.*same authority"):
        connect(f"tls://127.0.0.1:{schedulers['tcp']}", tmp_path)


@LEAVES_OPEN
def test_a_scheduler_without_workers_is_an_error(
    schedulers: dict[str, int], switched_on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match="has no worker after 1 s; expected one at least"):
        connect(f"tls://127.0.0.1:{schedulers['tls']}", tmp_path)
