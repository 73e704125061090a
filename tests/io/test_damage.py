"""Random damage to a file of each format: it is read or refused in one line, within seconds, and runs no code."""

import pickle
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from eelsflow.errors import UnreadableFileError
from eelsflow.io.formats import FORMATS, format_of
from eelsflow.io.read import read_spectrum_image
from tests.io.cube_files import CUBES, SPECTRA
from tests.io.damaged_reading import FINE, CodeRanError, outcomes, refuse_code

N_DAMAGES = 100
N_PROBED = 20
"""HDF5 damages that are read as users read them, with the process that looks first."""
WRITERS = {**CUBES, **SPECTRA}
HDF5 = [name for name in WRITERS if (one := format_of(name)) and one.hdf5]


@pytest.fixture(scope="module")
def whole_files(cubes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(cubes, folder, dirs_exist_ok=True)
    for name, writer in SPECTRA.items():
        writer(folder / name)
    return folder


def in_two_processes(whole_files, tmp_path_factory, jobs, **options):
    """Return {name: {seed: outcome}}."""
    jobs = [(whole_files / name, seed) for name, seed in jobs]
    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(outcomes, jobs[i::2], tmp_path_factory.mktemp("damaged"), **options) for i in range(2)]
        found = {job: state for half in halves for job, state in half.result().items()}
    by_name: dict[str, dict[int, str]] = {}
    for (path, seed), state in found.items():
        by_name.setdefault(Path(path).name, {})[seed] = state
    return by_name


@pytest.fixture(scope="module")
def found(whole_files, tmp_path_factory):
    """What becomes of all damages.

    Those that make the HDF5 library itself crash or hang are read again with the process that looks first, and so are
    `N_PROBED` of every HDF5 format. What a busy machine was too slow for is tried again too, with more patience.
    """
    jobs = [(name, seed) for name in WRITERS for seed in range(N_DAMAGES)]
    states = in_two_processes(whole_files, tmp_path_factory, jobs, seconds=3.0)
    again = [
        (name, seed)
        for name in WRITERS
        for seed, state in states[name].items()
        if state == "lost" or (name in HDF5 and seed < N_PROBED)
    ]
    for name, probed in in_two_processes(whole_files, tmp_path_factory, again, probe=1.5, seconds=20.0).items():
        states[name] |= probed
    return states


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_damaged_file_is_read_or_refused_in_one_line(found, name):
    print(name, dict(Counter(found[name].values())))
    assert len(found[name]) == N_DAMAGES
    assert {seed: state for seed, state in found[name].items() if state not in FINE} == {}
    assert "refused" in found[name].values()


def test_every_extension_family_of_the_table_is_damaged():
    damaged = {Path(name).suffix for name in WRITERS}
    assert [one.name for one in FORMATS if not damaged & set(one.extensions)] == []
    assert {".dm3", ".dm4", ".h5", ".nhdf", ".npz"} <= damaged


def unpickle(target) -> None:
    pickled = pickle.dumps(Path)
    refuse_code(allow_probe=False)
    for load in (lambda: pickle.loads(pickled), lambda: pickle.load(None)):
        try:
            load()
        except CodeRanError:
            target.send("noticed")
        else:
            target.send("missed")


def test_pickle_that_a_reader_loads_would_be_noticed():
    context = get_context("spawn")
    source, target = context.Pipe(duplex=False)
    worker = context.Process(target=unpickle, args=(target,))
    worker.start()
    worker.join()
    assert [source.recv(), source.recv()] == ["noticed", "noticed"]


@pytest.mark.parametrize("how", ["external storage", "external link", "virtual"])
@pytest.mark.parametrize("suffix", [".hspy", ".emd", ".nhdf"])
def test_a_file_whose_data_lie_in_another_is_not_followed(tmp_path, how, suffix):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(range(256)))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = np.arange(64.0)
    path = tmp_path / f"a{suffix}"
    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        if how == "external storage":
            group.create_dataset("data", shape=(4, 8), dtype="f8", external=[(str(secret), 0, 256)])
        elif how == "external link":
            group["data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/data")
        else:
            layout = h5py.VirtualLayout(shape=(64,), dtype="f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", shape=(64,))
            group.create_virtual_dataset("data", layout)
    with pytest.raises(UnreadableFileError, match="a part of its data lies in another file"):
        read_spectrum_image(path)
