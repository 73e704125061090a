"""Addresses of what is computed: digest(content of the inputs, parameters, code version).

Cache, resume, lineage and "what changed?" are this one mechanism.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

import eelsflow
from eelsflow.errors import UnreadableFileError


def members(path: Path) -> list[Path]:
    """Return the files that make up what a path names.

    These are the file itself, all files of a directory (zarr stores), or a .rpl file and the .raw beside it, which
    holds the counts that it describes.
    """
    if path.is_dir():
        return sorted(member for member in path.rglob("*") if member.is_file())
    if path.suffix.lower() == ".rpl":
        raw = [path.with_suffix(suffix) for suffix in (".raw", ".RAW")]
        return [path, *[member for member in raw if member.is_file()][:1]]
    return [path]


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, or of the files and their names where there are several (`members`).

    Raises
    ------
    UnreadableFileError
        If nothing is there, or it cannot be read.
    """
    sha = hashlib.sha256()
    try:
        files = members(path)
        if path.is_dir():
            for member in files:
                sha.update(f"{member.relative_to(path).as_posix()}\0{member.stat().st_size}\0".encode())
                _update(sha, member)
        elif len(files) > 1:
            for member in files:
                sha.update(f"{member.suffix.lower()}\0{member.stat().st_size}\0".encode())
                _update(sha, member)
        else:
            _update(sha, path)
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror or error}") from error
    return sha.hexdigest()


def _update(sha: Any, path: Path) -> None:
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)


def digest_of(*parts: Any) -> str:
    """Return the sha256 of values in canonical form.

    Takes JSON values, pydantic models, paths (as text), tuples and numpy arrays (their bytes, shape and type).

    Raises
    ------
    TypeError
        For a value that has no canonical form; guessing one would make two different things equal.
    """
    text = json.dumps([_canonical(part) for part in parts], sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case BaseModel():
            return [type(value).__name__, _canonical(value.model_dump(mode="json"))]
        case dict():
            return {str(key): _canonical(item) for key, item in value.items()}
        case list() | tuple():
            return [_canonical(item) for item in value]
        case Path():
            return str(value)
        case np.generic():
            return value.item()
        case np.ndarray():
            array = np.ascontiguousarray(value)
            return ["ndarray", str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        case _:
            raise TypeError(f"no canonical form for {type(value).__name__}: digest its content instead")


@lru_cache
def code_version(*modules: str) -> str:
    """Return the package version and a hash of the sources of modules or subpackages of eelsflow.

    Never the git commit: an edit of the README must not invalidate a night of training.

    >>> code_version("preprocess", "energy") == code_version("preprocess", "energy")
    True
    """
    sha = hashlib.sha256()
    root = Path(str(resources.files("eelsflow")))
    for name in sorted(modules):
        base = root.joinpath(*name.split("."))
        sources = [base.with_suffix(".py")]
        if base.is_dir():  # templates and scripts of pages are sources too
            sources = sorted(path for path in base.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        for source in sources:
            sha.update(f"{source.relative_to(root).as_posix()}\0".encode())
            sha.update(source.read_bytes())
    return f"{eelsflow.__version__}+{sha.hexdigest()[:16]}"
