"""Pixels that the detector never wrote, or clipped: found, left out of everything, and none where all is well."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import Block, open_dataset, write_spectrum_image
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.chain import fit_acquisition, prepare
from eelsflow.preprocess.lost import Losses
from eelsflow.preprocess.presets import PRESETS
from eelsflow.preprocess.transform import NOT_FITTED, Part
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.simulator.detector import CountingParameters
from eelsflow.spectrum_image import build_spectrum_image
from tests.preprocess.test_blocks import assert_same_product

SHAPE = (24, 24)
BLOCK = (16, 16)


@cache
def simulated(kind: str = "camera", seed: int = 3, dose: float = 0.03) -> xr.DataArray:
    parameters = SIMULATED["paper"]
    changes = {"shape": SHAPE, "axis": AxisParameters(start=470.0, n_channels=480)}
    if kind == "counting":
        levels = parameters.levels.model_copy(update={"dose": (dose, dose)})
        changes |= {"detector": CountingParameters(), "levels": levels}
    return simulate_acquisition(parameters.model_copy(update=changes), seed).image


def changed(image: xr.DataArray, counts: NDArray[np.generic]) -> xr.DataArray:
    return build_spectrum_image(counts, image["energy_loss"].values, sha256="0" * 64, source="changed")


def losses_of(image: xr.DataArray) -> Losses:
    n_y, n_x, _ = image.shape
    whole = Part(image.values, Block(slice(0, n_y), slice(0, n_x)), width=n_x)
    axis = EnergyAxis.from_values(image["energy_loss"].values)
    return fit_acquisition(axis, [whole], (n_y, n_x), edge=O_K, preset=PRESETS["none"]).losses


def damaged(image: xr.DataArray) -> tuple[xr.DataArray, NDArray[np.bool_]]:
    """Return an image with pixels of every kind but clipped ones, which lie in several blocks, and where they are."""
    counts = image.values.astype(np.float32)
    lost = np.zeros(SHAPE, dtype=bool)
    lost[5, 7] = lost[15, 16] = lost[16, 3] = lost[22:] = True
    counts[5, 7, 100] = np.nan
    counts[15, 16], counts[16, 3, 0] = np.inf, -np.inf
    counts[22:] = 0
    return changed(image, counts), lost


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 200, 479])
def test_one_pixel_that_is_not_finite_is_lost_and_no_other_changes(value: float, channel: int) -> None:
    image = simulated()
    good = prepare(image, edge=O_K, preset=PRESETS["none"])
    counts = image.values.astype(np.float32)
    counts[11, 13, channel] = value
    product = prepare(changed(image, counts), edge=O_K, preset=PRESETS["none"])

    lost = np.zeros(SHAPE, dtype=bool)
    lost[11, 13] = True
    np.testing.assert_array_equal(product["lost"], lost)
    assert product.attrs["lost_pixels"] == {"nan": 1, "empty": 0, "saturated": 0}
    assert product["vacuum_mask"].values[lost].all()
    assert product["background_status"].values[lost] == NOT_FITTED
    assert not product["spike_channels"].values[lost].any()
    for name in ("intensity", "variance", "background_amplitude"):
        assert np.isnan(product[name].values[lost]).all()
    np.testing.assert_array_equal(product["intensity"].values[~lost], good["intensity"].values[~lost])
    # the noise is estimated from one spectrum less
    np.testing.assert_allclose(product["variance"].values[~lost], good["variance"].values[~lost], rtol=0.05)
    (sentence,) = [text for text in json.loads(product.attrs["warnings"]) if "lost" in text]
    assert sentence.startswith("1 of 576 pixels is lost: 1 with NaN or infinite counts (y=11, x=13)")


@pytest.mark.parametrize("preset", ["recommended", "paper", "none"])
def test_what_is_written_in_a_lost_pixel_changes_nothing(preset: str) -> None:
    """Whatever a lost pixel holds, every number of the others is the same to the last bit."""
    image, lost = damaged(simulated())
    other = image.values.copy()
    other[5, 7] = np.nan
    other[15, 16, :5] = 1e30
    other[15, 16, 30] = np.nan
    other[22, 5], other[23] = np.inf, np.nan
    products = [prepare(one, edge=O_K, preset=PRESETS[preset]) for one in (image, changed(image, other))]
    for name in products[0].data_vars:
        one, two = (product[name].values for product in products)
        np.testing.assert_array_equal(one, two, err_msg=str(name))
    np.testing.assert_array_equal(products[0]["lost"], lost)
    assert products[0].attrs["lost_pixels"] == {"nan": 3, "empty": 48, "saturated": 0}


@pytest.mark.parametrize("kind", ["camera", "counting"])
@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_the_rest_of_a_damaged_image_is_what_it_was(kind: str, preset: str) -> None:
    good = simulated(kind, dose=1.0)
    image, lost = damaged(good)
    before, after = (prepare(one, edge=O_K, preset=PRESETS[preset]) for one in (good, image))
    assert after.attrs["energy_offset"] == pytest.approx(before.attrs["energy_offset"], abs=0.1)
    assert after.attrs["noise_gain"] == pytest.approx(before.attrs["noise_gain"], rel=0.05)
    assert (after["vacuum_mask"].values != before["vacuum_mask"].values)[~lost].mean() < 0.01
    np.testing.assert_array_equal(np.isnan(after["intensity"].values).any(axis=2), lost)
    if preset == "recommended":
        assert not after["effective_spectra"].values[lost].any()
        assert np.isfinite(after["gathered"].values).all()


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_blocks_lose_the_same_pixels_as_the_whole(tmp_path: Path, preset: str) -> None:
    image, _ = damaged(simulated())
    raw = write_spectrum_image(image, tmp_path / "raw.zarr")
    prepare_blocks(raw, tmp_path / "out.zarr", edge=O_K, preset=PRESETS[preset], block_shape=BLOCK)
    whole = prepare(image, edge=O_K, preset=PRESETS[preset])
    assert_same_product(open_dataset(tmp_path / "out.zarr"), whole)


def test_a_good_image_has_no_lost_pixel() -> None:
    for image in (simulated(), changed(simulated(), np.clip(np.rint(simulated().values), 0, None).astype(np.uint16))):
        assert not losses_of(image).mask.any()
        assert losses_of(image).sentence is None


@pytest.mark.parametrize("n_rows", [4, 5])
def test_more_than_a_fifth_is_refused(n_rows: int) -> None:
    counts = simulated().values.astype(np.float32)
    counts[:n_rows, ::2] = np.nan
    counts.reshape(-1, counts.shape[2])[-12 * n_rows :] = 0  # where the scan was aborted
    image = changed(simulated(), counts)
    if n_rows == 4:  # 96 of 576
        assert losses_of(image).numbers == {"nan": 48, "empty": 48, "saturated": 0}
        return
    with pytest.raises(InputError, match=r"120 of 576 pixels are lost: 60 with NaN .* 60 zero throughout .* 20%"):
        losses_of(image)


def test_an_image_without_a_whole_pixel_is_refused() -> None:
    counts = simulated().values.astype(np.float32)
    counts[..., 7] = np.nan
    with pytest.raises(InputError, match=r"576 of 576 pixels are lost: .*NaN in every pixel are to be cut off"):
        prepare(changed(simulated(), counts), edge=O_K, preset=PRESETS["recommended"])


@pytest.mark.parametrize("kind", ["camera", "counting"])
def test_an_aborted_scan_loses_the_pixels_that_were_not_recorded(kind: str) -> None:
    counts = simulated(kind).values.copy()
    counts[21, 10:] = 0
    counts[21, 10, 60] = 1  # where the scan ended
    counts[22:] = 0
    losses = losses_of(changed(simulated(kind), counts))
    assert losses.numbers == {"nan": 0, "empty": 13 + 48, "saturated": 0}
    np.testing.assert_array_equal(np.flatnonzero(losses.mask), np.arange(21 * 24 + 11, 576))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("electrons", [0.01, 0.5, 3.0])
def test_pixels_that_are_empty_by_chance_are_vacuum(electrons: float, seed: int) -> None:
    """In vacuum an electron or two are counted in all channels together, or none at all."""
    rng = np.random.default_rng(seed)
    counts = simulated("counting", dose=0.1).values.copy()
    vacuum = np.zeros(SHAPE, dtype=bool)
    vacuum[:12] = True
    counts[vacuum] = rng.poisson(electrons / counts.shape[2], (int(vacuum.sum()), counts.shape[2]))
    assert (counts[vacuum].sum(axis=1) == 0).any()
    assert not losses_of(changed(simulated("counting"), counts)).mask.any()


def test_vacuum_that_counts_nothing_is_vacuum() -> None:
    """Particles over a hole: half of the image is empty, and none of it is an aborted scan."""
    counts = simulated("counting").values.copy()
    counts[:, :12] = 0
    assert not losses_of(changed(simulated("counting"), counts)).mask.any()


def test_a_few_dropped_pixels_are_lost() -> None:
    counts = simulated().values.copy()
    counts[3, 4] = counts[10, 11] = 0
    assert losses_of(changed(simulated(), counts)).numbers["empty"] == 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dose", [0.003, 0.03, 0.1])
def test_counted_electrons_are_never_saturated(dose: float, seed: int) -> None:
    """Of .06, .6 and 2 electrons a channel many pixels share the highest count."""
    assert not losses_of(simulated("counting", seed, dose)).mask.any()


def clipped(dtype: str, ceiling: float) -> tuple[xr.DataArray, NDArray[np.bool_]]:
    """Return an image in which the beam was three times as strong for two rows, and where that is clipped."""
    counts = np.clip(simulated().values.astype(np.float64), 0, None)
    counts *= ceiling / (1.02 * counts.max())
    counts[11:13] *= 3
    beyond = counts > ceiling
    counts = np.minimum(counts, ceiling)
    image = changed(simulated(), (counts if dtype[0] == "f" else np.rint(counts)).astype(dtype))
    return image, beyond.any(axis=2)


@pytest.mark.parametrize(
    ("dtype", "ceiling"), [("uint16", 65535), ("int32", 16383), ("float32", 4095.5), ("uint8", 255)]
)
def test_pixels_at_a_ceiling_are_saturated(dtype: str, ceiling: float) -> None:
    image, expected = clipped(dtype, ceiling)
    losses = losses_of(image)
    assert losses.ceiling == pytest.approx(ceiling)
    np.testing.assert_array_equal(losses.saturated, expected)
    assert 20 < expected.sum() < 48
    assert f"clipped at {ceiling:g} counts" in (losses.sentence or "")


def test_most_pixels_clipped_are_refused() -> None:
    counts = np.minimum(clipped("uint16", 65535)[0].values, 20000)
    with pytest.raises(InputError, match=r"pixels are lost: .* clipped at 20000 counts .*shorter exposure"):
        losses_of(changed(simulated(), counts))


def test_what_only_looks_like_a_ceiling_is_none() -> None:
    rng = np.random.default_rng(0)
    counts = np.clip(np.rint(simulated().values), 0, None).astype(np.uint16)
    stuck, spikes = counts.copy(), counts.copy()
    stuck[..., 50:52] = 65535  # two channels, in every pixel
    for _ in range(30):  # cosmic rays, each of which saturates a few channels of one pixel
        y, x, channel = (int(rng.integers(size)) for size in (*SHAPE, 475))
        spikes[y, x, channel : channel + 5] = 65535
    divided = simulated().values / simulated().values.max(axis=2, keepdims=True)  # one maximum in each pixel
    for values in (stuck, spikes, divided):
        assert not losses_of(changed(simulated(), values)).mask.any()


def test_a_line_scan_and_a_single_spectrum() -> None:
    counts = simulated().values.astype(np.float32)[12:13]
    counts[0, 20, 100] = np.nan
    product = prepare(changed(simulated(), counts), edge=O_K, preset=PRESETS["recommended"])
    np.testing.assert_array_equal(np.flatnonzero(product["lost"]), [20])
    with pytest.raises(InputError, match="1 of 1 pixels is lost"):
        prepare(changed(simulated(), counts[:, 20:21]), edge=O_K, preset=PRESETS["none"])
