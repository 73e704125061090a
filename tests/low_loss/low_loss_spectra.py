"""Low-loss spectra whose truth is known to machine precision."""

import importlib
import warnings
from types import ModuleType

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import ndtr

FINE = 20  # fine steps per channel: integration of the spectrum over each channel


def gaussian(x, fwhm):
    """Return a Gaussian of unit area."""
    sigma = fwhm / 2.354820045
    return np.exp(-0.5 * (x / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


def with_tail(x, fwhm, tail):
    """Return a peak with an exponential tail to higher losses, of unit area and with its maximum at 0."""
    fine = np.arange(-40, 40, 0.002)
    values = fftconvolve(gaussian(fine, fwhm), np.where(fine >= 0, np.exp(-fine / tail), 0.0), mode="same")
    values = np.maximum(values, 0.0) / (values.sum() * 0.002)
    return np.interp(x, fine - fine[values.argmax()], values)


def recorded_gaussian(energy, position, fwhm):
    """Return the share of a Gaussian's intensity in each channel."""
    step, sigma = energy[1] - energy[0], fwhm / 2.354820045
    edges = np.append(energy - step / 2, energy[-1] + step / 2)
    return np.diff(ndtr((edges - np.asarray(position)[..., None]) / sigma), axis=-1)


def recorded(shape, energy, position):
    """Return the integral of ``shape(E - position)`` over each channel."""
    step = energy[1] - energy[0]
    fine = energy[:, None] + step * ((np.arange(FINE) + 0.5) / FINE - 0.5)
    return np.stack([shape(fine - p).mean(axis=1) * step for p in np.atleast_1d(position)])


def drude(loss, plasmon_energy=23.5, plasmon_width=15.0):
    return loss / ((loss**2 - plasmon_energy**2) ** 2 + (loss * plasmon_width) ** 2)


def plural(relative_thickness, energy, *, position=0.0, fwhm=0.8, intensity=1e6, single=drude, orders=12):
    """Return the counts of a low loss with all orders of scattering, shape (thicknesses, channels)."""
    step = 0.05
    loss = np.arange(0.0, 1500.0, step)
    one = single(loss)
    one /= one.sum()
    grid = np.arange(-30.0, energy[-1] + 30.0, step)
    peak = gaussian(grid, fwhm) * step
    distribution, spectra = [peak], []
    for _ in range(orders):
        distribution.append(fftconvolve(distribution[-1], one)[: grid.size])
    for t in np.atleast_1d(relative_thickness):
        weight, total = np.exp(-t), np.zeros(grid.size)
        for order, spectrum in enumerate(distribution):
            total += weight * spectrum
            weight *= t / (order + 1)
        cumulative = np.concatenate([[0.0], np.cumsum(total)])
        half = (energy[1] - energy[0]) / 2
        edges = np.append(energy - half, energy[-1] + half) - position
        spectra.append(intensity * np.diff(np.interp(edges, np.append(grid, grid[-1] + step) - step / 2, cumulative)))
    return np.maximum(np.stack(spectra), 0.0)  # what a Fourier transform leaves below zero


def import_exspy(name: str) -> ModuleType:
    """Import a module of exspy, which warns when it is imported, as do those that it needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"exspy.{name}")
