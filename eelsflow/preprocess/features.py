"""From prepared spectra to the vectors a classifier sees: the part of a preset that is fitted on a training set.

The order is shift (only to test robustness, or to augment) -> crop to the fine-structure window -> principal
components of spectra divided by their mean -> normalise -> one constant of the training set. The shift comes first and
on the wide spectra, so that what enters the window at its edges is what the detector recorded there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.edges import Edge
from eelsflow.energy import Axis, EnergyAxis, axis_of, format_window, stretches
from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.preprocess.normalize import NormalizeMethod, feature_scale, normalize
from eelsflow.preprocess.pca import Pca, Scaling, fit_pca, split_moments
from eelsflow.preprocess.presets import Normalize, Preset
from eelsflow.preprocess.presets import Pca as PcaStep
from eelsflow.store import read_json, write_json

if TYPE_CHECKING:
    import xarray as xr

MAX_OVERHANG = 1.0
"""How far, in eV, the fine-structure window may reach past a ready table's axis; it is clipped there."""

MIN_TRAINING_RANK = 5
"""Components that a classifier is given at the least, whatever stands above the noise (our choice).

The automatic rank is right for a denoised spectrum, where a component weaker than the noise does more harm than good.
A classifier adds up many spectra: on simulated oxides whose contrast is below the noise of a pixel, rank 1 gave .59
on held-out acquisitions and ranks 2 to 20 gave .74 to .78 (benchmarks/contrast.py, seed 1). 5 stand above the noise of
a real image of iron oxides.
"""

_SCHEMA = "eelsflow-features/2"
_BLOCK = 8192  # spectra worked on at once, so that temporaries stay below a block of a spectrum image


