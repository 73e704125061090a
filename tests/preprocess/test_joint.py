"""Several edges of one spectrum: prepared with one axis, put side by side, and made into vectors."""

import numpy as np
import pytest

from eelsflow.edges import FE_L3, MN_L3, O_K, Edge, join_edges, resolve_edge
from eelsflow.energy import EnergyAxis, JointAxis, axis_of, stretches
from eelsflow.errors import EdgeOutOfRangeError, InputError, StudyFileError, UnreadableFileError
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.preprocess import calibration
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.features import FeatureTransform, require_window, shift_spectra
from eelsflow.preprocess.joint_features import JointTransform, fit_transform, load_transform
from eelsflow.preprocess.presets import PRESETS, Align, VacuumMask, resolve_preset
from eelsflow.preprocess.shapes import to_shapes
from eelsflow.robustness.curves import Curve, assess
from eelsflow.robustness.wide import blur, stretch_axis
from eelsflow.simulator import plan_directory, simulate_acquisition
from eelsflow.spectrum_image import build_spectrum_image

BOTH = resolve_edge("O_K+Fe_L3")
RECOMMENDED = PRESETS["recommended"].for_acquisition


def simulated(number=4, *, pixels=16, seed=7171):
    plan = plan_directory(
        n_acquisitions=number + 1, seed=seed, shape=(pixels, pixels), preset="wide", detector="ccd",
        window=BOTH.recorded_window,
    )  # fmt: skip
    return simulate_acquisition(plan[number].parameters, plan[number].seed)


@pytest.fixture(scope="module")
def acquisition():
    return simulated()


@pytest.fixture(scope="module")
def product(acquisition):
    return prepare(acquisition.image, edge=BOTH, preset=RECOMMENDED)


def test_edges_are_joined_in_order_of_energy_and_taken_apart_again():
    joined = join_edges([FE_L3, O_K])
    assert joined == BOTH
    assert joined.name == "O_K+Fe_L3"
    assert joined.alone == (O_K, FE_L3)
    assert O_K.alone == (O_K,)
    assert join_edges([MN_L3]) is MN_L3
    assert Edge.model_validate(joined.model_dump(mode="json")) == joined


def test_edges_that_are_too_near_each_other_are_refused():
    near = O_K.model_copy(update={"name": "near", "elnes_window": (570.0, 590.0)})
    with pytest.raises(StudyFileError, match=r"lie 15 eV apart.*need 25 eV between them"):
        join_edges([O_K, near])
    with pytest.raises(StudyFileError, match="no shipped edge is called 'Xx_K'"):
        resolve_edge("O_K+Xx_K")


def test_an_axis_of_several_stretches():
    axis = JointAxis((EnergyAxis(513.0, 0.1, 540), EnergyAxis(688.0, 0.1, 540)))
    again = axis_of(axis.values)
    assert isinstance(again, JointAxis)
    np.testing.assert_allclose(again.values, axis.values)
    assert axis.channels((525.0, 555.0)) == slice(120, 420)
    assert axis.channels((700.0, 730.0)) == slice(660, 960)
    assert axis.channels((600.0, 610.0)) == slice(0, 0)
    assert axis.covers((700.0, 730.0))
    assert not axis.covers((540.0, 710.0))
    assert [where for _, where in stretches(axis)] == [slice(0, 540), slice(540, 1080)]
    assert axis_of(np.arange(10.0)) == EnergyAxis(0.0, 1.0, 10)
    with pytest.raises(InputError, match="do not touch"):
        JointAxis((EnergyAxis(0.0, 1.0, 10), EnergyAxis(10.0, 1.0, 10)))
    with pytest.raises(InputError, match="equally wide"):
        JointAxis((EnergyAxis(0.0, 1.0, 10), EnergyAxis(20.0, 2.0, 10)))


def test_every_edge_is_prepared_as_it_would_be_alone_on_the_corrected_axis(acquisition, product, monkeypatch):
    """An image whose axis is corrected beforehand, prepared for one edge after the other by what a single edge uses."""
    attrs = product.attrs
    energies = acquisition.image["energy_loss"].values + attrs["energy_offset"]
    energies = O_K.reference_energy + (energies - O_K.reference_energy) * attrs["dispersion_correction"]
    corrected = build_spectrum_image(acquisition.image.values, energies)
    steps = [step for step in RECOMMENDED.steps if not isinstance(step, Align | VacuumMask) and step.step != "spatial"]
    without = RECOMMENDED.model_copy(update={"steps": tuple(steps)})
    mask = product["vacuum_mask"].values
    for (piece, where), edge in zip(stretches(axis_of(product["energy_loss"].values)), (O_K, FE_L3), strict=True):
        alone = prepare(corrected, edge=edge, preset=without)
        np.testing.assert_allclose(alone["energy_loss"].values, piece.values)
        expected = alone["intensity"].values[~mask]
        found = product["intensity"].values[~mask][:, where]
        scale = np.nanstd(expected)
        # the prior of the exponents is that of the specimen alone in one, of all pixels in the other
        assert np.nanmax(np.abs(np.nanmean(found, axis=0) - np.nanmean(expected, axis=0))) < 0.1 * scale
        assert np.nanmedian(np.abs(found - expected)) < 0.02 * scale


