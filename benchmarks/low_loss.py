"""How well the low loss tells offset, thickness and single scattering, on simulated pairs, beside exspy.

    python -m benchmarks.low_loss [--acquisitions 40] [--seed 1000]

Acquisitions of the presets `paper` and `wide`, 16 x 16 pixels, with mean free paths of 30-125 nm, so that t/lambda goes
up to 1.2. Reproduces the figures quoted in docs/decisions/0021-low-loss.md.
"""

import argparse
import contextlib
import io
import logging
import warnings

import numpy as np

from eelsflow.low_loss.pair import deconvolve, measure_low_loss
from eelsflow.preprocess.noise import NoiseModel
from eelsflow.simulator import PRESETS, LowLossRecording, simulate_acquisition
from eelsflow.simulator.acquisition import _Drawn, _sample, _weights
from eelsflow.simulator.edges import MAX_SCATTERINGS, LowLossParameters

THICK = LowLossParameters(mean_free_path=(30.0, 125.0))
SHAPE = (16, 16)
COARSE = 0.9  # channels: a zero loss narrower than this before the camera's spread is sampled too coarsely
CLEAR = (0.2, 1.2)  # t/lambda that is compared
EDGE = (526.0, 580.0)  # eV


def as_exspy(image):
    """Return an image as a signal of exspy."""
    from exspy.signals import EELSSpectrum

    signal = EELSSpectrum(image.values.astype(float))
    energy = image["energy_loss"].values
    signal.axes_manager[-1].scale, signal.axes_manager[-1].offset = energy[1] - energy[0], energy[0]
    return signal


def measure(pair) -> dict[str, float]:
    """Return the errors of one pair, ours and theirs."""
    found, truth = measure_low_loss(pair.low_loss), pair.truth
    offset, zero_loss = truth.attrs["offset"], truth["zero_loss"].values
    signal = as_exspy(pair.low_loss)
    centre = signal.estimate_zero_loss_peak_centre().data
    signal.align_zero_loss_peak(print_stats=False, show_progressbar=False)
    thickness = truth["t_over_lambda"].values
    use = (thickness > CLEAR[0]) & (thickness < CLEAR[1])
    errors = {
        "offset": abs(float(found["offset"].mean()) - offset),
        "row": float(np.abs(found["offset"].values.mean(axis=1) + zero_loss).max()),
        "offset exspy": abs(float(-centre.mean()) - offset),
        "row exspy": float(np.abs(-centre.mean(axis=1) + zero_loss).max()),
        "pixels": float(np.std(found["offset"].values + zero_loss[:, None])),
        "pixels exspy": float(np.std(centre - zero_loss[:, None])),
        "coarse": truth.attrs["zero_loss_width"] / float(np.diff(pair.low_loss["energy_loss"])[0]) < COARSE
        and truth.attrs["detector"] == "ccd",
        "t": np.nan,
        "t exspy": np.nan,
    }
    if use.sum() >= 20:
        with contextlib.suppress(ValueError):
            threshold = signal.estimate_elastic_scattering_threshold()
            theirs = np.asarray(signal.estimate_thickness(threshold=threshold).data).reshape(thickness.shape)
            errors["t exspy"] = abs(np.nanmedian(theirs[use] / thickness[use] - 1))
        errors["t"] = abs(np.nanmedian(found["t_over_lambda"].values[use] / thickness[use] - 1))
    return errors


def edges_alone(drawn: _Drawn, *, single: bool) -> np.ndarray:
    """Return what the detector would show of the edges alone, scattered or not, without noise, (y, x, channels)."""
    energy, basis = drawn._basis()
    weights = _weights(drawn.specimen, drawn.low_loss, drawn.parameters.levels.reference_thickness)
    weights[-2:] = 0.0  # background and film
    if single:
        weights[:-2][np.arange(weights.shape[0] - 2) % (MAX_SCATTERINGS + 1) > 0] = 0.0
    rows = [
        weights[:, row].T @ _sample(energy, basis, drawn.axis_error.true_energies(drawn.axis.values, row))
        for row in range(weights.shape[1])
    ]
    return np.stack([drawn.detector.mean_counts(row.astype(np.float32)) for row in rows])


def unlike(values: np.ndarray, truth: np.ndarray) -> float:
    """Return the relative difference of two shapes, whatever their scale."""
    scale = (values @ truth) / (values @ values)
    return float(np.sqrt(((scale * values - truth) ** 2).mean() / (truth**2).mean()))


def deconvolution(seed: int) -> dict[str, float]:
    """Return how unlike single scattering the mean edge of thick pixels is: as recorded, by ours, by exspy."""
    clean = PRESETS["clean"]
    levels = clean.levels.model_copy(update={"dose": (300.0, 300.0), "support_level": 0.0})
    path = LowLossParameters(mean_free_path=(35.0, 36.0))
    parameters = clean.model_copy(update={"shape": SHAPE, "levels": levels, "low_loss": path})
    pair, drawn = simulate_acquisition(parameters, seed, low_loss=LowLossRecording()), _Drawn.draw(parameters, seed)
    thick = pair.truth["t_over_lambda"].values > 0.3
    # the background of every pixel is known here: what is compared is the deconvolution alone
    seen, truth = edges_alone(drawn, single=False), edges_alone(drawn, single=True)
    core = pair.image.copy(data=seen)
    ours = deconvolve(core, pair.low_loss, noise=NoiseModel(1.0, 0.0, np.ones(1)))["counts"].values
    theirs = as_exspy(core).fourier_ratio_deconvolution(
        as_exspy(pair.low_loss),
        fwhm=float(measure_low_loss(pair.low_loss).attrs["resolution"]),
        threshold=3.0,
        extrapolate_lowloss=False,  # it refuses counts below zero, which a camera has; the axis is long
    )
    energy = pair.image["energy_loss"].values
    window = (energy > EDGE[0]) & (energy < EDGE[1])
    mean = {
        "recorded": seen,
        "deconvolved": ours,
        "exspy": theirs.data,
    }
    single = truth[thick].mean(axis=0)[window]
    return {name: unlike(values[thick].mean(axis=0)[window], single) for name, values in mean.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acquisitions", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    seeds = range(options.seed, options.seed + options.acquisitions)
    for preset in ("paper", "wide"):
        parameters = PRESETS[preset].model_copy(update={"shape": SHAPE, "low_loss": THICK})
        with contextlib.redirect_stderr(io.StringIO()):
            found = [measure(simulate_acquisition(parameters, seed, low_loss=LowLossRecording())) for seed in seeds]
        for coarse in (False, True):
            some = [one for one in found if one["coarse"] == coarse]
            if not some:
                continue
            print(f"{preset}, zero loss {'below' if coarse else 'above'} {COARSE} channels or counted: {len(some)}")
            for name in ("offset", "row", "pixels", "t"):
                for who in (name, f"{name} exspy"):
                    values = np.array([one[who] for one in some])
                    values = values[np.isfinite(values)]
                    if values.size:
                        print(
                            f"  {who:14s} median {np.median(values):.4f}  greatest {values.max():.4f}  n {values.size}"
                        )
    with contextlib.redirect_stderr(io.StringIO()):
        unlikeness = [deconvolution(seed) for seed in list(seeds)[:8]]
    print("edge unlike single scattering, mean of", len(unlikeness))
    for name in unlikeness[0]:
        print(f"  {name:14s} {np.mean([one[name] for one in unlikeness]):.4f}")


if __name__ == "__main__":
    main()
