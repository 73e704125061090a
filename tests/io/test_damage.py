"""Random damage to a file of each format: it is read or refused in one line, within seconds."""

import multiprocessing
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eelsflow.errors import EelsflowError
from eelsflow.io import damage as guards
from eelsflow.io import rosetta
from eelsflow.io.formats import FORMATS
from eelsflow.io.read import read_spectrum_image
from eelsflow.spectrum_image import check_spectrum_image
from tests.io.cube_files import CUBES, START, STEP

N_DAMAGES = 200
N_HDF5 = 25  # many of these crash the library or make it hang, and starting again is what takes the time
SECONDS = 20.0
"""How long one damaged file may take before it counts as a hang; usual are milliseconds."""
STARTUP_SECONDS = 120.0
MOST_LOST = 20
"""A reader that loses more is broken; to go on would take minutes."""
MEMORY = 4 << 30
"""What a reader may allocate: a damaged size must not fill the machine."""

HDF5 = [name for name in CUBES if name.endswith((".hspy", ".emd", ".h5", ".nhdf"))]
TEXTS = ["one.msa", "one.txt"]


def damage(content: bytes, seed: int) -> bytes:
    """Flip, zero or cut bytes, as bad disks and broken copies do."""
    rng = np.random.default_rng(seed)
    broken = bytearray(content)
    match int(rng.integers(4)):
        case 0:  # single bytes, most of them in the header
            for _ in range(int(rng.integers(1, 6))):
                reach = len(broken) if rng.random() < 0.5 else min(len(broken), 600)
                broken[int(rng.integers(reach))] = int(rng.integers(256))
        case 1:
            start = int(rng.integers(len(broken)))
            broken[start : start + 64] = bytes(len(broken[start : start + 64]))
        case 2:
            del broken[int(rng.integers(len(broken))) :]
        case _:
            start = int(rng.integers(len(broken)))
            del broken[start : start + int(rng.integers(1, 64))]
    return bytes(broken)


def outcome(path: Path) -> str:
    """Read a file; return "read", "refused", or what went wrong."""
    try:
        check_spectrum_image(read_spectrum_image(path))
    except EelsflowError as error:
        message = str(error)
        return "refused" if path.name in message and "\n" not in message else f"message {message!r}"
    except BaseException as error:
        return f"{type(error).__name__} {error}"
    return "read"


def read_all(target, whole: Path, others: Sequence[Path], folder: Path, seeds: list[int], probe: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    guards.PROBE_SECONDS = probe
    if not probe:
        # This process is the one that looks first: one more for each of 200 files would take minutes.
        rosetta.require_readable_hdf5 = lambda path: None
    content = whole.read_bytes()
    target.send((None, "ready"))
    for seed in seeds:
        path = folder / f"{seed}{whole.suffix}"
        path.write_bytes(damage(content, seed))
        for other in others:
            shutil.copy(other, folder / f"{seed}{other.suffix}")
        target.send((seed, "lost"))
        target.send((seed, outcome(path)))
        path.unlink()
    target.close()


def outcomes(
    whole: Path,
    folder: Path,
    seeds: list[int],
    *,
    others: Sequence[Path] = (),
    probe: float = 0,
    seconds: float = SECONDS,
) -> dict[int, str]:
    """Return what became of each damage; one that ends its process, or hangs it, is "lost", and a new one goes on."""
    found: dict[int, str] = {}
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks that other tests' threads hold
    while left := [seed for seed in seeds if seed not in found]:
        source, target = context.Pipe(duplex=False)
        worker = context.Process(target=read_all, args=(target, whole, others, folder, left, probe))
        worker.start()
        target.close()
        try:
            source.poll(STARTUP_SECONDS)
            assert source.recv() == (None, "ready")
            while source.poll(seconds):
                seed, state = source.recv()
                found[seed] = state
        except EOFError:
            assert found, "the process that reads ended before it began"
        finally:
            worker.kill()
            worker.join()
            source.close()
        assert list(found.values()).count("lost") <= MOST_LOST
    return found


@pytest.fixture(scope="module")
def whole_files(cubes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(cubes, folder, dirs_exist_ok=True)
    rows = [(START + STEP * i, 100 + i) for i in range(20)]
    (folder / "one.txt").write_text("# eV\tcounts\n" + "".join(f"{x}\t{y}\n" for x, y in rows))
    header = "#FORMAT : EMSA/MAS Spectral Data File\n#NPOINTS : 20\n#NCOLUMNS : 1\n#XUNITS : eV\n#DATATYPE : Y\n"
    header += "#XLABEL : Energy\n#XPERCHAN : 0.5\n#OFFSET : 500\n#SIGNALTYPE : ELS\n#SPECTRUM : here\n"
    (folder / "one.msa").write_text(header + "".join(f"{y}.0,\n" for _, y in rows) + "#ENDOFDATA :\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in CUBES if name not in HDF5), *TEXTS])
def test_damaged_file_is_read_or_refused_in_one_line(whole_files, tmp_path, name):
    others = [whole_files / "cube.raw"] if name.endswith(".rpl") else []
    found = outcomes(whole_files / name, tmp_path, list(range(N_DAMAGES)), others=others)
    assert {seed: state for seed, state in found.items() if state not in ("read", "refused")} == {}
    assert "refused" in found.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", HDF5)
def test_damaged_hdf5_file_is_read_or_refused_in_one_line(whole_files, tmp_path, name):
    """What makes the HDF5 library itself crash or hang is read again with the process that looks first."""
    found = outcomes(whole_files / name, tmp_path, list(range(N_HDF5)), seconds=0.5)
    lost = [seed for seed, state in found.items() if state == "lost"]
    found |= outcomes(whole_files / name, tmp_path, lost, probe=1.5)
    assert {seed: state for seed, state in found.items() if state not in ("read", "refused")} == {}
    assert "refused" in found.values()


def test_every_format_without_a_real_file_has_a_written_one():
    written = {Path(name).suffix for name in (*CUBES, *TEXTS)}
    elsewhere = {"DigitalMicrograph", "HyperSpy zarr", "eelsflow zarr"}  # test_read and test_zarr_store
    assert {one.name for one in FORMATS if not written & set(one.extensions)} == elsewhere