def test_offset_and_dispersion_are_those_of_the_truth(acquisition, product):
    truth, attrs = acquisition.truth.attrs, product.attrs
    assert attrs["energy_offset"] == pytest.approx(truth["offset"], abs=0.15)
    assert abs(attrs["dispersion_correction"] - 1.0 - truth["dispersion_error"]) < 3 * attrs["dispersion_error"]


def test_blocks_give_what_the_whole_gives(acquisition, product, tmp_path):
    raw = write_spectrum_image(acquisition.image, tmp_path / "raw.zarr")
    prepare_blocks(raw, tmp_path / "out.zarr", edge=BOTH, preset=RECOMMENDED, block_shape=(8, 8))
    out = open_dataset(tmp_path / "out.zarr")
    assert out.attrs["edge_distances"] == product.attrs["edge_distances"]
    for name in ("intensity", "gathered", "background_exponent", "background_amplitude_Fe_L3"):
        np.testing.assert_allclose(
            out[name].values, product[name].values, rtol=2e-4, atol=2e-3 * np.nanstd(product[name])
        )


def test_a_file_that_shows_one_of_the_edges_is_refused_with_the_reason(acquisition):
    short = acquisition.image.sel(energy_loss=slice(None, 640.0))
    image = build_spectrum_image(short.values, short["energy_loss"].values)
    with pytest.raises(EdgeOutOfRangeError, match="cannot show the Fe_L3 edge"):
        prepare(image, edge=BOTH, preset=RECOMMENDED)


def test_shapes_of_both_edges_lie_side_by_side(product):
    axis, cube = axis_of(product["energy_loss"].values), product["intensity"].values
    variance = product["variance"].values
    both = to_shapes(cube, variance, axis, BOTH)
    singles = [to_shapes(cube, variance, axis, edge) for edge in (O_K, FE_L3)]
    known = both.known
    assert known.any()
    assert np.array_equal(known, singles[0].known & singles[1].known)
    assert both.values.shape[-1] == 60
    np.testing.assert_allclose(both.values[known].sum(axis=-1), 1.0)
    np.testing.assert_allclose(both.values[known][:, 30:], 0.5 * singles[1].values[known])
    np.testing.assert_allclose(both.counts_by_edge[known][:, 1], 2.0 * singles[1].counts[known])
    assert np.array_equal(both[known].edge_counts, both.edge_counts[known])


@pytest.fixture(scope="module")
def training(product):
    specimen = ~product["vacuum_mask"].values
    return product["intensity"].values[specimen], product["variance"].values[specimen]


def test_vectors_of_both_edges_are_those_of_each_times_a_weight(product, training, tmp_path):
    wide, variance = training
    energy_loss, preset = product["energy_loss"].values, PRESETS["recommended"]
    transform = fit_transform(wide, energy_loss, edge=BOTH, preset=preset, variance=variance)
    assert isinstance(transform, JointTransform)
    vectors = transform.apply(wide)
    assert vectors.shape == (len(wide), 600)
    for number, (piece, where) in enumerate(stretches(axis_of(energy_loss))):
        alone = FeatureTransform.fit(
            wide[:, where], piece.values, edge=BOTH.alone[number], preset=preset, variance=variance[:, where]
        )
        part = slice(300 * number, 300 * (number + 1))
        np.testing.assert_allclose(vectors[:, part], transform.weights[number] * alone.apply(wide[:, where]), rtol=1e-5)
        moved = transform.apply(wide, shift_ev=2.0)[:, part]
        np.testing.assert_allclose(moved, transform.weights[number] * alone.apply(wide[:, where], 2.0), rtol=1e-5)
    assert np.array_equal(wide[:, transform.channels], wide[:, transform.index])
    transform.save(tmp_path)
    again = load_transform(tmp_path)
    assert np.array_equal(again.apply(wide), vectors)
    assert np.array_equal(again.component_map, transform.component_map)
    before = transform.before_components(wide)
    np.testing.assert_array_equal(before[0], vectors)
    (tmp_path / "1" / "features.json").write_text("{}")
    with pytest.raises(UnreadableFileError, match="no usable feature transform"):
        load_transform(tmp_path)


