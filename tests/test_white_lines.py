"""The fit of the white lines: against truth, and against HyperSpy with the components of exspy."""

import logging

import numpy as np
import pytest

from eelsflow.edges import FE_L3, O_K, resolve_edge
from eelsflow.maps.white_lines import (
    STEP_RATIO,
    STEP_WIDTH,
    _lines,
    _with_slopes,
    fit_lines,
    fit_shared_lines,
    white_lines_of,
)

ENERGY = np.arange(700.0, 730.0, 0.1)
WIDTHS, DISTANCE = (2.0, 2.1), 13.0


def lines(position, l3, l2, step):
    """Return one spectrum, counts; positions in eV."""
    x = ENERGY - position
    rise = [0.5 + np.arctan(np.pi * one / STEP_WIDTH) / np.pi for one in (x, x - DISTANCE)]
    steps = (rise[0] + STEP_RATIO * rise[1]) / (1.0 + STEP_RATIO)
    gaussians = (np.exp(-0.5 * (one / width) ** 2) for one, width in zip((x, x - DISTANCE), WIDTHS, strict=True))
    return sum(height * one for height, one in zip((l3, l2), gaussians, strict=True)) + step * steps


def field(n, *, noise, correlated, seed=0):
    """Return spectra with their variance, and the true positions and ratios."""
    rng = np.random.default_rng(seed)
    position, height = 707.0 + rng.normal(0.0, 0.4, n), rng.uniform(2.4, 3.2, n)
    clean = np.array([lines(p, 1000.0, 1000.0 / h, 120.0) for p, h in zip(position, height, strict=True)])
    drawn = rng.normal(size=clean.shape)
    if correlated:
        drawn = 0.7 * drawn + 0.5 * np.roll(drawn, 1, axis=1) + 0.3 * np.roll(drawn, 2, axis=1)
    noisy = clean + noise * drawn / drawn.std()
    return noisy, np.full_like(noisy, noise**2), position, height * WIDTHS[0] / WIDTHS[1]


@pytest.mark.parametrize("correlated", [False, True])
def test_ratio_and_position_are_right_within_their_errors(correlated):
    spectra, variance, position, ratio = field(1500, noise=120.0, correlated=correlated)
    shared = fit_shared_lines(ENERGY, spectra.mean(axis=0), variance.mean(axis=0), FE_L3)
    assert shared.distance == pytest.approx(DISTANCE, abs=0.05)
    found = fit_lines(ENERGY, spectra, variance, shared)
    for value, error, truth in (
        (found.position, found.position_error, position),
        (found.ratio, found.ratio_error, ratio),
    ):
        away = (value - truth) / error
        assert np.isfinite(away).all()
        assert abs(np.median(away)) < 0.15
        assert np.std(away) == pytest.approx(1.0, abs=0.15)


def test_without_noise_the_truth_comes_back():
    spectra, variance, position, ratio = field(50, noise=1e-3, correlated=False)
    shared = fit_shared_lines(ENERGY, lines(707.0, 1000.0, 360.0, 120.0), np.ones(ENERGY.size), FE_L3)
    found = fit_lines(ENERGY, spectra, variance, shared)
    np.testing.assert_allclose(found.position, position, atol=1e-3)
    np.testing.assert_allclose(found.ratio, ratio, rtol=1e-3)
    assert shared.widths == pytest.approx(WIDTHS, rel=1e-3)


def test_the_scale_of_counts_changes_nothing():
    spectra, variance, _, _ = field(20, noise=30.0, correlated=False)
    shared = fit_shared_lines(ENERGY, spectra.mean(axis=0), variance.mean(axis=0), FE_L3)
    few = fit_lines(ENERGY, spectra, variance, shared)
    many = fit_lines(ENERGY, 1e6 * spectra, 1e12 * variance, shared)
    np.testing.assert_allclose(many.ratio, few.ratio, rtol=1e-6)
    np.testing.assert_allclose(many.position_error, few.position_error, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Importing .* is deprecated")  # of exspy, in HyperSpy
def test_hyperspy_with_the_steps_of_exspy_finds_the_same():
    import exspy  # take long
    import hyperspy.api as hs

    logging.getLogger("hyperspy").setLevel(logging.ERROR)
    spectra, variance, _, _ = field(4, noise=60.0, correlated=False, seed=3)
    mean_lines = fit_shared_lines(ENERGY, spectra.mean(axis=0), variance.mean(axis=0), FE_L3)
    ours = fit_lines(ENERGY, spectra, variance, mean_lines)
    for number, spectrum in enumerate(spectra):
        signal = hs.signals.Signal1D(spectrum)
        axis = signal.axes_manager[-1]
        axis.offset, axis.scale = ENERGY[0], 0.1
        model = signal.create_model()
        parts = [hs.model.components1D.Gaussian() for _ in range(2)]
        steps = [exspy.components.EELSArctan() for _ in range(2)]
        model.extend([*parts, *steps])
        position = parts[0].centre
        position.value = 707.0
        for part, width, area in zip(parts, mean_lines.widths, (5000.0, 2000.0), strict=True):
            part.A.value, part.sigma.value, part.sigma.free = area, width, False
        for step, height in zip(steps, (40.0, 20.0), strict=True):
            step.A.value, step.k.value, step.k.free = height, np.pi / STEP_WIDTH, False
        for other, shift in (
            (parts[1].centre, mean_lines.distance),
            (steps[0].x0, 0.0),
            (steps[1].x0, mean_lines.distance),
        ):
            other.twin, other.twin_function_expr = position, f"x + {shift}"
        steps[1].A.twin, steps[1].A.twin_function_expr = steps[0].A, f"{STEP_RATIO} * x"
        model.fit()
        assert ours.position[number] == pytest.approx(position.value, abs=0.01)
        assert ours.ratio[number] == pytest.approx(parts[0].A.value / parts[1].A.value, rel=0.01)


def test_what_shows_no_lines_is_left_out():
    falling = np.linspace(100.0, 50.0, ENERGY.size)
    assert fit_shared_lines(ENERGY, falling, np.ones(ENERGY.size), FE_L3) is None
    assert fit_shared_lines(ENERGY, np.full(ENERGY.size, np.nan), np.ones(ENERGY.size), FE_L3) is None
    shared = fit_shared_lines(ENERGY, lines(707.0, 1000.0, 360.0, 120.0), np.ones(ENERGY.size), FE_L3)
    spectra = np.stack(
        [lines(707.2, 1000.0, 360.0, 120.0), np.full(ENERGY.size, np.nan), -lines(707.0, 900.0, 300.0, 0.0)]
    )
    found = fit_lines(ENERGY, spectra, np.ones_like(spectra), shared)
    assert np.isfinite(found.ratio).tolist() == [True, False, False]
    assert np.isfinite(found.position).tolist() == [True, False, False]


def test_white_lines_belong_to_the_edge_that_has_them():
    assert white_lines_of(O_K) is None
    assert white_lines_of(resolve_edge("O_K+Fe_L3")).name == "Fe_L3"


def test_slopes_are_those_of_differences():
    energies, position = np.arange(695.0, 735.0, 0.5), np.array([706.3, 709.1])
    lines, slopes = _with_slopes(energies, position, (1.6, 2.1), 13.1)
    np.testing.assert_allclose(lines, _lines(energies, position, (1.6, 2.1), 13.1), atol=1e-14)
    up, down = (np.array(_lines(energies, position + moved, (1.6, 2.1), 13.1)) for moved in (1e-5, -1e-5))
    np.testing.assert_allclose(slopes, (up - down) / 2e-5, atol=1e-8)
