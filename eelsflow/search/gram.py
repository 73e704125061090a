"""What the kernels of the training spectra share: computed once, memory-mapped by every job."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.digest import digest_of
from eelsflow.store import make_directory

Kernel = Literal["linear", "rbf", "sigmoid"]

logger = logging.getLogger(__name__)


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


MAX_PRODUCT_BYTES = 2 << 30
"""Largest matrix of products that is written; with more spectra (16,000) rows are computed from the spectra."""


@dataclass(frozen=True)
class Products:
    """What the rows of a kernel are computed from, as a file.

    Attributes
    ----------
    path
        A .npy file of double precision.
    from_spectra
        Whether it holds the spectra, (n_spectra, n_channels), and not an (n_spectra, n_spectra) matrix: of squared
        distances for ``rbf``, of scalar products for ``sigmoid``.
    """

    path: Path
    from_spectra: bool


def keeps_spectra(n_spectra: int, kernel: Kernel, *, max_bytes: int = MAX_PRODUCT_BYTES) -> bool:
    """Tell whether rows of a kernel come from the spectra: of a linear one, which needs few, and of a large one."""
    return kernel == "linear" or 8 * n_spectra**2 > max_bytes


def save_products(X: ArrayLike, kernel: Kernel, scratch: Path, *, max_bytes: int = MAX_PRODUCT_BYTES) -> Products:
    """Compute what all kernels of one kind share, once for one `X`, and write it.

    Parameters
    ----------
    X
        Spectra, (n_spectra, n_channels).
    kernel
        For all but ``sigmoid`` the mean spectrum is subtracted first: distances do not change, and the weights of a
        linear machine do not either, because they add up to zero; but far fewer digits cancel.
    scratch
        A directory that every worker sees.
    max_bytes
        Past this size of the matrix the spectra are written instead, and the log says so. For ``linear`` they always
        are, in as few channels as they have independent ones.
    """
    spectra = np.asarray(X)
    from_spectra = keeps_spectra(len(spectra), kernel, max_bytes=max_bytes)
    name = "spectra" if from_spectra else {"rbf": "distances", "sigmoid": "products"}[kernel]
    name += "-independent" if kernel == "linear" else ""
    name += "" if kernel == "sigmoid" else "-centred"
    path = make_directory(scratch) / f"{name}-{digest_of(spectra)[:16]}.npy"
    if from_spectra and kernel != "linear":
        logger.info(
            "the products of %d spectra would take %.1f GB, more than the %.1f GB that are kept: rows of the kernel "
            "are computed from the spectra, which takes longer",
            len(spectra),
            8e-9 * len(spectra) ** 2,
            1e-9 * max_bytes,
        )
    if not path.exists():
        products = compute_products(spectra, kernel, from_spectra=from_spectra)
        _write(path, products)
    return Products(path, from_spectra)


def compute_products(X: NDArray[Any], kernel: Kernel, *, from_spectra: bool) -> NDArray[np.float64]:
    """Return what `save_products` writes; `X`, (n_spectra, n_channels), is not modified."""
    values = X.astype(np.float64)
    if kernel != "sigmoid":
        values -= values.mean(axis=0)
    if kernel == "linear":
        return independent_channels(values)
    if from_spectra:
        return values
    return squared_distances(values) if kernel == "rbf" else values @ values.T


def independent_channels(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates of spectra, (n, rank), whose products are those of `X`, (n, n_channels), to rounding.

    Denoised spectra have far fewer independent channels than channels. Directions that hold less than rounding adds
    to the products are left out.
    """
    values, directions = np.linalg.eigh(X.T @ X)
    kept = values > 16 * np.finfo(np.float64).eps * values[-1]
    ordered = np.ascontiguousarray(directions[:, kept][:, ::-1])  # BLAS takes no negative strides
    return np.asarray(X @ ordered)


def squared_distances(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared distance of every pair of rows, (n, n), through one matrix product."""
    distances = X @ X.T
    squares = distances.diagonal().copy()
    for first in range(0, len(X), 256):  # blocks, so that nothing but the result is large
        rows = slice(first, first + 256)
        distances[rows] *= -2.0
        distances[rows] += np.add.outer(squares[rows], squares)
        np.maximum(distances[rows], 0.0, out=distances[rows])  # rounding can leave a distance just below zero
    np.fill_diagonal(distances, 0.0)
    return distances


def _write(path: Path, array: NDArray[np.generic]) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.npy")
    try:
        np.save(temporary, array, allow_pickle=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