def test_the_noise_of_a_channel_is_the_same_in_every_part(product, training):
    wide, variance = training
    preset = resolve_preset({"name": "plain", "steps": [{"step": "normalize", "method": "area"}]})
    transform = fit_transform(wide, product["energy_loss"].values, edge=BOTH, preset=preset, variance=variance)
    rng = np.random.default_rng(0)
    mean = np.broadcast_to(wide.mean(axis=0), wide.shape)
    noisy = mean + np.sqrt(variance) * rng.standard_normal(wide.shape)
    noise = (transform.apply(noisy.astype(np.float32)) - transform.apply(mean.astype(np.float32))).std(axis=0)
    oxygen, iron = noise[:300].mean(), noise[300:].mean()
    assert iron == pytest.approx(oxygen, rel=0.25)


def test_spectra_of_one_stretch_are_refused_for_two_edges(training):
    wide, _ = training
    with pytest.raises(InputError, match="expected a stretch for each edge"):
        fit_transform(wide[:, :540], 513.0 + 0.1 * np.arange(540), edge=BOTH, preset=PRESETS["none"])


def test_nothing_passes_from_one_edge_to_the_other():
    axis = JointAxis((EnergyAxis(513.0, 0.1, 540), EnergyAxis(688.0, 0.1, 540)))
    wide = np.zeros((2, 1080), dtype=np.float32)
    wide[:, :540] = 7.0
    assert np.array_equal(shift_spectra(wide, axis, 5.0), wide)
    np.testing.assert_allclose(blur(wide, axis, fwhm_ev=np.full(2, 3.0)), wide, atol=1e-5)
    stretched, recorded = stretch_axis(wide, axis, reference_energy=530.0, error=0.01)
    assert np.array_equal(stretched, wide)
    assert not recorded[:, 540:555].any()  # 1.6 eV of what lies below was not recorded
    assert recorded[:, 560:].all()


def test_a_product_must_hold_every_window(product):
    require_window(product, BOTH)
    lacking = product.copy()
    lacking["valid"] = lacking["valid"].copy(data=np.arange(1080) < 900)
    with pytest.raises(InputError, match=r"inside the ELNES window .* of Fe_L3"):
        require_window(lacking, BOTH)


def test_what_a_wrong_dispersion_is_assessed_by_is_what_alignment_leaves_of_it(product, training):
    """Of a second edge 177 eV away, moved by an electronvolt where nothing corrects it."""
    wide, variance = training
    wide, variance = wide[:40], variance[:40]
    seen = {}

    def l3_moves_by(known):
        preset = PRESETS["recommended"].knowing_the_dispersion(known)
        transform = fit_transform(wide, product["energy_loss"].values, edge=BOTH, preset=preset, variance=variance)

        def predict(spectra, disturbance):
            seen.setdefault(known, []).append(spectra[:, 540:].mean(axis=0))
            return np.full(len(spectra), "FeO")

        curve = Curve(perturbation="dispersion_error", unit="", amplitudes=(0.01,))
        label = np.full(len(wide), "FeO")
        assess(predict, transform, test=wide, test_label=label, training=wide, curves=[curve], seed=0)
        return 0.1 * float(seen[known][-1].argmax() - seen[known][0].argmax())

    assert l3_moves_by(1e-6) == pytest.approx(1.77, abs=0.15)
    assert abs(l3_moves_by(0.02)) < 0.15


def stretched(image, factor):
    """Return the image as a file has it whose channels are said to be `factor` times as wide, right at 530 eV."""
    return image.assign_coords(energy_loss=530.0 + (image["energy_loss"] - 530.0) * factor)


def test_how_well_the_dispersion_is_known_decides_what_is_corrected(acquisition):
    wide = stretched(acquisition.image, 1.015)
    usual = prepare(wide, edge=BOTH, preset=RECOMMENDED)
    known = prepare(wide, edge=BOTH, preset=RECOMMENDED.knowing_the_dispersion(5e-4))
    assert usual.attrs["dispersion_correction"] == pytest.approx(1.0 / 1.015, abs=0.008)
    assert known.attrs["dispersion_correction"] == pytest.approx(1.0, abs=2e-3)
    assert "the dispersion of this file is not known to 0.05 %" in known.attrs["warnings"]
    assert "not known" not in usual.attrs["warnings"]


def test_edges_of_unknown_distance_are_prepared_as_each_alone(acquisition, monkeypatch):
    monkeypatch.setattr(calibration, "DISTANCES", {("O_K", "Fe_L3"): (177.2, 1e3)})
    found = prepare(acquisition.image, edge=BOTH, preset=RECOMMENDED.knowing_the_dispersion(1e-9))
    assert found.attrs["dispersion_correction"] == pytest.approx(1.0, abs=1e-6)
    alone = prepare(acquisition.image, edge=O_K, preset=RECOMMENDED)
    known = ~alone["vacuum_mask"].values
    np.testing.assert_allclose(
        found["intensity"].values[known][:, :540], alone["intensity"].values[known], rtol=1e-4,
        atol=1e-3 * float(np.nanstd(alone["intensity"])),
    )  # fmt: skip
