"""Survey raw counts: whether they are counts, what was lost, what their noise is, and which spectra stand for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import InputError
from eelsflow.preprocess.kernels import add_channels
from eelsflow.preprocess.lost import Traces, trace_losses
from eelsflow.preprocess.noise import NoiseModel, estimate_noise, sample_indices
from eelsflow.preprocess.transform import Counts, Part

_MANY_NEGATIVE = 1e-3  # of the counts


@dataclass(frozen=True)
class Survey:
    """What one look at raw counts tells; of pixels that are not finite nothing but that."""

    traces: Traces
    n_counts: int
    total: float
    lowest: NDArray[np.float64]
    lowest_pixel: tuple[float, int]
    sampled: NDArray[np.int64]
    sample: NDArray[Any]


def survey_part(part: Part, n_pixels: int) -> Survey:
    """Look at the counts of one block of an image of `n_pixels`."""
    counts = part.read()
    totals = np.empty(len(counts))
    add_channels(counts, totals)
    traces = trace_losses(counts, totals)
    pixels = part.pixels
    if traces.broken.any():
        finite = ~traces.broken
        counts, totals, pixels = counts[finite], totals[finite], pixels[finite]
    negative = np.empty(0) if counts.dtype.kind == "u" else counts[counts < 0].astype(np.float64)
    most = int(_MANY_NEGATIVE * counts.size) + 1
    means = totals / counts.shape[1]
    chosen = np.isin(pixels, sample_indices(n_pixels))
    return Survey(
        traces=traces,
        n_counts=counts.size,
        total=float(totals.sum()),
        lowest=np.partition(negative, most)[:most] if negative.size > most else negative,
        lowest_pixel=(float(means.min()), int(pixels[means.argmin()])) if means.size else (math.inf, 0),
        sampled=pixels[chosen],
        sample=counts[chosen],
    )


def judge_surveys(surveys: Sequence[Survey], lost: NDArray[np.bool_]) -> tuple[Counts, NoiseModel, list[str]]:
    """Return spectra that represent the image, shape (n, channels), their noise and warnings; refuse non-counts.

    Parameters
    ----------
    surveys
        Of all blocks.
    lost
        Shape (y, x) of the image: pixels that represent nothing.

    Raises
    ------
    InputError
        If counts add up to nothing, or are negative beyond what a read-out explains.
    """
    if sum(survey.total for survey in surveys) <= 0:
        raise InputError(
            "the counts of the image add up to zero or less: nothing was recorded, or a background was subtracted "
            "already; prepare the raw counts"
        )
    sampled = np.concatenate([survey.sampled for survey in surveys])
    order = np.argsort(sampled)
    order = order[~lost.ravel()[sampled[order]]]
    sample = np.concatenate([survey.sample for survey in surveys])[order].astype(np.float32)
    noise = estimate_noise(sample)
    return sample, noise, _judge_negative(surveys, noise, float(sample.mean()), lost.shape[1])


def _judge_negative(surveys: Sequence[Survey], noise: NoiseModel, mean: float, width: int) -> list[str]:
    """Return warnings about negative counts; refuse more of them than a read-out can make.

    Values somewhat below zero are what a subtracted dark reference leaves; only those that read-out noise does not
    explain count here.
    """
    limit = 8 * float(np.sqrt(noise.variance(0.01 * mean)))
    lowest = np.concatenate([survey.lowest for survey in surveys])
    n_deep, n_counts = int(np.count_nonzero(lowest < -limit)), sum(survey.n_counts for survey in surveys)
    lowest_mean, pixel = min(survey.lowest_pixel for survey in surveys)
    y, x = divmod(pixel, width)
    found = (
        f"{n_deep} counts lie below {-limit:.3g}, deeper than the read-out noise of this image explains, the lowest at "
        f"{lowest.min(initial=0.0):.4g}"
    )
    if n_deep > _MANY_NEGATIVE * n_counts or lowest_mean < -limit:
        raise InputError(
            f"{found}; the pixel y={y}, x={x} has {lowest_mean:.3g} counts a channel on average: these are no counts, "
            "and a power law through them means nothing; prepare the raw counts, or repair or cut away such pixels"
        )
    return [f"{found}; they are treated as spikes are, where the preset has that step"] if n_deep else []
