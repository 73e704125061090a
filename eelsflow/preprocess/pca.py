"""Principal components from channel covariances: one pass over the spectra, any number of blocks, exact.

Blocks are reduced to `Moments`, which add up (`merge`); the components of the whole follow from the sum alone. The
moments are kept for two halves of the pixels, because the rank is chosen by what one half says about the other.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.blas import one_thread
from eelsflow.errors import InputError
from eelsflow.preprocess.kernels import add_triangle, scatter_about_mean, subtract_pilot
from eelsflow.preprocess.noise import leading_directions, poisson_scale

Scaling = Literal["poisson", "variance"]

MAX_RANK = 30
"""Components looked at when the rank is chosen; real images hold about 5."""

_ROWS_AT_ONCE = 2048  # products are summed in single precision over at most so many spectra, then in double
_ROWS_IN_SINGLE = 4096  # the same where they are formed about a pilot mean
_ROWS_A_PRODUCT = 1024  # deviations that a product is taken of: 8 MiB stay in the cache and cost it no speed
_LANCZOS_CHANNELS = 16  # channels for each component wanted, from which on they are found by iteration
_LANCZOS_SPACE = 3  # directions that the iteration keeps for each component wanted; 2 and 4 are no quicker
_EXCESS = 0.25  # a component's signal variance, as a fraction of the noise along it, below which it is not kept
_FIRST_GUESS = 10  # components; twice what real images hold
_NOISE_LAGS = 32  # channels over which noise may be correlated: a point spread of 6, interpolated 4 times as finely
_SIGNIFICANCE = 5.0  # standard errors that the excess must have
_NOT_FINITE = (
    "spectra hold values that are not finite (NaN or infinity); no component can be fitted to them: "
    "crop to the channels the detector recorded, or repair these pixels first"
)


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of spectra, and the sum of their noise variances.

    Parameters
    ----------
    n
        Number of spectra.
    mean
        Mean spectrum, shape (channels,), float64.
    scatter
        Sum over the spectra of the outer product of their deviations from `mean`, shape (channels, channels), float64.
    variance_sum
        Sum of the spectra's noise variances, shape (channels,), float64; zero where they were not given.
    """

    n: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]
    variance_sum: NDArray[np.float64]

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return int(self.mean.size)


SplitMoments = tuple[Moments, Moments]
"""The moments of two halves of the pixels."""


