"""Estimate the energy offset of an acquisition from its summed spectrum, with an error.

The offset is what has to be *added* to the nominal energy axis so that the reference feature of an edge sits at the
edge's `reference_energy`: for O K the maximum of the pre-peak of the background-subtracted edge at 530.0 eV. It is
estimated once per acquisition, never per pixel, where noise makes the largest channel wander by an eV.

An axis may be wrong by as much as the features of an edge are apart, so the nearest maximum is not looked for; the
shape of the whole edge is matched:

1. *Scan.* At each trial offset the spectrum is a sum, with coefficients that are not negative, of power laws (the
   background), steps (the continuum) and Gaussians (`Edge.features`, each at several places of its range). Scanning
   the offset gives the misfit as a function of it, and from that how probable each is.
2. *Refine.* Around each probable minimum a smooth model with free positions and widths is fitted by least squares,
   and the maximum of the fitted edge next to the reference feature is read off. That the maximum of the sum is used,
   not the centre of one Gaussian, makes the result indifferent to how the model divides the edge into parts.
3. *Error.* Statistical error of the fit (its scatter, correlated over channels), spread over variants of the model,
   and spread over competing minima add in squares: an ambiguous spectrum gets a large error, never a confident wrong
   number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import least_squares, nnls
from scipy.signal import find_peaks
from scipy.special import erf

from eelsflow.edges import Edge, Feature
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EdgeOutOfRangeError, InputError

Array = NDArray[np.float64]

_SCAN_STEP = 0.25  # eV; the refinement converges from a whole eV away
_SCAN_DISPERSION = 0.45  # eV; the scan needs no finer channels than this
_MARGIN_BELOW, _MARGIN_ABOVE = 8.0, 3.0  # eV of spectrum needed before the first and after the second feature
_DETECTION = 30.0  # required gain in log-likelihood of an edge over a bare background; a scan of noise reaches ~12
_WORTH_FITTING = 1.5  # misfit of the bare background over the edge's, from which an edge is fitted before it is refused
_OBVIOUS = 12.0  # height of the reference feature over the rms of what its fit leaves; in vacuum up to 3
_STRUCTURED = 30.0  # variance of a residual over that of its noise; noise spread over channels reaches ~5
_EXPONENTS = (1.0, 2.0, 3.0, 4.0, 6.0)  # of the background's power laws
_PRESENCE = 0.1  # least height of the reference feature, relative to the fitted edge's maximum
_PEAK_SMOOTHING = 0.5  # eV, sigma of the smoothing that peaks are looked for in
_CLEAR_PEAK = 6.0  # prominence of a clear peak in units of the noise before the edge
_HEIGHT_RATIOS = (0.4, 2.5)  # of the first two features, relative to those of the edge's description
_FLOOR = 0.02  # eV; systematic floor of the error: the axis and the shape are not known better


@dataclass(frozen=True)
class OffsetEstimate:
    """An energy offset and how well it is known.

    Attributes
    ----------
    value
        Offset to add to the nominal axis at the reference energy, eV.
    error
        Its standard error, eV, with the spread over competing solutions.
    alternatives
        Other offsets (eV) that explain the spectrum too, with their probability relative to `value`'s, best first.
    contrast
        Gain in log-likelihood of the edge over a bare background, per spectrum: how clearly there is an edge.
    """

    value: float
    error: float
    alternatives: tuple[tuple[float, float], ...] = ()
    contrast: float = 0.0


def estimate_offset(
    energy_loss: ArrayLike,
    spectrum: ArrayLike,
    edge: Edge,
    *,
    variance: ArrayLike | None = None,
    max_offset: float = 9.0,
) -> OffsetEstimate:
    """Estimate the energy offset from a summed spectrum.

    Parameters
    ----------
    energy_loss
        Nominal channel centres, shape (channels,), eV, uniform.
    spectrum
        Raw counts with their background, summed or averaged over the specimen's pixels, shape (channels,); not
        modified.
    edge
        The edge to look for. Without `features`: its highest or first clear peak (`align_on`) after
        subtraction of the background.
    variance
        Variance of the counts, shape (channels,); None: proportional to the counts. Its scale does not matter: the
        scatter about the fit sets it, if larger.
    max_offset
        Largest offset looked for on either side, eV.

    Raises
    ------
    EdgeOutOfRangeError
        If the axis could not show the edge at any offset allowed.
    InputError
        If no edge stands above noise, the spectrum is not finite, or the shapes do not agree.

    Notes
    -----
    Method and thresholds are ours. The definition (the reference feature at its energy, at that energy) matters where
    the dispersion is wrong as well: half a per cent moves a feature 30 eV away by 0.15 eV.
    """
    axis = EnergyAxis.from_values(energy_loss)
    counts = np.asarray(spectrum, dtype=np.float64)
    if counts.shape != (axis.size,):
        raise InputError(
            f"spectrum has shape {counts.shape} but energy_loss has {axis.size} channels; sum the image over its pixels"
        )
    used = _region(axis, edge, max_offset)
    counts = _mend(counts[used])
    if not np.isfinite(counts).all():
        raise InputError(
            f"{np.count_nonzero(~np.isfinite(counts))} channels of the summed spectrum near the {edge.name} edge are "
            "not finite; interpolate or leave out damaged pixels first"
        )
    if np.ptp(counts) == 0:
        raise InputError(f"the summed spectrum is {counts[0]:g} in every channel near the {edge.name} edge: no signal")
    deviation = _deviation(counts, None if variance is None else np.asarray(variance, dtype=np.float64)[used])
    energies = axis.values[used]
    if not edge.features:
        return _from_clear_peak(energies, counts, deviation, edge, max_offset)
    return _from_shape(energies, counts, deviation, edge, max_offset)


def _region(axis: EnergyAxis, edge: Edge, max_offset: float) -> slice:
    """Return the channels that the edge may show in, or refuse an axis on which it cannot."""
    reach = max((f.position + f.sigma for f in edge.features), default=edge.elnes_window[1] - edge.reference_energy)
    reach += max_offset
    below = edge.background_window[0] - (0.0 if edge.features else max_offset)
    used = axis.channels((below, edge.reference_energy + reach + axis.dispersion))
    if used.stop - used.start >= 40:
        start, stop = (float(axis.values[channel]) for channel in (used.start, used.stop - 1))
        lowest, highest = _offsets_possible(start, stop, edge)
        if lowest <= min(highest, max_offset) and highest >= -max_offset:
            return used
    needed = edge.reference_energy - _MARGIN_BELOW, edge.reference_energy + _above(edge)
    raise EdgeOutOfRangeError(
        f"the energy axis spans {axis}; to find the {edge.name} edge it must show {needed[0]:g}-{needed[1]:g} eV, "
        f"allowing for an energy offset of up to {max_offset:g} eV, in channels of at most 1 eV; this file cannot "
        f"show the {edge.name} edge: choose an edge that the axis covers"
    )


def _above(edge: Edge) -> float:
    """How far above the reference energy the spectrum has to reach, eV."""
    positions = [feature.position for feature in edge.features[:2]]
    return max([0.0, *positions]) + _MARGIN_ABOVE


def _mend(counts: Array) -> Array:
    """Return counts with dead and stuck channels interpolated.

    Such a channel differs by a quarter from the mean of its neighbours and from that of its second neighbours; the
    sharpest white line, 3 eV wide in channels of 1 eV, differs by half of that from its neighbours. Spectra whose
    spikes and dead channels were interpolated before pass unchanged.
    """
    padded = np.pad(counts, 2, mode="edge")
    near = 0.5 * (padded[1:-3] + padded[3:-1])
    far = 0.5 * (padded[:-4] + padded[4:])
    bad = (np.abs(counts - near) > 0.25 * np.abs(near)) & (np.abs(counts - far) > 0.25 * np.abs(far))
    # Where a tenth of the channels look so, they are noise about zero, not faults.
    if not bad.any() or np.count_nonzero(bad) > 0.1 * counts.size:
        return counts
    channels = np.arange(counts.size)
    return np.interp(channels, channels[~bad], counts[~bad])


def _offsets_possible(start: float, stop: float, edge: Edge) -> tuple[float, float]:
    """Return the lowest and highest offset at which channels from start to stop (eV) show the edge."""
    return edge.reference_energy + _above(edge) - stop, edge.reference_energy - _MARGIN_BELOW - start


def _deviation(counts: Array, variance: Array | None) -> Array:
    """Return relative standard deviations of the counts; a floor keeps empty channels from weighing infinitely."""
    if variance is None:
        variance = counts
    floor = 1e-3 * float(np.abs(variance).max())
    if np.mean(variance < floor) > 0.1:  # a background was subtracted: noise is not in proportion to what is left
        return np.ones(counts.size)
    return np.sqrt(np.maximum(variance, floor))


def _require_allowed(value: float, edge: Edge, max_offset: float) -> None:
    if abs(value) > max_offset + 0.5:
        raise InputError(
            f"the {edge.name} edge fits best at an energy offset of {value:+.1f} eV, beyond the {max_offset:g} eV "
            "allowed; correct the calibration of the axis, allow a larger offset, or check that the edge is the right "
            "one"
        )


# --- 1. scan ---------------------------------------------------------------------------------------------------


def _from_shape(energies: Array, counts: Array, deviation: Array, edge: Edge, max_offset: float) -> OffsetEstimate:
    coarse_energies, coarse, coarse_deviation = _coarsen(energies, counts, deviation)
    lowest, highest = _offsets_possible(float(energies[0]), float(energies[-1]), edge)
    reach = max_offset + 1.0  # beyond what is allowed, so that a minimum at the limit is seen from both sides
    trials = np.arange(max(-reach, lowest), min(reach, highest) + 1e-9, _SCAN_STEP)
    target = coarse / coarse_deviation
    misfits = np.empty(trials.size)
    residuals = []
    for index, trial in enumerate(trials):
        design = _design(coarse_energies + trial, edge) / coarse_deviation[:, None]
        residual = _residual(design, target)
        misfits[index] = residual @ residual
        residuals.append(residual)
    best = int(np.argmin(misfits))
    bare = _bare_residual(coarse_energies, target, coarse_deviation, edge.reference_energy)
    rounding = 1e-14 * float(target @ target)
    independent = target.size / _inflation(residuals[best])
    ratio = float((bare @ bare + rounding) / (misfits[best] + rounding))
    contrast = 0.5 * independent * float(np.log(ratio))
    if contrast < _DETECTION and ratio < _WORTH_FITTING:
        raise _no_edge(edge, contrast, residuals[best])
    likelihoods = -0.5 * independent * np.log((misfits + rounding) / (misfits[best] + rounding))
    fits = []
    prominence = 0.0
    for index in _minima(misfits):
        if likelihoods[index] > -8.0:
            fit = _refine(energies, counts, deviation, edge, float(trials[index]))
            if fit is not None:
                fits.append((*fit[:2], float(likelihoods[index])))
                prominence = max(prominence, fit[2])
    # Lines of another shape than described leave a misfit that is smooth, so it passes for noise of few independent
    # channels, the more so the less noise there is. What towers over the misfit is an edge all the same.
    if contrast < _DETECTION and prominence < _OBVIOUS:
        raise _no_edge(edge, contrast, residuals[best])
    if not fits:
        raise InputError(
            f"an edge stands above noise, but no {edge.name} reference feature can be fitted to it; "
            "check that the edge is the right one"
        )
    fits.sort(key=lambda fit: -fit[2])
    value, error = fits[0][:2]
    _require_allowed(value, edge, max_offset)
    weights = np.exp([fit[2] - fits[0][2] for fit in fits])
    spread = float(weights @ np.square([fit[0] - value for fit in fits]) / weights.sum())
    # A minimum of the scan that is broader than .5 eV, two of its steps, is an uncertainty that a local fit misses.
    near = np.abs(trials - value) < 3.0
    probability = np.exp(likelihoods[near])
    width = float(probability @ np.square(trials[near] - value) / probability.sum()) - (2 * _SCAN_STEP) ** 2
    return OffsetEstimate(
        value=value,
        error=float(np.sqrt(error**2 + max(spread, width))),
        alternatives=tuple((fit[0], float(weight)) for fit, weight in zip(fits[1:], weights[1:], strict=True)),
        contrast=contrast,
    )


def _no_edge(edge: Edge, contrast: float, residual: Array) -> InputError:
    """Return the refusal of a spectrum that does not show the edge, with the reason that its misfit gives."""
    found = f"log-likelihood gain of the edge {max(contrast, 0.0):.1f}, needed {_DETECTION:g}"
    roughness = np.diff(residual, 2)
    noise = float(roughness @ roughness) / 6.0 / roughness.size  # second differences of white noise have 6 variances
    if float(residual @ residual) / residual.size > _STRUCTURED * noise:
        return InputError(
            f"the summed spectrum is no falling background with the {edge.name} edge on it ({found}): it has structure "
            "far above its noise that neither explains, such as another edge within the window or just below it, so "
            f"the energy offset of {edge.name} cannot be estimated; look at the spectrum, and choose an edge that "
            "stands alone"
        )
    return InputError(
        f"no {edge.name} edge stands above noise in the summed spectrum ({found}), so its energy offset cannot be "
        "estimated; check that the image holds specimen, not vacuum alone, and that the edge is the right one"
    )


def _coarsen(energies: Array, counts: Array, deviation: Array) -> tuple[Array, Array, Array]:
    """Average neighbouring channels to about `_SCAN_DISPERSION`."""
    factor = max(int(_SCAN_DISPERSION / (energies[1] - energies[0])), 1)
    size = energies.size // factor * factor
    groups = [values[:size].reshape(-1, factor) for values in (energies, counts, np.square(deviation))]
    return groups[0].mean(axis=1), groups[1].mean(axis=1), np.sqrt(groups[2].mean(axis=1))


def _background_columns(energies: Array, edge: Edge) -> Array:
    # A sum of power laws with positive coefficients: convex and falling, a little more general than one power law.
    return np.stack([(energies / edge.reference_energy) ** -r for r in _EXPONENTS], axis=1)


def _bare_residual(energies: Array, target: Array, deviation: Array, reference: float) -> Array:
    """Return the weighted residual of a background without an edge.

    It may be flat or rise, which the background below an edge may not: what is flat, such as a dark image, shows no
    edge either.
    """
    columns = np.stack([(energies / reference) ** -r for r in (-3.0, -1.0, 0.0, *_EXPONENTS)], axis=1)
    return _residual(columns / deviation[:, None], target)


def _design(energies: Array, edge: Edge) -> Array:
    """Return background, steps and features at true energies (eV), shape (channels, columns)."""
    x = energies - edge.reference_energy
    columns = [_background_columns(energies, edge)]
    positions = [feature.position for feature in edge.features]
    steps = [*positions[:3], 0.5 * (positions[0] + positions[1])] if len(positions) > 1 else positions
    decay = (energies / edge.reference_energy) ** -3.0
    columns.extend((decay * _step(x, position, 1.5))[:, None] for position in steps)
    first, *others = edge.features
    reference = _gaussian(x, 0.0, first.sigma)
    if not others:
        columns.append(reference[:, None])
    for index, feature in enumerate(others):
        for place in _places(feature):
            peak = _gaussian(x, place, feature.sigma)
            if index == 0:
                # Two columns span the cone of the height ratios allowed: the reference feature never comes alone, nor
                # the second without it, or either would pass for the other.
                ratio = first.height / feature.height
                columns.extend((peak + factor * ratio * reference)[:, None] for factor in _HEIGHT_RATIOS)
            else:
                columns.append(peak[:, None])
    design = np.concatenate(columns, axis=1)
    visible = np.abs(design).max(axis=0) > 1e-3
    return design[:, visible]


def _places(feature: Feature) -> Array:
    """Return positions that cover the feature's range about 1 eV apart."""
    if feature.position_range is None:
        return np.array([feature.position])
    low, high = feature.position_range
    return np.linspace(low, high, int(np.ceil(high - low)) + 1)


