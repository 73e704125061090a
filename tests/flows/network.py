"""Network namespaces: machines of their own, as far as Dask can tell, with cables that can be pulled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def why_not(directory: Path) -> str | None:
    """Return why there can be no such network here, or None."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the command `ip` (iproute2)"
    try:
        with Network(directory) as network:
            network.add("try")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces can be made here: {error.stderr.strip()}"
    return None


class Network:
    """A bridge in the namespace of the caller, and machines on it.

    Parameters
    ----------
    directory
        Where the output of programs goes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bridge = f"eels{os.getpid()}"  # an interface has a name of at most 15 characters
        self.prefix = f"10.213.{os.getpid() % 256}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.machines: list[str] = []
        self._outputs: list[IO[bytes]] = []

    def __enter__(self) -> Network:
        _ip("link", "add", self.bridge, "type", "bridge")
        try:
            _ip("addr", "add", f"{self.prefix}.1/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
        except subprocess.CalledProcessError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            process.kill()
        for name in self.machines:
            namespace = self._namespace(name)
            left = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
            for pid in left.stdout.split():  # a worker is a child of its nanny
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            for what in (("link", "del", self._cable(name)), ("netns", "del", namespace)):
                subprocess.run(["ip", *what], capture_output=True, check=False)  # one that could not be made, too
        subprocess.run(["ip", "link", "del", self.bridge], check=False)
        for process in self.processes.values():
            process.wait()
        for output in self._outputs:
            output.close()

    def add(self, name: str) -> str:
        """Add a machine; return its address."""
        self.machines.append(name)
        namespace, cable, address = self._namespace(name), self._cable(name), self.address(name)
        _ip("netns", "add", namespace)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", cable, "master", self.bridge, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        return address

    def address(self, name: str) -> str:
        """Return the address of a machine."""
        return f"{self.prefix}.{self.machines.index(name) + 2}"

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a program on a machine; its output goes to ``directory/NAME.log``."""
        output = (self.directory / f"{name}.log").open("ab")
        self._outputs.append(output)
        inside = ["ip", "netns", "exec", self._namespace(name), *command]
        self.processes[name] = subprocess.Popen(inside, env=dict(environment), stdout=output, stderr=output)

    def run(self, name: str, *command: str) -> str:
        """Run a command on a machine to its end; return what it printed."""
        inside = ["ip", "netns", "exec", self._namespace(name), *command]
        return subprocess.run(inside, check=True, capture_output=True, text=True).stdout

    def log(self, name: str) -> str:
        """Return what a machine's program has printed."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name: str, text: str, *, seconds: float = 30) -> None:
        """Wait until a machine's program has printed something."""
        deadline = time.monotonic() + seconds
        while text not in self.log(name):
            assert self.processes[name].poll() is None, f"{name} has ended:\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{name} never said {text!r}:\n{self.log(name)}"
            time.sleep(0.05)

    def cut(self, name: str) -> None:
        """Let packets from and to a machine vanish: nobody is told, and no connection is closed."""
        _ip("link", "set", self._cable(name), "nomaster")

    def mend(self, name: str) -> None:
        """Let packets through again."""
        _ip("link", "set", self._cable(name), "master", self.bridge)

    def _namespace(self, name: str) -> str:
        return f"{self.bridge}-{name}"

    def _cable(self, name: str) -> str:
        return f"{self.bridge}-{self.machines.index(name)}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
