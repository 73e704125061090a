"""What preprocessing makes of detectors that count electrons, against the truth, from half an electron a channel up.

    python -m benchmarks.counting [--seed 43] [--fields 6] [--gain 7.3]

Fields of the wide simulator, each at the doses that give so many electrons a channel at 520-530 eV on the specimen.
Reproduces the figures in docs/decisions/0020-counting-detectors.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import minimize

from eelsflow.edges import O_K
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import Block
from eelsflow.preprocess.background import fit_power_law
from eelsflow.preprocess.chain import Part, fit_acquisition, prepare
from eelsflow.preprocess.noise import estimate_noise
from eelsflow.preprocess.presets import PRESETS
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import simulate_acquisition
from eelsflow.simulator.acquisition import Acquisition, AcquisitionParameters, expected_counts
from eelsflow.simulator.detector import CountingParameters
from eelsflow.spectrum_image import energy_axis

LEVELS = (0.5, 1.0, 2.0, 5.0, 20.0)
HEIGHTS = (10, 15, 20, 30, 50, 100, 300, 1000)  # electrons in the highest channel of a spike
N_SPIKES = 200
N_PIXELS = 32
UNDER = (530.0, 560.0)  # eV, where the background is compared
CLEAR = (0.1, 0.4)  # relative thickness: neither film nor specimen between


def parameters(dose: float) -> AcquisitionParameters:
    wide = SIMULATED["wide"]
    levels = wide.levels.model_copy(update={"dose": (dose, dose), "log_dose": False})
    return wide.model_copy(update={"shape": (N_PIXELS, N_PIXELS), "detector": CountingParameters(), "levels": levels})


def simulate(seed: np.random.SeedSequence, level: float) -> tuple[Acquisition, NDArray[np.float32]]:
    """Return an acquisition of so many electrons a channel before the edge, and what it is expected to count."""
    unit, truth = expected_counts(parameters(1.0), seed), simulate_acquisition(parameters(1.0), seed).truth
    energies = unit.energy_loss + truth.attrs["offset"]
    before = (energies > 520) & (energies < 530) & ~truth["dead_channels"].values
    drawn = parameters(level / float(unit.counts[~truth["vacuum"].values][:, before].mean()))
    return simulate_acquisition(drawn, seed), expected_counts(drawn, seed).counts


def background_errors(
    product: xr.Dataset, image: NDArray[Any], expected: NDArray[Any], truth: xr.Dataset
) -> list[float]:
    """Return the relative error of the background under the edge: ours, and that of the likeliest fit of the sum."""
    axis, specimen = product["mean_energy_loss"].values, ~truth["vacuum"].values
    pivot = float(np.sqrt(O_K.pre_edge_window[0] * O_K.pre_edge_window[1]))
    before = (axis >= O_K.pre_edge_window[0]) & (axis < O_K.pre_edge_window[1]) & ~truth["dead_channels"].values
    under, x = (axis >= UNDER[0]) & (axis < UNDER[1]), np.log(axis / pivot)
    exact = fit_power_law(axis, expected[specimen], O_K.pre_edge_window, shrink=False).evaluate(axis[under]).sum()
    amplitude, exponent = (product[f"background_{name}"].values[specimen] for name in ("amplitude", "exponent"))
    ours = (amplitude[:, None] * np.exp(-exponent[:, None] * x[under])).sum()
    total = image[specimen][:, before].sum(axis=0, dtype=np.float64)

    def surprise(p: NDArray[np.float64]) -> float:
        line = p[0] - p[1] * x[before]
        return float((np.exp(line).sum() - (total * line).sum()) / total.sum())

    found = minimize(surprise, [np.log(total.mean()), 3.0], method="BFGS", options={"gtol": 1e-8}).x
    likely = np.exp(found[0] - found[1] * x[under]).sum()
    edge = expected[specimen][:, under].sum() - exact
    return [float(ours / exact - 1), float(likely / exact - 1), float((exact - ours) / edge)]


def add_spikes(counts: NDArray[Any], gain: float) -> tuple[NDArray[Any], list[tuple[int, int, int, int]]]:
    """Return counts with events of 1 to 3 channels in a fifth of the pixels, and pixel, channel and height of each."""
    rng, dirty, events = np.random.default_rng(7), counts.copy(), []
    n_y, n_x, n_channels = counts.shape
    for pixel in rng.choice(n_y * n_x, N_SPIKES, replace=False):
        y, x = divmod(int(pixel), n_x)
        width, first = int(rng.integers(1, 4)), int(rng.integers(2, n_channels - 5))
        height, profile = HEIGHTS[int(rng.integers(len(HEIGHTS)))], rng.uniform(0.3, 1.0, width)
        electrons = np.rint(height * profile / profile.max())
        dirty[y, x, first : first + width] += (gain * electrons).astype(counts.dtype)
        events.append((y, x, first + int(profile.argmax()), height))
    return dirty, events


def spikes_found(image: xr.DataArray, gain: float, figures: dict[str, list[float]]) -> None:
    """Add whether spikes of each height were found, and how many pixels without one were hit."""
    counts, events = add_spikes(image.values, gain)
    n_y, n_x, n_channels = counts.shape
    part = Part(counts, Block(slice(0, n_y), slice(0, n_x)), width=n_x)
    preset = PRESETS["recommended"]
    spikes = fit_acquisition(energy_axis(image), [part], (n_y, n_x), edge=O_K, preset=preset).parts[0].spikes
    assert spikes is not None
    found = np.zeros((n_y * n_x, n_channels), dtype=bool)
    found[spikes[:, 0], spikes[:, 1]] = True
    for y, x, channel, height in events:
        figures[f"spikes of {height:4d} electrons found"].append(float(found[y * n_x + x, channel]))
    clean = np.ones(n_y * n_x, dtype=bool)
    clean[[y * n_x + x for y, x, *_ in events]] = False
    figures["pixels with false spikes beside real ones"].append(float(found[clean].any(axis=1).mean()))


def measure(seed: np.random.SeedSequence, level: float, gain: float, figures: dict[str, list[float]]) -> None:
    """Add the figures of one field."""
    acquisition, expected = simulate(seed, level)
    image, truth = acquisition.image, acquisition.truth
    if gain != 1.0:
        image = image.copy(data=(image.values * np.float32(gain)).astype(np.float32))
    noise = estimate_noise(image.values)
    figures["gain / true"].append(noise.gain / gain)
    figures["read-out, electrons"].append(float(noise.readout_variance) ** 0.5 / gain)
    try:
        product = prepare(image, edge=O_K, preset=PRESETS["recommended"])
        spikes_found(image, gain, figures)
    except InputError:
        figures["refused"].append(1.0)
        return
    thickness = truth["thickness"].values / truth["thickness"].values.max()
    wrong = product["vacuum_mask"].values != truth["vacuum"].values
    figures["pixels with false spikes"].append(float((product["spike_channels"].values > 0).mean()))
    figures["vacuum, pixels wrong"].append(float(wrong.mean()))
    figures["vacuum, pixels wrong off the rim"].append(
        float((wrong & ((thickness < CLEAR[0]) | (thickness > CLEAR[1]))).mean())
    )
    ours, likely, lost = background_errors(product, image.values, expected * gain, truth)
    figures["background, relative error"].append(ours)
    figures["background by likelihood of the sum, relative error"].append(likely)
    figures["|background, ours - likelihood|"].append(abs(ours - likely))
    figures["|edge lost or gained| / edge"].append(abs(lost))
    offset = product.attrs["energy_offset"] - truth.attrs["offset"]
    figures["|offset error|, eV"].append(abs(offset))
    figures["|offset error| / its error"].append(abs(offset) / product.attrs["energy_offset_error"])
    figures["variances that are zero"].append(float((product["variance"].values <= 0).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=43)
    parser.add_argument("--fields", type=int, default=6)
    parser.add_argument("--gain", type=float, default=1.0)
    arguments = parser.parse_args()
    for level in LEVELS:
        figures: dict[str, list[float]] = defaultdict(list)
        for number in range(arguments.fields):
            measure(np.random.SeedSequence(arguments.seed, spawn_key=(number,)), level, arguments.gain, figures)
        print(f"--- {level:g} electrons a channel")
        for name, values in sorted(figures.items()):
            print(f"{name:55s} {np.mean(values):9.4f}  largest {np.max(values):9.4f}  n {len(values)}", flush=True)


if __name__ == "__main__":
    main()
