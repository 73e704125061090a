import os
from concurrent.futures import ThreadPoolExecutor

import h5py
import pytest

from eelsflow.errors import UnreadableFileError
from eelsflow.io import hdf5
from eelsflow.io.hdf5 import require_readable_hdf5


@pytest.fixture
def looks(monkeypatch):
    """The files that a process of its own has looked into."""
    seen = []
    look_first = hdf5._look_first

    def look(path):
        seen.append(path.name)
        look_first(path)

    monkeypatch.setattr(hdf5, "_look_first", look)
    monkeypatch.setattr(hdf5, "_readable", {})
    return seen


def write(path, value):
    with h5py.File(path, "w") as file:
        file["data"] = [value]
    return path


def test_a_readable_file_is_looked_into_again_only_when_it_has_changed(tmp_path, looks):
    path = write(tmp_path / "a.hspy", 1.0)
    for _ in range(3):
        require_readable_hdf5(path)
    assert looks == ["a.hspy"]
    status = path.stat()
    write(path, 2.0)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that keeps times does
    require_readable_hdf5(path)
    assert looks == ["a.hspy"] * 2


def test_a_file_that_is_refused_is_refused_again(tmp_path, looks):
    path = tmp_path / "a.hspy"
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(write(tmp_path / "other.h5", 1.0)), "/data")
    for _ in range(2):
        with pytest.raises(UnreadableFileError, match="lies in another file"):
            require_readable_hdf5(path)
    assert len(looks) == 2


def test_what_is_remembered_is_bounded(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(hdf5, "_REMEMBERED", 2)
    for name in "abc":
        require_readable_hdf5(write(tmp_path / f"{name}.hspy", 1.0))
    assert len(hdf5._readable) == 2


def test_a_file_that_hangs_or_ends_what_looks_first_is_refused_and_the_next_one_is_looked_into(
    tmp_path, looks, monkeypatch
):
    good, pipe = write(tmp_path / "good.hspy", 1.0), tmp_path / "pipe.hspy"
    os.mkfifo(pipe)  # opening it waits for a writer
    monkeypatch.setattr(hdf5, "PROBE_SECONDS", 0.3)
    with pytest.raises(UnreadableFileError, match=r"took more than 0\.3 s"):
        require_readable_hdf5(pipe)
    monkeypatch.setattr(hdf5, "PROBE_SECONDS", 30.0)
    require_readable_hdf5(good)

    program = hdf5._PROBER._running()
    program.kill()
    program.wait()
    require_readable_hdf5(write(tmp_path / "other.hspy", 1.0))
    assert hdf5._PROBER._running() is not program


def test_many_threads_may_ask(tmp_path, looks):
    files = [write(tmp_path / f"{number}.hspy", 1.0) for number in range(12)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(require_readable_hdf5, files))
    assert len(looks) == 12
