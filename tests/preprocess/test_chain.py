"""The whole order on images in memory: what the product holds, and what is refused."""

import json

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from eelsflow.edges import FE_L3, O_K
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EdgeOutOfRangeError, InputError, SpectrumImageSchemaError
from eelsflow.preprocess import chain
from eelsflow.preprocess.background import PowerLawStatus
from eelsflow.preprocess.chain import NOT_FITTED, prepare, product_axis
from eelsflow.preprocess.presets import PRESETS, Preset, resolve_preset
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import Acquisition, simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.spectrum_image import build_spectrum_image

SHAPE = (24, 20)


@pytest.fixture(scope="module")
def acquisition() -> Acquisition:
    parameters = SIMULATED["paper"].model_copy(
        update={"shape": SHAPE, "axis": AxisParameters(start=470.0, n_channels=480)}
    )
    return simulate_acquisition(parameters, 3)


@pytest.fixture(scope="module")
def image(acquisition: Acquisition) -> xr.DataArray:
    return acquisition.image


@pytest.fixture(scope="module")
def product(image: xr.DataArray) -> xr.Dataset:
    before = image.values.copy()
    prepared = prepare(image, edge=O_K, preset=PRESETS["recommended"])
    np.testing.assert_array_equal(image.values, before)  # the input is never modified
    return prepared


def replaced(image: xr.DataArray, counts: NDArray[np.generic]) -> xr.DataArray:
    return build_spectrum_image(counts, image["energy_loss"].values, sha256="0" * 64, source="changed")


def test_product_holds_what_it_promises(product: xr.Dataset, image: xr.DataArray) -> None:
    dims = {
        "intensity": ("y", "x", "energy_loss"), "variance": ("y", "x", "energy_loss"), "valid": ("energy_loss",),
        "vacuum_mask": ("y", "x"), "lost": ("y", "x"),
        "background_status": ("y", "x"), "background_amplitude": ("y", "x"),
        "background_exponent": ("y", "x"), "spike_channels": ("y", "x"), "electrons": ("y", "x"),
        "mean_energy_loss": ("native_channel",),
        "mean_spectrum": ("native_channel",), "mean_background": ("native_channel",),
        "gathered": ("y", "x", "energy_loss"), "gathered_variance": ("y", "x", "energy_loss"),
        "effective_spectra": ("y", "x"),
    }  # fmt: skip
    assert {name: product[name].dims for name in product.data_vars} == dims
    types = {
        "intensity": "f4", "variance": "f4", "valid": "b1", "vacuum_mask": "b1", "lost": "b1", "spike_channels": "u2",
    }  # fmt: skip
    assert {name: product[name].dtype.str[1:] for name in types} == types
    assert product["energy_loss"].size == 540
    np.testing.assert_allclose(product["energy_loss"].values[[0, -1]], [513.0, 566.9])
    assert product.attrs["schema"] == "eelsflow-prepared/1"
    assert product.attrs["sha256"] == image.attrs["sha256"]
    assert json.loads(product.attrs["edge"])["name"] == "O_K"
    assert json.loads(product.attrs["preset"])["name"] == "recommended"
    assert product.attrs["pca_rank"] == -1
    assert isinstance(json.loads(product.attrs["warnings"]), list)


def test_product_finds_offset_mask_spikes_and_dead_channels(product: xr.Dataset, acquisition: Acquisition) -> None:
    truth = acquisition.truth
    assert abs(product.attrs["energy_offset"] - truth.attrs["offset"]) < 0.1
    np.testing.assert_allclose(
        product["mean_energy_loss"].values,
        acquisition.image["energy_loss"].values + product.attrs["energy_offset"],
    )
    assert product.attrs["dead_channels"] == np.flatnonzero(truth["dead_channels"].values).tolist()
    assert product.attrs["n_spike_channels"] == int(product["spike_channels"].sum())
    assert product.attrs["n_spike_pixels"] == int((product["spike_channels"] > 0).sum())
    assert not product["vacuum_mask"].values.all()
    assert product["valid"].values.all()
    assert set(np.unique(product["background_status"])) <= set(PowerLawStatus)


def test_mean_background_follows_the_mean_spectrum_before_the_edge(product: xr.Dataset) -> None:
    energy = product["mean_energy_loss"].values
    before = (energy >= 495) & (energy < 522)
    ratio = (product["mean_spectrum"] / product["mean_background"]).values[before]
    # dead and repaired channels aside, the fit goes through the middle of the counts
    assert abs(np.median(ratio) - 1) < 0.01
    assert np.isnan(product["mean_background"].values[energy < 494]).all()


