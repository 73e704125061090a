"""Accuracy against the amplitude of a perturbation, and the scores of the paper's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from eelsflow.preprocess.features import FeatureTransform
from eelsflow.robustness.perturb import (
    add_gaussian_noise,
    add_poisson_noise,
    draw_shifts,
    fit_leading_components,
    scale_residual,
)

Predict = Callable[[NDArray[np.float32]], NDArray[np.str_]]

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


FURTHER_CURVES = (
    Curve(
        perturbation="poisson_peak_counts",
        unit="counts at the peak",
        amplitudes=(1000.0, 300.0, 100.0, 30.0, 10.0),
        mild_end="high",
    ),
    Curve(perturbation="pca_residual", unit="times the residual noise", amplitudes=(1.0, 2.0, 3.0, 4.0, 5.0)),
)


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
    padded
        Whether a shift had to repeat the last channel because no wider data existed.
    """

    correct: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    padded: bool = False


def assess(
    predict: Predict,
    transform: FeatureTransform,
    *,
    test: NDArray[np.float32],
    test_label: NDArray[np.str_],
    train_vectors: NDArray[np.float32],
    curves: Sequence[Curve],
    seed: int,
) -> Assessment:
    """Measure a classifier on test spectra as they are, shifted and with noise.

    Parameters
    ----------
    predict
        Vectors (n, features) to classes (n,).
    transform
        The fitted transform from wide spectra to vectors.
    test
        Wide test spectra, shape (n, channels); not modified.
    test_label
        Shape (n,).
    train_vectors
        The training part as vectors, for the residual noise.
    curves
        What to try; amplitudes are fixed and signed.
    seed
        Of the draws. Every model assessed with the same seed on the same test part meets the same shifts and noise,
        so their differences are paired.

    Notes
    -----
    Definitions are ours where the paper leaves them out: one shift for each test spectrum from U(-5, 5) eV
    (also 3 and 1); Gaussian sigma .15 (also .10) times p99 - p1 after normalisation, not renormalised.
    """
    result = Assessment()
    vectors = transform.apply(test)

    def correct(perturbed: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(predict(perturbed) == test_label)

    result.correct["accuracy"] = correct(vectors)
    for number, amplitude in enumerate(TRANSLATION_AMPLITUDES):
        shifts = draw_shifts(len(test), amplitude=amplitude, rng=np.random.default_rng([seed, 1, number]))
        name = "translation" if number == 0 else f"translation_{amplitude:g}"
        result.correct[name] = correct(transform.apply(test, shift_ev=shifts))
        result.padded |= transform.padded
    for number, sigma in enumerate(NOISE_AMPLITUDES):
        name = "noise" if number == 0 else f"noise_{sigma:.2f}"
        rng = np.random.default_rng([seed, 2, number])
        result.correct[name] = correct(add_gaussian_noise(vectors, sigma=sigma, rng=rng))

    mean, components = fit_leading_components(train_vectors)
    for curve in curves:
        accuracies = []
        for number, amplitude in enumerate(curve.amplitudes):
            rng = np.random.default_rng([seed, 3, number])
            match curve.perturbation:
                case "shift_ev":
                    perturbed = transform.apply(test, shift_ev=amplitude)
                    result.padded |= transform.padded
                case "noise_sigma":
                    perturbed = add_gaussian_noise(vectors, sigma=amplitude, rng=rng)
                case "poisson_peak_counts":
                    perturbed = add_poisson_noise(vectors, peak_counts=amplitude, rng=rng)
                case "pca_residual":
                    perturbed = scale_residual(vectors, mean, components, factor=amplitude)
                case unknown:
                    raise ValueError(f"no perturbation is called {unknown!r}")
            accuracies.append(float(correct(perturbed).mean()))
        result.curves[curve.perturbation] = accuracies
    return result
