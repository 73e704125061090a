"""The spectra of a page: read some rows of pixels at a time, as fine as there is room for, and packed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.energy import Axis, EnergyAxis, axis_of, side_by_side, stretches
from eelsflow.errors import InputError
from eelsflow.preprocess.presets import Preset, Rebin
from eelsflow.preprocess.transform import BACKGROUNDS, wide_window
from eelsflow.report.packing import LARGEST, code_rows, pack
from eelsflow.spectrum_image import energy_axis

MOST_PIXELS = 512 * 512
"""Of a larger image every second, third, ... pixel along x and y is in the page."""

PER_OCTAVE = 8
"""Spectra are kept in steps that are whole powers of 2^(1/8), which a page can tell exactly."""

_ROWS = 64  # of pixels that are read at once: those of a store's block
_AT_ONCE = 256  # spectra that are coded at once: 2 MiB stay in the cache


@dataclass(frozen=True)
class Fineness:
    """How much of the spectra a page holds.

    Attributes
    ----------
    recorded, prepared
        Steps that values are kept in, in units of the noise of a channel; 0 keeps whole numbers as they are.
    width
        Channels are added up until they are so wide, eV; 0 keeps them.
    """

    recorded: float
    prepared: float
    width: float = 0.0


FINENESS = (
    Fineness(0.0, 0.25),
    Fineness(0.0, 0.5),
    Fineness(0.0, 1.0),
    Fineness(0.5, 0.5),
    Fineness(0.5, 1.0),
    *(Fineness(1.0, 1.0, width) for width in (0.0, 0.2, 0.5, 1.0, 2.0)),
)
"""From the finest; steps as wide as the noise make it 4 % larger (our choice)."""


@dataclass(frozen=True)
class PackedSpectra:
    """Spectra as a page holds them.

    Attributes
    ----------
    planes
        Of `eelsflow.report.packing`.
    axis
        Of the values; of several edges a stretch for each.
    together
        How many channels are added up in a value.
    power
        Steps of each pixel's values, as a power of 2^(1/8), shape (pixels,).
    exact
        Whether they are whole counts, kept as they are.
    """

    planes: list[str]
    axis: Axis
    together: int
    power: NDArray[np.int32]
    exact: bool


@dataclass(frozen=True)
class Spectra:
    """Spectra of all pixels of a page.

    Attributes
    ----------
    axis
        Of the channels.
    read
        Returns those of some rows of pixels, shape (pixels, channels); zero or NaN where there is none.
    noise
        Returns the standard deviation of the values of those rows, where so many channels are added up, shape
        (pixels,); given the values.
    typical
        Of a channel of a specimen pixel.
    n_rows, n_pixels
        Rows of pixels, and pixels of which there are spectra.
    """

    axis: Axis
    read: Callable[[slice], NDArray[Any]]
    noise: Callable[[NDArray[np.float64], slice, int], NDArray[np.float64]]
    typical: float
    n_rows: int
    n_pixels: int

    def expected_bytes(self, step: float, width: float) -> float:
        """Return about how many bytes the packed spectra have: the entropy of rounded noise, in base64."""
        together = self._together(width)
        steps = 1 / step if step else self.typical * math.sqrt(together)
        bits = max(math.log2(4.133 * max(steps, 0.25)) + 0.3, 1.1)
        return self.n_pixels * sum(piece.size // together for piece, _ in stretches(self.axis)) * bits / 6

    def pack(self, step: float, width: float = 0.0) -> PackedSpectra:
        """Pack all of them; what is left of channels at the end, too few to be added up, is not."""
        together = self._together(width)
        codes, powers = [], []
        for first in range(0, self.n_rows, _ROWS):
            rows = slice(first, min(first + _ROWS, self.n_rows))
            read = self.read(rows)
            n_pixels = len(read) // (rows.stop - rows.start)  # of a row
            at_once = max(1, _AT_ONCE // n_pixels)
            for low in range(rows.start, rows.stop, at_once):
                some = slice(low, min(low + at_once, rows.stop))
                here = slice((some.start - rows.start) * n_pixels, (some.stop - rows.start) * n_pixels)
                coded = self._code(np.asarray(read[here], dtype=np.float64), some, together, step)
                if coded is None:
                    return self.pack(FINENESS[0].prepared, width)  # these are no whole counts
                codes.append(coded[0])
                powers.append(coded[1])
        pieces = [
            EnergyAxis(
                piece.start + 0.5 * (together - 1) * piece.dispersion,
                together * piece.dispersion,
                piece.size // together,
            )
            for piece, _ in stretches(self.axis)
        ]
        return PackedSpectra(pack(codes), side_by_side(pieces), together, np.concatenate(powers), exact=not step)

    def _code(
        self, values: NDArray[np.float64], rows: slice, together: int, step: float
    ) -> tuple[NDArray[np.uint32], NDArray[np.int32]] | None:
        """Return codes and powers of the spectra of some rows; None where values without a step are no whole counts."""
        if together > 1:
            values = self._added_up(values, together)
        values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, 0.0)
        power = np.zeros(len(values), dtype=np.int32)
        if step:
            least = 1e-6 * np.abs(values).max(axis=1) + 1e-9
            noise = np.maximum(self.noise(values, rows, together), least)
            power = np.floor(PER_OCTAVE * np.log2(step * noise)).astype(np.int32)
            values /= np.exp2(power[:, None] / PER_OCTAVE)
        whole = np.rint(values)
        if not step and not (np.array_equal(whole, values) and np.abs(whole).max(initial=0.0) <= LARGEST):
            return None
        return code_rows(np.clip(whole, -LARGEST, LARGEST).astype(np.int32)), power

    def _added_up(self, values: NDArray[np.float64], together: int) -> NDArray[np.float64]:
        sums = []
        for piece, where in stretches(self.axis):
            size = piece.size // together
            stretch = values[:, where][:, : size * together]
            sums.append(stretch.reshape(len(values), size, together).sum(axis=2))
        return np.concatenate(sums, axis=1)

    def _together(self, width: float) -> int:
        smallest = min(piece.size for piece, _ in stretches(self.axis))
        return min(max(1, round(width / self.axis.dispersion)), smallest // 2)


class Recording:
    """A prepared acquisition and what was recorded of it, as sources of spectra.

    Attributes
    ----------
    edge
        Of the product.
    stride
        Every so many pixels along x and y one is in the page.
    native
        The detector's axis, corrected.
    channels_per_unit
        How many of the detector's channels a value of the product counts for: 1, or the width of its channels in those
        of the detector, where resampling conserves counts.
    """

    def __init__(self, product: xr.Dataset, image: xr.DataArray | None, stride: int = 1) -> None:
        n_y, n_x = product["vacuum_mask"].shape
        if image is not None and image.shape[:2] != (n_y, n_x):
            raise InputError(
                f"the recorded image has {image.shape[0]} x {image.shape[1]} pixels and the map {n_y} x {n_x}, so its "
                "spectra are not those of the map; give the image that was prepared, or none"
            )
        self._product, self._image = product, image
        self.edge = Edge.model_validate_json(product.attrs["edge"])
        self.stride = max(stride, math.ceil(math.sqrt(n_y * n_x / MOST_PIXELS)))
        self.native = EnergyAxis.from_values(product["mean_energy_loss"].values)
        self._kept: list[slice] = []
        pieces = []
        for piece, where in stretches(axis_of(product["energy_loss"].values)):
            valid = np.flatnonzero(product["valid"].values[where])
            kept = slice(int(valid[0]), int(valid[-1]) + 1)
            self._kept.append(slice(where.start + kept.start, where.start + kept.stop))
            pieces.append(_part_of(piece, kept))
        self._axis = side_by_side(pieces)
        rebin = Preset.model_validate_json(product.attrs["preset"]).find(Rebin)
        conserved = rebin is not None and rebin.method == "conserve"
        self.channels_per_unit = self._axis.dispersion / self.native.dispersion if conserved else 1.0
        self._n_rows = len(self.thinned(product["vacuum_mask"].values))

    def thinned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return a map at the pixels that are in the page."""
        return values[:: self.stride, :: self.stride]

    def recorded(self) -> Spectra:
        """Return what was recorded, on the corrected axis; without an image, prepared spectra with their background."""
        product, image, per_unit = self._product, self._image, self.channels_per_unit
        gain, readout = (float(product.attrs[f"noise_{name}"]) for name in ("gain", "readout_variance"))
        if image is None:
            axis = self._axis
            ratios = [
                np.log(piece.values / pivot) for (piece, _), pivot in zip(stretches(axis), self.pivots, strict=True)
            ]
            backgrounds = [[self.thinned(values) for values in pair] for pair in self.backgrounds]
            with_background = all(np.isfinite(amplitude).any() for amplitude, _ in backgrounds)

            def read(rows: slice) -> NDArray[Any]:
                spectra = self._read(product["intensity"], rows, self._kept)
                if not with_background:
                    return spectra
                fitted = [
                    amplitude[rows].reshape(-1, 1) * np.exp(-exponent[rows].reshape(-1, 1) * ratio)
                    for (amplitude, exponent), ratio in zip(backgrounds, ratios, strict=True)
                ]
                return np.asarray(spectra + per_unit * np.concatenate(fitted, axis=1))

        else:
            whole = energy_axis(image).shifted(float(product.attrs["energy_offset"]))
            if self.edge.beside:
                factor = float(product.attrs["dispersion_correction"])
                whole = whole.stretched(factor, fixed=self.edge.reference_energy)
            channels = [whole.channels(wide_window(one)) for one in self.edge.alone]
            axis = side_by_side([_part_of(whole, one) for one in channels])
            per_unit, counts = 1.0, image

            def read(rows: slice) -> NDArray[Any]:
                return self._read(counts, rows, channels)

        def noise(values: NDArray[np.float64], rows: slice, together: int) -> NDArray[np.float64]:
            return np.asarray(np.sqrt(np.maximum(gain * values.mean(axis=1), 0.0) + readout * per_unit * together))

        inside = [self.native.channels(wide_window(one)) for one in self.edge.alone]
        whole_mean = product["mean_spectrum"].values
        mean = max(float(np.nanmean(np.concatenate([whole_mean[one] for one in inside]))), 0.0)
        typical = math.sqrt((gain * mean + readout) * per_unit)
        return Spectra(axis, read, noise, typical, self._n_rows, self.thinned(product["vacuum_mask"].values).size)

    def prepared(self, deviation: NDArray[np.float64]) -> Spectra:
        """Return the prepared spectra of the specimen, with what neighbours lend.

        `deviation` is the noise of each pixel's counts in the window of the edge, shape (y, x).
        """
        product = self._product
        cube = product["gathered" if "gathered" in product else "intensity"]
        specimen = self.thinned(~product["vacuum_mask"].values)
        windows = [self._axis.channels(one.elnes_window) for one in self.edge.alone]
        n_channels = sum(window.stop - window.start for window in windows)
        known = np.isfinite(deviation) & (deviation > 0) & specimen
        typical = float(np.median(deviation[known])) if known.any() else 1.0
        of_channel = np.where(known, deviation, typical) / math.sqrt(max(n_channels, 1))

        def read(rows: slice) -> NDArray[Any]:
            return np.where(specimen[rows].reshape(-1, 1), self._read(cube, rows, self._kept), 0.0)

        def noise(values: NDArray[np.float64], rows: slice, together: int) -> NDArray[np.float64]:
            return np.asarray(of_channel[rows].ravel() * math.sqrt(together))

        return Spectra(self._axis, read, noise, typical, self._n_rows, int(specimen.sum()))

    @property
    def pivots(self) -> list[float]:
        """Energy at which the background of each edge has its amplitude, eV."""
        return [math.sqrt(math.prod(one.background_window)) for one in self.edge.alone]

    @property
    def backgrounds(self) -> list[list[NDArray[np.float64]]]:
        """Amplitude (counts) and exponent of the background before each edge, shape (y, x) each."""
        ends = ["", *(f"_{one.name}" for one in self.edge.beside)]
        return [[self._product[f"{name}{end}"].values.astype(np.float64) for name in BACKGROUNDS] for end in ends]

    def _read(self, cube: xr.DataArray, rows: slice, channels: list[slice]) -> NDArray[Any]:
        """Return spectra of some rows of the page's pixels, shape (pixels, channels)."""
        parts = []
        for some in channels:
            if self.stride == 1:
                values = cube[rows, :, some].values
            else:  # a row at a time: what lies between is not kept
                picked = range(rows.start * self.stride, rows.stop * self.stride, self.stride)
                values = np.stack([cube[y, :, some].values[:: self.stride] for y in picked])
            parts.append(np.asarray(values).reshape(-1, values.shape[-1]))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _part_of(axis: EnergyAxis, channels: slice) -> EnergyAxis:
    return EnergyAxis(float(axis.values[channels.start]), axis.dispersion, channels.stop - channels.start)
