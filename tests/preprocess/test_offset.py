import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from eelsflow.edges import FE_L3, MN_L3, O_K, SHIPPED, Edge
from eelsflow.errors import EdgeOutOfRangeError, InputError
from eelsflow.preprocess.offset import _EdgeModel, estimate_offset
from tests.strategies import energies, examples, factors, fractions


def oxygen_edge(x, *, pre=0.55, main=9.4, third=29.5):
    """An O K edge at x eV from its pre-peak; the step begins above the pre-peak, so that its maximum is at 0."""

    def peak(position, sigma, height):
        return height * np.exp(-0.5 * ((x - position) / sigma) ** 2)

    continuum = 0.25 * (1 + erf((x - 6.0) / 2.0)) * (1 + x.clip(0) / 530) ** -3
    return peak(0, 1.2, pre) + peak(main, 2.5, 0.7) + peak(third, 4.5, 0.3) + peak(43, 5, 0.15) + continuum


def iron_edge(x):
    continuum = 0.3 * (1 + erf((x - 1.0) / 2.0))
    lines = 2.4 * np.exp(-0.5 * (x / 2.1) ** 2) + 0.87 * np.exp(-0.5 * ((x - 13) / 2.2) ** 2)
    return lines + continuum


def summed_spectrum(offset, *, dispersion=0.25, dispersion_error=0.0, seed=0, n_pixels=400, edge_height=300.0, **shape):
    """Nominal energies and counts; adding `offset` at 530 eV corrects the axis."""
    nominal = 450 + dispersion * np.arange(int(512 / dispersion))
    true = 530 + (nominal + offset - 530) * (1 + dispersion_error)
    edges = oxygen_edge(true - 530, **shape) + iron_edge(true - 707.5)
    expected = n_pixels * (405 * (true / 490) ** -3.4 + edge_height * edges)
    rng = np.random.default_rng(seed)
    kernel = np.array([0.05, 0.2, 0.5, 0.2, 0.05])  # point spread: correlated noise
    counts = np.convolve(19.0 * rng.poisson(expected / 19), kernel, mode="same")
    return nominal, counts + rng.normal(0, 6.4 * np.sqrt(n_pixels), nominal.size)


def without_features(edge, **changes):
    return edge.model_copy(update={"features": (), **changes})


@given(
    offset=energies(-9, 9),
    pre=fractions(0.35, 0.85),
    main=energies(8.8, 10.8),
    third=energies(27, 31),
    dispersion=st.sampled_from([0.1, 0.25, 0.5]),
    dispersion_error=fractions(-0.01, 0.01),
)
@examples(10)
def test_offset_is_found_within_a_tenth_of_an_ev(offset, pre, main, third, dispersion, dispersion_error):
    energy_loss, counts = summed_spectrum(
        offset, pre=pre, main=main, third=third, dispersion=dispersion, dispersion_error=dispersion_error
    )
    estimate = estimate_offset(energy_loss, counts, O_K)
    assert estimate.value == pytest.approx(offset, abs=0.1)
    assert 0.01 < estimate.error < 0.2


@pytest.mark.parametrize("offset", [-9.0, 9.0, 9.4, -9.4])
def test_offset_does_not_take_the_main_peak_for_the_pre_peak(offset):
    energy_loss, counts = summed_spectrum(offset, pre=0.4, main=9.4)
    estimate = estimate_offset(energy_loss, counts, O_K)
    assert estimate.value == pytest.approx(offset, abs=0.1)


@given(moved=energies(-5, 5))
@examples(4)
def test_offset_of_a_moved_axis_moves_along(moved):
    energy_loss, counts = summed_spectrum(1.0)
    first, second = (estimate_offset(energy_loss + shift, counts, O_K) for shift in (0.0, moved))
    # the background's power law is not invariant under a shift, and the scan's trials fall elsewhere
    assert second.value == pytest.approx(first.value - moved, abs=0.03)


def test_alignment_is_idempotent():
    energy_loss, counts = summed_spectrum(-6.3)
    estimate = estimate_offset(energy_loss, counts, O_K)
    again = estimate_offset(energy_loss + estimate.value, counts, O_K)
    assert again.value == pytest.approx(0.0, abs=0.03)


@given(factor=factors(1e-6, 1e6))
@examples(3)
def test_offset_ignores_the_scale_of_the_counts(factor):
    energy_loss, counts = summed_spectrum(3.0)
    estimates = [estimate_offset(energy_loss, scale * counts, O_K).value for scale in (1.0, factor)]
    assert estimates[1] == pytest.approx(estimates[0], abs=0.01)


