"""One Prefect server for all tests of flows, and certificates."""

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("prefect", reason="the flows need the extra 'orchestration'")

from flows.server import Server, _refresh_settings, running_server


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of the session's server."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def prefect_server(server_home: Path) -> Iterator[Server]:
    """A running server that flows called in this process report to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with running_server(server_home, preferred_port=0) as server:
            yield server


@pytest.fixture
def fresh_home(prefect_server: Server, server_home: Path, tmp_path: Path) -> Path:
    """A home folder with a database that is set up already, which is most of what a first start takes."""
    folder = tmp_path / "home" / "prefect"
    folder.mkdir(parents=True)
    source, target = (sqlite3.connect(where / "prefect.db") for where in (server_home / "prefect", folder))
    with contextlib.closing(source), contextlib.closing(target):
        source.backup(target)
    return folder.parent


@pytest.fixture
def environment() -> Iterator[pytest.MonkeyPatch]:
    """Environment variables to change; Prefect reads them again when they are back."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    _refresh_settings()


MAKE_CERTIFICATES = Path(__file__).parents[2] / "deployments" / "make_certificates.sh"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates for TLS between parts of Dask; those of others are in its folder ``others``."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by openssl, which is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    for each in (folder, folder / "others"):
        subprocess.run([MAKE_CERTIFICATES, each], check=True, capture_output=True)
    return folder
