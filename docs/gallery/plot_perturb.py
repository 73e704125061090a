"""
What a shift and noise do to spectra and to a model
===================================================

A spectrum that is moved by an eV or two looks nearly the same to a person, and is lost on a machine that learnt where
the edge lies. `eelsflow.perturb` does to spectra what a microscope may; studies measure every model in this way.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from sklearn.svm import SVC

import eelsflow

folder = Path(tempfile.mkdtemp())
eelsflow.simulate(folder, acquisitions=8, seed=3, pixels=16)
pure = [
    ("000", "FeO"),
    ("001", "Fe3O4"),
    ("002", "FeO"),
    ("003", "Fe3O4"),
    ("006", "FeO"),
    ("007", "Fe3O4"),
]


def specimen_spectra(number, label):
    """Spectra of the specimen, wider than the fine structure, so that true data enter when they are moved."""
    product = eelsflow.prepare(folder / f"cubes-{number}-{label}.zarr", edge="O_K")
    spectra = product["gathered"].where(~product["vacuum_mask"])  # averaged with neighbours that look alike
    rows = spectra.stack(spectrum=("y", "x")).transpose("spectrum", "energy_loss").dropna("spectrum")
    return rows.reset_index("spectrum", drop=True)


acquisitions = [specimen_spectra(*one) for one in pure]

# %%
# One spectrum, moved by 2 eV, and with noise of .15 of its range.

mean = acquisitions[0].mean("spectrum")
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
eelsflow.perturb(mean, noise_sigma=0.15, seed=1).plot(ax=axis, color="0.75", label="noise .15")
mean.plot(ax=axis, label="mean of an acquisition of FeO")
eelsflow.perturb(mean, shift_ev=2.0).plot(ax=axis, label="moved by 2 eV")
axis.axvspan(525, 555, alpha=0.08)
axis.legend()
plt.show()

# %%
# A machine learns from four acquisitions and judges two that it has not seen. It does well where the axis is right, and
# loses nearly all of that within one or two eV: that is why eelsflow finds the axis of every acquisition first, and why
# models that look for their spectra on the axis are worth having.


def vectors(spectra):
    """The fine structure between its 1st and 99th percentile."""
    values = spectra.sel(energy_loss=slice(525, 555)).values
    low, high = np.percentile(values, [1, 99], axis=1, keepdims=True)
    return (values - low) / (high - low)


training = xr.concat(acquisitions[:4], "spectrum")
sizes = [part.sizes["spectrum"] for part in acquisitions]
labels = np.repeat([label for _, label in pure], sizes)
n = training.sizes["spectrum"]
machine = SVC(C=10, gamma=0.03, class_weight="balanced").fit(vectors(training), labels[:n])
unseen = xr.concat(acquisitions[4:], "spectrum")


def right(**change):
    """Share of the unseen spectra that are told right when they are changed so."""
    return np.mean(machine.predict(vectors(eelsflow.perturb(unseen, **change))) == labels[n:])


shifts = np.arange(-8, 8.5, 1.0)
sigmas = np.arange(0, 0.31, 0.05)
figure, (left, other) = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
left.plot(shifts, [right(shift_ev=shift) for shift in shifts], "o-")
left.set(xlabel="shift (eV)", ylabel="spectra right", ylim=(0.4, 1.02))
other.plot(sigmas, [right(noise_sigma=sigma) for sigma in sigmas], "o-")
other.set(xlabel="noise (of the range)")
for axis in (left, other):
    axis.axhline(0.5, color="0.6", linestyle=":")
plt.show()