def test_offset_takes_variances():
    energy_loss, counts = summed_spectrum(3.0)
    plain, weighted = (estimate_offset(energy_loss, counts, O_K, variance=v) for v in (None, 5.55 * counts + 1e4))
    assert weighted.value == pytest.approx(plain.value, abs=0.03)


def test_offset_differences_agree_with_hyperspy_cross_correlation():
    offsets = (2.0, -1.3)
    pairs = [summed_spectrum(offset, seed=seed) for seed, offset in enumerate(offsets)]
    with warnings.catch_warnings():  # HyperSpy and its dependencies warn on import and of missing accelerators
        warnings.simplefilter("ignore")
        signals = pytest.importorskip("hyperspy.api").signals
        signal = signals.Signal1D(np.stack([counts for _, counts in pairs]))
        signal.axes_manager[-1].scale, signal.axes_manager[-1].offset = 0.25, 450.0
        shifts = signal.estimate_shift1D(
            start=495.0, end=575.0, reference_indices=0, max_shift=40, number_of_interpolation_points=10,
            show_progressbar=False,
        )  # fmt: skip
    ours = [estimate_offset(energy_loss, counts, O_K).value for energy_loss, counts in pairs]
    # theirs is quantised to a tenth of a channel and pulled by the background's slope
    assert ours[1] - ours[0] == pytest.approx(float(np.ravel(shifts)[1]), abs=0.08)


@pytest.mark.parametrize("dead", [1, 2])
def test_offset_is_not_moved_by_dead_and_stuck_channels(dead):
    energy_loss, counts = summed_spectrum(2.0)
    peak = int(np.argmin(np.abs(energy_loss - 528.0)))
    counts[peak + 2 : peak + 2 + dead] = 0.0
    counts[peak + 40] *= 3
    before = counts.copy()
    assert estimate_offset(energy_loss, counts, O_K).value == pytest.approx(2.0, abs=0.1)
    np.testing.assert_array_equal(counts, before)


@pytest.mark.parametrize("offset", [-8.0, 0.0, 7.0])
@pytest.mark.parametrize("edge", [FE_L3, without_features(FE_L3)], ids=["features", "windows"])
def test_offset_of_a_white_line_is_where_its_maximum_is(edge, offset):
    energy_loss, counts = summed_spectrum(offset)
    x = np.linspace(-2, 2, 4001)
    maximum = 707.5 + x[np.argmax(iron_edge(x))]  # above the line's centre: the continuum rises beneath it
    estimate = estimate_offset(energy_loss, counts, edge)
    assert estimate.value == pytest.approx(offset + edge.reference_energy - maximum, abs=0.1)


def test_offset_by_windows_refuses_a_maximum_beyond_reach_and_does_not_take_a_lesser_peak():
    energy_loss, counts = summed_spectrum(9.5)  # L3 shows 10.7 eV below its reference energy, L2 within reach
    with pytest.raises(InputError, match=r"beyond the 9 eV allowed"):
        estimate_offset(energy_loss, counts, without_features(FE_L3))


@pytest.mark.parametrize("offset", [-3.0, 0.0, 3.0])
def test_offset_without_features_is_that_of_the_first_clear_peak(offset):
    energy_loss, counts = summed_spectrum(offset)
    estimate = estimate_offset(energy_loss, counts, without_features(O_K))
    assert estimate.value == pytest.approx(offset, abs=0.1)


def test_offset_between_two_peaks_of_one_height_has_an_error_of_their_distance():
    energy_loss = 600 + 0.2 * np.arange(500)
    peaks = [np.exp(-0.5 * ((energy_loss - place) / 1.0) ** 2) for place in (640.0, 646.0)]
    counts = 1e5 * (energy_loss / 640) ** -3 + 2e4 * (peaks[0] + peaks[1])
    estimate = estimate_offset(energy_loss, np.random.default_rng(0).poisson(counts), without_features(MN_L3))
    assert estimate.error > 2.0
    assert len(estimate.alternatives) == 1


@pytest.mark.parametrize("edge", [O_K, FE_L3, without_features(O_K), without_features(FE_L3)])
@pytest.mark.parametrize("seed", range(4))
def test_offset_of_vacuum_is_refused(edge, seed):
    energy_loss, counts = summed_spectrum(0.0, edge_height=0.0, seed=seed, n_pixels=(1, 20, 200, 1000)[seed])
    with pytest.raises(InputError, match=r"no .* stands above noise"):
        estimate_offset(energy_loss, counts, edge)