def _gaussian(x: Array, position: float, sigma: float) -> Array:
    result: Array = np.exp(-0.5 * ((x - position) / sigma) ** 2)
    return result


def _step(x: Array, position: float, width: float) -> Array:
    result: Array = 0.5 * (1.0 + erf((x - position) / (np.sqrt(2.0) * width)))
    return result


def _residual(design: Array, target: Array) -> Array:
    scale = np.sqrt(np.einsum("ij,ij->j", design, design))
    coefficients, _ = nnls(design / scale, target)
    residual: Array = target - (design / scale) @ coefficients
    return residual


def _inflation(residual: Array) -> float:
    """Return how many channels carry the information of one: ``1 + 2 sum rho`` up to the first negative lag."""
    centered = residual - residual.mean()
    variance = float(centered @ centered)
    total = 1.0
    if variance == 0:
        return total
    for lag in range(1, min(60, residual.size // 3)):
        correlation = float(centered[:-lag] @ centered[lag:]) / variance
        if correlation <= 0:
            break
        total += 2.0 * correlation
    return total


def _minima(values: Array) -> list[int]:
    """Return the indices of local minima, the ends included."""
    padded = np.concatenate([[np.inf], values, [np.inf]])
    return [int(i) for i in np.flatnonzero((values < padded[:-2]) & (values <= padded[2:]))]


# --- 2. refine -------------------------------------------------------------------------------------------------


def _refine(
    energies: Array, counts: Array, deviation: Array, edge: Edge, start: float
) -> tuple[float, float, float] | None:
    """Return offset, error and prominence by the smooth model's variants near a trial offset; None if none fits."""
    second = edge.features[1].position if len(edge.features) > 1 else 2.0 * edge.features[0].sigma
    fits = []
    for reach in (second + 2.0, second + 5.0, second + 9.0):
        model = _EdgeModel(energies, counts, deviation, edge, start, reach)
        fit = model.fit()
        if fit is not None:
            fits.append(fit)
    if not fits:
        return None
    values, errors = np.array([fit[0] for fit in fits]), np.array([fit[1] for fit in fits])
    # The variants see much the same data: their errors do not average down, and their spread is the model's share.
    weights = 1.0 / np.square(errors)
    value = float(weights @ values / weights.sum())
    statistical = float(np.sqrt(weights @ np.square(errors) / weights.sum()))
    spread = float(np.sqrt(weights @ np.square(values - value) / weights.sum()))
    lack = _lack_of_fit(energies, counts, edge, value)
    prominence = float(np.median([fit[2] for fit in fits]))
    return value, float(np.sqrt(statistical**2 + spread**2 + lack**2 + _FLOOR**2)), prominence


def _lack_of_fit(energies: Array, counts: Array, edge: Edge, offset: float) -> float:
    """Return how far, in eV, the counts' own maximum lies from where the model puts the highest line.

    A line with a shoulder is not symmetric, as the model's are. Every channel that noise may make the highest counts
    as the maximum.
    """
    if edge.align_on != "maximum":  # the first peak sits on the slope of the next, where the counts' maximum misleads
        return 0.0
    smooth = gaussian_filter1d(counts, _PEAK_SMOOTHING / float(energies[1] - energies[0]))
    # Smoothing is not relied upon to lower noise, which may be correlated over channels.
    noise = 1.4826 * float(np.median(np.abs(counts - smooth)))
    distances = np.abs(energies + offset - edge.reference_energy)
    near = distances <= 1.5
    highest = smooth[near] >= smooth[near].max() - noise
    return max(float(distances[near][highest].min()) - float(energies[1] - energies[0]), 0.0)


class _EdgeModel:
    """Background, one step and the features near the reference, as a smooth function of free parameters.

    Parameters, in order: offset; logarithm of the background and its exponent; height, position and width of the
    step; Lorentzian share of the peaks; height, position (but for the reference feature) and width of each feature.
    Heights are in units of the largest count.
    """

    def __init__(
        self, energies: Array, counts: Array, deviation: Array, edge: Edge, start: float, reach: float
    ) -> None:
        x = energies + start - edge.reference_energy
        inside = x < reach
        self.reference = edge.reference_energy
        self.reach = reach
        self.energies = energies[inside]
        self.scale = float(np.abs(counts[inside]).max())
        self.counts = counts[inside] / self.scale
        self.deviation = deviation[inside] / self.scale
        self.features = [f for f in edge.features if f.position - f.sigma < reach]
        before = x[inside] < -4.0
        level = float(np.mean(self.counts[before])) if before.any() else float(self.counts[0])
        height = max(float(self.counts[~before].max()) - level, 1e-3)
        low, high, first, spread = [start - 2.0], [start + 2.0], [start], [np.inf]

        def add(lower: float, guess: float, upper: float, deviation: float = np.inf) -> None:
            low.append(lower)
            first.append(float(np.clip(guess, lower, upper)))
            high.append(upper)
            spread.append(deviation)

        last = max((f.position for f in self.features[:2]), default=0.0)
        add(-8.0, float(np.log(max(level, 1e-3))), 3.0)
        add(-1.0, 3.0, 9.0)
        add(0.0, 0.3 * height, 3.0)
        add(-3.0, 0.5 * last, max(8.0, last), 3.0)
        add(0.3, 1.5, 5.0, 0.7)
        add(0.0, 0.2, 1.0, 0.2)
        for feature in self.features:
            add(0.0, 0.5 * height * feature.height, 3.0)
            if feature is not self.features[0]:
                places = feature.position_range or (feature.position - 0.5, feature.position + 0.5)
                add(places[0] - 0.5, feature.position, places[1] + 0.5)
            add(0.5 * feature.sigma, feature.sigma, 1.7 * feature.sigma, 0.15 * feature.sigma)
        self.low, self.high, self.first = np.array(low), np.array(high), np.array(first)
        self.spread = np.array(spread)

    def edge_shape(self, parameters: Array, x: Array) -> Array:
        """Return the edge without background at x eV from the reference energy."""
        step_height, step_position, step_width, share = parameters[3:7]
        result: Array = step_height * _step(x, step_position, step_width)
        index = 7
        for feature in self.features:
            height = parameters[index]
            position = 0.0
            if feature is not self.features[0]:
                index += 1
                position = parameters[index]
            sigma = parameters[index + 1]
            index += 2
            u: Array = np.square((x - position) / sigma)
            # the Lorentzian of the same full width at half maximum: half width 1.1774 sigma
            result = result + height * ((1 - share) * np.exp(-0.5 * u) + share / (1 + u / 1.3863))
        return result

    def residual(self, parameters: Array) -> Array:
        """Return the weighted residual of every channel."""
        energies = self.energies + parameters[0]
        background = np.exp(parameters[1] - parameters[2] * np.log(energies / self.reference))
        edge = self.edge_shape(parameters, energies - self.reference)
        result: Array = (background + edge - self.counts) / self.deviation
        return result

    def jacobian(self, parameters: Array) -> Array:
        """Return the derivatives of `residual` by every parameter, shape (channels, parameters)."""
        energies = self.energies + parameters[0]
        x = energies - self.reference
        logarithm = np.log(energies / self.reference)
        background = np.exp(parameters[1] - parameters[2] * logarithm)
        step_height, step_position, step_width, share = parameters[3:7]
        z = (x - step_position) / step_width
        bell = np.exp(-0.5 * np.square(z)) / (np.sqrt(2.0 * np.pi) * step_width)
        result: Array = np.zeros((x.size, parameters.size))
        result[:, 1] = background
        result[:, 2] = -logarithm * background
        result[:, 3] = _step(x, step_position, step_width)
        result[:, 4] = -step_height * bell
        result[:, 5] = -step_height * z * bell
        by_x = step_height * bell
        index = 7
        for feature in self.features:
            height, at, position = parameters[index], index, 0.0
            if feature is not self.features[0]:
                index += 1
                position = parameters[index]
            sigma = parameters[index + 1]
            u: Array = np.square((x - position) / sigma)
            gaussian, lorentzian = np.exp(-0.5 * u), 1.0 / (1.0 + u / 1.3863)
            by_u = -height * (0.5 * (1.0 - share) * gaussian + share / 1.3863 * np.square(lorentzian))
            result[:, at] = (1.0 - share) * gaussian + share * lorentzian
            result[:, 6] += height * (lorentzian - gaussian)
            result[:, index + 1] = -2.0 * u / sigma * by_u
            by_place = -2.0 * (x - position) / sigma**2 * by_u
            if index > at:
                result[:, index] = by_place
            by_x = by_x - by_place
            index += 2
        result[:, 0] = by_x - parameters[2] * background / energies
        return result / self.deviation[:, None]

    def _minimize(self, first: Array, noise: float) -> tuple[Array, Array]:
        """Return parameters and Jacobian of least squares in which widths and the like are held by their usual spread.

        `noise` is the standard deviation of the weighted residuals, 0 for no hold.
        """

        def residual(parameters: Array) -> Array:
            return np.concatenate([self.residual(parameters), noise * (parameters - self.first) / self.spread])

        def jacobian(parameters: Array) -> Array:
            return np.concatenate([self.jacobian(parameters), np.diag(noise / self.spread)])

        solution = least_squares(
            residual,
            first,
            jac=jacobian,
            bounds=(self.low, self.high),
            x_scale=np.maximum(0.1 * (self.high - self.low), 1e-3),
            max_nfev=60,
        )
        return np.asarray(solution.x), np.asarray(solution.jac)

    def fit(self) -> tuple[float, float, float] | None:
        """Return the offset at the maximum of the fitted edge, its statistical error and the feature's prominence."""
        parameters, jacobian = self._minimize(self.first, 0.0)
        residual = self.residual(parameters)
        freedom = max(self.counts.size - parameters.size, 1)
        variance = float(residual @ residual) / freedom * _inflation(residual)
        left = residual * self.deviation
        prominence = float(parameters[7]) / float(np.sqrt(left @ left / left.size) + 1e-9)
        # The scatter about this fit says how much the counts weigh against the usual shape of edges.
        parameters, jacobian = self._minimize(parameters, variance**0.5)
        maximum = self.maximum(parameters)
        if maximum is None:
            return None
        shape = self.edge_shape(parameters, np.linspace(-2.0, self.reach, 200))
        if parameters[7] < _PRESENCE * float(shape.max()):
            return None
        covariance = np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-10) * variance
        gradient = np.zeros(parameters.size)
        gradient[0] = 1.0
        for index in range(3, parameters.size):
            moved = parameters.copy()
            moved[index] += 1e-3 * (self.high[index] - self.low[index])
            place = self.maximum(moved)
            if place is not None:
                gradient[index] = -(place - maximum) / (moved[index] - parameters[index])
        squared_error = float(gradient @ covariance @ gradient)
        return float(parameters[0] - maximum), max(squared_error, 0.0) ** 0.5, prominence

    def maximum(self, parameters: Array) -> float | None:
        """Return where the edge has its local maximum nearest to the reference feature, eV from it, or None."""
        x = np.linspace(-2.0, 2.0, 161)
        shape = self.edge_shape(parameters, x)
        peaks = np.flatnonzero((shape[1:-1] > shape[:-2]) & (shape[1:-1] >= shape[2:])) + 1
        if peaks.size == 0:
            return None
        nearest: Array = np.square(x[peaks])
        peak = int(peaks[np.argmin(nearest)])
        left, middle, right = shape[peak - 1 : peak + 2]
        return float(x[peak] + 0.5 * (x[1] - x[0]) * (left - right) / (left - 2 * middle + right))


# --- edges without a shape -------------------------------------------------------------------------------------


def _from_clear_peak(energies: Array, counts: Array, deviation: Array, edge: Edge, max_offset: float) -> OffsetEstimate:
    """Estimate the offset of an edge that is described by its windows alone: its highest or its first clear peak."""
    # The background is fitted so far below the edge that no offset brings the edge into it.
    stop = max(edge.background_window[1] - max_offset, float(energies[0]) + 10.0)
    before = energies < stop
    background = _background_columns(energies, edge) / deviation[:, None]
    target = counts / deviation
    scale = np.sqrt(np.einsum("ij,ij->j", background[before], background[before]))
    coefficients, _ = nnls(background[before] / scale, target[before])
    signal = counts - deviation * ((background / scale) @ coefficients)
    dispersion = float(energies[1] - energies[0])
    smooth = gaussian_filter1d(signal, _PEAK_SMOOTHING / dispersion)
    remainder = (signal - smooth)[before]
    # Smoothing over several channels lowers white noise by the square root of their number; not relied upon, since
    # noise may be correlated.
    noise = 1.4826 * float(np.median(np.abs(remainder))) + 1e-9 * float(np.abs(counts).max())
    height = float(smooth[~before].max())
    clear = max(_CLEAR_PEAK * noise, 0.03 * height)
    peaks, properties = find_peaks(smooth, prominence=clear)
    offsets = edge.reference_energy - energies[peaks]
    # A little beyond what is allowed, so that a peak there is refused and not passed over for a lesser one.
    inside = (np.abs(offsets) <= max_offset + 3.0) & ~before[peaks] & (smooth[peaks] > _CLEAR_PEAK * noise)
    peaks, prominences = peaks[inside], np.asarray(properties["prominences"])[inside]
    if peaks.size == 0:
        raise InputError(
            f"no clear peak stands above noise within {max_offset:g} eV of {edge.reference_energy:g} eV in the summed "
            f"spectrum, so the energy offset of {edge.name} cannot be estimated; check that the image holds specimen, "
            "or describe the edge's features"
        )
    chosen = 0 if edge.align_on == "first_peak" else int(np.argmax(smooth[peaks]))
    places = [_peak_position(energies, signal, deviation, int(peak)) for peak in peaks]
    values = np.array([edge.reference_energy - place for place, _ in places])
    if edge.align_on == "maximum":  # rivals are peaks nearly as high
        weights = np.where(smooth[peaks] > 0.75 * smooth[peaks[chosen]], smooth[peaks] / smooth[peaks[chosen]], 0.0)
    else:  # the rival is the next peak, should the first be none
        weights = np.zeros(peaks.size)
        weights[1:2] = np.exp(1.0 - prominences[0] / clear)
        weights[0] = 1.0
    value, error = float(values[chosen]), places[chosen][1]
    _require_allowed(value, edge, max_offset)
    spread = float(weights @ np.square(values - value) / weights.sum())
    others = [k for k in np.argsort(-weights) if k != chosen and weights[k] > 0]
    return OffsetEstimate(
        value=value,
        error=float(np.sqrt(error**2 + spread + _FLOOR**2)),
        alternatives=tuple((float(values[k]), float(weights[k])) for k in others),
        contrast=height / noise,
    )


def _peak_position(energies: Array, signal: Array, deviation: Array, peak: int) -> tuple[float, float]:
    """Return the maximum of cubics fitted around a peak, eV, and its error with the spread over their windows."""
    places, errors = [], []
    for half_width in (1.2, 1.6, 2.0):
        near = np.abs(energies - energies[peak]) <= half_width
        x = energies[near] - energies[peak]
        design = np.stack([x**power for power in range(4)], axis=1) / deviation[near, None]
        if x.size < 6:
            continue
        solution = np.linalg.lstsq(design, signal[near] / deviation[near], rcond=None)[0]
        residual = signal[near] / deviation[near] - design @ solution
        variance = float(residual @ residual) / (x.size - 4) * min(_inflation(residual), 3.0)
        covariance = np.linalg.pinv(design.T @ design) * variance
        _, slope, curve, cubic = solution
        root = np.sqrt(max(curve**2 - 3 * cubic * slope, 0.0))
        place = slope / (root - curve) if root > curve else 0.0  # the root that stays finite for cubic -> 0
        if curve < 0 and abs(place) < half_width:
            gradient = np.array([0.0, 1.0, 2 * place, 3 * place**2]) / (2 * curve + 6 * cubic * place)
            places.append(float(energies[peak] + place))
            errors.append(float(np.sqrt(gradient @ covariance @ gradient)))
    if not places:  # coarse channels: the channel itself, known to its width
        return float(energies[peak]), float(energies[1] - energies[0])
    return float(np.mean(places)), float(np.hypot(np.mean(errors), np.std(places)))
