"""Tell the zero-loss peak, with its tails, from the first inelastic losses.

One peak shape serves the whole scan: the zero loss is what the instrument makes of electrons that lost nothing, so only
its place and its height change from pixel to pixel. The shape is the mean of all pixels, each moved by the parts of a
channel that its peak lies off: to the left as it is, to the right as it is down to a twentieth of its height. From
there on it is the higher of two tails, and never above what was recorded: the left tail mirrored, times the ratio of
right to left over the last channels before, which is what a camera's wide tails need; and the right flank continued
exponentially, which is what the longer right tail of a field-emission gun needs. What the mean holds above that is
inelastic. Where the peak is known from a recording without a specimen, that is the better shape: give it as
`reference`.

The height of a pixel's peak is the sum of its counts where the peak is above a twentieth of its height, which is most
of its electrons and hardly any inelastic ones. A peak narrower than two channels is the Gaussian that `zero_loss`
fitted.

The mirrored tail is Egerton's (EELS in the Electron Microscope, section 5.1); the rest is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.low_loss.zero_loss import FWHM, ZeroLoss, align, flat_spectra

_JOIN = 0.05  # of the maximum: below it the right flank is a model
_TAIL_WIDTHS = 8.0  # how far the tails are followed, in widths of the peak ...
_TAIL_CHANNELS = 12  # ... and at least this many channels: the spread of a camera
_BLOCK = 2048

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ElasticPart:
    """The zero-loss peaks of a scan: one shape, a place and an intensity for each pixel.

    Attributes
    ----------
    axis
        Nominal axis of the low loss.
    shape
        Share of the peak's counts by channel from its centre, shape (2 reach + 1,), sum 1.
    position
        Of each pixel's peak, channels, shape (n,).
    intensity
        Counts in the peak, tails included, shape (n,); NaN without a peak.
    window
        First and last channel from the centre that the intensity was taken from.
    window_counts
        Counts of each pixel in that window, shape (n,).
    pixels
        Shape of the pixels.
    sigma
        Of the Gaussian, channels, where the peak is too narrow for a shape; else 0.
    """

    axis: EnergyAxis
    shape: Array
    position: Array
    intensity: Array
    window: tuple[int, int]
    window_counts: Array
    pixels: tuple[int, ...]
    sigma: float = 0.0

    @property
    def reach(self) -> int:
        """Channels from the centre of the shape to its ends."""
        return self.shape.size // 2

    def elastic_counts(self) -> Array:
        """Return the counts of the zero-loss peak alone, shape (..., channels); 0 beyond its tails."""
        n = self.position.size
        counts = np.zeros((n, self.axis.size))
        x = np.arange(self.axis.size, dtype=np.float64)
        for row in range(n):
            if np.isfinite(self.intensity[row]):
                counts[row] = self.intensity[row] * self.at(x - self.position[row])
        return counts.reshape(*self.pixels, self.axis.size)

    def inelastic_counts(self, counts: ArrayLike) -> Array:
        """Return the counts that lost energy, shape (..., channels).

        Between the peak's centre and the end of the window its height was taken from, peak and losses cannot be told
        apart: there, and below, it is 0, and the losses there are counted as elastic.
        """
        values = np.asarray(counts, dtype=np.float64).reshape(-1, self.axis.size)
        result = values - self.elastic_counts().reshape(values.shape)
        distance = np.arange(self.axis.size) - self.position[:, None]
        result[distance <= self.window[1] + 0.5] = 0.0
        result[~np.isfinite(self.intensity)] = np.nan
        return result.reshape(*self.pixels, self.axis.size)

    def at(self, distance: Array) -> Array:
        """Return the share of the peak in channels whose centres lie at `distance` (channels) from its own."""
        if self.sigma > 0:
            return np.asarray(ndtr((distance + 0.5) / self.sigma) - ndtr((distance - 0.5) / self.sigma))
        # whole channels by place, parts of a channel by a phase: the shape is on its own grid
        first = int(np.rint(distance[0]))
        part = distance[0] - first
        moved = shift(self.shape, -part)
        index = first + np.arange(distance.size) + self.reach
        inside = (index >= 0) & (index < moved.size)
        return np.where(inside, moved[np.clip(index, 0, moved.size - 1)], 0.0)

    def channels_above(self, energy: float) -> NDArray[np.bool_]:
        """Tell which channels lie more than `energy` eV above every peak."""
        farthest = np.nanmax(self.position) + energy / self.axis.dispersion
        return np.asarray(np.arange(self.axis.size) > farthest)


def separate_zero_loss(
    energy_loss: ArrayLike, counts: ArrayLike, zero_loss: ZeroLoss, *, reference: ElasticPart | None = None
) -> ElasticPart:
    """Return the shape of the zero-loss peak and its intensity in every pixel.

    Parameters
    ----------
    energy_loss
        Channel centres, shape (channels,), eV, nominal.
    counts
        Shape (..., channels); not modified.
    zero_loss
        Of these counts.
    reference
        The peak of a recording without a specimen, on an axis of the same dispersion; its shape is taken.

    Raises
    ------
    InputError
        If the shapes do not agree, or no pixel shows a peak.
    """
    axis, spectra, pixels = flat_spectra(energy_loss, counts)
    if zero_loss.position.shape != pixels:
        raise InputError(
            f"zero-loss positions have the shape {zero_loss.position.shape} and the pixels {pixels}; "
            "measure them on the same counts"
        )
    position = ((zero_loss.position - axis.start) / axis.dispersion).reshape(-1)
    if not np.isfinite(position).any():
        raise InputError("no pixel shows a zero-loss peak; nothing can be separated")
    if reference is not None:
        if abs(reference.axis.dispersion / axis.dispersion - 1) > 1e-3:
            raise InputError(
                f"the reference peak has {reference.axis.dispersion:g} eV per channel and the low loss "
                f"{axis.dispersion:g}; record both alike"
            )
        shape, window, sigma = reference.shape, reference.window, reference.sigma
    elif zero_loss.is_narrow:
        sigma = zero_loss.resolution / axis.dispersion / FWHM
        end = int(np.ceil(3.0 * sigma + 0.5))
        x = np.arange(-end - 2, end + 3, dtype=np.float64)
        shape, window = ndtr((x + 0.5) / sigma) - ndtr((x - 0.5) / sigma), (-end, end)
    else:
        width = zero_loss.resolution / axis.dispersion
        below = int(np.floor(np.nanmin(position))) - 1  # channels there are to the left of every peak
        reach = max(min(max(int(np.ceil(_TAIL_WIDTHS * width)), _TAIL_CHANNELS), below), int(np.ceil(width)))
        shape, window = _shape_of(_mean_aligned(spectra, position, reach))
        sigma = 0.0
    window_counts = _window_counts(spectra, position, window, exact=sigma == 0.0)
    reach = shape.size // 2
    share = shape[reach + window[0] : reach + window[1] + 1].sum() if sigma == 0.0 else 1.0
    intensity = np.where(window_counts > 0, window_counts / share, np.nan)
    return ElasticPart(axis, shape, position, intensity, window, window_counts, pixels, sigma)


def shift(profile: Array, channels: float) -> Array:
    """Return a profile that is 0 at its ends moved by parts of a channel to the right."""
    size = 2 * profile.size
    phase = np.exp(-2j * np.pi * np.fft.rfftfreq(size) * channels)
    return np.asarray(np.fft.irfft(np.fft.rfft(profile, size) * phase, size)[: profile.size])


def _mean_aligned(spectra: NDArray[np.floating], position: Array, reach: int) -> Array:
    total = np.zeros(2 * reach + 1)
    for begin in range(0, len(position), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        total += align(spectra[rows], position[rows], reach=reach).sum(axis=0)
    return total


def _shape_of(mean: Array) -> tuple[Array, tuple[int, int]]:
    """Return the peak without the losses (sum 1), and the channels from the centre where it is above the join."""
    middle = mean.size // 2
    below = mean < _JOIN * mean[middle]
    right = int(below[middle:].argmax()) - 1 if below[middle:].any() else middle - 1
    left = int(below[middle::-1].argmax()) - 1 if below[: middle + 1].any() else middle
    right, left = max(right, 1), max(left, 1)
    tail = np.arange(right + 1, middle + 1)
    last = np.arange(max(right - 1, 1), right + 1)
    mirrored = mean[middle + last].sum() / max(mean[middle - last].sum(), 1e-300) * mean[middle - tail]
    # on a concave flank the later of two steps is the steeper one
    steps = mean[middle + right - 1 : middle + right + 1] / np.maximum(
        mean[middle + right : middle + right + 2], 1e-300
    )
    continued = mean[middle + right] * max(float(steps.max()), 1.0) ** -(tail - right).astype(np.float64)
    peak = mean.copy()
    peak[middle + tail] = np.minimum(mean[middle + tail], np.maximum(mirrored, continued))
    peak = np.maximum(peak, 0.0)
    return peak / peak.sum(), (-left, right)


def _window_counts(spectra: NDArray[np.floating], position: Array, window: tuple[int, int], *, exact: bool) -> Array:
    """Return the counts of each spectrum from `window` about its peak; 0 where there is no peak."""
    result = np.zeros(len(position))
    reach = max(-window[0], window[1])
    chosen = slice(reach + window[0], reach + window[1] + 1)
    for begin in range(0, len(position), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        seen = np.isfinite(position[rows])
        # a narrow peak is not moved by parts of a channel, which would ring: its window holds all of it anyway
        place = position[rows] if exact else np.rint(position[rows])
        result[rows][seen] = align(spectra[rows], place, reach=reach)[:, chosen].sum(axis=1)
    return result
