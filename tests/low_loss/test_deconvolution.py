import numpy as np
import pytest
from scipy.signal import fftconvolve

from eelsflow.errors import InputError
from eelsflow.low_loss.deconvolution import fourier_ratio
from eelsflow.low_loss.elastic import separate_zero_loss
from eelsflow.low_loss.zero_loss import measure_zero_loss
from tests.low_loss.low_loss_spectra import drude, gaussian, import_exspy, plural

LOW = -20.0 + 0.25 * np.arange(800)
CORE = 500.0 + 0.25 * np.arange(600)
THICKNESS = np.array([0.2, 0.6, 1.2])
STEP = 0.05


def single_edge(energy):
    rise = 1 / (1 + np.exp(-(energy - 530) / 0.4))
    peak = 2 * np.exp(-0.5 * ((energy - 531) / 1.0) ** 2) + 1.5 * np.exp(-0.5 * ((energy - 540) / 2.5) ** 2)
    return 1e3 * (rise * (np.maximum(energy, 1) / 530) ** -2.5 + peak)


def edges(relative_thickness, energy, *, fwhm=0.8, orders=12):
    """Return single scattering behind exp(-t) and what is detected, both broadened, (thicknesses, channels) each."""
    grid = np.arange(480.0, energy[-1] + 20, STEP)
    loss = np.arange(0.0, 1500.0, STEP)
    one = drude(loss)
    one /= one.sum()
    kernel = gaussian(np.arange(-10, 10 + STEP / 2, STEP), fwhm) * STEP
    order = fftconvolve(single_edge(grid), kernel, mode="same")
    order[grid < 520] = 0
    first = order
    terms = [order]
    for _ in range(orders):
        terms.append(fftconvolve(terms[-1], one)[: grid.size])
    single, seen = [], []
    for t in np.atleast_1d(relative_thickness):
        weight, total = np.exp(-t), np.zeros(grid.size)
        single.append(np.interp(energy, grid, first) * np.exp(-t))
        for n, term in enumerate(terms):
            total += weight * term
            weight *= t / (n + 1)
        seen.append(np.interp(energy, grid, total))
    return np.stack(single), np.stack(seen)


def elastic(low, energy=LOW):
    return separate_zero_loss(energy, low, measure_zero_loss(energy, low))


def relative_error(found, truth, energy=CORE, window=(525.0, 640.0)):
    use = (energy >= window[0]) & (energy < window[1])
    return np.sqrt(((found - truth)[..., use] ** 2).mean() / (truth[..., use] ** 2).mean())


@pytest.mark.parametrize("position", [0.0, -0.09, 2.3])
def test_single_scattering_is_recovered(position):
    low = plural(THICKNESS, LOW, position=position)
    single, seen = edges(THICKNESS, CORE)
    found = fourier_ratio(CORE, seen, elastic(low), low)
    assert relative_error(seen, single) > 0.1
    assert relative_error(found.counts, single) < 0.01
    assert found.counts.shape == seen.shape


def test_it_conserves_what_it_does_not_know():
    low = plural(np.zeros(2), LOW)
    _, seen = edges(np.zeros(2), CORE)
    np.testing.assert_allclose(fourier_ratio(CORE, seen, elastic(low), low).counts, seen, rtol=2e-3, atol=2)


def test_the_end_of_the_axis_leaves_no_trace_before_it():
    low = plural([0.8], LOW)
    _, seen = edges([0.8], CORE)
    short = fourier_ratio(CORE[:300], seen[:, :300], elastic(low), low).counts
    np.testing.assert_allclose(short, fourier_ratio(CORE, seen, elastic(low), low).counts[:, :300], atol=1e-3 * 3e3)


@pytest.mark.parametrize("dispersion", [0.1, 0.2, 0.4])
def test_axes_of_other_dispersions_are_resampled(dispersion):
    energy = -20.0 + dispersion * np.arange(int(180 / dispersion))
    low = plural(THICKNESS, energy, fwhm=1.0, position=0.07)
    single, seen = edges(THICKNESS, CORE, fwhm=1.0)
    found = fourier_ratio(CORE, seen, elastic(low, energy), low)
    assert relative_error(found.counts, single) < 0.015


