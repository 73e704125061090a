"""The spectrometer's detector: electrons in, counts out, with the noise that a real one shows.

A camera (`DetectorParameters`) or a detector that counts electrons (`CountingParameters`). The camera's figures come
from one measured STEM-EELS acquisition of iron-oxide nanocubes: variance / mean 5.55, autocorrelation of the noise
over channels .64 .31 .14 .07 .04, read-out noise 6.4 counts rms, spikes in 19 of 658,920 channels and 3.7 % of the
pixels, 1-7 channels wide and up to 5026 counts high. The gain pattern and the number of dead channels are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from scipy.ndimage import convolve1d

from eelsflow.errors import InputError
from eelsflow.simulator.specimen import Range, check_range


def _check_positive(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] <= 0:
        raise ValueError(f"range {bounds} must be positive")
    return bounds


PositiveRange = Annotated[Range, AfterValidator(_check_positive)]


class DetectorParameters(BaseModel):
    """How electrons become counts in a scintillator camera (CCD).

    Parameters
    ----------
    name
        ``ccd``.
    variance_to_mean
        Variance / mean of the recorded counts where the read-out noise is negligible. The counts per electron
        follow from it and the point spread: about 19.
    autocorrelation
        Autocorrelation of the noise at lags of 1, 2, ... channels; the point spread follows from it.
    readout_noise
        Counts rms per channel.
    gain_pattern
        Standard deviation of the channels' relative response, limited to +-2.5 of them.
    n_dead_channels
        Smallest and largest number of channels that respond to nothing.
    spike_rate
        Spikes (events, not channels) per channel and pixel.
    spike_continuation
        Probability that a spike reaches one more channel, up to 7: its width is truncated-geometric.
    spike_height
        Range of the highest channel of a spike, counts. The low ones are the common ones: a height above h has a
        probability that falls as 1/h (our choice; it leaves about as many spikes above the noise as measured).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["ccd"] = "ccd"
    variance_to_mean: Annotated[float, Field(gt=0)] = 5.55
    autocorrelation: tuple[float, ...] = (0.64, 0.31, 0.14, 0.07, 0.04)
    readout_noise: Annotated[float, Field(ge=0)] = 6.4
    gain_pattern: Annotated[float, Field(ge=0, lt=0.1)] = 0.002
    n_dead_channels: Annotated[tuple[int, int], AfterValidator(check_range)] = (0, 3)
    # 19 / 658,920 channels over the mean width of 1.58 channels: a spike in 3.7 % of pixels of 2048 channels
    spike_rate: Annotated[float, Field(ge=0, lt=0.01)] = 1.82e-5
    spike_continuation: Annotated[float, Field(ge=0, lt=1)] = 0.37
    spike_height: PositiveRange = (300.0, 5026.0)

    @property
    def counts_per_electron(self) -> float:
        """Counts per electron before the point spread, which lowers the variance by the sum of its squares."""
        return self.variance_to_mean / float((point_spread(self.autocorrelation) ** 2).sum())

    @property
    def level_scale(self) -> float:
        """What the measured levels are multiplied with: they are counts of such a camera."""
        return 1.0


class CountingParameters(BaseModel):
    """How electrons become counts in a direct detector that counts them: one count each, and nothing else.

    No point spread, no read-out noise, no spikes: the counts are Poisson-distributed whole numbers.

    Parameters
    ----------
    name
        ``counting``.
    gain_pattern
        Standard deviation of the channels' relative efficiency, limited to +-2.5 of them.
    n_dead_channels
        Smallest and largest number of channels that respond to nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["counting"] = "counting"
    gain_pattern: Annotated[float, Field(ge=0, lt=0.1)] = 0.002
    n_dead_channels: Annotated[tuple[int, int], AfterValidator(check_range)] = (0, 3)

    @property
    def counts_per_electron(self) -> float:
        """One."""
        return 1.0

    @property
    def variance_to_mean(self) -> float:
        """One: Poisson."""
        return 1.0

    @property
    def autocorrelation(self) -> tuple[float, ...]:
        """None at any lag."""
        return ()

    @property
    def readout_noise(self) -> float:
        """Counts rms: none."""
        return 0.0

    @property
    def level_scale(self) -> float:
        """What the measured levels are multiplied with: they are counts of a camera with about 19 per electron."""
        return 1.0 / DetectorParameters().counts_per_electron


AnyDetectorParameters = Annotated[DetectorParameters | CountingParameters, Field(discriminator="name")]
"""The detectors there are; ``name`` tells them apart."""

DETECTORS = ("ccd", "counting")
"""Names of the detectors."""


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Mean and covariance of what a detector records, for a likelihood.

    The variance of a channel with `expected` counts is ``variance_to_mean * expected + readout_variance`` (nearly so
    where `expected` changes within the point spread).

    Parameters
    ----------
    variance_to_mean
        Variance per expected count; 1 for counted electrons.
    readout_variance
        Variance without any electron, counts squared.
    point_spread
        Share of an electron's counts by channel, shape (odd,), sum 1: the noise (but not the read-out noise) is
        correlated over channels as the correlation of this with itself.
    """

    variance_to_mean: float
    readout_variance: float
    point_spread: NDArray[np.float64]


MAX_SPIKE_WIDTH = 7


