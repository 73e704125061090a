"""What becomes of damaged files, found in processes that may crash, hang or fill their memory without harm."""

import contextlib
import multiprocessing
import os
import pickle
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eelsflow import cli
from eelsflow.errors import EelsflowError
from eelsflow.io import hdf5, rosetta
from eelsflow.io.formats import format_of
from eelsflow.io.read import read_spectrum_image
from eelsflow.spectrum_image import check_spectrum_image
from tests.io.damages import remove, write_damaged

SECONDS = 10.0
"""How long one damaged file may take before it counts as a hang; usual are hundredths of a second."""
STARTUP_SECONDS = 120.0
MEMORY = 4 << 30
"""Address space that a reader may take: a damaged size must not fill the machine."""
MOST_LOST = 60
"""A reader that loses more is broken; to go on would take minutes."""

FINE = ("read", "refused")
_CODE_RUNS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen")


class CodeRanError(BaseException):
    """A reader unpickled something or started a program: no handler of readers may take it for damage."""


def refuse_code(*, allow_probe: bool) -> None:
    """Let everything that could run code of a file raise, in this process and for good."""
    forbidden = {name for name in _CODE_RUNS if not (allow_probe and name == "subprocess.Popen")}

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in forbidden and not _own_pickle():
            raise CodeRanError(event)

    def load(*_: Any, **__: Any) -> None:
        raise CodeRanError("pickle.load")

    sys.addaudithook(hook)
    if not allow_probe:
        pickle.load = load


def _own_pickle() -> bool:
    """Tell whether numba loads a function that it compiled and kept, or dask what it has pickled for a name."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(("numba.", "dask.tokenize")):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def captured() -> Iterator[list[str]]:
    """Collect what is written to the file descriptors 1 and 2, by libraries in C as well."""
    texts: list[str] = []
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = [os.dup(1), os.dup(2)]
        sys.stdout.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            yield texts
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))


def outcome_of_reading(path: Path, *, lazy: bool) -> str:
    """Read a file as the library does, counts and all; return "read", "refused" or what went wrong."""
    try:
        with captured() as texts:
            check_spectrum_image(read_spectrum_image(path, lazy=lazy).compute())
    except EelsflowError as error:
        message = str(error)
        if "MemoryError" in message:  # beyond this process's limit; without one it would fill the machine
            return f"asked for too much memory: {message}"
        state = "refused" if path.name in message and "\n" not in message else f"message {message!r}"
    except BaseException as error:
        return f"{type(error).__name__} {error}"
    else:
        state = "read"
    return state if not any(texts) else f"{state}, but printed {texts}"


def outcome_of_info(path: Path) -> str:
    """Run ``eelsflow info``; "read" is exit status 0 without a word of errors, "refused" is 2 with one line of them."""
    sys.argv = ["eelsflow", "info", str(path)]
    try:
        with captured() as texts:
            cli.main()
    except SystemExit as error:
        status = error.code or 0
    except BaseException as error:
        return f"info: {type(error).__name__} {error}"
    out, err = texts
    if status == 0 and out and not err:
        return "read"
    is_one_line = err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    if status == 2 and is_one_line and not out and path.name in err:
        return "refused"
    return f"info: exit status {status}, {err[-600:]!r}"


def outcome(path: Path) -> str:
    """Return what ``eelsflow info`` makes of a file, unless reading it, whole or lazily, goes wrong."""
    one = format_of(path)
    for lazy in (False, True) if one else ():  # tables are read by `info` alone
        if (lazy <= one.lazy) and (state := outcome_of_reading(path, lazy=lazy)) not in FINE:
            return f"lazy={lazy}: {state}"
    return outcome_of_info(path)


Job = tuple[Path, int]
"""A whole file and the number of the damage."""


def read_damaged(target, jobs: list[Job], folder: Path, probe: float) -> None:
    """Send (job, "lost") before each damaged file is read, and (job, outcome) after."""
    # Loads and compiles what reading needs.
    read = outcome_of_info if probe else outcome
    unread = {whole.name: state for whole in {whole for whole, _ in jobs} if (state := read(whole)) != "read"}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    hdf5.PROBE_SECONDS = probe
    if not probe:
        # This process is the one that looks first: one more for each of 200 files would take minutes.
        rosetta.require_readable_hdf5 = lambda path: None
    refuse_code(allow_probe=bool(probe))
    target.send((None, unread))
    for job in jobs:
        path = write_damaged(*job, folder)
        target.send((job, "lost"))
        target.send((job, read(path)))
        remove(path)
    target.close()


def outcomes(jobs: list[Job], folder: Path, *, probe: float = 0, seconds: float = SECONDS) -> dict[Job, str]:
    """Return what became of each damage; one that ends its process, or hangs it, is "lost", and a new one goes on.

    Parameters
    ----------
    jobs, folder
        What is damaged, and where the copies are written.
    probe
        How long the process that looks into HDF5 files first may take, in seconds, for ``eelsflow info`` alone; 0:
        there is no such process, and files are read whole and lazily besides.
    seconds
        How long one file may take.
    """
    found: dict[Job, str] = {}
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks that other tests' threads hold
    while left := [job for job in jobs if job not in found]:
        source, target = context.Pipe(duplex=False)
        worker = context.Process(target=read_damaged, args=(target, left, folder, probe))
        worker.start()
        target.close()
        try:
            assert source.poll(STARTUP_SECONDS), "the process that reads does not begin"
            _, unread = source.recv()
            assert unread == {}, f"whole files are not read: {unread}"
            while source.poll(seconds):
                job, state = source.recv()
                found[job] = state
        except EOFError:
            assert found, "the process that reads ended before it began"
        finally:
            worker.kill()
            worker.join()
            source.close()
        assert list(found.values()).count("lost") <= MOST_LOST
    return found