def test_a_low_loss_that_ends_early_is_continued():
    energy = LOW[:320]  # 60 eV of losses for 110 eV of edge
    low = plural(THICKNESS, energy)
    single, seen = edges(THICKNESS, CORE)
    found = fourier_ratio(CORE, seen, elastic(low, energy), low)
    assert relative_error(found.counts, single) < 0.04


def test_one_low_loss_serves_many_spectra():
    low = plural([0.6], LOW)[0]
    single, seen = edges([0.6], CORE)
    found = fourier_ratio(CORE, np.repeat(seen, 4, axis=0).reshape(2, 2, -1), elastic(low), low)
    assert found.counts.shape == (2, 2, CORE.size)
    assert relative_error(found.counts, single) < 0.01


@pytest.mark.parametrize("reconvolution", ["zero_loss", 0.8])
def test_variance_tells_how_far_results_scatter(reconvolution):
    rng = np.random.default_rng(6)
    low = np.repeat(plural([0.7], LOW, intensity=3e5), 400, axis=0)
    _, seen = edges([0.7], CORE)
    background = 4000.0
    core = rng.poisson(np.repeat(seen, 400, axis=0) + background) - background
    noisy_low = rng.poisson(low)
    parts = elastic(noisy_low)
    found = fourier_ratio(
        CORE,
        core,
        parts,
        noisy_low,
        reconvolution=reconvolution,
        core_variance=np.repeat(seen, 400, axis=0) + background,
        low_variance=noisy_low,
    )
    # away from the ends of the axis
    scatter = found.counts[:, 40:-60].var(axis=0)
    np.testing.assert_allclose(scatter.mean(), found.variance[:, 40:-60].mean(), rtol=0.06)
    assert found.noise_amplification == pytest.approx(
        np.sqrt(found.variance[:, 40:-60].mean() / core[:, 40:-60].var(axis=0).mean()), rel=0.2
    )


def test_reconvolution_with_the_zero_loss_hardly_raises_the_noise():
    low = plural([1.0], LOW)
    _, seen = edges([1.0], CORE)
    found = fourier_ratio(CORE, seen, elastic(low), low, core_variance=np.ones_like(seen))
    assert found.noise_amplification < 1.1
    sharper = fourier_ratio(CORE, seen, elastic(low), low, core_variance=np.ones_like(seen), reconvolution=0.5)
    assert sharper.noise_amplification > 1.5


def test_a_narrower_gaussian_sharpens():
    low = plural([0.5], LOW, fwhm=1.2)
    _, seen = edges([0.5], CORE, fwhm=1.2)
    sharp, _ = edges([0.5], CORE, fwhm=0.9)
    found = fourier_ratio(CORE, seen, elastic(low), low, reconvolution=0.9)
    assert relative_error(found.counts, sharp) < 0.01


def test_correlated_noise_is_carried_with_its_correlation():
    rng = np.random.default_rng(8)
    low = plural([0.7], LOW)
    kernel = np.array([0.25, 0.5, 0.25])
    noise = np.stack([np.convolve(one, kernel, mode="same") for one in rng.normal(size=(400, CORE.size))])
    correlation = np.correlate(kernel, kernel, "full")[2:] / (kernel @ kernel)
    variance = np.full((1, CORE.size), kernel @ kernel)
    found = fourier_ratio(
        CORE, noise, elastic(low), low, reconvolution=0.7, core_variance=variance, correlation=correlation
    )
    scatter = found.counts[:, 40:-60].var(axis=0).mean()
    assert scatter == pytest.approx(found.variance[:, 40:-60].mean(), rel=0.05)


