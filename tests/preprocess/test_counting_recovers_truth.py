"""On simulated acquisitions of a counting detector, from half an electron a channel, `recommended` finds the truth."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import minimize

from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.preprocess.background import ExponentPrior, PowerLawStatus, fit_power_law, pooled_prior
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.noise import NoiseModel
from eelsflow.preprocess.presets import PRESETS
from eelsflow.preprocess.rebin import rebin_variance
from eelsflow.preprocess.vacuum import signal_with_total
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters, expected_counts
from eelsflow.simulator.detector import CountingParameters
from tests.preprocess.test_blocks import assert_same_product

SHAPE = (32, 32)
DOSES = (0.03, 0.1, 1.0)
"""Of .56 electrons a channel at 510-525 eV on the specimen, of 1.9 and of 19."""

WINDOW = (495.0, 522.0)
ENERGY = 480.0 + 0.25 * np.arange(360)
COUNTED = NoiseModel(gain=1.0, readout_variance=0.0, correlation=np.ones(1), quantum=1.0)


@cache
def simulated(dose: float) -> tuple[xr.DataArray, xr.Dataset, np.ndarray]:
    """Return an acquisition, its truth and its expected counts."""
    parameters = SIMULATED["paper"]
    parameters = parameters.model_copy(
        update={
            "shape": SHAPE,
            "axis": AxisParameters(start=470.0, n_channels=520),
            "detector": CountingParameters(),
            "levels": parameters.levels.model_copy(update={"dose": (dose, dose)}),
        }
    )
    acquisition = simulate_acquisition(parameters, 41)
    return acquisition.image, acquisition.truth, expected_counts(parameters, 41).counts


@cache
def prepared(dose: float) -> xr.Dataset:
    return prepare(simulated(dose)[0], edge=O_K, preset=PRESETS["recommended"])


@pytest.mark.parametrize("dose", DOSES)
def test_no_pixel_holds_a_spike(dose: float) -> None:
    assert (prepared(dose)["spike_channels"].values > 0).mean() <= 0.001


@pytest.mark.parametrize("dose", DOSES)
def test_vacuum_is_found(dose: float) -> None:
    truth = simulated(dose)[1]
    thickness = truth["thickness"].values / truth["thickness"].values.max()
    wrong = prepared(dose)["vacuum_mask"].values != truth["vacuum"].values
    assert wrong.mean() < 0.05
    assert wrong[(thickness < 0.1) | (thickness > 0.5)].mean() < 0.005


@pytest.mark.parametrize("dose", DOSES)
def test_variance_is_that_of_the_expected_counts_and_never_zero(dose: float) -> None:
    product = prepared(dose)
    truth, expected = simulated(dose)[1:]
    axis = EnergyAxis.from_values(product["energy_loss"].values)
    exact = rebin_variance(product["mean_energy_loss"].values, expected, axis, correlation=np.ones(1))
    variance, inside = product["variance"].values, axis.channels((530.0, 555.0))
    assert (variance > 0).all()
    vacuum = truth["vacuum"].values
    for pixels in (vacuum, ~vacuum):
        # the error of the background comes on top
        assert 1.0 < variance[pixels][:, inside].mean() / exact[pixels][:, inside].mean() < 1.1


@pytest.mark.parametrize("dose", DOSES)
def test_background_is_that_of_poissons_likelihood(dose: float) -> None:
    """The background under the edge, of all specimen pixels together, beside a fit of their sum by its likelihood."""
    image, _, expected = simulated(dose)
    product = prepared(dose)
    axis, specimen = product["mean_energy_loss"].values, ~product["vacuum_mask"].values
    before, under = (axis >= 495) & (axis < 522), (axis >= 530) & (axis < 560)
    before &= expected.reshape(-1, axis.size).any(axis=0)  # without dead channels
    x = np.log(axis / np.sqrt(495.0 * 522.0))
    total = image.values[specimen][:, before].sum(axis=0)

    def surprise(p: np.ndarray) -> float:
        return float(np.exp(p[0] - p[1] * x[before]).sum() - (total * (p[0] - p[1] * x[before])).sum()) / total.sum()

    found = minimize(surprise, [np.log(total.mean()), 3.0], method="BFGS", options={"gtol": 1e-9}).x
    likely = np.exp(found[0] - found[1] * x[under]).sum()
    amplitude, exponent = (product[f"background_{n}"].values[specimen] for n in ("amplitude", "exponent"))
    ours = (amplitude[:, None] * np.exp(-exponent[:, None] * x[under])).sum()
    # pixels keep a little of their own exponents; dead channels are bridged
    assert ours == pytest.approx(likely, rel=0.01)


@pytest.mark.parametrize("dose", DOSES)
def test_energy_offset_is_found_within_its_error(dose: float) -> None:
    product, truth = prepared(dose), simulated(dose)[1]
    error = product.attrs["energy_offset"] - truth.attrs["offset"]
    assert abs(error) < 3 * product.attrs["energy_offset_error"]
    assert abs(error) < 0.3


def test_spikes_do_not_bear_on_the_vacuum_of_few_electrons() -> None:
    """Twenty such spikes double the mean counts of the second half of the window that the background is found in."""
    image, truth, _ = simulated(DOSES[0])
    counts, rng = image.values.copy(), np.random.default_rng(5)
    for pixel in rng.choice(counts[..., 0].size, 20, replace=False):
        counts[*divmod(int(pixel), SHAPE[1]), rng.integers(118, 172)] += 1000
    wrong = prepare(image.copy(data=counts), edge=O_K, preset=PRESETS["recommended"])["vacuum_mask"].values
    assert (wrong != truth["vacuum"].values).mean() < 0.05


def test_blocks_of_counted_electrons_equal_the_whole(tmp_path: Path) -> None:
    image = simulated(DOSES[0])[0]
    raw = write_spectrum_image(image, tmp_path / "cubes.zarr")
    prepare_blocks(raw, tmp_path / "out.zarr", edge=O_K, preset=PRESETS["recommended"], block_shape=(16, 16))
    assert_same_product(open_dataset(tmp_path / "out.zarr"), prepared(DOSES[0]))


@pytest.mark.parametrize("exponent", [2.5, 4.5])
def test_few_electrons_know_their_exponent_together(exponent: float) -> None:
    """No pixel stands ten standard errors above zero, so by themselves they would leave the textbook's exponent."""
    expected = 0.4 * (ENERGY / 508.0) ** -exponent
    counts = np.random.default_rng(0).poisson(expected, (3000, ENERGY.size))
    prior = pooled_prior(ENERGY, counts.sum(axis=0), WINDOW, ExponentPrior())
    assert prior.mean == pytest.approx(exponent, abs=3 * (prior.variance - 0.25) ** 0.5)
    assert prior.mean == pytest.approx(exponent, abs=0.6)
    under = slice(200, 320)
    background = fit_power_law(ENERGY, counts, WINDOW, noise=COUNTED, prior=prior).evaluate(ENERGY)[:, under]
    assert background.mean() == pytest.approx(expected[under].mean(), rel=0.03)