def normalised_white_lines(energy_loss, maximum):
    """Mean of normalised Mn2+ spectra without background: lines narrower than described, with a shoulder."""
    x = energy_loss - maximum
    lines = [(0.0, 0.75, 0.7), (1.2, 1.1, 0.25), (2.8, 1.3, 0.12), (11.5, 1.5, 0.12), (12.6, 0.9, 0.06)]
    edge = sum(height * np.exp(-0.5 * ((x - place) / sigma) ** 2) for place, sigma, height in lines)
    return edge + 0.13 * (1 + erf((x - 14) / 6)) / 2 - 0.02 * np.clip((energy_loss - 610) / 30, 0, 1)


@pytest.mark.parametrize("readout", [0.0, 3e-4])
def test_offset_of_normalised_white_lines_is_found_with_an_error_that_covers_their_asymmetry(readout):
    energy_loss = 615 + 0.1 * np.arange(700)
    expected = normalised_white_lines(energy_loss, maximum=644.2)
    counts = expected + np.random.default_rng(0).normal(0, 1e-3, energy_loss.size)
    estimate = estimate_offset(energy_loss, counts, MN_L3, variance=readout + 0.0077 * counts)
    maximum = energy_loss[np.argmax(expected)]  # the shoulder moves it up a little
    assert estimate.value == pytest.approx(642.0 - maximum, abs=0.7)
    assert abs(estimate.value - (642.0 - maximum)) < 4 * estimate.error
    assert estimate.error < 0.6


def test_offset_of_counts_that_another_edge_shapes_says_so():
    energy_loss = 420 + 0.3 * np.arange(900)
    fine = sum(h * np.exp(-0.5 * ((energy_loss - p) / 5) ** 2) for p, h in ((482, 0.1), (495, 0.1), (515, 0.2)))
    counts = 1e6 * ((energy_loss / 460) ** -3 + (energy_loss > 460) * (0.6 + fine) * (energy_loss / 460) ** -2)
    counts = np.random.default_rng(0).poisson(counts)
    with pytest.raises(InputError, match="structure far above its noise") as refusal:
        estimate_offset(energy_loss, counts, O_K)
    assert "vacuum" not in str(refusal.value)


@pytest.mark.parametrize("edge", [O_K, FE_L3, MN_L3])
@pytest.mark.parametrize("level", [50.0, 500.0])
def test_offset_of_a_flat_spectrum_is_refused(edge, level):
    counts = np.random.default_rng(0).poisson(level, (20, 500)).mean(axis=0)
    with pytest.raises(InputError, match=r"no .* stands above noise"):
        estimate_offset(480 + 0.5 * np.arange(500), counts, edge)


def test_offset_of_a_faint_edge_has_an_error_that_covers_it_or_is_refused():
    rng = np.random.default_rng(5)
    n_estimated = 0
    for seed in range(8):
        offset = rng.uniform(-9, 9)
        energy_loss, counts = summed_spectrum(offset, n_pixels=50, edge_height=30.0, seed=seed)
        try:
            estimate = estimate_offset(energy_loss, counts, O_K)
        except InputError:
            continue
        n_estimated += 1
        assert abs(estimate.value - offset) < 4 * estimate.error
    assert n_estimated > 0


def test_offset_beyond_what_is_allowed_is_refused():
    energy_loss, counts = summed_spectrum(5.5)
    with pytest.raises(InputError, match=r"beyond the 4.5 eV allowed|no O_K"):
        estimate_offset(energy_loss, counts, O_K, max_offset=4.5)


def test_offset_is_found_where_the_axis_ends_soon_after_the_main_peak():
    energy_loss, counts = summed_spectrum(-4.0)
    near = energy_loss < 556.0
    assert estimate_offset(energy_loss[near], counts[near], O_K).value == pytest.approx(-4.0, abs=0.1)


def test_offset_is_found_where_the_axis_begins_soon_before_the_edge():
    energy_loss, counts = summed_spectrum(-4.0)
    near = energy_loss > 505.0
    assert estimate_offset(energy_loss[near], counts[near], O_K).value == pytest.approx(-4.0, abs=0.1)


def test_offset_refuses_an_axis_that_cannot_show_the_edge():
    with pytest.raises(EdgeOutOfRangeError, match=r"spans 435.0-486.0 eV .* must show 522-542.4 eV"):
        estimate_offset(np.arange(435.0, 486.5, 0.5), np.ones(103), O_K)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.full(600, np.nan), "not finite"),
        (np.full(600, 7.0), "no signal"),
        (np.ones(599), "sum the image over its pixels"),
    ],
)
def test_offset_refuses_broken_spectra(counts, message):
    with pytest.raises(InputError, match=message):
        estimate_offset(np.arange(450.0, 600.0, 0.25), counts, O_K)