def test_variance_is_that_of_repeated_acquisitions() -> None:
    """The variance a product claims is the scatter of the same pixel recorded again and again."""
    axis = EnergyAxis(470.0, 0.25, 480)
    energy = axis.values
    peaks = sum(h * np.exp(-0.5 * ((energy - 530 - p) / s) ** 2) for p, s, h in ((0, 1.2, 0.6), (9.4, 2.5, 1.0)))
    expected = 400 * (energy / 490) ** -3.4 + 300 * peaks + 150 / (1 + np.exp(-(energy - 531)))
    rng = np.random.default_rng(5)
    thickness = np.ones((20, 20))
    thickness[:6] = 0.02
    counts = rng.poisson(thickness[..., None] * expected + 5) * 4.0 + rng.normal(0, 6, (20, 20, energy.size))
    image = build_spectrum_image(counts.astype(np.float32), energy)
    product = prepare(
        image, edge=O_K, preset=resolve_preset(["align", {"step": "background", "shrink": False}, "rebin"])
    )
    intensity, variance = product["intensity"].values[6:], product["variance"].values[6:]
    # 280 spectra fix a standard deviation to 4 %; 540 channels of them the mean ratio to under 3 %
    ratio = intensity.reshape(-1, 540).var(axis=0).mean() / variance.mean()
    assert 0.85 < ratio < 1.15


@pytest.mark.parametrize("name", ["paper", "paper-raw"])
def test_paper_presets_give_the_same_grid(image: xr.DataArray, product: xr.Dataset, name: str) -> None:
    paper = prepare(image, edge=O_K, preset=PRESETS[name])
    np.testing.assert_array_equal(paper["energy_loss"], product["energy_loss"])
    assert (paper.attrs["pca_rank"] > 0) == (name == "paper")
    specimen = ~(paper["vacuum_mask"].values | product["vacuum_mask"].values)
    ours, theirs = (one["intensity"].values[specimen].mean(axis=0) for one in (product, paper))
    # the same edge on the same scale; they differ by the repair of channels before the background was fitted
    assert np.abs(ours - theirs).max() < 0.1 * ours.max()


def test_none_keeps_raw_counts_on_the_nominal_axis(image: xr.DataArray) -> None:
    product = prepare(image, edge=O_K, preset=PRESETS["none"])
    energy = image["energy_loss"].values
    kept = (energy >= 513) & (energy < 567)
    np.testing.assert_array_equal(product["intensity"], image.values[..., kept])
    np.testing.assert_array_equal(product["energy_loss"], energy[kept])
    assert (product["background_status"] == NOT_FITTED).all()
    assert product.attrs["energy_offset"] == 0
    assert product.attrs["energy_offset_error"] is None
    assert "does not align" in product.attrs["warnings"]


@pytest.mark.parametrize(
    "steps",
    [
        ["align", "vacuum_mask", "spikes", "background", "rebin"],
        ["spikes", {"step": "pca", "scope": "acquisition", "rank": 3}, "vacuum_mask", "align", "background", "rebin"],
        ["align", "background", {"step": "rebin", "dispersion": 0.5}],
    ],
)
def test_other_orders_find_the_same_offset(
    image: xr.DataArray, product: xr.Dataset, steps: list[str | dict[str, object]]
) -> None:
    other = prepare(image, edge=O_K, preset=resolve_preset(steps))
    # the mean includes vacuum where it is not masked before; the edge is in the same place
    assert abs(other.attrs["energy_offset"] - product.attrs["energy_offset"]) < 0.1


def test_channels_beyond_the_detector_are_nan_and_not_valid(image: xr.DataArray, product: xr.Dataset) -> None:
    offset = product.attrs["energy_offset"]
    short = image.isel(energy_loss=image["energy_loss"].values + offset < 560)
    ended = prepare(short, edge=O_K, preset=PRESETS["recommended"])
    energy, valid = ended["energy_loss"].values, ended["valid"].values
    assert not valid[energy > 560.2].any()
    assert valid[energy < 559.5].all()
    assert np.isnan(ended["intensity"].values[..., ~valid]).all()
    assert np.isfinite(ended["intensity"].values[..., valid]).all()


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_all_vacuum_is_refused(image: xr.DataArray, acquisition: Acquisition, preset: str) -> None:
    empty = acquisition.truth["thickness"].values == 0
    film = image.values[empty]
    counts = film[np.random.default_rng(0).integers(0, len(film), SHAPE)]
    with pytest.raises(InputError, match="specimen"):
        prepare(replaced(image, counts), edge=O_K, preset=PRESETS[preset])