def test_input_is_not_modified_and_wrong_shapes_are_refused():
    low = plural(THICKNESS, LOW)
    _, seen = edges(THICKNESS, CORE)
    before = seen.copy(), low.copy()
    fourier_ratio(CORE, seen, elastic(low), low)
    np.testing.assert_array_equal(seen, before[0])
    np.testing.assert_array_equal(low, before[1])
    with pytest.raises(InputError, match="pixels"):
        fourier_ratio(CORE, seen[:2], elastic(low), low)
    with pytest.raises(InputError, match="fwhm"):
        fourier_ratio(CORE, seen, elastic(low), low, reconvolution=-1.0)


def test_pixels_without_a_zero_loss_are_nan():
    low = plural(THICKNESS, LOW)
    low[1] = 0.0
    _, seen = edges(THICKNESS, CORE)
    found = fourier_ratio(CORE, seen, elastic(low), low, core_variance=np.ones_like(seen), low_variance=low)
    assert np.isnan(found.counts).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(found.variance).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(found.noise_amplification)


def exspy_result(energy, core, low_energy, low, **options):
    exspy_signals = import_exspy("signals")

    theirs = exspy_signals.EELSSpectrum(np.array(core, dtype=float))
    theirs.axes_manager[-1].scale, theirs.axes_manager[-1].offset = energy[1] - energy[0], energy[0]
    zero = exspy_signals.EELSSpectrum(np.array(low, dtype=float))
    zero.axes_manager[-1].scale, zero.axes_manager[-1].offset = low_energy[1] - low_energy[0], low_energy[0]
    return theirs.fourier_ratio_deconvolution(zero, **options).data


@pytest.mark.parametrize("noise", [False, True])
def test_single_scattering_is_nearer_to_the_truth_than_that_of_exspy(noise):
    rng = np.random.default_rng(9)
    low = plural(THICKNESS, LOW, intensity=1e6)
    single, seen = edges(THICKNESS, CORE)
    if noise:
        low, seen = rng.poisson(low).astype(float), rng.poisson(seen + 2000) - 2000.0
    ours = fourier_ratio(CORE, seen, elastic(low), low).counts
    # theirs takes the Gaussian's width and the end of the zero loss from the caller; both as good as known
    theirs = exspy_result(CORE, seen, LOW, low, fwhm=0.8, threshold=2.5)
    best = min(
        relative_error(np.roll(theirs, shift, axis=-1) * scale, single)
        for shift in range(-90, 91)
        for scale in (1.0, 0.25, 4.0)
    )
    assert relative_error(ours, single) <= best


@pytest.mark.real
def test_titanium_dioxide_agrees_with_exspy_where_that_is_free_of_its_taper(real_data):
    from eelsflow.io.read import read_spectrum_image
    from eelsflow.preprocess.background import fit_power_law

    core, low = (read_spectrum_image(real_data / f"tio2_linescan_{name}_loss.dm3") for name in ("core", "low"))
    energy, low_energy = core["energy_loss"].values, low["energy_loss"].values
    counts, low_counts = core.values[0].astype(float), low.values[0].astype(float)
    counts = counts - fit_power_law(energy, counts, (400.0, 448.0)).evaluate(energy)
    # one spectrum of high counts: theirs has no means against noise
    spectrum, zero = counts.mean(axis=0), low_counts.mean(axis=0)
    ours = fourier_ratio(energy, spectrum, elastic(zero, low_energy), zero, reconvolution=1.5).counts
    theirs = exspy_result(energy, spectrum, low_energy, zero, fwhm=1.5, threshold=5.0)
    window = (energy > 455) & (energy < 560)

    def match(shift):
        moved = np.roll(theirs, shift)[window]
        scale = moved @ ours[window] / (moved @ moved)
        return np.sqrt(((scale * moved - ours[window]) ** 2).mean() / (ours[window] ** 2).mean())

    assert min(match(shift) for shift in range(-130, 131)) < 0.02
    # what plural scattering leaves behind the edges goes, and the result stays positive
    assert ours[window].min() > -0.02 * ours[window].max()
    behind = (energy > 490) & (energy < 520)
    assert ours[behind].mean() / ours[window].max() < spectrum[behind].mean() / spectrum[window].max()