@lru_cache
def point_spread(autocorrelation: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the symmetric, non-negative kernel whose noise has the given autocorrelation.

    Parameters
    ----------
    autocorrelation
        At lags of 1, 2, ... channels (1 at lag 0 understood).

    Returns
    -------
    kernel
        Odd length, sum 1.

    Raises
    ------
    InputError
        If no kernel has this autocorrelation, not even closely: its power spectrum has negative parts.

    Notes
    -----
    White noise through a kernel has the kernel's autocorrelation, so the kernel's transfer function is the root of
    the autocorrelation's Fourier transform. That it is symmetric is our choice: the phase is not measurable from
    noise. Its tiny negative lobes are cut (they change the autocorrelation by less than .01).

    >>> kernel = point_spread((0.64, 0.31, 0.14, 0.07, 0.04))
    >>> correlation = np.correlate(kernel, kernel, "full")[kernel.size - 1 :]
    >>> np.round(correlation[:4] / correlation[0], 2).tolist()
    [1.0, 0.64, 0.31, 0.14]
    """
    n_lags, size = len(autocorrelation), 1024
    symmetric = np.zeros(size)
    symmetric[0] = 1.0
    symmetric[1 : n_lags + 1] = autocorrelation
    symmetric[size - n_lags :] = autocorrelation[::-1]
    power = np.fft.rfft(symmetric).real
    if power.min() < -0.05:
        raise InputError(
            f"autocorrelation {autocorrelation} belongs to no point spread: its power spectrum falls to "
            f"{power.min():.2f}; it must not be negative: measure it again or shorten it"
        )
    response = np.fft.irfft(np.sqrt(np.clip(power, 0.0, None)), size)
    reach = 2 * n_lags
    kernel = np.clip(np.concatenate([response[size - reach :], response[: reach + 1]]), 0.0, None)
    kernel /= kernel.sum()
    kernel.setflags(write=False)  # it is cached: nobody may change it
    return np.asarray(kernel)


@dataclass(frozen=True, slots=True)
class Detector:
    """One detector: its parameters and what chance made of its channels.

    Parameters
    ----------
    parameters
        Gain, point spread, noise and spikes.
    response
        Relative response of each channel, shape (channels,); 0 for a dead one.
    """

    parameters: DetectorParameters | CountingParameters
    response: NDArray[np.float32]

    @classmethod
    def draw(
        cls, parameters: DetectorParameters | CountingParameters, *, n_channels: int, rng: np.random.Generator
    ) -> Detector:
        """Draw the gain pattern and the dead channels (never the outermost ones, which cannot be interpolated)."""
        response = 1.0 + parameters.gain_pattern * np.clip(rng.normal(size=n_channels), -2.5, 2.5)
        low, high = parameters.n_dead_channels
        n_dead = min(int(rng.integers(low, high, endpoint=True)), n_channels - 2)
        response[rng.choice(np.arange(1, n_channels - 1), size=n_dead, replace=False)] = 0.0
        return cls(parameters, response.astype(np.float32))

    @property
    def dead_channels(self) -> NDArray[np.bool_]:
        """Channels that respond to nothing, shape (channels,)."""
        return np.asarray(self.response == 0)

    @property
    def noise(self) -> NoiseModel:
        """How far recorded counts stray from `mean_counts`."""
        kernel = np.asarray(point_spread(self.parameters.autocorrelation))
        return NoiseModel(self.parameters.variance_to_mean, self.parameters.readout_noise**2, kernel)

    def mean_counts(self, expected: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean of what `record` makes of expected counts (spectra, channels), spikes apart."""
        kernel = point_spread(self.parameters.autocorrelation).astype(np.float32)
        return np.asarray(convolve1d(expected, kernel, axis=-1, mode="reflect") * self.response)

    def record(
        self, expected: NDArray[np.float32], *, rng: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Record spectra: Poisson electrons -> gain -> point spread -> response -> spikes -> read-out noise.

        Parameters
        ----------
        expected
            Expected counts, shape (spectra, channels), not negative; not modified.
        rng
            Source of the noise.

        Returns
        -------
        counts
            Shape (spectra, channels). Integers, as an analogue-to-digital converter gives, and signed, since the
            read-out noise about a subtracted dark level makes small negative values; 32 bits because spikes and
            bright edges pass 32,767 in longer exposures.
        spike_mask
            Shape (spectra, channels): channels that a spike has reached.
        """
        if isinstance(self.parameters, CountingParameters):
            # An efficiency, not a factor on the counts: what is counted stays whole.
            return rng.poisson(expected * self.response).astype(np.int32), np.zeros(expected.shape, dtype=bool)
        gain = self.parameters.counts_per_electron
        electrons = rng.poisson(expected / np.float32(gain)).astype(np.float32)
        kernel = point_spread(self.parameters.autocorrelation) * gain
        counts = convolve1d(electrons, kernel.astype(np.float32), axis=-1, mode="reflect")
        counts *= self.response
        spikes = self._spikes(self.parameters, expected.shape, rng)
        spike_mask = spikes > 0
        counts += spikes
        counts += np.float32(self.parameters.readout_noise) * rng.standard_normal(expected.shape, dtype=np.float32)
        return np.rint(counts).astype(np.int32), spike_mask

    def _spikes(
        self, parameters: DetectorParameters, shape: tuple[int, ...], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return the counts that spikes add, shape (spectra, channels); they hit the camera, so no point spread."""
        n_spectra, n_channels = shape
        spikes = np.zeros(shape, dtype=np.float32)
        low, high = parameters.spike_height
        for _ in range(rng.poisson(parameters.spike_rate * n_spectra * n_channels)):
            pixel, first = int(rng.integers(n_spectra)), int(rng.integers(n_channels))
            width = 1
            while width < MAX_SPIKE_WIDTH and rng.random() < parameters.spike_continuation:
                width += 1
            profile = rng.uniform(0.3, 1.0, width)  # shares a channel of the track receives: our choice
            profile *= 1.0 / rng.uniform(1.0 / high, 1.0 / low) / profile.max()
            reached = spikes[pixel, first : first + width]
            np.maximum(reached, profile[: reached.size], out=reached, casting="same_kind")
        spikes[:, self.dead_channels] = 0.0
        return spikes