def test_image_without_counts_is_refused(image: xr.DataArray) -> None:
    with pytest.raises(InputError, match="zero or less"):
        prepare(replaced(image, np.zeros(image.shape, np.uint16)), edge=O_K, preset=PRESETS["recommended"])


def test_small_negative_counts_are_ordinary(image: xr.DataArray, product: xr.Dataset) -> None:
    assert (image.values < 0).any()
    assert "negative" not in product.attrs["warnings"]
    assert "below" not in product.attrs["warnings"]


def test_a_few_deep_negative_counts_warn(image: xr.DataArray, product: xr.Dataset) -> None:
    counts = image.values.copy()
    counts[3, 4, 200] = -3000
    changed = prepare(replaced(image, counts), edge=O_K, preset=PRESETS["recommended"])
    (warning,) = json.loads(changed.attrs["warnings"])
    assert "the lowest at -3000" in warning
    # the spike is repaired: the pixel is what it was, to the noise of the channels that were interpolated
    difference = changed["intensity"].values[3, 4] - product["intensity"].values[3, 4]
    assert np.abs(difference).max() < 8 * np.sqrt(product["variance"].values[3, 4].max())


def test_many_or_systematic_negative_counts_are_refused(image: xr.DataArray) -> None:
    for counts in (image.values - 300, np.where(np.arange(20)[None, :, None] == 4, -image.values, image.values)):
        with pytest.raises(InputError, match=r"prepare the raw counts|nothing was recorded"):
            prepare(replaced(image, counts), edge=O_K, preset=PRESETS["recommended"])


@pytest.mark.parametrize("steps", [["vacuum_mask"], ["background"]])
def test_a_background_that_rises_is_refused(image: xr.DataArray, steps: list[str]) -> None:
    energy = image["energy_loss"].values
    rising = (image.values * (energy / 500.0) ** 12).astype(np.float32)
    with pytest.raises(InputError, match=r"rise at .* eV, before the O_K edge, .* another edge lies just below"):
        prepare(replaced(image, rising), edge=O_K, preset=resolve_preset(steps))


def test_an_axis_without_the_edge_is_refused(image: xr.DataArray) -> None:
    with pytest.raises(EdgeOutOfRangeError, match="Fe_L3 lies outside the energy axis"):
        prepare(image, edge=FE_L3, preset=PRESETS["recommended"])


def test_complex_counts_and_wrong_dimensions_are_refused(image: xr.DataArray) -> None:
    with pytest.raises(InputError, match="complex"):
        prepare(replaced(image, image.values.astype(complex)), edge=O_K, preset=PRESETS["none"])
    with pytest.raises(SpectrumImageSchemaError, match="dimensions"):
        prepare(image.transpose("energy_loss", "y", "x"), edge=O_K, preset=PRESETS["none"])


def test_transform_is_the_identity_before_any_step(image: xr.DataArray) -> None:
    whole = chain.Part(image.values, chain.Block(slice(0, SHAPE[0]), slice(0, SHAPE[1])), width=SHAPE[1])
    axis = EnergyAxis.from_values(image["energy_loss"].values)
    acquisition = chain.fit_acquisition(axis, [whole], SHAPE, edge=O_K, preset=PRESETS["none"])
    spectra = chain.transform(whole.read(), acquisition.fitted)
    np.testing.assert_array_equal(spectra.counts, whole.read())
    assert spectra.axis == axis
    assert product_axis(acquisition.fitted).dispersion == pytest.approx(axis.dispersion)


def test_components_after_the_alignment_keep_the_aligned_axis() -> None:
    """The axis was left as it was recorded."""
    parameters = SIMULATED["paper"].model_copy(update={"shape": (24, 24)})
    image = simulate_acquisition(parameters, 3).image
    pca = {"step": "pca", "scope": "acquisition"}
    products = []
    for steps in ([pca, "align"], ["align", pca]):
        preset = Preset.model_validate({"steps": ["vacuum_mask", *steps, "background", "rebin"]})
        products.append(prepare(image, edge=O_K, preset=preset))
    before, after = (product["intensity"].values[~product["vacuum_mask"].values].mean(axis=0) for product in products)
    assert abs(products[0].attrs["energy_offset"]) > 1
    covered = np.isfinite(before) & np.isfinite(after)
    assert np.corrcoef(before[covered], after[covered])[0, 1] > 0.999
