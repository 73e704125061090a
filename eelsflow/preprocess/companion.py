"""What the low loss of the same scan adds to the preparation of a core loss.

How a low loss is measured is the matter of `eelsflow.low_loss`, which stands above this package: here is what the
preparation asks of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from eelsflow.energy import EnergyAxis
from eelsflow.io.zarr_store import Block
from eelsflow.preprocess.background import PowerLawFit
from eelsflow.preprocess.noise import NoiseModel
from eelsflow.preprocess.offset import OffsetEstimate

AGREEMENT = 0.5
"""eV within which the offset from the zero loss replaces the edge's own (ours): farther off, the voltage that moved the
spectrum between the two exposures was not what it was taken for, or the edge is not where it is expected."""

_SURE = 3.0  # standard errors of the edge's own estimate, where that is less certain

Array = NDArray[np.float64]


class PluralScattering(Protocol):
    """Takes plural scattering out of background-subtracted core losses of some pixels; can be sent to a worker."""

    def crop(self, block: Block) -> PluralScattering:
        """Return what does so for some of the pixels, and holds no more than that needs."""
        ...

    def __call__(self, energy_loss: Array, counts: Array, variance: Array, correlation: Array) -> tuple[Array, Array]:
        """Return single scattering and its variance.

        Parameters
        ----------
        energy_loss
            Channel centres, shape (channels,), eV.
        counts, variance
            Of all its n pixels, in the order of rows: shape (n, channels).
        correlation
            Of the noise over channels at lags 0, 1, ...
        """
        ...


@dataclass(frozen=True)
class Companion:
    """The low loss of a scan, as far as it concerns the core loss.

    Attributes
    ----------
    offset
        That the zero loss asks for: eV to add to the nominal axis.
    drift
        What is to be added to the energies of each pixel beside the offset, shape (y, x), eV; None for no more than the
        noise of the zero loss explains.
    maps
        Values of every pixel, shape (y, x), by name; with `units`.
    units
        Of the maps that have one.
    facts
        What is known of the scan as a whole, as JSON values.
    plural
        Takes plural scattering out.
    warnings
        Sentences for a person.
    """

    offset: OffsetEstimate
    drift: NDArray[np.float32] | None
    maps: Mapping[str, NDArray[np.float32]]
    units: Mapping[str, str]
    facts: Mapping[str, Any]
    plural: PluralScattering
    warnings: tuple[str, ...] = ()


def settle_offset(edge: OffsetEstimate, zero_loss: OffsetEstimate) -> tuple[OffsetEstimate, str | None]:
    """Choose between the offset that the edge shows and that of the zero loss, and say where they disagree.

    Parameters
    ----------
    edge, zero_loss
        Either estimate.

    Returns
    -------
    The zero loss's, which is absolute and some ten times as exact, unless they disagree by more than `AGREEMENT` and
    three standard errors of the edge's; then the edge's, since models learn from edges, and a sentence.
    """
    difference = zero_loss.value - edge.value
    if abs(difference) <= max(AGREEMENT, _SURE * edge.error):
        return zero_loss, None
    return edge, (
        f"the zero loss puts the energy axis at {zero_loss.value:+.2f} +- {zero_loss.error:.2f} eV and the edge at "
        f"{edge.value:+.2f} +- {edge.error:.2f} eV, {abs(difference):.2f} eV apart: the edge's own offset is used. "
        "Check the voltage between the two exposures, and that the low loss is of this scan"
    )


def single_scattering(
    plural: PluralScattering,
    counts: NDArray[np.float32],
    axis: EnergyAxis,
    fit: PowerLawFit,
    noise: NoiseModel,
    *,
    n_smooth: int,
) -> tuple[Array, Array]:
    """Subtract the background and take plural scattering out, with the variance.

    Parameters
    ----------
    plural
        What takes it out.
    counts
        Of its pixels, shape (n, channels), on `axis`.
    axis
        The corrected axis of `counts`.
    fit
        The background.
    noise
        Of the counts; a channel's variance is that of its counts averaged over `n_smooth` channels, as without
        deconvolution.

    Returns
    -------
    intensity, variance
        Shape (n, axis.size).

    Notes
    -----
    The variance of the background is added as it is, an upper bound: deconvolution lowers it by the share of single
    scattering.
    """
    expected = uniform_filter1d(counts.astype(np.float64), n_smooth, axis=1, mode="nearest")
    variance = np.asarray(noise.variance(np.maximum(expected, noise.quantum / n_smooth)), dtype=np.float64)
    net, spread = plural(axis.values, counts - fit.evaluate(axis.values), variance, noise.correlation)
    return net, spread + fit.variance(axis.values)
