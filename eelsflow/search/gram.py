"""The Gram matrix of the training spectra: computed once, memory-mapped by every job, turned into any kernel."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.digest import digest_of
from eelsflow.store import make_directory

Kernel = Literal["linear", "rbf", "sigmoid"]


def save_array(values: ArrayLike, scratch: Path, *, name: str) -> Path:
    """Write an array to `scratch` once, as ``name-<digest of the content>.npy``, and return its path.

    Jobs on other processes map the file instead of each receiving a copy. Two writers of one content are harmless.

    Parameters
    ----------
    values
        Any array without objects in it.
    scratch
        A directory that every worker sees; created where it does not exist.
    name
        What the file holds, for whoever looks into the directory.
    """
    array = np.asarray(values)
    path = make_directory(scratch) / f"{name}-{digest_of(array)[:16]}.npy"
    if not path.exists():
        _write(path, array)
    return path


def save_gram(X: ArrayLike, scratch: Path) -> Path:
    """Compute ``X X^T`` in double precision, once for one `X`, and return the path of its .npy file.

    Parameters
    ----------
    X
        Spectra, (n_spectra, n_channels).
    scratch
        A directory that every worker sees.
    """
    spectra = np.asarray(X)
    path = make_directory(scratch) / f"gram-{digest_of(spectra)[:16]}.npy"
    if not path.exists():
        values = spectra.astype(np.float64)
        _write(path, values @ values.T)
    return path


def _write(path: Path, array: NDArray[np.generic]) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.npy")
    try:
        np.save(temporary, array, allow_pickle=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def derive_kernel(
    gram: NDArray[np.float64],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    *,
    kernel: Kernel,
    gamma: float = 1.0,
    coef0: float = 0.0,
) -> NDArray[np.float64]:
    """Return a block of a kernel matrix from the Gram matrix G.

    Parameters
    ----------
    gram
        (n_spectra, n_spectra); memory-mapped is fine, only the block is read. Not modified.
    rows, columns
        Spectra that the block's rows and columns belong to.
    kernel
        ``linear``: G; ``rbf``: exp(-gamma (G_ii + G_jj - 2 G_ij)); ``sigmoid``: tanh(gamma G + coef0).
    gamma, coef0
        As in scikit-learn's SVC; unused by the kernels that have none.

    Returns
    -------
    NDArray
        (len(rows), len(columns)), a new array.
    """
    block = np.array(gram[np.ix_(rows, columns)])
    if kernel == "linear":
        return block
    if kernel == "sigmoid":
        block *= gamma
        block += coef0
        return np.tanh(block, out=block)
    squares = np.einsum("ii->i", gram)
    block *= -2.0
    block += squares[rows][:, np.newaxis]
    block += squares[columns]
    np.maximum(block, 0.0, out=block)  # rounding can leave a distance just below zero
    block *= -gamma
    return np.exp(block, out=block)