def test_too_few_electrons_leave_the_usual_exponent() -> None:
    counts = np.random.default_rng(0).poisson(0.4 * (ENERGY / 508.0) ** -3.0)
    assert pooled_prior(ENERGY, counts, WINDOW, ExponentPrior(9.0, 7.0)) == ExponentPrior()


def test_background_of_no_electron_is_zero_with_the_error_of_one() -> None:
    fit = fit_power_law(ENERGY, np.zeros((1, ENERGY.size)), WINDOW, noise=COUNTED, prior=ExponentPrior())
    assert fit.status[0] == PowerLawStatus.NO_SIGNAL
    assert fit.amplitude[0] == pytest.approx(0, abs=1e-12)
    assert fit.covariance[0, 0, 0] == pytest.approx(0.5 / 108**2)


def test_all_electrons_tell_where_the_edge_is_lost_in_noise() -> None:
    rng = np.random.default_rng(1)
    thickness = np.repeat([[0.0, 1.0]], 400, axis=0).reshape(20, 40)
    signal = rng.normal(30 * thickness, 10.0)
    total = rng.poisson(100 + 400 * thickness).astype(float)
    better, error = signal_with_total(signal, total, quantum=1.0, noise=100.0)
    assert error < 4
    assert (better - 30 * thickness).std() < 4
    assert better[thickness == 1].mean() == pytest.approx(30, abs=2)


def test_all_electrons_are_not_asked_where_they_tell_something_else() -> None:
    """Thickness of a second material, without the edge, is in the total and not in the signal."""
    rng = np.random.default_rng(2)
    thickness, other = rng.uniform(0, 1, (2, 30, 30))
    signal = rng.normal(300 * thickness, 10.0)
    total = rng.poisson(100 + 400 * thickness + 4000 * other).astype(float)
    better, error = signal_with_total(signal, total, quantum=1.0, noise=100.0)
    assert error == pytest.approx(10, rel=0.1)
    np.testing.assert_allclose(better, signal, atol=10)
    alike = np.full((30, 30), 100.0) + rng.normal(0, 10, (30, 30))
    assert signal_with_total(alike, total, quantum=1.0, noise=100.0)[0] is alike
