"""A SLURM of one node, this machine, in a folder of its own; it listens on this machine alone."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

import psutil

from flows.server import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
START_SECONDS = 60
STOP_SECONDS = 30

CONFIGURATION = """\
ClusterName=eelsflow-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
# Both listen at the addresses named here, not at every one.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
PlugStackConfig={folder}/plugstack.conf
# No cgroups, no accounts, no mail, no MPI: nothing that the machine would have to be set up for.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
# More cores than the machine may have: the job of a study beside those of its workers.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=5 CoresPerSocket=5 RealMemory=65536 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE State=UP
# Takes jobs and starts none, until a test opens it.
PartitionName=closed Nodes={host} MaxTime=INFINITE State=DOWN
"""


@dataclass(frozen=True)
class Slurm:
    """A SLURM that runs.

    Attributes
    ----------
    folder
        Configuration, state and logs (``slurmctld.log``, ``slurmd.log``).
    environment
        With it, programs talk to this SLURM.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path) -> str:
        """Return what a command prints."""
        return subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def jobs(self, *, ending: bool = False) -> dict[str, tuple[str, str]]:
        """Return name and state of every job in the queue; `ending`: also of those that SLURM is just ending."""
        listed = self.run("squeue", "--noheader", "--format=%i|%j|%T").split()
        jobs = {job: (name, state) for job, name, state in (line.split("|") for line in listed)}
        return {job: known for job, known in jobs.items() if ending or known[1] != "COMPLETING"}

    def wait_until_empty(self, seconds: float = 60) -> None:
        """Wait until no job is left in the queue."""
        deadline = time.monotonic() + seconds
        while jobs := self.jobs(ending=True):
            assert time.monotonic() < deadline, f"still in the queue: {jobs}"
            time.sleep(0.2)


@contextlib.contextmanager
def running_slurm() -> Iterator[Slurm]:
    """Provide a SLURM for the time of a ``with`` block; afterwards none of its processes is left, nor of its jobs."""
    # Not below pytest's own folders: the socket of munge must be open to all users.
    folder = Path(tempfile.mkdtemp(prefix="eelsflow-slurm-"))
    folder.chmod(0o755)
    configuration = folder / "slurm.conf"
    slurm = Slurm(folder, {**os.environ, "SLURM_CONF": str(configuration)})
    ports = {"controller_port": free_port(0), "node_port": free_port(0)}
    host = socket.gethostname().partition(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, user=getuser(), folder=folder, **ports))
    (folder / "plugstack.conf").touch(mode=0o644)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed")]
    daemons = []
    try:
        daemons.append(_start(slurm, "munged", "--foreground", f"--socket={folder}/munge.socket", *munge))
        _wait(slurm, lambda: (folder / "munge.socket").exists())
        daemons.append(_start(slurm, "slurmctld", "-D", "-i", "-f", str(configuration)))
        daemons.append(_start(slurm, "slurmd", "-D", "-f", str(configuration), "-N", host))
        _wait(slurm, lambda: slurm.run("sinfo", "--noheader", "--partition=short", "--format=%T").strip() == "idle")
        yield slurm
        with contextlib.suppress(subprocess.SubprocessError):
            slurm.run("scancel", "--me")
            slurm.wait_until_empty(STOP_SECONDS)
    finally:
        _stop(slurm, daemons)
        shutil.rmtree(folder)


def _start(slurm: Slurm, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = _found(program)
    assert path is not None
    with (slurm.folder / f"{program}.log").open("wb") as log:
        return subprocess.Popen(
            [path, *arguments],
            env=slurm.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=slurm.folder,
        )


def missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if _found(program) is None]


def _found(program: str) -> str | None:
    # The daemons are not on every user's path.
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def _wait(slurm: Slurm, there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(subprocess.SubprocessError):
            if there():
                return
        if time.monotonic() > deadline:
            logs = [f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(slurm.folder.glob("*.log"))]
            raise TimeoutError("\n".join(["SLURM does not start", *logs]))
        time.sleep(0.2)


def processes_of(slurm: Slurm) -> list[psutil.Process]:
    """Return the processes of this SLURM, its own and those of its jobs, which know its configuration or its folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            knows_it = process.environ().get("SLURM_CONF") == slurm.environment["SLURM_CONF"]
            ours = knows_it or str(slurm.folder) in " ".join(process.cmdline())
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _stop(slurm: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    for end in (psutil.Process.terminate, psutil.Process.kill):
        left = processes_of(slurm)
        for process in left:
            with contextlib.suppress(psutil.Error):
                end(process)
        psutil.wait_procs(left, timeout=STOP_SECONDS)
    for daemon in daemons:
        daemon.wait()
    assert processes_of(slurm) == []
