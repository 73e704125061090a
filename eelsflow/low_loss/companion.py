"""The low loss of a scan as the companion of its core loss: absolute offset, thickness, single scattering."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.errors import InputError
from eelsflow.io.zarr_store import Block, read_counts
from eelsflow.low_loss.deconvolution import fourier_ratio
from eelsflow.low_loss.elastic import ElasticPart
from eelsflow.low_loss.instrument import Instrument, instrument_of
from eelsflow.low_loss.pair import describe_low_loss, locate_zero_loss, mended, without_gaps
from eelsflow.low_loss.thickness import mean_free_path
from eelsflow.preprocess.companion import Companion
from eelsflow.preprocess.noise import NoiseModel
from eelsflow.preprocess.offset import OffsetEstimate

_LINE_WINDOW = 5  # pixels of a line scan that a drift is the median of
_SURE = 4.0  # standard errors that a row must lie from the others, or nothing drifts
_FLOOR = 0.01  # eV; the voltage between the two exposures is not known better

Array = NDArray[np.float64]


def companion_of(low: xr.DataArray, *, shape: tuple[int, int], store: Path | None = None) -> Companion:
    """Measure a low loss for the preparation of the core loss of the same scan.

    Parameters
    ----------
    low
        The low loss by the schema; of the same pixels, or one spectrum for all.
    shape
        Pixels (y, x) of the core loss.
    store
        The zarr store that `low` was opened from, where workers read the blocks they need; None sends them the counts.

    Raises
    ------
    InputError
        If the pixels are not the same, or no zero-loss peak shows.
    SpectrumImageSchemaError
        If `low` does not follow the schema.
    """
    require_same_scan(low, shape)
    measured = locate_zero_loss(low)
    described = describe_low_loss(measured, low)
    maps = {
        name: np.broadcast_to(described[name].values, shape).astype(np.float32)
        for name in ("t_over_lambda", "t_over_lambda_error")
    }
    maps["zero_loss_offset"] = np.broadcast_to(described["offset"].values, shape).astype(np.float32)
    position = measured.zero_loss.position
    seen = np.isfinite(position)
    error = float(np.sqrt(np.nanmean(described["offset_error"].values ** 2) / seen.sum()))
    along, drift = _drift(-position - float(described.attrs["offset"]), described["offset_error"].values)
    warnings = []
    if not seen.all():
        n = int((~seen).sum())
        warnings.append(f"{n} of {seen.size} spectra of the low loss {'shows' if n == 1 else 'show'} no zero-loss peak")
    return Companion(
        offset=OffsetEstimate(float(described.attrs["offset"]), float(np.hypot(error, _FLOOR))),
        drift=None if drift is None else np.broadcast_to(drift, shape),
        maps=maps,
        units={"zero_loss_offset": "eV"},
        facts={
            "source": low.attrs.get("source", ""),
            "sha256": low.attrs.get("sha256", ""),
            "offset": {"value": float(described.attrs["offset"]), "error": error},
            "drift": float(np.ptp(along)),
            "resolution": float(described.attrs["resolution"]),
            "instrument": asdict(instrument_of(low)),
        },
        plural=FourierRatio(
            source=store if store is not None else np.asarray(low.values),
            elastic=measured.elastic,
            noise=measured.noise,
            dead_channels=tuple(measured.dead_channels),
        ),
        warnings=tuple(warnings),
    )


def is_same_scan(low: xr.DataArray, shape: tuple[int, ...]) -> bool:
    """Tell whether a low loss has the pixels (y, x) of a core loss, or one spectrum for all of them."""
    return low.shape[:2] in (tuple(shape), (1, 1))


def require_same_scan(low: xr.DataArray, shape: tuple[int, ...]) -> None:
    """Refuse a low loss of other pixels.

    Raises
    ------
    InputError
        Naming both numbers of pixels.
    """
    if not is_same_scan(low, shape):
        raise InputError(
            f"the low loss has {low.shape[0]} x {low.shape[1]} pixels and the core loss {shape[0]} x {shape[1]}; "
            "expected the same scan, or one spectrum for all: name the low loss that belongs to it"
        )


def describe_companion(product: xr.Dataset, *, density: float | None = None) -> dict[str, Any] | None:
    """Return what the low loss says of a prepared acquisition, as JSON values; None where there was none.

    Parameters
    ----------
    product
        Of `eelsflow.preprocess.chain.prepare`, with a companion.
    density
        Of the specimen, g/cm^3; with beam energy and angles from the file it makes nanometres of t/lambda.

    Returns
    -------
    dict
        ``source``, ``sha256``, ``offset`` {value, error} of the zero loss, ``edge_offset`` {value, error}, ``drift``,
        ``resolution`` (all eV), ``t_over_lambda`` {median, low, high} over the specimen, ``mean_free_path`` and
        ``thickness`` {median, low, high} in nm or None, ``instrument``, ``deconvolved``, ``drift_followed``.
    """
    text = product.attrs.get("low_loss")
    if not text:
        return None
    facts: dict[str, Any] = json.loads(text)
    specimen = product["t_over_lambda"].values[~product["vacuum_mask"].values]
    known = specimen[np.isfinite(specimen)].astype(np.float64)
    relative = _spread(known)
    path = path_of(Instrument(**facts["instrument"]), density)
    value, error = product.attrs["edge_offset"], product.attrs["edge_offset_error"]
    return {
        **facts,
        "edge_offset": None if value is None else {"value": float(value), "error": float(error)},
        "t_over_lambda": relative,
        "mean_free_path": path,
        "thickness": {name: path * of for name, of in relative.items()} if path and relative else None,
    }


def path_of(instrument: Instrument, density: float | None) -> float | None:
    """Return the mean free path in nm, or None where density, beam energy or collection angle are not known."""
    if density is None or instrument.beam_energy is None or instrument.collection_angle is None:
        return None
    return mean_free_path(
        beam_energy=instrument.beam_energy,
        collection_angle=instrument.collection_angle,
        convergence_angle=instrument.convergence_angle or 0.0,
        density=density,
    )


def _spread(values: Array) -> dict[str, float] | None:
    if not values.size:
        return None
    return {"median": float(np.median(values)), "low": float(values.min()), "high": float(values.max())}


def _drift(apart: Array, error: Array) -> tuple[Array, NDArray[np.float32] | None]:
    """Return how the zero loss drifts along a scan, and the same for every pixel; None where noise explains it.

    Parameters
    ----------
    apart
        What each pixel's energies want beside the offset, shape (y, x), eV; NaN where no zero loss shows.
    error
        Standard errors, same shape.

    Notes
    -----
    The median of each row, or of five pixels of a line scan: a voltage drifts slowly, and single pixels may have a
    spike for a zero loss. Rows without a zero loss lie between their neighbours.
    """
    n_y, n_x = apart.shape
    if n_y > 1:
        windows, errors = apart, error
    else:
        half = _LINE_WINDOW // 2
        padded = [np.pad(values[0], half, constant_values=np.nan) for values in (apart, error)]
        windows, errors = (np.lib.stride_tricks.sliding_window_view(values, _LINE_WINDOW) for values in padded)
    count = np.isfinite(windows).sum(axis=1)
    known = np.flatnonzero(count)
    medians = np.array([np.nanmedian(windows[row]) for row in known])
    along = np.interp(np.arange(len(windows)), known, medians)
    # a median of normal values has 1.25 times the error of their mean
    noise = 1.25 * np.sqrt([np.nanmean(errors[row] ** 2) / count[row] for row in known])
    if not (np.abs(medians - np.median(medians)) > _SURE * noise).any():
        return along, None
    return along, np.broadcast_to(along[:, None] if n_y > 1 else along, (n_y, n_x)).astype(np.float32)


@dataclass(frozen=True)
class FourierRatio:
    """Takes plural scattering out of spectra; see `eelsflow.low_loss.deconvolution`.

    Attributes
    ----------
    source
        The low loss: a zarr store, or counts of shape (y, x, channels).
    elastic
        The zero-loss peaks of the block.
    noise
        Of its counts.
    dead_channels
        Which are interpolated.
    block
        The pixels of a store that are meant; None for all the counts of an array.
    """

    source: Path | NDArray[Any]
    elastic: ElasticPart
    noise: NoiseModel
    dead_channels: tuple[int, ...]
    block: Block | None = None

    def crop(self, block: Block) -> FourierRatio:
        """Return that of some pixels of a whole scan; a single low loss serves any."""
        n_y, n_x = self.elastic.pixels
        if (n_y, n_x) == (1, 1):
            block = Block(slice(0, 1), slice(0, 1))
        number = np.arange(n_y * n_x).reshape(n_y, n_x)[block.y, block.x]
        elastic = replace(
            self.elastic,
            position=self.elastic.position[number.ravel()],
            intensity=self.elastic.intensity[number.ravel()],
            window_counts=self.elastic.window_counts[number.ravel()],
            pixels=number.shape,
        )
        if isinstance(self.source, Path):
            return replace(self, elastic=elastic, block=block)
        return replace(self, elastic=elastic, source=self.source[block.y, block.x])

    def __call__(self, energy_loss: Array, counts: Array, variance: Array, correlation: Array) -> tuple[Array, Array]:
        """Return single scattering and its variance; where no zero loss shows, what was given.

        Parameters are those of `eelsflow.preprocess.companion.PluralScattering`.
        """
        low = self._read()
        elastic = replace(self.elastic, pixels=(len(low),))
        seen = np.isfinite(elastic.position) & np.isfinite(elastic.intensity)
        if not seen.any():
            return counts, variance
        found = fourier_ratio(
            energy_loss,
            counts,
            elastic,
            low,
            core_variance=variance,
            low_variance=self.noise.variance(low),
            correlation=correlation,
        )
        assert found.variance is not None
        known = np.broadcast_to(seen[:, None], counts.shape)
        return np.where(known, found.counts, counts), np.where(known, found.variance, variance)

    def _read(self) -> NDArray[np.floating]:
        counts = self.source
        if isinstance(counts, Path):
            assert self.block is not None
            counts = read_counts(counts, self.block)
        return mended(without_gaps(counts.reshape(-1, counts.shape[-1])), self.dead_channels)
