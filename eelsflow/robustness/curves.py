"""Accuracy against the amplitude of a perturbation, and the scores of the paper's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from eelsflow.models.disturbance import Disturbance
from eelsflow.preprocess.calibration import dispersion_left
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.presets import Align
from eelsflow.robustness.perturb import add_poisson_noise, draw_shifts
from eelsflow.robustness.wide import Residual, broaden, lower_dose, scatter_again, stretch_axis

Predict = Callable[[NDArray[np.float32], Disturbance], NDArray[np.str_]]
"""Wide spectra (n, channels) and what is done to them, to classes (n,)."""

TRANSLATION_AMPLITUDES = (5.0, 3.0, 1.0)
"""Half-widths of the uniform shift, eV; the first is the translation score."""
NOISE_AMPLITUDES = (0.15, 0.10)
"""Gaussian sigma in units of p99 - p1; the first is the noise score."""


class Curve(BaseModel):
    """One perturbation and the amplitudes it is tried at."""

    model_config = ConfigDict(frozen=True)

    perturbation: str
    unit: str
    amplitudes: tuple[float, ...]
    mild_end: Literal["low", "high"] = "low"
    """Which amplitudes disturb least: a low shift, but a high dose."""


DOSE_CURVE = Curve(
    perturbation="dose",
    unit="electrons per channel of 0.1 eV",
    amplitudes=(30.0, 20.0, 15.0, 10.0, 7.0, 5.0, 3.0, 2.0, 1.0, 0.5),
    mild_end="high",
)
"""For prepared acquisitions, whose variance is known: electrons of background and edge, mean over the fine structure.
Spectra that have fewer are left as they are."""
COUNTS_CURVE = Curve(
    perturbation="poisson_peak_counts",
    unit="counts at the peak",
    amplitudes=(1000.0, 300.0, 100.0, 30.0, 10.0),
    mild_end="high",
)
"""For tables, which say nothing of their dose: an absolute one, above a background as high as the peak."""
TABLE_BACKGROUND = 1.0
"""Background below the peak of a table's spectra, over the peak: on a real image of iron oxides 300 counts of O K stood
above 310 (405 counts at 490 eV, falling with the power 3.4)."""

FURTHER_CURVES = (
    Curve(perturbation="pca_residual", unit="times the residual noise", amplitudes=(1.0, 2.0, 3.0, 4.0, 5.0)),
    Curve(perturbation="dispersion_error", unit="of the dispersion", amplitudes=(-0.02, -0.01, 0.0, 0.01, 0.02)),
    Curve(perturbation="t_over_lambda", unit="added", amplitudes=(0.0, 0.3, 0.6, 0.9, 1.2)),
    Curve(perturbation="broadening", unit="eV, full width at half maximum", amplitudes=(0.0, 0.5, 1.0, 1.5, 2.0)),
)
"""Tried in every study, beside shift, Gaussian noise and one of the two curves of dose."""

_UNDISTURBED = {"dose": np.inf, "pca_residual": 1.0}  # 0 for all others; Poisson counts have none


def further_curves(*, has_variance: bool) -> tuple[Curve, ...]:
    """Return the curves beyond shift and Gaussian noise, for spectra with or without a known variance."""
    return (DOSE_CURVE if has_variance else COUNTS_CURVE, *FURTHER_CURVES)


def _left_by_alignment(transform: FeatureTransform, error: float) -> float:
    """Return how wrong a dispersion still is where the preset has aligned the acquisition."""
    align = transform.preset.find(Align)
    return error if align is None else dispersion_left(transform.edge, error, dispersion_error=align.dispersion_error)


@dataclass
class Assessment:
    """What a classifier did on one test part.

    Attributes
    ----------
    correct
        Score name -> shape (n_test,) whether each spectrum was classified correctly: "accuracy" (unperturbed),
        "translation", "translation_3", "translation_1", "noise", "noise_0.10".
    curves
        Perturbation -> accuracy at each amplitude.
    hits
        Perturbation -> how many spectra of each group were right at each amplitude, (n_amplitudes, n_groups), groups in
        the order of their names; empty without groups.
    padded
        Whether a shift had to repeat the last channel because no wider data existed.
    """

    correct: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    hits: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    padded: bool = False


def assess(
    predict: Predict,
    transform: FeatureTransform,
    *,
    test: NDArray[np.float32],
    test_label: NDArray[np.str_],
    training: NDArray[np.float32],
    curves: Sequence[Curve],
    seed: int,
    test_variance: NDArray[np.float32] | None = None,
    training_variance: NDArray[np.float32] | None = None,
    test_electrons: NDArray[np.float32] | None = None,
    test_group: NDArray[np.str_] | None = None,
) -> Assessment:
    """Measure a classifier on test spectra as they are, shifted and with noise.

    Parameters
    ----------
    predict
        The model: wide spectra and a disturbance to classes.
    transform
        The fitted transform from wide spectra to vectors.
    test
        Wide test spectra, shape (n, channels); not modified.
    test_label
        Shape (n,).
    training
        Wide training spectra, from which the residual noise is read; `eelsflow.robustness.wide.MAX_TRAINING` of them
        are enough. Not modified.
    curves
        What to try; amplitudes are fixed and signed.
    seed
        Of the draws. Every model assessed with the same seed on the same test part meets the same shifts and noise,
        so their differences are paired.
    test_variance, training_variance
        Variances of `test` and `training`, same shapes, where they are known: the curve "dose" needs the first.
    test_electrons
        How many electrons a channel of each test spectrum got, (n,): the curve "dose" needs them. NaN where that is
        not known; such spectra are left as they are.
    test_group
        What each test spectrum was recorded with, (n,), to count by; None: not known.

    Raises
    ------
    ValueError
        If a curve is unknown, or is "dose" without a variance or electrons.

    Notes
    -----
    Definitions are ours where the paper leaves them out: one shift for each test spectrum from U(-5, 5) eV
    (also 3 and 1); Gaussian sigma .15 (also .10) times p99 - p1 after normalisation, not renormalised. An amplitude
    that disturbs nothing is given the accuracy of the spectra as they are, without predicting again. Of edges that are
    judged together a wrong dispersion is what their alignment leaves of it, as an acquisition would meet it.
    """
    result = Assessment()
    as_it_is = Disturbance()

    def correct(disturbance: Disturbance, wide: NDArray[np.float32] = test) -> NDArray[np.bool_]:
        right = np.asarray(predict(wide, disturbance) == test_label)
        result.padded |= transform.padded
        return right

    result.correct["accuracy"] = correct(as_it_is)
    for number, amplitude in enumerate(TRANSLATION_AMPLITUDES):
        shifts = draw_shifts(len(test), amplitude=amplitude, rng=np.random.default_rng([seed, 1, number]))
        name = "translation" if number == 0 else f"translation_{amplitude:g}"
        result.correct[name] = correct(Disturbance(shift_ev=shifts))
    for number, sigma in enumerate(NOISE_AMPLITUDES):
        name = "noise" if number == 0 else f"noise_{sigma:.2f}"
        rng = np.random.default_rng([seed, 2, number])
        result.correct[name] = correct(Disturbance.of_noise(transform, len(test), sigma=sigma, rng=rng))

    residual = Residual.fit(training, variance=training_variance)

    def perturbed(name: str, amplitude: float, rng: np.random.Generator) -> NDArray[np.bool_]:
        axis = transform.axis
        match name:
            case "shift_ev":
                return correct(Disturbance(shift_ev=amplitude))
            case "noise_sigma":
                return correct(Disturbance.of_noise(transform, len(test), sigma=amplitude, rng=rng))
            case "poisson_peak_counts":
                vectors = transform.apply(test)
                noisy = add_poisson_noise(vectors, peak_counts=amplitude, background=TABLE_BACKGROUND, rng=rng)
                return correct(Disturbance.between(transform, vectors, noisy))
            case "pca_residual":
                return correct(as_it_is, residual.scale(test, amplitude))
            case "dispersion_error":
                reference, error = transform.edge.reference_energy, _left_by_alignment(transform, amplitude)
                stretched, recorded = stretch_axis(test, axis, reference_energy=reference, error=error)
                result.padded |= not bool(recorded[:, transform.channels].all())
                return correct(as_it_is, stretched)
            case "t_over_lambda":
                return correct(as_it_is, scatter_again(test, axis, relative_thickness=amplitude))
            case "broadening":
                blurred = broaden(test, axis, fwhm_ev=amplitude, variance=test_variance, residual=residual, rng=rng)
                return correct(as_it_is, blurred)
            case "dose":
                if test_variance is None or test_electrons is None:
                    raise ValueError(
                        "the curve 'dose' needs the variance and the electrons of the test spectra, and they were not "
                        "given"
                    )
                share = amplitude / np.maximum(np.nan_to_num(test_electrons, nan=amplitude), amplitude)
                return correct(as_it_is, lower_dose(test, test_variance, dose=share, residual=residual, rng=rng))
        raise ValueError(f"no perturbation is called {name!r}")

    code = None if test_group is None else np.unique(test_group, return_inverse=True)[1]
    for curve in curves:
        right = []
        for number, amplitude in enumerate(curve.amplitudes):
            if amplitude == _UNDISTURBED.get(curve.perturbation, 0.0):
                right.append(result.correct["accuracy"])
                continue
            rng = np.random.default_rng([seed, 3, number])
            right.append(perturbed(curve.perturbation, amplitude, rng))
        result.curves[curve.perturbation] = [float(each.mean()) for each in right]
        if code is not None:
            result.hits[curve.perturbation] = np.array([np.bincount(code, weights=each) for each in right])
    return result
