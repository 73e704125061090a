"""The low loss of a simulated scan, as a dual spectrometer records it beside the core loss.

The same specimen, plasmon, zero-loss width and plural scattering as in the core loss: the spectrum of a pixel is
``sum_n Poisson(n; t/lambda) P_n(E)`` with the plasmon convolved n times with itself, broadened by the zero-loss peak,
which is what every edge of that pixel was convolved with. The support film scatters in neither: in the core loss it is
a background taken as measured. The axis has the same error: a voltage moves the spectrum between the two exposures, so
the offset is the same at the zero loss as at the reference energy of the core loss, and the dispersion error grows from
zero loss on.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import ndtr

from eelsflow.energy import EnergyAxis
from eelsflow.simulator.detector import PositiveRange, point_spread
from eelsflow.simulator.edges import FINE_STEP, LowLoss, broaden, fine_energies, scatter

_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


class LowLossRecording(BaseModel):
    """How the low loss is recorded.

    Parameters
    ----------
    start
        Centre of the first channel, eV, nominal; dispersion and number of channels are those of the core loss.
    beam_counts
        Range of the counts in a whole spectrum of a camera at dose 1. A line scan of TiO2 (eelsmodel's example) has
        2.4 million; a million leaves room for shorter exposures. Our choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: Annotated[float, Field(le=-12.0)] = -20.0
    beam_counts: PositiveRange = (0.7e6, 1.5e6)


def scattered_beam(low_loss: LowLoss, *, start: float, stop: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the beam after 0, 1, ... plasmon losses, broadened by the zero-loss peak.

    Parameters
    ----------
    low_loss
        Plasmon and zero-loss width.
    start, stop
        Losses to span, eV.

    Returns
    -------
    energy, orders
        Fine grid of true losses (energies,) and shares per step, shape (MAX_SCATTERINGS + 1, energies); each sums to 1
        but for what lies beyond `stop`.
    """
    energy = fine_energies(min(start, 0.0) - 10.0, stop + 10.0)  # the broadening needs neighbours
    line = np.zeros(energy.size)
    line[int(np.rint(-energy[0] / FINE_STEP))] = 1.0
    return energy, broaden(scatter(line, low_loss), low_loss.zero_loss_width)


def integrate_channels(
    energy: NDArray[np.float64], orders: NDArray[np.float64], boundaries: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what lies between channel boundaries (true energies), shape (orders, channels).

    A peak may be narrower than a channel, so channels are integrated where the core loss is sampled.
    """
    fine = np.append(energy - 0.5 * FINE_STEP, energy[-1] + 0.5 * FINE_STEP)
    cumulative = np.concatenate([np.zeros((len(orders), 1)), np.cumsum(orders, axis=1)], axis=1)
    return np.stack([np.diff(np.interp(boundaries, fine, one)) for one in cumulative])


def recorded_resolution(low_loss: LowLoss, axis: EnergyAxis, autocorrelation: tuple[float, ...]) -> float:
    """Return the full width at half maximum of the zero-loss peak as recorded, eV: peak, channel and point spread."""
    kernel = point_spread(autocorrelation)
    sigma = low_loss.zero_loss_width / _FWHM / axis.dispersion
    x = np.arange(0.0, kernel.size + 10.0 * (1.0 + sigma), 0.001)
    distance = x - (np.arange(kernel.size) - kernel.size // 2)[:, None]
    profile = kernel @ (ndtr((distance + 0.5) / sigma) - ndtr((distance - 0.5) / sigma))
    return float(2.0 * axis.dispersion * x[np.argmax(profile < 0.5 * profile[0])])
