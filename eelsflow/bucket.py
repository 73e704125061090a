"""A folder of an object store, such as ``s3://bucket/results``: where several machines keep what all of them need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eelsflow.errors import InputError, MissingDependencyError, OutputPathError


def is_url(place: str | Path) -> bool:
    """Tell whether a place is on another file system than this machine's.

    >>> is_url("s3://bucket/maps"), is_url("/data/maps"), is_url("file:///data/maps")
    (True, False, False)
    """
    return "://" in str(place) and not str(place).startswith("file://")


def open_file_system(url: str) -> Any:
    """Return the file system of fsspec that a URL is on.

    Raises
    ------
    MissingDependencyError
        If it needs a package that is not installed.
    InputError
        If the URL names no file system.
    """
    import fsspec

    try:
        return fsspec.url_to_fs(url)[0]
    except ImportError as error:
        raise MissingDependencyError(
            f"{url} needs a package that is not installed ({error}); for S3: pip install 'eelsflow[s3]'"
        ) from error
    except ValueError as error:
        raise InputError(f"{url} is no address that files can be read from: {error}") from error


def read_from(folder: str, name: str) -> bytes | None:
    """Return what a file of a folder, here or in a bucket, holds; None where it is not there."""
    if is_url(folder):
        return Bucket(folder).read(name)
    path = Path(folder) / name
    return path.read_bytes() if path.is_file() else None


class Bucket:
    """A folder of an object store.

    An object is there when it is whole, and replaces another of its name at once; there is no renaming.

    Parameters
    ----------
    url
        As ``s3://bucket/folder``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._files = open_file_system(self.url)

    def at(self, name: str) -> str:
        """Return the URL of an object, or of a folder."""
        return f"{self.url}/{name}"

    def has(self, name: str) -> bool:
        """Tell whether an object is there."""
        with self._said("read from"):
            self._files.invalidate_cache()
            try:
                return bool(self._files.info(self.at(name))["type"] == "file")  # isfile says no where nobody answers
            except FileNotFoundError:
                return False

    def is_empty(self) -> bool:
        """Tell whether nothing is below the folder."""
        with self._said("read from"):
            self._files.invalidate_cache()
            return not self._files.find(self.url)

    def read(self, name: str) -> bytes | None:
        """Return what an object holds; None where it is not there."""
        with self._said("read from"), contextlib.suppress(FileNotFoundError):
            return bytes(self._files.cat_file(self.at(name)))
        return None

    def get(self, name: str, path: Path) -> bool:
        """Copy an object into a file; tell whether it is there."""
        with self._said("read from"), contextlib.suppress(FileNotFoundError):
            self._files.get_file(self.at(name), str(path))
            return True
        return False

    def put(self, path: Path, name: str) -> None:
        """Copy a file into an object."""
        with self._said("write to"):
            self._files.put_file(str(path), self.at(name))

    def put_folder(self, folder: Path, name: str, *, last: str) -> None:
        """Copy a folder in the place of the one that may be there.

        Parameters
        ----------
        folder, name
            From where, and its name here.
        last
            The file that is taken away first and written last: where it is, the folder is whole.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        wanted = {f"{name}/{path.relative_to(folder).as_posix()}": path for path in files}
        with self._said("write to"):
            self._files.invalidate_cache()
            base = len(self._files._strip_protocol(self.url)) + 1
            there = [found[base:] for found in self._files.find(self.at(name))]
            if f"{name}/{last}" in there:
                self._files.rm_file(self.at(f"{name}/{last}"))
            for stale in sorted(set(there) - set(wanted) - {f"{name}/{last}"}):
                self._files.rm_file(self.at(stale))
        for key in sorted(wanted, key=lambda key: (key == f"{name}/{last}", key)):
            self.put(wanted[key], key)

    def get_folder(self, name: str, folder: Path) -> None:
        """Copy what is below a name into a folder that is there."""
        with self._said("read from"):
            self._files.invalidate_cache()
            base = len(self._files._strip_protocol(self.at(name))) + 1
            found = [path[base:] for path in self._files.find(self.at(name))]
        for path in found:
            if ".." in path.split("/"):
                raise OutputPathError(f"{self.at(name)} holds {path!r}, which leads out of it, and is not copied")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            self.get(f"{name}/{path}", folder / path)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._said("write to"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self.at(name))

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Say which bucket it is that cannot be used: none of that is the fault of an acquisition."""
        try:
            yield
        except FileNotFoundError as error:
            if what == "read from":
                raise
            raise self._unusable(what, error) from error
        except Exception as error:  # each file system has errors of its own
            raise self._unusable(what, error) from error

    def _unusable(self, what: str, error: Exception) -> OutputPathError:
        return OutputPathError(
            f"cannot {what} {self.url}: {type(error).__name__}: {error}; it must be there, and the credentials in the "
            "environment must allow to list, read, write and delete below it"
        )