def test_offset_of_a_custom_edge_needs_only_windows():
    edge = Edge(name="Cr_L3", reference_energy=578.0, elnes_window=(570.0, 600.0), pre_edge_window=(540.0, 568.0))
    energy_loss = 480 + 0.3 * np.arange(600)
    counts = 2e5 * (energy_loss / 578) ** -3 + 4e4 * np.exp(-0.5 * ((energy_loss - 573.4) / 1.5) ** 2)
    estimate = estimate_offset(energy_loss, np.random.default_rng(1).poisson(counts), edge)
    assert estimate.value == pytest.approx(4.6, abs=max(0.1, 2 * estimate.error))


@pytest.mark.slow
def test_offset_of_simulated_acquisitions_is_within_a_tenth_of_an_ev():
    from eelsflow.simulator import PRESETS, simulate_acquisition
    from eelsflow.simulator.acquisition import AxisParameters

    # a wide bell cut at +-9 eV: offsets nearly uniform over the range
    axis = AxisParameters(offset_scale=30.0, offset_limit=9.0)
    parameters = PRESETS["paper"].model_copy(update={"axis": axis})
    errors, ratios = [], []
    for seed in range(20):
        acquisition = simulate_acquisition(parameters, seed)
        specimen = ~acquisition.truth["vacuum"].values
        counts = acquisition.image.values[specimen].mean(axis=0)  # spikes and dead channels included
        estimate = estimate_offset(acquisition.image["energy_loss"].values, counts, O_K)
        errors.append(estimate.value - acquisition.truth.attrs["offset"])
        ratios.append(errors[-1] / estimate.error)
    assert np.abs(errors).max() < 0.1
    assert 0.3 < np.sqrt(np.mean(np.square(ratios))) < 2.0  # the errors are neither boasts nor excuses


# Nominal positions read off plots of the spectra: L3 at 634.5 and 648.6 eV to a channel; the pre-peak of LSMO at
# 528.9, that of the other oxide a shoulder at 537.3-538 eV.
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "reader", "edge", "expected", "tolerance"),
    [
        ("lsmo_linescan.hspy", "hspy", MN_L3, 7.5, 0.15),
        ("mn_oxide_core_loss.msa", "msa", MN_L3, -6.6, 0.15),
        ("lsmo_linescan.hspy", "hspy", O_K, 1.1, 0.3),
        ("mn_oxide_core_loss.msa", "msa", O_K, -7.6, 0.6),
    ],
)
def test_offset_of_real_manganese_oxides_is_that_read_off_the_spectra(
    real_data, name, reader, edge, expected, tolerance
):
    from importlib import import_module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signal = import_module(f"rsciio.{reader}").file_reader(str(real_data / name))[0]
    axis = signal["axes"][-1]
    energy_loss = axis["offset"] + axis["scale"] * np.arange(axis["size"])
    counts = np.asarray(signal["data"], dtype=float).reshape(-1, energy_loss.size).sum(axis=0)
    estimate = estimate_offset(energy_loss, counts, edge)
    assert estimate.value == pytest.approx(expected, abs=tolerance)
    if edge is O_K:  # the shape is that of iron oxides: on a manganite the error must say that it fits badly
        assert 0.3 < estimate.error < 2.5
    else:
        assert estimate.error < 0.15


@pytest.mark.real
@pytest.mark.parametrize("name", ["mn2_659", "mn2_448"])
def test_offset_of_a_real_table_of_normalised_white_lines_is_found(real_data, name):
    """The highest channel of the mean spectrum lies at 644.2 eV, that of the subset at 644.1."""
    with np.load(real_data / "mn2_white_lines.npz") as table:
        energy_loss, counts = table["energy_eV"].astype(float), table[name].mean(axis=0)
    estimate = estimate_offset(energy_loss, counts, MN_L3)
    assert estimate.value == pytest.approx(642.0 - 644.15, abs=0.5)
    assert estimate.error < 0.4


@pytest.mark.parametrize("name", sorted(name for name, edge in SHIPPED.items() if edge.features))
def test_derivatives_of_the_smooth_model_are_those_of_differences(name):
    edge, rng = SHIPPED[name], np.random.default_rng(4)
    energies = edge.reference_energy + np.arange(-40.0, 40.0, 0.2)
    counts = 1e4 * (energies / energies[0]) ** -3 + 3000 / (1 + np.exp(edge.reference_energy - energies))
    model = _EdgeModel(energies, counts + 30 * rng.standard_normal(counts.size), np.sqrt(counts), edge, 1.0, 9.0)
    parameters = model.first * rng.uniform(0.9, 1.1, model.first.size) + 0.01
    steps = 1e-6 * np.eye(parameters.size)
    expected = [(model.residual(parameters + step) - model.residual(parameters - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(model.jacobian(parameters), np.transpose(expected), rtol=0, atol=1e-6)
