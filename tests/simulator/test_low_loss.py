"""The low loss beside a core loss: the same scan, the same error of the axis, the same scattering."""

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

from eelsflow.cli import app
from eelsflow.dataset.manifest import read_manifest
from eelsflow.io.formats import is_readable_name
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import open_dataset
from eelsflow.simulator import PRESETS, LowLossRecording, simulate_acquisition, simulate_directory
from eelsflow.simulator.edges import LowLoss, detected, fine_energies
from eelsflow.simulator.low_loss import integrate_channels, recorded_resolution, scattered_beam

PAPER = PRESETS["paper"].model_copy(update={"shape": (12, 12)})
RECORDING = LowLossRecording()


def test_core_loss_is_the_same_with_a_low_loss_and_without():
    alone = simulate_acquisition(PAPER, 11)
    pair = simulate_acquisition(PAPER, 11, low_loss=RECORDING)
    np.testing.assert_array_equal(alone.image.values, pair.image.values)
    assert alone.image.attrs == pair.image.attrs
    assert alone.low_loss is None
    assert "t_over_lambda" not in alone.truth


def test_low_loss_is_of_the_same_scan_on_an_axis_through_zero():
    pair = simulate_acquisition(PAPER, 11, low_loss=RECORDING)
    assert pair.low_loss.shape == pair.image.shape
    assert pair.low_loss.attrs["pixel_size"] == pair.image.attrs["pixel_size"]
    energy = pair.low_loss["energy_loss"].values
    assert energy[0] == -20
    assert energy[1] - energy[0] == pytest.approx(0.25)
    assert pair.low_loss.values.mean(axis=(0, 1)).argmax() == np.abs(energy + pair.truth.attrs["offset"]).argmin()


def test_share_of_the_zero_loss_follows_from_the_thickness():
    clean = PRESETS["clean"].model_copy(update={"shape": (16, 16)})
    pair = simulate_acquisition(clean, 3, low_loss=RECORDING)
    counts, energy = pair.low_loss.values.astype(float), pair.low_loss["energy_loss"].values
    zero = counts[..., np.abs(energy) < 4].sum(axis=-1) / counts.sum(axis=-1)
    # a hundredth of the losses lies below 4 eV
    np.testing.assert_allclose(-np.log(zero), pair.truth["t_over_lambda"], atol=0.015)
    assert float(pair.truth["t_over_lambda"].max()) > 0.15


def test_zero_loss_moves_with_the_drift_of_the_rows():
    wide = PRESETS["wide"].model_copy(update={"shape": (16, 16)})
    pair = simulate_acquisition(wide, 5, low_loss=RECORDING)
    np.testing.assert_allclose(pair.truth["zero_loss"], -(pair.truth.attrs["offset"] + pair.truth["drift"]))


def test_low_loss_is_what_edges_are_convolved_with():
    low_loss = LowLoss(23.0, 14.0, 0.8, 123.0)
    grid = fine_energies(500.0, 700.0)
    line = np.zeros(grid.size)
    line[200] = 1.0
    seen = detected(line, low_loss, 0.6)
    energy, orders = scattered_beam(low_loss, start=-15.0, stop=170.0)
    weights = np.exp(-0.6) * np.array([0.6**n / np.prod(range(1, n + 1)) for n in range(6)])
    beam = weights @ orders
    at = np.searchsorted(energy, -1e-6) + np.arange(-10, 1500)
    np.testing.assert_allclose(beam[at], seen[200 + np.arange(-10, 1500)], atol=1e-12)


def test_channels_hold_what_lies_between_their_boundaries():
    energy, orders = scattered_beam(LowLoss(23.0, 14.0, 0.3, 123.0), start=-15.0, stop=60.0)
    boundaries = np.arange(-10.0, 50.0, 0.5)
    shares = integrate_channels(energy, orders, boundaries)
    assert shares[0].sum() == pytest.approx(1)
    half = (energy > -10 + 0.05) & (energy < 49.5 - 0.05)
    np.testing.assert_allclose(shares[1].sum(), orders[1, half].sum(), rtol=2e-3)


@pytest.mark.parametrize("width", [0.4, 1.0])
def test_resolution_is_the_width_of_the_recorded_peak(width):
    from eelsflow.energy import EnergyAxis

    alone = recorded_resolution(LowLoss(23, 14, width, 123), EnergyAxis(-20, 0.05, 2000), ())
    assert alone == pytest.approx(width, rel=0.01)
    with_camera = recorded_resolution(LowLoss(23, 14, width, 123), EnergyAxis(-20, 0.25, 2000), (0.64, 0.31, 0.14))
    assert with_camera > 1.05 * width


def test_directory_names_the_low_losses(tmp_path):
    manifest = simulate_directory(tmp_path, n_acquisitions=2, seed=5, shape=(8, 8), low_loss=RECORDING)
    with manifest.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["low_loss"] for row in rows] == [row["path"].replace(".zarr", ".low-loss.zarr") for row in rows]
    assert len(read_manifest(manifest)) == 2
    image = read_spectrum_image(tmp_path / rows[0]["low_loss"])
    assert image.shape == (8, 8, 2048)
    assert not is_readable_name(tmp_path / rows[0]["low_loss"])
    assert {"t_over_lambda", "zero_loss"} <= set(open_dataset(tmp_path / rows[0]["truth"]))


def test_command_writes_low_losses_when_asked(tmp_path):
    options = ["--acquisitions", "1", "--pixels", "8"]
    assert CliRunner().invoke(app, ["simulate", str(tmp_path / "a"), *options]).exit_code == 0
    assert CliRunner().invoke(app, ["simulate", str(tmp_path / "b"), *options, "--low-loss"]).exit_code == 0
    assert not list((tmp_path / "a").glob("*.low-loss.zarr"))
    assert len(list((tmp_path / "b").glob("*.low-loss.zarr"))) == 1
    assert (tmp_path / "a/manifest.csv").read_text().splitlines()[0] == "path,label,group,truth"
