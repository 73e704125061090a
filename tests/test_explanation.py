"""Which energies decided: against plain loops, and where the deciding energies are known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.contrast import gather
from benchmarks.explanation import ENERGY, LINE, LINE_HEIGHT, PLACES, draw, train
from eelsflow.edges import SHIPPED
from eelsflow.errors import InputError
from eelsflow.explanation import explain
from eelsflow.explanation.decision import LEAST_PROBABILITY
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps.pixels import map_pixels
from eelsflow.models.bundle import ModelBundle
from eelsflow.models.registration import Registration
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.preprocess.shapes import to_shapes
from eelsflow.report.explanation_figure import decisive_bands, say_bands

BASES = ("mlls", "svm-linear", "svm-rbf")


@pytest.fixture(scope="module")
def spectra():
    """Counts with their variance, label and group, which no model was trained on."""
    return draw(40, np.random.default_rng(3))


@pytest.fixture(scope="module")
def models():
    data = draw(90, np.random.default_rng(2))
    return {base: train(base, data, ENERGY, seed=0) for base in BASES}


@pytest.fixture(scope="module")
def three_classes():
    """A linear machine of three classes."""
    wide, variance, label, group = draw(60, np.random.default_rng(4))
    label = np.where(np.arange(label.size) % 3 == 0, "other", label)
    wide[label == "other", 300:320] *= 1.5
    return train("svm-linear", (wide, variance, label, group), ENERGY, seed=0), wide


@pytest.mark.parametrize("base", ["mlls", "svm-linear"])
def test_contributions_of_a_linear_model_add_up_and_are_those_of_a_plain_loop(models, spectra, base):
    model, wide = models[base], spectra[0][:5]
    explained = explain(model, wide, pixels=range(5), width=2.0).dataset
    assert explained.attrs["method"] == "exact"
    total = explained["contribution"].values.sum(axis=1)
    assert np.allclose(total, explained["decision"] - explained["decision_at_mean"], rtol=1e-5, atol=1e-5)

    transform, machine, mean = model.transform, model.classifier.model, model.means.mean(axis=0)
    machine = machine.machine if base == "svm-linear" else machine.model
    seen = transform.component_map @ -machine.coef_[0]  # scikit-learn's values are positive for the second class
    for row, spectrum in enumerate(wide):
        vector, before = (one[0].astype(np.float64) for one in transform.before_components(spectrum[None]))
        decided = -float(machine.decision_function(vector[None])[0])
        assert explained["decision"].values[row] == pytest.approx(decided, rel=1e-5, abs=1e-5)
        for band, (low, high) in enumerate(
            zip(explained["band_low"].values, explained["band_high"].values, strict=True)
        ):
            expected = 0.0
            for channel, energy in enumerate(transform.energy_loss):
                if low < energy < high:
                    expected += seen[channel] * (before[channel] - mean[channel])
            assert explained["contribution"].values[row, band] == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_contributions_by_occlusion_are_those_of_a_plain_loop(models, spectra):
    model, wide = models["svm-rbf"], spectra[0][:3]
    explained = explain(model, wide, pixels=range(3)).dataset
    assert explained.attrs["method"] == "occlusion"
    transform, pca, mean = model.transform, model.transform.pca, model.means.mean(axis=0)

    def log_odds(vector):
        one, other = np.clip(model.classifier.predict_proba(vector[None])[0], LEAST_PROBABILITY, 1)
        return np.log(one / other)

    for row, spectrum in enumerate(wide):
        cropped = spectrum[transform.channels].astype(np.float64)
        area = cropped.mean()
        denoised = pca.denoise(cropped[None] / area)[0] * area
        vector = transform.apply(spectrum[None])[0]
        low, high = np.percentile(denoised, [1, 99])
        for band in range(30):
            changed = cropped.copy()
            here = slice(10 * band, 10 * band + 10)
            changed[here] = mean[here] / transform.scale * (high - low) + low  # the mean in this spectrum's counts
            again = (pca.denoise(changed[None] / area)[0] * area - low) / (high - low) * transform.scale
            expected = log_odds(vector) - log_odds(again)
            assert explained["contribution"].values[row, band] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("base", BASES)
def test_bands_that_classes_differ_in_decide_and_speak_for_the_right_class(models, spectra, base):
    model, (wide, variance, label, _) = models[base], spectra
    assert np.mean(model.predict(wide)[0] == label) > 0.9
    # What noise taught a machine speaks for the class in its own training spectra, and in no others.
    for found, least in ((explain(model, wide, variance=variance).dataset, 0.9), (explain(model).dataset, 0.8)):
        band = found["band"].values
        near = np.min([np.abs(band - place) for place in PLACES.values()], axis=0) <= 2.5
        for number, name in enumerate(found["of"].values):
            contribution, spread = found["contribution"].values[number], found["spread"].values[number]
            n = found["n_spectra"].values[number]
            floor = 3.0 * spread / np.sqrt(n) if n > 1 else 0.0
            above = np.where(np.abs(contribution) > floor, contribution, 0.0)
            assert np.abs(above[near]).sum() > least * np.abs(above).sum()
            largest = np.argsort(-np.abs(contribution))[:4]
            assert near[largest].all()
            assert (np.sign(contribution[largest]) == (1 if name == found.attrs["classes"][0] else -1)).all()


def test_without_a_difference_contributions_lie_within_their_spread(spectra):
    model = train("svm-linear", draw(90, np.random.default_rng(5), height=0.0), ENERGY, seed=0)
    wide, _, label, _ = draw(60, np.random.default_rng(6), height=0.0)
    for name in PLACES:
        found = explain(model, wide, pixels=label == name).dataset
        assert found["n_spectra"] == 60
        assert (np.abs(found["contribution"]) < 0.5 * found["spread"]).all()  # .5 is 3.9 standard errors


def test_a_line_that_only_the_training_spectra_have_is_found(models, spectra):
    model = train("svm-rbf", draw(90, np.random.default_rng(7), line=LINE_HEIGHT), ENERGY, seed=0)

    def share_of_the_line(model):
        found = explain(model).dataset
        size = np.abs(found["contribution"].values)
        at_line = np.abs(found["band"].values - LINE) <= 1.0
        return (size[:, at_line].sum(axis=1) / size.sum(axis=1)).min()

    assert share_of_the_line(model) > 0.2
    assert share_of_the_line(models["svm-rbf"]) < 0.05
    without = explain(model, spectra[0], pixels=spectra[2] == "FeO").dataset  # the line is missed in each of them
    assert (
        without["contribution"].sel(band=LINE, method="nearest").item()
        * (1 if without.attrs["classes"][0] == "FeO" else -1)
        < 0.0
    )


def test_error_is_what_noise_does_to_a_spectrum(models):
    """A linear machine: its contributions spread over recordings of one specimen as the error of each says."""
    model = models["svm-linear"]
    rng = np.random.default_rng(8)
    _, expected, _, _ = draw(1, rng)
    recordings = (rng.poisson(np.repeat(expected[:1], 64, axis=0)) - 75.0).astype(np.float32)
    variance = np.repeat(expected[:1], 64, axis=0)
    together = explain(model, recordings, variance=variance, pixels=np.ones(64, dtype=bool)).dataset
    assert np.allclose(together["error"], together["spread"], rtol=0.35)
    one = explain(model, recordings, variance=variance, pixels=[0]).dataset
    assert np.isnan(one["spread"]).all()
    assert np.median(one["error"].values / together["spread"].values) == pytest.approx(1.0, abs=0.2)
    assert np.isnan(explain(model, recordings, pixels=[0]).dataset["error"]).all()


def test_the_pair_gives_the_sign_and_every_pair_of_three_classes_is_its_own_machine(three_classes):
    model, wide = three_classes
    names = model.classes
    for one in names:
        for other in names:
            if one == other:
                continue
            found = explain(model, wide, pixels=[0, 7], classes=(one, other)).dataset
            back = explain(model, wide, pixels=[0, 7], classes=(other, one)).dataset
            assert found.attrs["method"] == "exact"
            assert np.allclose(found["contribution"], -back["contribution"])
            assert np.allclose(
                found["contribution"].sum("band"), found["decision"] - found["decision_at_mean"], atol=1e-5
            )
            decided = explain(model, wide, classes=(one, other)).dataset
            assert (decided["decision"].sel(of=one) > 0).item()
            assert (decided["decision"].sel(of=other) < 0).item()


def test_several_models_give_their_mean_and_each(models, spectra):
    other = train("svm-linear", draw(90, np.random.default_rng(9)), ENERGY, seed=1)
    both = explain(models["svm-linear"], models=[other]).dataset
    alone = [explain(model).dataset["contribution"].values for model in (models["svm-linear"], other)]
    assert np.allclose(both["by_model"], alone)
    assert np.allclose(both["contribution"], np.mean(alone, axis=0))
    assert "by_model" not in explain(other).dataset
    strange = replace(other, edge=SHIPPED["Fe_L3"])
    with pytest.raises(InputError, match=r"svm-linear tells Fe3O4, FeO at Fe_L3.*at O_K: give the same model"):
        explain(other, models=[strange])


@pytest.mark.parametrize("align", ["spectrum", "marginal"])
def test_a_model_that_looks_for_spectra_is_explained_at_the_place_that_it_found(models, spectra, align):
    """The same bands are named on an axis that is off by 3 eV: places are found once, from whole spectra."""
    training = draw(90, np.random.default_rng(2))
    plain = models["svm-rbf"]
    registration = Registration.fit(
        training[0], training[2], training[3], align=align, channels=plain.transform.channels, dispersion=0.1
    )
    model = replace(plain, registration=registration)
    wide = spectra[0][spectra[2] == "FeO"]
    shifted = np.roll(wide, 30, axis=1)
    shifted[:, :30] = shifted[:, [30]]
    mask = np.ones(len(wide), dtype=bool)
    at_home, away = (explain(model, one, pixels=mask).dataset for one in (wide, shifted))
    assert away.attrs["method"] == "occlusion"
    height = away["contribution"].values[0]
    near = np.min([np.abs(away["band"].values - place) for place in PLACES.values()], axis=0) <= 2.5
    assert near[decisive_bands(height)].all()
    assert np.corrcoef(height, at_home["contribution"].values[0])[0, 1] > 0.95
    assert height.sum() * (1 if away.attrs["classes"][0] == "FeO" else -1) > 0.0


def test_explaining_leaves_the_inputs_alone_and_is_the_same_each_time(models, spectra):
    wide, variance = spectra[0].copy(), spectra[1].copy()
    first = explain(models["svm-rbf"], wide, variance=variance)
    assert first.dataset.identical(explain(models["svm-rbf"], wide, variance=variance).dataset)
    assert np.array_equal(wide, spectra[0])
    assert np.array_equal(variance, spectra[1])


@pytest.fixture(scope="module")
def field(simulated_files, tmp_path_factory):
    """A prepared field of two phases, and two models that were trained on other fields."""
    directory = tmp_path_factory.mktemp("field")
    preset = resolve_preset("recommended")
    *wide_to_group, energy_loss = gather(simulated_files / "manifest.csv", preset)
    (path,) = [path for path in simulated_files.glob("*core-shell.zarr") if "005" in path.name]
    prepared = directory / "prepared.zarr"
    prepare_blocks(path, prepared, edge=SHIPPED["O_K"], preset=preset.for_acquisition)
    elsewhere = wide_to_group[3] != path.stem
    data = tuple(part[elsewhere] for part in wide_to_group)
    models = {base: train(base, data, energy_loss, seed=0) for base in ("mlls", "svm-linear")}
    for base, model in models.items():
        (directory / base).mkdir()
        model.save(directory / base)
    return path, open_dataset(prepared), models, directory


def test_a_map_by_fractions_is_explained_by_their_weights(field):
    _, prepared, models, _ = field
    model = models["mlls"]
    found, explained = map_pixels(prepared, model), explain(model, prepared).dataset
    assert explained.attrs["method"] == "exact"
    assert explained.attrs["unit"] == ("difference of fractions" if found.ends is not None else "log-odds")
    assert ("no structure" in explained.attrs["note"]) == (found.ends is None)
    assert np.allclose(
        explained["contribution"].sum("band"), explained["decision"] - explained["decision_at_mean"], atol=1e-5
    )
    y, x = (int(places[0]) for places in np.nonzero(found.specimen & np.isfinite(found.fraction[..., 0])))
    one = explain(model, prepared, pixels=[(y, x)]).dataset
    assert one["of"].values.tolist() == [f"pixel x {x}, y {y}"]
    product = prepared
    shape = to_shapes(
        product["gathered"].values[y, x], product["gathered_variance"].values[y, x], model.transform.axis, model.edge
    ).values
    order = [model.references.classes.index(name) for name in model.classes]
    mean = model.references.mean[order].mean(axis=0)
    for band in range(30):
        expected = (found.weights.of_bands[0, band] - found.weights.of_bands[1, band]) * (shape[band] - mean[band])
        assert one["contribution"].values[0, band] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    with pytest.raises(InputError, match="found in bands of 1 eV, and 2 eV are asked for"):
        explain(model, prepared, width=2.0)


def test_pixels_of_a_map_are_explained_as_their_spectra_are(field):
    _, prepared, models, _ = field
    model = models["svm-linear"]
    found, explained = map_pixels(prepared, model), explain(model, prepared, width=2.0).dataset
    for number, name in enumerate(model.classes):
        if name in explained["of"].values:
            assert explained["n_in_set"].sel(of=name) == (found.class_index == number).sum()
    y, x = np.argwhere(found.specimen)[7]
    product = prepared
    wide, variance = (product[name].values[y, x][None] for name in ("intensity", "variance"))
    here = explain(model, prepared, pixels=[(y, x)], width=2.0).dataset
    alone = explain(model, wide, variance=variance, pixels=[0], width=2.0).dataset
    for name in ("contribution", "error", "decision", "spectrum"):
        assert np.allclose(here[name], alone[name])
    mask = np.zeros(found.class_index.shape, dtype=bool)
    mask[y, x] = True
    assert np.allclose(explain(model, prepared, pixels=mask, width=2.0).dataset["contribution"], alone["contribution"])
    with pytest.raises(InputError, match="lies outside the acquisition of 16 x 16 pixels"):
        explain(model, prepared, pixels=[(0, 99)])
    with pytest.raises(InputError, match="is vacuum, lost or without signal"):
        explain(model, prepared, pixels=[tuple(np.argwhere(~found.specimen)[0])])


def test_the_command_explains_a_file_a_pixel_and_a_model(field, tmp_path, eelsflow):
    path, prepared, _, directory = field
    y, x = np.argwhere(~prepared["vacuum_mask"].values)[0]
    for arguments, of in (
        ((path, "--model", directory / "mlls", "--pixel", f"{x},{y}"), [f"pixel x {x}, y {y}"]),
        (("--model", directory / "svm-linear", "--classes", "FeO,Fe3O4"), ["FeO", "Fe3O4"]),
    ):
        status, said, error = eelsflow("explain", *arguments, "--out", tmp_path / "out")
        assert (status, error) == (0, "")
        assert said.count("half of all contributions lie at") == len(of)
        explained = json.loads((tmp_path / "out" / "explanation.json").read_text())
        assert explained["of"] == of
        assert np.shape(explained["contribution"]) == (len(of), 30)
        assert (tmp_path / "out" / "explanation.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (tmp_path / "out" / "explanation.svg").read_text()
        assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
            "explanation.json", "explanation.png", "explanation.svg",
        ]  # fmt: skip
    for arguments, message in (
        ((path, "--pixel", "3"), "--pixel 3 is no pixel; write X,Y"),
        (("--pixel", "3,4"), "no file is given"),
        (("--classes", "FeO"), "'' is no class of mlls"),
    ):
        status, _, error = eelsflow("explain", *arguments, "--model", directory / "mlls", "--out", tmp_path / "none")
        assert status == 2
        assert message in error
    assert not (tmp_path / "none").exists()


def test_a_model_keeps_the_mean_spectra_that_it_is_explained_by(models, tmp_path):
    models["svm-linear"].save(tmp_path)
    loaded = ModelBundle.load(tmp_path)
    assert np.array_equal(loaded.means, models["svm-linear"].means)
    (tmp_path / "means.npy").unlink()  # of an earlier version: its references stand in
    earlier, known = explain(ModelBundle.load(tmp_path)).dataset, explain(loaded).dataset
    assert np.corrcoef(earlier["contribution"].values.ravel(), known["contribution"].values.ravel())[0, 1] > 0.98


def test_bad_requests_say_what_to_do(models, spectra):
    model, wide = models["svm-linear"], spectra[0]
    with pytest.raises(InputError, match=r"'Fe2O3' is no class of svm-linear, which tells Fe3O4, FeO"):
        explain(model, wide, classes=("FeO", "Fe2O3"))
    with pytest.raises(InputError, match="'FeO' is named twice"):
        explain(model, wide, classes=("FeO", "FeO"))
    with pytest.raises(InputError, match="width of a band is 0 eV"):
        explain(model, wide, width=0.0)
    with pytest.raises(InputError, match="pixels are numbers from 0 to 79"):
        explain(model, wide, pixels=[80])
    with pytest.raises(InputError, match=r"shape \(80, 100\).*takes \(n, 540\)"):
        explain(model, wide[:, :100])
    with pytest.raises(InputError, match="no spectrum is of either class"):
        explain(model, wide, pixels=np.zeros(80, dtype=bool))


def test_decisive_bands_are_said_in_stretches_of_one_sign():
    explained = {
        "classes": ["A", "B"], "of": ["A"], "contribution": [[0.0, 3.0, 2.0, -4.0, 0.1]],
        "band_low": [1.0, 2.0, 3.0, 4.0, 5.0], "band_high": [2.0, 3.0, 4.0, 5.0, 6.0],
    }  # fmt: skip
    assert say_bands(explained) == ["A: half of all contributions lie at 2.0-3.0 eV (for A), 4.0-5.0 eV (for B)."]
    assert say_bands(explained | {"contribution": [[0.0, 3.0, 2.9, -0.5, 0.1]]}) == [
        "A: half of all contributions lie at 2.0-4.0 eV (for A)."
    ]