@dataclass(frozen=True)
class Pca:
    """A mean spectrum and its leading components.

    Parameters
    ----------
    mean
        Mean spectrum, shape (channels,).
    components
        Orthonormal rows in scaled space, shape (rank, channels); the entry of largest magnitude of each is positive.
    scale
        What the channels are divided by, shape (channels,).
    eigenvalues
        Variance along the leading components in scaled space, descending, shape (up to `MAX_RANK`,).
    rank
        Number of components kept.
    rank_method
        How it was chosen, in words, with a note where no component stood above the noise.
    signal_to_noise
        Where the rank was chosen: variance of one half of the pixels along the components of the other, over the
        noise along them, minus 1; shape (number looked at,). Empty otherwise.
    reproducibility
        Likewise: squared cosine between each component of one half and the leading components of the other.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    scale: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    rank: int
    rank_method: str
    signal_to_noise: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    reproducibility: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def scores(self, spectra: ArrayLike) -> NDArray[np.floating]:
        """Return the coordinates along the components, shape (..., rank), of spectra of shape (..., channels).

        Scores of float64 spectra are float64, of all others float32. The spectra are not modified.
        """
        values = self._checked(spectra)
        deviations: NDArray[np.floating] = values - self.mean.astype(values.dtype)
        return deviations @ (self.components / self.scale).T.astype(values.dtype)

    def denoise(self, spectra: ArrayLike) -> NDArray[np.floating]:
        """Return the spectra as the mean and their components say, same shape; the input is not modified."""
        return self.reconstruct(self.scores(spectra))

    def reconstruct(self, scores: ArrayLike, channels: slice = slice(None)) -> NDArray[np.floating]:
        """Return the spectra of these scores, shape (..., rank), in the precision of the scores, shape (..., channels).

        Parameters
        ----------
        scores
            As from `scores`; not modified.
        channels
            Which channels are wanted.
        """
        values = np.asarray(scores)
        spectra: NDArray[np.floating] = values @ (self.components * self.scale)[:, channels].astype(values.dtype)
        spectra += self.mean[channels].astype(values.dtype)
        return spectra

    def residual(self, spectra: ArrayLike) -> NDArray[np.floating]:
        """Return what the components leave of the spectra, same shape."""
        return self._checked(spectra) - self.denoise(spectra)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the whole as plain arrays, for `numpy.savez`; none of them is an object array."""
        return {
            "mean": self.mean,
            "components": self.components,
            "scale": self.scale,
            "eigenvalues": self.eigenvalues,
            "rank": np.asarray(self.rank),
            "rank_method": np.asarray(self.rank_method),
            "signal_to_noise": self.signal_to_noise,
            "reproducibility": self.reproducibility,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Build it again from what `to_arrays` returned."""
        names = ("mean", "components", "scale", "eigenvalues", "signal_to_noise", "reproducibility")
        values = {name: np.asarray(arrays[name], dtype=np.float64) for name in names}
        return cls(rank=int(arrays["rank"]), rank_method=str(arrays["rank_method"]), **values)

    def _checked(self, spectra: ArrayLike) -> NDArray[np.floating]:
        values = np.asarray(spectra)
        if values.shape[-1:] != self.mean.shape:
            raise InputError(
                f"spectra have the shape {values.shape}; the components were fitted to {self.mean.size} channels: "
                "prepare the spectra on the same energy axis"
            )
        return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)


class PilotSums:
    """Sums of the deviations of spectra from a pilot mean, and of the outer products of these deviations.

    Add spectra a block at a time, then those of other blocks, then ask for the moments. A pilot near the mean of all
    lets single precision multiply without cancellation; it need not be exact: the rest is put right in the end.

    Parameters
    ----------
    pilot
        Shape (channels,), float32; the same for all that is to be added up.
    """

    def __init__(self, pilot: NDArray[np.float32]) -> None:
        self.pilot = pilot
        self.n = 0
        self.first = np.zeros(pilot.size)
        self.second = np.zeros((pilot.size, pilot.size))  # the upper triangle is filled
        # what is not in `second` yet: deviations, and the same triangle of the sum of products
        self._deviations: NDArray[np.float32] | None = None
        self._products: NDArray[np.float32] | None = None
        self._n_deviations = self._n_products = 0

    def add_spectra(self, spectra: NDArray[Any], chosen: NDArray[np.bool_]) -> None:
        """Add the chosen ones of spectra, shape (n, channels), by a symmetric update (BLAS ssyrk).

        Sums of products are single precision for some thousand spectra, until `settle` is called.

        Raises
        ------
        InputError
            If a value is not finite.
        """
        rows = np.flatnonzero(chosen)
        if self._deviations is None:
            self._deviations = np.empty((_ROWS_A_PRODUCT, self.pilot.size), dtype=np.float32)
        start = 0
        while start < rows.size:
            some = rows[start : start + _ROWS_A_PRODUCT - self._n_deviations]
            subtract_pilot(spectra, some, self.pilot, self._deviations[self._n_deviations :], self.first)
            self._n_deviations += some.size
            start += some.size
            if self._n_deviations == _ROWS_A_PRODUCT:
                self._multiply()
        if not np.isfinite(self.first).all():
            raise InputError(_NOT_FINITE)
        self.n += rows.size

    def _multiply(self) -> None:
        """Turn the deviations into products; add these to the sums in double where they are of enough spectra."""
        assert self._deviations is not None
        if self._products is None:
            self._products = np.empty((self.pilot.size, self.pilot.size), dtype=np.float32)
        add_products(self._deviations[: self._n_deviations], self._products, keep=self._n_products > 0)
        self._n_products += self._n_deviations
        self._n_deviations = 0
        if self._n_products >= _ROWS_IN_SINGLE:
            add_triangle(self._products, self.second)
            self._n_products = 0

    def settle(self) -> None:
        """Add what is in single precision to the sums in double, and give its memory back."""
        if self._n_deviations:
            self._multiply()
        if self._products is not None and self._n_products:
            add_triangle(self._products, self.second)
        self._deviations = self._products = None
        self._n_products = 0

    def add(self, other: PilotSums) -> None:
        """Add the sums of other spectra."""
        self.settle()
        other.settle()
        self.n += other.n
        self.first += other.first
        self.second += other.second

    def moments(self) -> Moments:
        """Return the moments of all that was added."""
        self.settle()
        rest = self.first / max(self.n, 1)
        scatter = np.empty_like(self.second)
        scatter_about_mean(self.second, float(self.n), rest, scatter)
        mean = self.pilot + rest if self.n else np.zeros(self.pilot.size)
        return Moments(self.n, mean, scatter, np.zeros(self.pilot.size))


def add_products(rows: NDArray[np.float32], total: NDArray[np.float32], *, keep: bool) -> None:
    """Add ``rows.T @ rows`` to the upper triangle of `total`, or set it where nothing is to be kept.

    Parameters
    ----------
    rows
        Shape (n, channels), in C order.
    total
        Shape (channels, channels), in C order; changed in place.
    keep
        Whether what `total` holds counts.

    Notes
    -----
    BLAS ssyrk, called by its address: SciPy's own wrapper keeps the interpreter's lock, so that two threads would
    multiply one after the other.
    """
    n, channels = rows.shape
    size, depth = ctypes.c_int(channels), ctypes.c_int(n)
    one, before = ctypes.c_float(1.0), ctypes.c_float(1.0 if keep else 0.0)
    # Read in Fortran order, as BLAS does, rows are transposed already, and the lower triangle is our upper one.
    _ssyrk()(b"L", b"N", size, depth, one, rows.ctypes.data, size, before, total.ctypes.data, size)


@lru_cache(maxsize=1)
def _ssyrk() -> Callable[..., None]:
    from numba.extending import get_cython_function_address

    integer, number = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_float)
    letters, array = ctypes.c_char_p, ctypes.c_void_p
    call = ctypes.CFUNCTYPE(None, letters, letters, integer, integer, number, array, integer, number, array, integer)
    return call(get_cython_function_address("scipy.linalg.cython_blas", "ssyrk"))


def moments_of(spectra: ArrayLike, *, variance: ArrayLike | None = None) -> Moments:
    """Reduce spectra to their moments.

    Parameters
    ----------
    spectra
        Shape (..., channels), finite. May be empty of spectra. Not modified.
    variance
        Noise variance of each value, broadcastable to `spectra`; needed for ``scaling="variance"``.

    Raises
    ------
    InputError
        If a value is not finite.

    Notes
    -----
    The products are formed about the mean of each 2048 spectra, so that float32 input can be multiplied in single
    precision without cancellation (the relative error stays near 1e-7), and are added in double precision. Spikes
    must be gone: one of 5000 counts outweighs the noise of thousands of pixels.
    """
    values = np.asarray(spectra)
    rows = values.reshape(-1, values.shape[-1])
    channels = rows.shape[1]
    total = Moments(0, np.zeros(channels), np.zeros((channels, channels)), np.zeros(channels))
    noise = None if variance is None else np.broadcast_to(np.asarray(variance), values.shape).reshape(rows.shape)
    for start in range(0, rows.shape[0], _ROWS_AT_ONCE):
        block = rows[start : start + _ROWS_AT_ONCE]
        block = block if block.dtype == np.float64 else block.astype(np.float32, copy=False)
        mean = block.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            raise InputError(_NOT_FINITE)
        # the mean as rounded is what is subtracted, so the rest is put right below by its own mean
        pilot = mean.astype(block.dtype)
        centred = block - pilot
        scatter = (centred.T @ centred).astype(np.float64)
        rest = mean - pilot
        scatter -= block.shape[0] * np.multiply.outer(rest, rest)
        part = (
            np.zeros(channels) if noise is None else noise[start : start + _ROWS_AT_ONCE].sum(axis=0, dtype=np.float64)
        )
        total = merge(total, Moments(block.shape[0], mean, scatter, part))
    return total


def split_moments(
    spectra: ArrayLike, half: ArrayLike | None = None, *, variance: ArrayLike | None = None
) -> SplitMoments:
    """Reduce spectra to the moments of two halves.

    Parameters
    ----------
    spectra
        Shape (..., channels). Not modified.
    half
        Which half each spectrum belongs to, boolean, shape of `spectra` without channels. In a block of an image give
        ``(y + x) % 2 == 1`` of the pixel's place in the whole image. Default: every second spectrum.
    variance
        As in `moments_of`.
    """
    values = np.asarray(spectra)
    rows = values.reshape(-1, values.shape[-1])
    which = np.arange(rows.shape[0]) % 2 == 1 if half is None else np.asarray(half, dtype=bool).reshape(-1)
    noise = None if variance is None else np.broadcast_to(np.asarray(variance), values.shape).reshape(rows.shape)
    first, second = (
        moments_of(rows[chosen], variance=None if noise is None else noise[chosen]) for chosen in (~which, which)
    )
    return first, second


def merge(first: Moments, second: Moments) -> Moments:
    """Return the moments of two sets of spectra together (Chan, Golub & LeVeque 1983, their pairwise update).

    Equal to the moments of all spectra at once but for rounding; merge blocks in a fixed order to get the same
    rounding too.

    Raises
    ------
    InputError
        If the two have different numbers of channels.
    """
    if first.n_channels != second.n_channels:
        raise InputError(
            f"moments of {first.n_channels} and {second.n_channels} channels cannot be merged; "
            "every block must hold the same energy axis"
        )
    if first.n == 0 or second.n == 0:
        return second if first.n == 0 else first
    n = first.n + second.n
    delta = second.mean - first.mean
    scatter = first.scatter + second.scatter
    scatter += (first.n * second.n / n) * np.multiply.outer(delta, delta)
    mean = first.mean + delta * (second.n / n)
    return Moments(n, mean, scatter, first.variance_sum + second.variance_sum)


def merge_split(parts: Iterable[SplitMoments]) -> SplitMoments:
    """Return the split moments of all blocks, merged in the order given."""
    iterator = iter(parts)
    try:
        first, second = next(iterator)
    except StopIteration:
        raise InputError("there is no block to merge; an image has at least one") from None
    for other_first, other_second in iterator:
        first, second = merge(first, other_first), merge(second, other_second)
    return first, second


def fit_pca(
    moments: Moments | SplitMoments, *, rank: int | Literal["auto"] = "auto", scaling: Scaling | None = "poisson"
) -> Pca:
    """Fit principal components to moments.

    Parameters
    ----------
    moments
        Of all spectra, or of two halves of them (`split_moments`); the halves are needed for ``rank="auto"``.
    rank
        Number of components, or "auto" to keep those that reproduce above the noise.
    scaling
        "poisson": channels divided by the square root of their mean (Keenan & Kotula 2004, their scaling of the
        channels; a scaling of the pixels is left out, it would weigh the thin ones most). "variance": by the square
        root of their mean noise variance, which the moments must carry. None: as they are.

    Raises
    ------
    InputError
        If there are fewer than 2 spectra (8 for "auto"), the rank exceeds what the spectra span, the halves are
        missing for "auto", or the variances for "variance".

    Notes
    -----
    Components are eigenvectors of ``scatter / (n - 1) / outer(scale, scale)``: the principal components of the
    scaled spectra about their mean, exactly. Channels of zero or negative mean take a floor (`poisson_scale`).

    Rank. The noise of neighbouring channels is correlated, so thresholds for white noise (Marchenko-Pastur) pass
    many components of pure noise. Here the components of one half of the pixels are fitted, and the variance of the
    *other* half along each is compared with the noise's along the same direction: the direction knows nothing of
    that half's noise, so the ratio is 1 without signal, whatever the correlation. The noise covariance is read from
    the moments themselves: a variance a channel and a correlation against distance (up to 32 channels), fitted to
    what lies outside the leading components, whose number is changed until it agrees with the rank. The rank counts
    the components up to the last whose excess over the noise, both ways averaged, is at least 25 % of it and 5
    standard errors; one before it may fail, as a spike does that only one half holds. At least 1; the method says
    so where none passes. The two thresholds are ours: a component with less signal than a quarter of the noise
    adds more noise than signal to a denoised spectrum.
    """
    halves = moments if isinstance(moments, tuple) else None
    whole = merge(*halves) if halves is not None else moments
    assert isinstance(whole, Moments)
    if whole.n < 2:
        raise InputError(f"{whole.n} spectrum has no principal components; fit them to 2 spectra or more")
    scale = _scale(whole, scaling)
    most = min(whole.n - 1, whole.n_channels)
    if rank != "auto" and not 1 <= rank <= most:
        raise InputError(
            f"rank {rank} was asked for, but {whole.n} spectra of {whole.n_channels} channels span at most {most} "
            f"components: choose 1 to {most}, or 'auto'"
        )
    n_looked_at = min(most, MAX_RANK)
    eigenvalues, vectors = _leading(whole, scale, max(n_looked_at, 0 if rank == "auto" else rank))
    evidence = np.empty(0), np.empty(0)
    if rank == "auto":
        if halves is None:
            raise InputError(
                "rank 'auto' compares two halves of the pixels, but the moments of only one set were given; "
                "accumulate them with split_moments, or choose the rank"
            )
        kept, method, *evidence_list = _choose_rank(halves, whole, scale)
        evidence = (evidence_list[0], evidence_list[1])
    else:
        kept, method = rank, f"rank {rank} as given"
    components = vectors[:kept]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(kept), largest])[:, None]
    return Pca(whole.mean, components, scale, eigenvalues, kept, method, *evidence)


def _scale(whole: Moments, scaling: Scaling | None) -> NDArray[np.float64]:
    """Return what the channels are divided by."""
    if scaling == "poisson":
        return poisson_scale(whole.mean)
    if scaling == "variance":
        if not (whole.variance_sum > 0).any():
            raise InputError(
                "scaling by the noise variance was asked for, but the moments carry none; "
                "pass variance= to moments_of, or use scaling='poisson'"
            )
        return poisson_scale(whole.variance_sum / whole.n)
    return np.ones(whole.n_channels)


def _scaled_covariance(moments: Moments, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of the channels divided by their scale."""
    covariance = moments.scatter / (scale * (moments.n - 1))
    covariance /= scale[:, None]
    return covariance


def _leading(
    moments: Moments, scale: NDArray[np.float64], n_components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the leading eigenvalues, descending, and eigenvectors as rows, of the scaled covariance."""
    from scipy.linalg import eigh
    from scipy.linalg.blas import dsymv
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    covariance = _scaled_covariance(moments, scale)
    channels = moments.n_channels
    wanted = [channels - n_components, channels - 1]
    # Many small products: two threads that wait for each other at each take several times as long as one.
    with one_thread():
        values = vectors = None
        if n_components * _LANCZOS_CHANNELS <= channels:
            # Lanczos' iteration, here to 1e-12 after 2 to 3 restarts; a start that is fixed gives the same answer
            with contextlib.suppress(ArpackNoConvergence):
                start = np.random.default_rng(0).standard_normal(channels)
                # a symmetric product reads half of the matrix, and reading is what takes the time
                operator = LinearOperator(
                    covariance.shape, matvec=lambda x: dsymv(1.0, covariance.T, x), dtype=np.float64
                )
                space = _LANCZOS_SPACE * n_components
                values, vectors = eigsh(operator, n_components, v0=start, ncv=space, tol=1e-10)
        if values is None or vectors is None:
            values, vectors = eigh(covariance, subset_by_index=wanted, overwrite_a=True, check_finite=False)
    order = np.argsort(values)[::-1]
    return np.maximum(values[order], 0.0), np.ascontiguousarray(vectors[:, order].T)


def _choose_rank(
    halves: SplitMoments, whole: Moments, scale: NDArray[np.float64]
) -> tuple[int, str, NDArray[np.float64], NDArray[np.float64]]:
    """Return the rank, the method in words, the excess over the noise and the reproducibility of each component."""
    smallest = min(half.n for half in halves)
    if smallest < 4:
        raise InputError(
            f"{whole.n} spectra are too few to choose a rank from: each half needs 4; give the rank as a number"
        )
    n_looked_at = max(min(MAX_RANK, smallest // 2, whole.n_channels // 16), 1)
    covariances = [_scaled_covariance(half, scale) for half in halves]
    bases: list[NDArray[np.float64]] = [
        leading_directions(covariance, n_looked_at, n_rounds=15).astype(np.float64) for covariance in covariances
    ]
    others = covariances[::-1]  # each half is looked at along the components of the other
    crossed = np.array(
        [np.einsum("kc,kc->k", basis @ other, basis) for basis, other in zip(bases, others, strict=True)]
    )
    # of a ratio of variances: sqrt(2 / n), over sqrt(2) as both ways are averaged
    threshold = max(_EXCESS, _SIGNIFICANCE / np.sqrt(smallest))
    # Signal not taken out raises the noise estimate, and too much taken out leaves little to estimate from: start in
    # between and follow the rank that is found. What is taken out is shown by the other half, so noise that went
    # with it is accounted for.
    assumed, tried = min(_FIRST_GUESS, n_looked_at), set[int]()
    while assumed not in tried:
        tried.add(assumed)
        noise = _noise_band([basis[:assumed] for basis in bases], others)
        along = np.array([np.einsum("kc,kc->k", _times_band(basis, noise), basis) for basis in bases])
        # a band cut from a covariance need not be one: noise that is correlated is not much weaker than white noise
        white = np.array([basis**2 @ noise[0] for basis in bases])
        # noiseless data: rounding stands for the noise
        along = np.maximum(along, np.maximum(0.25 * white, 1e-12 * crossed.max(initial=1e-300)))
        excess = (crossed / along).mean(axis=0) - 1.0
        passed = excess >= threshold
        # up to the last that passes, not the first that fails: a spike is a strong component of one half alone
        rank = int(passed.nonzero()[0].max(initial=-1)) + 1
        assumed = rank
    cosines = (bases[0] @ bases[1].T) ** 2
    # near-equal eigenvalues swap places between halves, hence the next component too
    reproducibility = np.array(
        [0.5 * (cosines[k, : k + 2].sum() + cosines[: k + 2, k].sum()) for k in range(n_looked_at)]
    )
    method = (
        f"split half: of {n_looked_at} components of {halves[0].n} and {halves[1].n} pixels, {rank} lead up to the "
        f"last that reproduces in the other half with at least {threshold:.0%} more variance than the "
        "channel-correlated noise"
    )
    if rank == 0:
        method += "; none stands above the noise: 1 was kept, and the spectra may hold no signal that varies"
    elif rank == n_looked_at:
        method += "; all that were looked at pass: there may be more"
    return max(rank, 1), method, excess, np.minimum(reproducibility, 1.0)


def _noise_band(bases: list[NDArray[np.float64]], covariances: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the noise covariance by distance, shape (lags, channels): entry (k, i) is that of channels i and i + k.

    The noise is described by a variance a channel and one correlation a distance (the median over the channels, so
    that signal left in a few does not count), zero beyond `_NOISE_LAGS`. Seen is what lies outside each basis, which
    was fitted to *other* spectra than its covariance, so that
    ``E[(1 - P) C (1 - P)] = (1 - P) N (1 - P)`` without bias. What the projection hides is filled in from the
    description so far, until the description stays the same.
    """
    # a correlation of so many lags tells apart so many frequencies; the basis must not hide the lowest of them
    n_hidden = max(basis.shape[0] for basis in bases)
    n_lags = min(_NOISE_LAGS, bases[0].shape[1] // max(3 * n_hidden, 8)) + 1
    seen = np.mean(
        [
            _band(covariance, n_lags) - _hidden_band(basis, basis @ covariance, n_lags)
            for basis, covariance in zip(bases, covariances, strict=True)
        ],
        axis=0,
    )
    full = seen
    channels = seen.shape[1]
    for _ in range(60):
        sigma = np.sqrt(np.maximum(full[0], 1e-12 * max(full[0].max(), 1e-300)))
        described = np.zeros_like(full)
        for k in range(n_lags):
            products = sigma[: channels - k] * sigma[k:]
            correlation = float(np.clip(np.median(full[k, : channels - k] / products), -1.0, 1.0))
            described[k, : channels - k] = correlation * products
        hidden = np.mean([_hidden_band(basis, _times_band(basis, described), n_lags) for basis in bases], axis=0)
        previous, full = full, seen + hidden
        if np.abs(full - previous).max() <= 1e-3 * np.abs(full[0]).max():
            break
    return np.asarray(described)


def _band(matrix: NDArray[np.float64], n_lags: int) -> NDArray[np.float64]:
    """Return the diagonals 0 to n_lags - 1 of a symmetric matrix as rows, zero past their ends."""
    band = np.zeros((n_lags, matrix.shape[0]))
    for k in range(n_lags):
        band[k, : matrix.shape[0] - k] = np.diagonal(matrix, k)
    return band


def _times_band(rows: NDArray[np.float64], band: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows times the symmetric matrix whose diagonals are given."""
    product = rows * band[0]
    channels = rows.shape[1]
    for k in range(1, band.shape[0]):
        product[:, k:] += rows[:, : channels - k] * band[k, : channels - k]
        product[:, : channels - k] += rows[:, k:] * band[k, : channels - k]
    return np.asarray(product)


def _hidden_band(basis: NDArray[np.float64], product: NDArray[np.float64], n_lags: int) -> NDArray[np.float64]:
    """Return the diagonals of ``C - (1 - P) C (1 - P)``, with P the projector on `basis` and `product` = basis C."""
    inner = (product @ basis.T) @ basis
    channels = basis.shape[1]
    band = np.zeros((n_lags, channels))
    for k in range(n_lags):
        stop = channels - k
        band[k, :stop] = np.einsum("ri,ri->i", basis[:, :stop], product[:, k:])
        band[k, :stop] += np.einsum("ri,ri->i", product[:, :stop] - inner[:, :stop], basis[:, k:])
    return band