class FeatureTransform:
    """Turn wide prepared spectra into vectors; fitted on the training spectra alone.

    Attributes
    ----------
    edge, preset
        What it was fitted for.
    axis
        Of the wide spectra.
    channels
        The fine-structure window on that axis.
    scale
        The constant that vectors are multiplied by.
    pca
        Of the training spectra on the fine-structure window; None without that step.
    padded
        Whether the latest `apply` had to repeat a spectrum's last channel because nothing wider was recorded.
    """

    def __init__(
        self,
        *,
        edge: Edge,
        preset: Preset,
        axis: EnergyAxis,
        scale: float,
        pca: Pca | None = None,
    ) -> None:
        self.edge = edge
        self.preset = preset
        self.axis = axis
        self.channels = _window_channels(axis, edge)
        self.scale = scale
        self.pca = pca
        self.padded = False

    @classmethod
    def fit(
        cls,
        wide: NDArray[np.float32],
        energy_loss: ArrayLike,
        *,
        edge: Edge,
        preset: Preset,
        variance: NDArray[np.float32] | None = None,
    ) -> Self:
        """Fit on training spectra.

        Parameters
        ----------
        wide
            Prepared intensity, shape (n, channels); NaN only outside the fine-structure window. Not modified.
        energy_loss
            Shape (channels,), eV, corrected.
        edge
            Its `elnes_window` is what the vectors hold. A table's axis may end up to 1 eV inside the window.
        preset
            Its training steps are fitted.
        variance
            Of `wide`, shape (n, channels) or (channels,); the principal components are weighted by it. None weights
            all channels alike.

        Raises
        ------
        EdgeOutOfRangeError
            If the axis does not cover the fine-structure window.
        InputError
            If spectra have no data inside the window, cannot be normalised, or there are none.

        Notes
        -----
        Principal components are fitted on the fine-structure window and not on the wide spectra, which the text of a
        method might suggest: a component over the wide window would carry what lies outside, held edges of shifted
        spectra included, into every vector. Channels are weighted by their mean variance over the training set.
        """
        axis = EnergyAxis.from_values(energy_loss)
        channels = _window_channels(axis, edge)
        cropped = _crop(np.asarray(wide), axis, channels, edge)
        if len(cropped) == 0:
            raise InputError("there are no training spectra to fit the features on; label some acquisitions first")
        step = next((step for step in preset.training_steps if isinstance(step, PcaStep)), None)
        pca = None
        if step is not None:
            area = _area(cropped)
            noise = None
            if variance is not None:
                noise = np.broadcast_to(np.asarray(variance)[..., channels], cropped.shape) / area**2
            pca = _fit_components(cropped / area, noise, step)
        transform = cls(edge=edge, preset=preset, axis=axis, scale=1.0, pca=pca)
        method = transform._method
        if method not in ("min_max", "none"):
            denoised = transform._denoise(cropped)
            transform.scale = feature_scale(normalize(denoised, method), normalize(denoised, "min_max"))
        else:
            transform._normalize(transform._denoise(cropped))  # what cannot be normalised is refused now, not later
        return transform

    def apply(self, wide: NDArray[np.float32], shift_ev: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return the vectors of wide spectra.

        Parameters
        ----------
        wide
            Shape (m, channels), on the axis of the training spectra; not modified.
        shift_ev
            How far the features are moved to higher energy before anything else, eV: one value, or shape (m,).
            Sub-channel shifts interpolate linearly. Sets `padded`.

        Returns
        -------
        Shape (m, channels of the fine-structure window), float32.

        Raises
        ------
        InputError
            If spectra are not on the training axis, lack data inside the window or cannot be normalised.
        """
        self.padded = False
        wide = self._check(wide)
        vectors = np.empty((len(wide), self.n_channels), dtype=np.float32)
        for rows, cropped in self._cropped(wide, shift_ev):
            vectors[rows] = self._normalize(self._denoise(cropped))
        return vectors

    def before_components(
        self, wide: NDArray[np.float32], shift_ev: ArrayLike | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the vectors of wide spectra, and the same before principal components were taken.

        Parameters
        ----------
        wide, shift_ev
            As for `apply`, as are the errors.

        Returns
        -------
        vectors
            As `apply` returns them, shape (m, channels of the fine-structure window).
        before
            Same shape: what the detector recorded, with the offset and the scale that its vector was normalised by. A
            change of `before` changes the vector by that times `component_map`, where offset and scale are kept.
        """
        wide = self._check(wide)
        vectors, before = np.empty((2, len(wide), self.n_channels), dtype=np.float32)
        for rows, cropped in self._cropped(wide, shift_ev):
            denoised = self._denoise(cropped)
            vectors[rows] = self._normalize(denoised)
            centred = denoised - denoised.mean(axis=1, keepdims=True, dtype=np.float64)
            scale = (centred * vectors[rows]).sum(axis=1, keepdims=True) / (centred**2).sum(axis=1, keepdims=True)
            before[rows] = vectors[rows] + scale * (cropped - denoised)
        return vectors, before

    @property
    def component_map(self) -> NDArray[np.float64] | None:
        """What the principal components make of a change of each channel, (channels, channels); None without them."""
        if self.pca is None:
            return None
        return np.asarray(self.pca.denoise(np.eye(self.n_channels)) - self.pca.denoise(np.zeros((1, self.n_channels))))

    def _cropped(
        self, wide: NDArray[np.float32], shift_ev: ArrayLike | None
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield rows and their fine-structure windows, shifted; sets `padded` where a shift repeats a channel."""
        shifts = None if shift_ev is None else np.broadcast_to(np.asarray(shift_ev, dtype=np.float64), (len(wide),))
        for begin in range(0, len(wide), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            cropped = _crop(wide[rows], self.axis, self.channels, self.edge)
            if shifts is not None:
                cropped, padded = _shift(wide[rows], self.axis, self.channels, shifts[rows])
                self.padded |= padded
            yield rows, cropped

    @property
    def energy_loss(self) -> NDArray[np.float64]:
        """Energies of the vectors' channels, shape (channels of the fine-structure window,), eV."""
        return self.axis.values[self.channels]

    @property
    def n_channels(self) -> int:
        """Length of a vector."""
        return int(self.channels.stop - self.channels.start)

    @property
    def index(self) -> NDArray[np.intp]:
        """Channel of the wide spectra that each channel of a vector is, shape (channels of a vector,)."""
        return np.arange(self.channels.start, self.channels.stop)

    @property
    def reach(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First and last channel of the stretch of the axis that each channel of a vector lies in, same shape."""
        return np.zeros(self.n_channels, dtype=np.intp), np.full(self.n_channels, self.axis.size - 1)

    def save(self, directory: Path) -> None:
        """Write ``features.json``, and ``features.npz`` where components were fitted, into an existing directory."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.pca is not None:
            arrays = {f"pca_{name}": array for name, array in self.pca.to_arrays().items()}
        if arrays:
            np.savez(directory / "features.npz", **arrays)  # type: ignore[arg-type]
        write_json(
            directory / "features.json",
            {
                "schema": _SCHEMA,
                "edge": self.edge.model_dump(mode="json"),
                "preset": self.preset.model_dump(mode="json"),
                "axis": {"start": self.axis.start, "dispersion": self.axis.dispersion, "size": self.axis.size},
                "scale": self.scale,
            },
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        UnreadableFileError
            If a file is missing or damaged.
        """
        try:
            values = read_json(directory / "features.json")
            preset = Preset.model_validate(values["preset"])
            pca: dict[str, NDArray[Any]] = {}
            if any(isinstance(step, PcaStep) for step in preset.training_steps):
                # opened here because numpy forgets to close a damaged archive that it opened itself
                with (directory / "features.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                    pca = {name.removeprefix("pca_"): archive[name] for name in archive.files}
            return cls(
                edge=Edge.model_validate(values["edge"]),
                preset=preset,
                axis=EnergyAxis(**values["axis"]),
                scale=values["scale"],
                pca=Pca.from_arrays(pca) if pca else None,
            )
        except SystemError:  # of Python 3.11, where threads read numpy's headers at once: no fault of the file
            raise
        except Exception as error:  # zipfile.BadZipFile, KeyError, OSError and JSON errors share no base class
            raise UnreadableFileError(
                f"{directory} holds no usable feature transform ({type(error).__name__}: {error}); "
                "it needs features.json and features.npz as they were saved: train the model again"
            ) from error

    @property
    def _method(self) -> NormalizeMethod:
        step = self.preset.find(Normalize)
        return "none" if step is None else step.method

    def _denoise(self, cropped: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.pca is None:
            return cropped
        area = _area(cropped)
        return np.asarray(self.pca.denoise(cropped / area) * area, dtype=np.float32)

    def _normalize(self, spectra: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(normalize(spectra, self._method) * np.float32(self.scale), dtype=np.float32)

    def _check(self, wide: NDArray[np.float32]) -> NDArray[np.float32]:
        values = np.asarray(wide)
        if values.ndim != 2 or values.shape[1] != self.axis.size:
            raise InputError(
                f"spectra have shape {values.shape}; this transform was fitted on {self.axis} and takes "
                f"(spectra, {self.axis.size}): prepare the acquisition with the same edge and preset"
            )
        return values


def _window_channels(axis: EnergyAxis, edge: Edge) -> slice:
    edge.require_within(axis, overhang=MAX_OVERHANG, pre_edge=False)
    return axis.channels(edge.elnes_window)


def _crop(wide: NDArray[np.floating], axis: EnergyAxis, channels: slice, edge: Edge) -> NDArray[np.float32]:
    """Return the fine-structure window, refusing spectra that have no data in all of it."""
    cropped = np.asarray(wide[:, channels], dtype=np.float32)
    missing = ~np.isfinite(cropped)
    if missing.any():
        spectra = np.count_nonzero(missing.any(axis=1))
        lacking = axis.values[channels][missing.any(axis=0)]
        raise _lacking(f"{spectra} of {len(wide)} spectra have", lacking, edge)
    return cropped


def require_window(product: xr.Dataset, edge: Edge) -> None:
    """Refuse a prepared product that has no data in a part of the fine-structure window, as `FeatureTransform` would.

    Parameters
    ----------
    product
        As `eelsflow.preprocess.chain.prepare` returns it; no pixel of it is read.
    edge
        It was prepared for.

    Raises
    ------
    EdgeOutOfRangeError
        If its axis, which is corrected, does not cover the window.
    InputError
        If the detector ended inside the window.
    """
    axis, valid = axis_of(product["energy_loss"].values), product["valid"].values
    for (piece, where), one in zip(stretches(axis), edge.alone, strict=True):
        channels = _window_channels(piece, one)
        lacking = piece.values[channels][~valid[where][channels]]
        if lacking.size:
            raise _lacking("its spectra have", lacking, one)


def _lacking(what: str, lacking: NDArray[np.float64], edge: Edge) -> InputError:
    return InputError(
        f"{what} no data at {lacking[0]:.1f}-{lacking[-1]:.1f} eV, inside the ELNES window "
        f"{format_window(edge.elnes_window)} of {edge.name}: the detector ended there once the axis was corrected; "
        "leave that acquisition out, or choose a narrower elnes_window"
    )


def _shift(
    wide: NDArray[np.floating], axis: EnergyAxis, channels: slice, shift_ev: NDArray[np.float64]
) -> tuple[NDArray[np.float32], bool]:
    """Return the window of spectra moved to higher energy, and whether a last channel had to be repeated."""
    recorded = np.isfinite(wide)
    first = recorded.argmax(axis=1)[:, None]
    last = axis.size - 1 - recorded[:, ::-1].argmax(axis=1)[:, None]
    wanted = np.arange(channels.start, channels.stop) - (shift_ev / axis.dispersion)[:, None]
    position = np.clip(wanted, first, last)
    below = np.floor(position).astype(np.intp)
    fraction = (position - below).astype(np.float32)
    low = np.take_along_axis(wide, below, axis=1)
    high = np.take_along_axis(wide, np.minimum(below + 1, last), axis=1)
    shifted = low + fraction * (high - low)
    # A thousandth of a channel is rounding of the axis, not missing data.
    padded = bool(np.any(np.abs(position - wanted) > 1e-3))
    return np.asarray(shifted, dtype=np.float32), padded


def shift_spectra(wide: NDArray[np.floating], axis: Axis, shift_ev: NDArray[np.float64] | float) -> NDArray[np.float32]:
    """Return whole spectra moved to higher energy, (n, channels); beyond what was recorded the last value is held.

    Parameters
    ----------
    wide
        Shape (n, channels), on `axis`; not modified.
    axis
        Theirs.
    shift_ev
        One value, or shape (n,).
    """
    shifts = np.broadcast_to(np.asarray(shift_ev, dtype=np.float64), (len(wide),))
    of_stretches = [_shift(wide[:, where], piece, slice(0, piece.size), shifts)[0] for piece, where in stretches(axis)]
    return np.concatenate(of_stretches, axis=1) if len(of_stretches) > 1 else of_stretches[0]


def _area(cropped: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what spectra are divided by before components are fitted, shape (n, 1): their mean counts in the window.

    Components of counts would mean something at one scale of counts only. A spectrum whose mean is lost in its own
    fluctuations has no scale; it is divided by these, so that it stays finite.
    """
    mean = cropped.mean(axis=1, dtype=np.float64, keepdims=True)
    least = 0.1 * cropped.std(axis=1, dtype=np.float64, keepdims=True)
    scale = np.maximum(np.abs(mean), least)
    return np.asarray(np.where(scale > 0, scale, 1.0), dtype=np.float32)


def _fit_components(cropped: NDArray[np.float32], noise: NDArray[np.float32] | None, step: PcaStep) -> Pca:
    """Fit the principal components of training spectra on the fine-structure window, weighted by their variance."""
    half = _shuffled(len(cropped)) % 2 == 1
    if noise is not None:
        if not np.isfinite(noise).all() or (noise < 0).any():
            raise InputError(
                "the variance of training spectra is negative or not finite inside the ELNES window, so channels "
                "cannot be weighted by it; pass the variance of the prepared product, or None"
            )
        noise = noise if noise.any() else None  # noiseless spectra: there is nothing to weight by
    moments = split_moments(cropped, half, variance=noise)
    scaling: Scaling | None = None if noise is None else "variance"
    pca = fit_pca(moments, rank=step.rank, scaling=scaling)
    floor = min(MIN_TRAINING_RANK, cropped.shape[1], len(cropped) - 1)
    if step.rank != "auto" or pca.rank >= floor:
        return pca
    method = f"{pca.rank_method}; raised to {floor}, the least that a classifier is given"
    return replace(fit_pca(moments, rank=floor, scaling=scaling), rank_method=method)


def _shuffled(n: int) -> NDArray[np.int64]:
    """Return 0..n-1 in an order that is always the same and follows no order of the spectra.

    Classes and acquisitions come one after the other or in turn, so every n-th spectrum is not a fair sample.
    """
    return np.random.default_rng(0).permutation(n)
