"""TLS between client, scheduler and workers of Dask: one environment variable names a folder of certificates."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eelsflow.errors import InputError

SWITCH = "EELSFLOW_DASK_TLS"
FILES = ("ca.pem", "cert.pem", "key.pem")
MAKE_THEM = "deployments/make_certificates.sh DIR makes them, see 'TLS for Dask' in deployments/README.md"


def tls_settings() -> dict[str, Any]:
    """Return the settings of Dask for TLS with the folder in ``$EELSFLOW_DASK_TLS``; none if it is not set.

    Client, scheduler and workers show each other the same certificate, and take no peer without one of the same
    authority. Connections without encryption are refused.

    Raises
    ------
    InputError
        If the folder lacks a file, others than its owner may read the key, or the files do not fit together.
    """
    value = os.environ.get(SWITCH)
    if not value:
        return {}
    folder = Path(value).expanduser().absolute()  # jobs of a queue are told of it, and start in other folders
    ca, certificate, key = (folder / name for name in FILES)
    _check_files(folder)
    _check_handshake(ca, certificate, key)
    of_roles = {
        f"distributed.comm.tls.{role}.{what}": str(path)
        for role in ("client", "scheduler", "worker")
        for what, path in (("cert", certificate), ("key", key))
    }
    return {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": str(ca), **of_roles}


def command_options() -> list[str]:
    """Return the options of ``dask scheduler`` and ``dask worker`` for the folder in ``$EELSFLOW_DASK_TLS``."""
    settings = tls_settings()
    if not settings:
        return []
    ca, certificate, key = (Path(os.environ[SWITCH]).expanduser().absolute() / name for name in FILES)
    return ["--tls-ca-file", str(ca), "--tls-cert", str(certificate), "--tls-key", str(key)]


def check_protocol(config: str | Mapping[str, Any]) -> None:
    """Refuse a cluster that cannot be reached with Dask's settings as they are now.

    Raises
    ------
    InputError
        If TLS is asked for and the cluster has none, or the other way round.
    """
    import dask

    asked_for = os.environ.get(SWITCH)
    if isinstance(config, str):
        if asked_for and config != "local" and not config.startswith("tls://"):
            raise InputError(
                f"cluster is {config!r} and {SWITCH} is {asked_for!r}; expected tls://HOST:PORT, because without TLS "
                f"anyone between may read the data and run code on the workers: write tls://, or unset {SWITCH}"
            )
        if config.startswith("tls://") and not dask.config.get("distributed.comm.tls.client.cert"):
            raise InputError(
                f"cluster is {config!r} and {SWITCH} is not set; expected a folder with {', '.join(FILES)}, because a "
                f"scheduler with TLS takes nobody without a certificate of its authority: set {SWITCH} to the folder "
                "that scheduler and workers were started with"
            )
    elif asked_for and "kubernetes" in config:
        raise InputError(
            f"cluster is 'kubernetes' and {SWITCH} is set; expected 'local', tls://HOST:PORT or slurm, because "
            "dask-kubernetes knows no TLS and its traffic would be open: start scheduler and workers with TLS "
            "(deployments/kubernetes/dask.yaml) and name them with `cluster: tls://eelsflow-scheduler:8786`"
        )


def with_tls(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a dask-jobqueue cluster, which reads nothing of TLS from Dask's settings."""
    if not os.environ.get(SWITCH):
        return dict(options)
    from distributed import Security

    return {"protocol": "tls://", "security": Security(), **options}


def no_answer(address: Any, error: Exception) -> str:
    """Return what to say where no client could be connected."""
    if isinstance(address, str) and address.startswith("tls://"):
        refused = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else None
        ours = os.environ.get(SWITCH) or "the settings of Dask"
        return (
            f"no Dask scheduler takes this client at {address!r} ({refused or error}); expected one that runs with "
            f"certificates of the same authority as those in {ours}, because each side refuses a peer without: start "
            "`dask scheduler --tls-ca-file ca.pem --tls-cert cert.pem --tls-key key.pem`, or use `cluster: local`"
        )
    return (
        f"no Dask scheduler answers at {address!r} ({error}); start `dask scheduler`, or use `cluster: local`; "
        f"if it speaks TLS, write tls:// for tcp:// and set {SWITCH}"
    )


def _check_files(folder: Path) -> None:
    missing = [name for name in FILES if not os.access(folder / name, os.R_OK)]
    if missing:
        raise InputError(
            f"{SWITCH} is {str(folder)!r}, where {', '.join(missing)} cannot be read; expected a folder with "
            f"{', '.join(FILES)}, by which client, scheduler and workers know each other: {MAKE_THEM}"
        )
    key = folder / FILES[-1]
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        raise InputError(
            f"{key} has mode {mode:o}; expected 600, because whoever can read the key can join the cluster and run "
            f"code on it: chmod 600 {key}, and make new certificates if others use this machine"
        )


def _check_handshake(ca: Path, certificate: Path, key: Path) -> None:
    """Refuse files that peers would: Dask would say so late, and on their side."""
    try:
        ends = []
        for purpose, server in ((ssl.Purpose.SERVER_AUTH, False), (ssl.Purpose.CLIENT_AUTH, True)):
            context = ssl.create_default_context(purpose, cafile=ca)
            context.load_cert_chain(certificate, key, password="")  # without one OpenSSL would ask the terminal
            context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            ends.append((context, server))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ends[0][0].wrap_bio(incoming, outgoing)
        server_side = ends[1][0].wrap_bio(outgoing, incoming, server_side=True)
        for end in (client, server_side, client, server_side):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except (OSError, ValueError) as error:
        why = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error
        raise InputError(
            f"the certificates in {ca.parent} do not work with each other ({why}); expected cert.pem to be signed by "
            f"ca.pem, to be of the key in key.pem and to be valid today, because scheduler and workers refuse it "
            f"otherwise: {MAKE_THEM}"
        ) from error
