"""A core loss prepared with the low loss of the same scan, against the truth of simulated pairs."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from typer.testing import CliRunner

from eelsflow.cli import app
from eelsflow.dataset.manifest import read_manifest
from eelsflow.describe import describe
from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EelsflowError, InputError, StudyFileError
from eelsflow.executors import LoopExecutor
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.low_loss.companion import companion_of, describe_companion
from eelsflow.preparation import find_low_loss, prepare_counts, write_counts
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.companion import settle_offset
from eelsflow.preprocess.drift import edge_shift, follows
from eelsflow.preprocess.offset import OffsetEstimate
from eelsflow.preprocess.presets import PRESETS, resolve_preset
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import LowLossRecording, simulate_acquisition, simulate_directory
from eelsflow.simulator.edges import LowLossParameters
from eelsflow.store import Store, read_json
from eelsflow.study import stages
from eelsflow.study.plan import PrepareAcquisition
from eelsflow.study.stages import Place

SHAPE = (20, 20)
THICK = SIMULATED["wide"].model_copy(
    update={"shape": SHAPE, "low_loss": LowLossParameters(mean_free_path=(30.0, 60.0))}
)


@pytest.fixture(scope="module")
def pair():
    return simulate_acquisition(THICK, 5, low_loss=LowLossRecording())


@pytest.fixture(scope="module")
def product(pair):
    return prepare(
        pair.image, edge=O_K, preset=PRESETS["deconvolved"], companion=companion_of(pair.low_loss, shape=SHAPE)
    )


def specimen(product):
    return ~product["vacuum_mask"].values


def test_offset_is_that_of_the_zero_loss_and_both_are_kept(pair, product):
    assert product.attrs["energy_offset"] == pytest.approx(pair.truth.attrs["offset"], abs=0.02)
    edge = prepare(pair.image, edge=O_K, preset=PRESETS["recommended"])
    assert product.attrs["edge_offset"] == edge.attrs["energy_offset"] != product.attrs["energy_offset"]
    said = describe_companion(product)
    assert said["offset"]["value"] == pytest.approx(product.attrs["energy_offset"])
    assert said["edge_offset"]["value"] == edge.attrs["energy_offset"]


def test_offsets_that_disagree_are_both_shown_and_the_edge_is_followed(pair):
    moved = pair.low_loss.assign_coords(
        energy_loss=("energy_loss", pair.low_loss["energy_loss"].values + 3, {"units": "eV"})
    )
    product = prepare(pair.image, edge=O_K, preset=PRESETS["recommended"], companion=companion_of(moved, shape=SHAPE))
    assert product.attrs["energy_offset"] == product.attrs["edge_offset"]
    (said,) = [warning for warning in json.loads(product.attrs["warnings"]) if "zero loss puts" in warning]
    assert f"{product.attrs['edge_offset']:+.2f}" in said
    assert f"{pair.truth.attrs['offset'] - 3:+.1f}" in said  # of the rows with specimen: the scan drifts a little


def drifting(drift, *, seed=5, dose=3.0):
    """Return parameters of a scan that drifts by so many eV at the most, of one phase."""
    return simulate_acquisition(
        THICK.model_copy(
            update={
                "specimen": THICK.specimen.model_copy(update={"kind": "Fe3O4"}),
                "axis": THICK.axis.model_copy(update={"drift": drift}),
                "levels": THICK.levels.model_copy(update={"dose": (dose, dose)}),
            }
        ),
        seed,
        low_loss=LowLossRecording(),
    )


def row_offsets(product):
    """Return where the edge of the upper and of the lower rows lies, eV: half of the way up to the main maximum."""
    energy, found = product["energy_loss"].values, []
    for rows in (slice(0, 8), slice(12, 20)):
        chosen = specimen(product)[rows]
        assert chosen.sum() > 20
        spectrum = gaussian_filter1d(product["intensity"].values[rows][chosen].sum(axis=0, dtype=float), 3)
        main = int(np.argmax(np.where((energy > 535) & (energy < 545), spectrum, 0)))
        below = np.flatnonzero(spectrum[:main] < spectrum[main] / 2)[-1]
        share = (spectrum[main] / 2 - spectrum[below]) / (spectrum[below + 1] - spectrum[below])
        found.append(energy[below] + share * (energy[1] - energy[0]))
    return found


@pytest.mark.parametrize("preset", ["recommended", "deconvolved"])
def test_a_drift_of_the_zero_loss_is_followed_row_by_row(preset):
    pair = drifting(4.0)
    assert abs(pair.truth.attrs["drift"]) > 2
    companion = companion_of(pair.low_loss, shape=SHAPE)
    product = prepare(pair.image, edge=O_K, preset=PRESETS[preset], companion=companion)
    upper, lower = row_offsets(product)
    assert abs(upper - lower) < 0.15
    left = prepare(pair.image, edge=O_K, preset=PRESETS["recommended"])
    upper, lower = row_offsets(left)
    assert abs(upper - lower) > 1
    said = describe_companion(product)
    assert said["drift_followed"]
    assert said["drift"] == pytest.approx(abs(pair.truth.attrs["drift"]), abs=0.05)
    (said,) = [warning for warning in json.loads(product.attrs["warnings"]) if "wandered" in warning]
    assert "by its own zero loss" in said
    # what a moved spectrum has lost at either end of the axis is lost for all
    inside = product["intensity"].values[specimen(product)]
    assert np.isfinite(inside[:, product["valid"].values]).all()


def moved(low, rows, channels):
    """Return a low loss whose rows lie so many channels higher."""
    values = low.values.copy()
    values[rows] = np.roll(values[rows], channels, axis=-1)
    return low.copy(data=values)


def said_of(product):
    return json.loads(product.attrs["warnings"])


@pytest.mark.parametrize("case", ["drifts", "jumps up", "jumps down"])
def test_a_drift_that_the_edge_does_not_share_is_not_followed(case):
    """The low loss was recorded after the core loss, in a scan of its own."""
    steady = drifting(0.0)
    low = {
        "drifts": lambda: drifting(3.0).low_loss,
        "jumps up": lambda: moved(steady.low_loss, slice(12, 20), 5),
        "jumps down": lambda: moved(steady.low_loss, slice(12, 20), -5),
    }[case]()
    product = prepare(steady.image, edge=O_K, preset=PRESETS["recommended"], companion=companion_of(low, shape=SHAPE))
    (said,) = [warning for warning in said_of(product) if "wandered by" in warning]
    assert "is not followed" in said
    assert product.attrs["energy_offset"] == product.attrs["edge_offset"]
    assert not describe_companion(product)["drift_followed"]
    upper, lower = row_offsets(product)
    assert abs(upper - lower) < 0.15


def test_a_zero_loss_that_is_wrong_in_some_pixels_moves_none_of_them():
    """A spike higher than the zero loss; a row whose low loss was lost lies between its neighbours."""
    pair = drifting(4.0)
    clean = prepare(
        pair.image, edge=O_K, preset=PRESETS["recommended"], companion=companion_of(pair.low_loss, shape=SHAPE)
    )
    low = moved(pair.low_loss, (np.array([3, 7, 9, 15]), np.array([4, 4, 12, 9])), 8)
    low.values[17] = 0
    product = prepare(pair.image, edge=O_K, preset=PRESETS["recommended"], companion=companion_of(low, shape=SHAPE))
    assert product.attrs["energy_offset"] == pytest.approx(clean.attrs["energy_offset"], abs=0.03)
    inside = specimen(clean) & specimen(product)
    energy = product["energy_loss"].values
    for y, x in np.argwhere(inside & np.isin(np.arange(20), [3, 7, 9, 15, 17])[:, None]):
        one, other = (
            gaussian_filter1d(found["intensity"].values[y, x].astype(float), 5)[(energy > 520) & (energy < 560)]
            for found in (clean, product)
        )
        assert np.corrcoef(one, other)[0, 1] > 0.995
    assert (product["valid"].values == clean["valid"].values).mean() > 0.98


def test_the_offset_is_compared_where_the_specimen_is():
    """The mean of a drifting scan is not that of the rows that hold specimen."""
    pair = drifting(6.0, seed=8)
    assert abs(pair.truth.attrs["drift"]) > 2
    vacuum = pair.image.values[pair.truth["vacuum"].values].mean(axis=0)
    counts = pair.image.values.copy()
    counts[:14] = np.random.default_rng(1).poisson(np.maximum(vacuum, 0), counts[:14].shape)
    image = pair.image.copy(data=counts)
    product = prepare(
        image, edge=O_K, preset=PRESETS["recommended"], companion=companion_of(pair.low_loss, shape=SHAPE)
    )
    assert not any("zero loss puts" in warning for warning in said_of(product))
    assert describe_companion(product)["drift_followed"]


def test_noise_of_the_zero_loss_is_no_drift():
    pair = drifting(0.0)
    low = pair.low_loss.copy(data=np.random.default_rng(2).poisson(np.maximum(pair.low_loss.values, 0) / 3e3))
    assert companion_of(low, shape=SHAPE).drift is None


@pytest.mark.parametrize(
    ("zero_loss", "edge", "expected"),
    [
        (0.1, (0.0, 0.01), True),
        (1.0, (1.5, 0.05), True),  # two oxides
        (1.0, (0.1, 0.05), False),
        (1.0, (0.1, 0.20), True),  # the edge cannot tell
        (1.0, (0.0, np.inf), True),
        (0.6, (-0.6, 0.05), False),
    ],
)
def test_the_edge_is_asked_about_a_drift(zero_loss, edge, expected):
    assert follows(zero_loss, edge) is expected


def test_shift_of_an_edge_has_the_error_that_repetitions_have():
    rng = np.random.default_rng(3)
    axis = EnergyAxis(460.0, 0.25, 600)
    energy = axis.values

    def spectrum(shift):
        step = 1 / (1 + np.exp(-(energy - 532 - shift)))
        peak = 1.5 * np.exp(-0.5 * ((energy - 540 - shift) / 2.5) ** 2)
        return 2000 * (energy / 500) ** -3 + 600 * (step + peak)

    found = []
    for _ in range(200):
        pair = rng.poisson([spectrum(0.0), 3 * spectrum(1.3)]).astype(float)
        found.append(
            edge_shift(axis, pair, pair, background_window=O_K.background_window, elnes_window=O_K.elnes_window)
        )
    shifts, errors = np.array(found).T
    assert shifts.mean() == pytest.approx(1.3, abs=0.05)
    assert shifts.std() == pytest.approx(errors.mean(), rel=0.35)


def test_no_edge_tells_nothing_of_a_shift():
    axis = EnergyAxis(460.0, 0.25, 600)
    bare = np.tile(1e4 * (axis.values / 500) ** -3.0, (2, 1))
    bare[1, axis.values > 520] *= 0.9
    _, error = edge_shift(axis, bare, bare, background_window=O_K.background_window, elnes_window=O_K.elnes_window)
    assert error == np.inf


def in_blocks(pair, preset, directory):
    """Prepare a pair whose counts were written to a directory, block by block."""
    prepare_blocks(
        directory / "counts.zarr",
        directory / "blocks.zarr",
        edge=O_K,
        preset=PRESETS[preset],
        companion=companion_of(pair.low_loss, shape=SHAPE, store=directory / "low-loss.zarr"),
        block_shape=(8, 8),
    )
    return open_dataset(directory / "blocks.zarr")


def test_blocks_equal_the_whole_where_a_drift_is_followed(tmp_path):
    pair = drifting(4.0)
    write_counts(pair.image, pair.low_loss, tmp_path)
    whole = prepare(
        pair.image, edge=O_K, preset=PRESETS["recommended"], companion=companion_of(pair.low_loss, shape=SHAPE)
    )
    assert describe_companion(whole)["drift_followed"]
    blocks = in_blocks(pair, "recommended", tmp_path)
    for name in ("intensity", "variance", "gathered", "valid"):
        assert np.allclose(blocks[name], whole[name], rtol=1e-4, atol=1e-3, equal_nan=True), name


@pytest.mark.parametrize(
    ("edge", "zero_loss", "chosen"),
    [
        ((1.0, 0.05), (1.3, 0.01), 1.3),
        ((1.0, 0.05), (1.6, 0.01), 1.0),
        ((1.0, 0.5), (2.2, 0.01), 2.2),  # an ambiguous edge is settled by the zero loss
    ],
)
def test_zero_loss_is_believed_within_half_an_ev_or_the_error_of_the_edge(edge, zero_loss, chosen):
    offset, said = settle_offset(OffsetEstimate(*edge), OffsetEstimate(*zero_loss))
    assert offset.value == chosen
    assert (said is None) == (chosen == zero_loss[0])


def test_thickness_is_mapped_pixel_by_pixel(pair, product):
    true = pair.truth["t_over_lambda"].values
    thick = specimen(product) & (true > 0.2)
    assert thick.sum() > 50
    error = product["t_over_lambda"].values[thick] / true[thick] - 1
    assert abs(np.median(error)) < 0.03
    assert np.corrcoef(product["t_over_lambda"].values[thick], true[thick])[0, 1] > 0.98


def test_plural_scattering_is_gone():
    """The thick and the thin pixels of one oxide have the same spectrum after deconvolution, and not before."""
    parameters = THICK.model_copy(
        update={
            "specimen": THICK.specimen.model_copy(update={"kind": "FeO"}),
            "levels": THICK.levels.model_copy(update={"dose": (30.0, 30.0), "film_oxygen": (0.0, 0.0)}),
        }
    )
    pair = simulate_acquisition(parameters, 11, low_loss=LowLossRecording())
    true, apart = pair.truth["t_over_lambda"].values, {}
    for preset in ("recommended", "deconvolved"):
        companion = companion_of(pair.low_loss, shape=SHAPE)
        found = prepare(pair.image, edge=O_K, preset=PRESETS[preset], companion=companion)
        energy, middle = found["energy_loss"].values, np.median(true[specimen(found)])
        shapes = []
        for chosen in (specimen(found) & (true < 0.8 * middle), specimen(found) & (true > 1.2 * middle)):
            assert chosen.sum() > 20
            spectrum = found["intensity"].values[chosen].sum(axis=0)
            near, far = ((energy > low) & (energy < low + 10) for low in (530, 552))
            shapes.append(spectrum[far].sum() / spectrum[near].sum())
        apart[preset] = abs(shapes[1] / shapes[0] - 1)
        assert (found["variance"].values[specimen(found)] > 0).all()
    assert apart["recommended"] > 0.08, apart
    assert apart["deconvolved"] < 0.25 * apart["recommended"], apart


def test_variance_predicts_the_scatter_of_repeated_recordings():
    parameters = THICK.model_copy(
        update={"specimen": THICK.specimen.model_copy(update={"kind": "FeO"}), "detector": THICK.detector}
    )
    pair = simulate_acquisition(parameters, 8, low_loss=LowLossRecording())
    companion = companion_of(pair.low_loss, shape=SHAPE)
    found = prepare(pair.image, edge=O_K, preset=PRESETS["deconvolved"], companion=companion)
    bare = prepare(pair.image, edge=O_K, preset=PRESETS["recommended"], companion=companion)
    inside = slice(150, 400)
    # neighbouring channels differ by noise alone, nearly: its scatter grows as the variance says
    chosen = specimen(found)

    def roughness(product):
        values = product["intensity"].values[chosen][:, inside]
        return np.median(np.diff(values, n=2, axis=1) ** 2) / np.median(product["variance"].values[chosen][:, inside])

    assert roughness(found) == pytest.approx(roughness(bare), rel=0.3)


def test_blocks_equal_the_whole(pair, tmp_path):
    write_counts(pair.image, pair.low_loss, tmp_path)
    out = open_dataset(prepare_counts(tmp_path, edge=O_K, preset=PRESETS["deconvolved"]))
    companion = companion_of(pair.low_loss, shape=SHAPE)
    whole = prepare(pair.image, edge=O_K, preset=PRESETS["deconvolved"], companion=companion)
    for product in (out, in_blocks(pair, "deconvolved", tmp_path)):
        assert np.allclose(product["t_over_lambda"], whole["t_over_lambda"])
        for name in ("intensity", "variance", "gathered"):
            assert np.allclose(product[name], whole[name], rtol=1e-4, atol=1e-3), name


def test_one_low_loss_may_serve_all_pixels(pair):
    one = pair.low_loss[:1, :1].copy(data=pair.low_loss.values.sum(axis=(0, 1), keepdims=True))
    product = prepare(pair.image, edge=O_K, preset=PRESETS["deconvolved"], companion=companion_of(one, shape=SHAPE))
    assert np.isfinite(product["intensity"].values).all()
    assert np.ptp(product["t_over_lambda"].values) == 0


def test_pixels_without_a_zero_loss_stay_as_they_are(pair):
    blind = pair.low_loss.copy(data=np.array(pair.low_loss.values, dtype=np.float32))
    blind[3, 4] = 0
    blind[3, 5, 100] = np.nan
    companion = companion_of(blind, shape=SHAPE)
    assert any("show no zero-loss peak" in warning for warning in companion.warnings)
    product = prepare(pair.image, edge=O_K, preset=PRESETS["deconvolved"], companion=companion)
    assert np.isfinite(product["intensity"].values).all()
    assert np.isnan(product["t_over_lambda"].values[3, 4:6]).all()


def test_preset_without_a_low_loss_says_that_plural_scattering_stays(pair):
    product = prepare(pair.image, edge=O_K, preset=PRESETS["deconvolved"])
    bare = prepare(pair.image, edge=O_K, preset=PRESETS["recommended"])
    assert any("plural scattering stays" in warning for warning in json.loads(product.attrs["warnings"]))
    assert np.array_equal(product["intensity"], bare["intensity"])


def test_low_loss_of_another_scan_is_refused(pair, tmp_path):
    with pytest.raises(InputError, match="expected the same scan"):
        companion_of(pair.low_loss[:5], shape=SHAPE)
    write_spectrum_image(pair.low_loss[:5], tmp_path / "other.zarr")
    with pytest.raises(EelsflowError, match=r"other\.zarr: the low loss has 5 x 20 .* 20 x 20"):
        find_low_loss(tmp_path / "core.zarr", pair.image, given=tmp_path / "other.zarr")


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (["deconvolve", "background"], "plural scattering is taken out of the edge alone"),
        (["background", "rebin", "deconvolve"], "detector's own channels"),
        (["deconvolve"], "needs 'background'"),
    ],
)
def test_steps_in_an_order_that_cannot_work_are_refused(steps, reason):
    with pytest.raises(StudyFileError, match=reason):
        resolve_preset(steps)


def test_a_study_prepares_with_the_low_loss_of_the_manifest(tmp_path):
    manifest = simulate_directory(
        tmp_path / "files", n_acquisitions=1, seed=3, shape=SHAPE, preset=THICK, low_loss=LowLossRecording()
    )
    (acquisition,) = read_manifest(manifest)
    assert acquisition.low_loss is not None
    step = PrepareAcquisition(acquisition=acquisition, edge=O_K, preset=PRESETS["deconvolved"].for_acquisition)
    entry = stages.prepare_acquisition(step, Place(Store(tmp_path / "store"), LoopExecutor()))
    summary = read_json(entry / "summary.json")
    assert summary["low_loss"]["deconvolved"]
    assert summary["low_loss"]["t_over_lambda"]["median"] > 0.1
    assert "t_over_lambda" in np.load(entry / "evidence.npz")
    assert {path.name for path in entry.iterdir()} >= {"prepared.zarr", "summary.json", "evidence.npz"}
    assert not (entry / "low-loss.zarr").exists()
    without = acquisition.model_copy(update={"low_loss": None, "low_loss_sha256": ""})
    assert step.model_copy(update={"acquisition": without}).digest != step.digest


def test_nanometres_need_density_energy_and_angle(pair, tmp_path):
    tem = {"beam_energy": 200.0, "convergence_angle": 10.0, "Detector": {"EELS": {"collection_angle": 20.0}}}
    said = pair.low_loss.copy()
    said.attrs["metadata"] = json.dumps({"metadata": {"Acquisition_instrument": {"TEM": tem}}})
    product = prepare(pair.image, edge=O_K, preset=PRESETS["recommended"], companion=companion_of(said, shape=SHAPE))
    assert describe_companion(product)["thickness"] is None
    found = describe_companion(product, density=5.17)
    assert found["mean_free_path"] == pytest.approx(130, abs=1)
    assert found["thickness"]["median"] == pytest.approx(found["mean_free_path"] * found["t_over_lambda"]["median"])

    write_spectrum_image(pair.image, tmp_path / "core.zarr")
    write_spectrum_image(said, tmp_path / "low.zarr")
    described = describe(tmp_path / "core.zarr", low_loss=tmp_path / "low.zarr", density=5.17)["low_loss"]
    assert described["thickness"]["median"] == pytest.approx(130 * described["t_over_lambda"]["median"], rel=0.01)
    assert described["instrument"]["beam_energy"] == 200.0
    arguments = ["info", str(tmp_path / "core.zarr"), "--low-loss", str(tmp_path / "low.zarr"), "--density", "5.17"]
    result = CliRunner().invoke(app, arguments)
    assert "thickness" in result.output
    assert " nm" in result.output
