import json

import numpy as np
import pytest
import xarray as xr
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from eelsflow.errors import DataSetError, InputError, UnreadableFileError
from eelsflow.executors import LoopExecutor, ThreadExecutor
from eelsflow.models.classifier import load_classifier
from eelsflow.models.fitting import fit_model
from eelsflow.models.spec import BASES, resolve_model

NAMES = np.array(["Mn2+", "Mn3+", "Mn4+"])


def fit(model, X, y, folds, scratch, *, executor=None, **options):
    settings = {"seed": 3, "epochs": 4, "batch_size": 16, "patience": 4, "validation": folds[0], **options}
    return fit_model(
        resolve_model(model), X, y, folds=folds, executor=executor or LoopExecutor(), scratch=scratch, **settings
    )


@pytest.fixture(scope="module")
def labelled(spectra):
    return spectra[0], NAMES[spectra[1]]


@pytest.mark.parametrize("base", BASES)
def test_every_model_fits_saves_and_loads_to_the_same_predictions(base, labelled, test_spectra, folds, tmp_path):
    fitted = fit(base, *labelled, folds, tmp_path / "scratch")
    classifier = fitted.classifier
    assert classifier.classes_ == NAMES.tolist()
    assert fitted.search is None
    assert fitted.search_seconds is None
    assert fitted.train_seconds > 0
    assert (fitted.history is not None) == resolve_model(base).is_network
    json.dumps([fitted.best_params, fitted.history, fitted.warnings], allow_nan=False)

    classifier.save(tmp_path / "model")
    assert sorted(path.suffix for path in (tmp_path / "model").iterdir()) in (
        [".json", ".npz", ".skops"],
        [".json", ".keras", ".npz"],
    )
    loaded = load_classifier(tmp_path / "model")
    X = test_spectra[0]
    np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
    np.testing.assert_array_equal(loaded.predict_proba(X), classifier.predict_proba(X))
    assert (loaded.base, loaded.params, loaded.classes_) == (base, fitted.best_params, classifier.classes_)
    assert set(loaded.predict(X)) <= set(NAMES)


def test_a_search_finds_parameters_and_fits_on_the_whole_training_part(labelled, test_spectra, folds, tmp_path):
    grid = {"C": [0.01, 1.0, 100.0], "gamma": [1e-4, 0.01, 1.0]}
    fitted = fit("svm-rbf", *labelled, folds, tmp_path, grid=grid)
    assert set(fitted.search.dims) == {"C", "gamma", "fold"}
    best = fitted.search["accuracy"].mean("fold")
    assert float(best.sel(fitted.best_params)) == pytest.approx(float(best.max()))
    machine = fitted.classifier.model.machine
    assert (machine.C, machine.gamma) == (fitted.best_params["C"], fitted.best_params["gamma"])
    assert machine.shape_fit_[0] == len(labelled[1])
    assert fitted.search_seconds > 0
    assert np.mean(fitted.classifier.predict(test_spectra[0]) == NAMES[test_spectra[1]]) > 0.85


def test_a_fixed_parameter_stays_where_it_is_while_the_other_is_searched(labelled, folds, tmp_path):
    model = {"name": "fixed", "base": "svm-rbf", "params": {"gamma": 0.02}}
    fitted = fit(model, *labelled, folds, tmp_path, grid={"C": [1.0, 10.0]})
    assert fitted.search["gamma"].values.tolist() == [0.02]
    assert fitted.best_params["gamma"] == 0.02


def test_an_optimum_on_the_edge_of_the_grid_is_a_warning(labelled, folds, tmp_path):
    fitted = fit("svm-linear", *labelled, folds, tmp_path, grid={"C": [1e-8, 1e-7, 0.1]})
    assert any("best C, 0.1, is on the edge of its grid (1e-08 to 0.1)" in text for text in fitted.warnings)


def test_a_sweep_takes_the_training_with_the_best_validation_accuracy(labelled, folds, tmp_path):
    grid = {"learning_rate": (1e-6, 1e-2), "units": (8, 16)}
    fitted = fit("fcnn-1", *labelled, folds, tmp_path, grid=grid, epochs=12)
    assert fitted.search["accuracy"].dims == ("learning_rate", "units", "fold")
    assert fitted.best_params["learning_rate"] == 1e-2
    assert fitted.best_params["epochs"] == 12
    chosen = fitted.search.sel({name: fitted.best_params[name] for name in grid}).isel(fold=0)
    assert float(chosen["accuracy"]) == float(fitted.search["accuracy"].max())
    alone = fit({"base": "fcnn-1", "params": fitted.best_params}, *labelled, folds, tmp_path)
    assert alone.history == fitted.history


def test_an_optimum_on_the_edge_of_a_sweep_is_a_warning(labelled, folds, tmp_path):
    fitted = fit("fcnn-1", *labelled, folds, tmp_path, grid={"learning_rate": (1e-6, 1e-5, 1e-2)}, epochs=12)
    edge = "the best learning_rate, 0.01, is on the edge of its grid (1e-06 to 0.01)"
    assert any(edge in text for text in fitted.warnings)
    fitted = fit("fcnn-1", *labelled, folds, tmp_path, grid={"dropout": (0.0, 0.2, 0.9)}, epochs=12)
    assert fitted.best_params["dropout"] == 0.2
    assert not any("edge of its grid" in text for text in fitted.warnings)


@pytest.mark.parametrize("base", ["svm-rbf", "fcnn-1"])
def test_threads_give_the_same_numbers_as_a_loop(base, labelled, test_spectra, folds, tmp_path):
    grid = {"C": [1.0, 10.0], "gamma": [0.01, 0.1]} if base == "svm-rbf" else {"learning_rate": [1e-3, 1e-2]}
    loop, threads = (
        fit(base, *labelled, folds, tmp_path, grid=grid, executor=executor)
        for executor in (LoopExecutor(), ThreadExecutor(2))
    )
    xr.testing.assert_identical(loop.search["accuracy"], threads.search["accuracy"])
    np.testing.assert_array_equal(
        loop.classifier.predict_proba(test_spectra[0]), threads.classifier.predict_proba(test_spectra[0])
    )


def test_confidence_may_be_fitted_on_folds_of_its_own(labelled, folds, tmp_path):
    other = list(StratifiedKFold(3, shuffle=True, random_state=9).split(*labelled))
    one = fit("svm-rbf", *labelled, folds, tmp_path).classifier
    two = fit("svm-rbf", *labelled, folds, tmp_path, calibration=other).classifier
    np.testing.assert_array_equal(one.predict(labelled[0]), two.predict(labelled[0]))
    assert not np.array_equal(one.predict_proba(labelled[0]), two.predict_proba(labelled[0]))


def test_decisions_that_the_probabilities_contradict_are_a_warning(spectra, folds, tmp_path):
    """Random labels: the machine decides by noise, the probability hardly at all."""
    y = np.random.default_rng(0).permutation(NAMES[spectra[1]])
    fitted = fit("svm-sigmoid", spectra[0], y, folds, tmp_path)
    assert any("most probable class is not the decided one" in text for text in fitted.warnings)


@pytest.mark.parametrize("base", ["svm-linear", "fcnn-1"])
def test_training_spectra_that_cannot_be_used_are_refused(base, labelled, folds, tmp_path):
    X, y = labelled
    with pytest.raises(DataSetError, match=r"all of the class \['Mn2\+'\]"):
        fit(base, X, np.full(len(y), "Mn2+"), folds, tmp_path)
    with pytest.raises(DataSetError, match="not finite"):
        fit(base, np.where(np.arange(X.shape[1]) == 3, np.nan, X), y, folds, tmp_path)
    with pytest.raises(DataSetError, match="expected one row a label"):
        fit(base, X[:-1], y, folds, tmp_path)
    bad = [(np.flatnonzero(y != "Mn4+"), np.flatnonzero(y == "Mn4+"))]
    with pytest.raises(DataSetError, match="trains on 2 of 3 classes"):
        fit(base, X, y, bad, tmp_path)


def test_spectra_that_a_classifier_was_not_made_for_are_refused(labelled, folds, tmp_path):
    classifier = fit("svm-linear", *labelled, folds, tmp_path).classifier
    with pytest.raises(InputError, match=r"shape \(2, 149\); this model was trained on 150 channels"):
        classifier.predict(np.zeros((2, 149)))
    with pytest.raises(InputError, match="not finite"):
        classifier.predict_proba(np.full((1, 150), np.nan))


@pytest.mark.parametrize("base", ["svm-linear", "fcnn-1"])
def test_a_damaged_or_altered_classifier_is_not_loaded(base, labelled, folds, tmp_path):
    directory = tmp_path / "model"
    fit(base, *labelled, folds, tmp_path / "scratch").classifier.save(directory)
    (model,) = directory.glob("model.*")
    whole = model.read_bytes()
    for damaged in (b"", b"PK\x03\x04 no archive", whole[: len(whole) // 2]):
        model.write_bytes(damaged)
        with pytest.raises(UnreadableFileError, match="holds no usable classifier"):
            load_classifier(directory)
    model.write_bytes(whole)

    with np.load(directory / "reference.npz") as stored:
        arrays = dict(stored)
    arrays["probability"] = np.roll(arrays["probability"], 1, axis=1)
    np.savez(directory / "reference.npz", **arrays)
    with pytest.raises(UnreadableFileError, match="off what it predicted when it was saved"):
        load_classifier(directory)

    (directory / "classifier.json").unlink()
    with pytest.raises(UnreadableFileError, match="holds no usable classifier"):
        load_classifier(directory)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "params", "expected", "spread"),
    [("svm-rbf", {"C": 100, "gamma": 0.1}, 0.973, 0.008), ("svm-linear", {"C": 10}, 0.960, 0.011)],
)
def test_fixed_settings_on_manganese_spectra_give_the_known_accuracy(
    base, params, expected, spread, real_data, tmp_path
):
    """Known from an independent run with scikit-learn alone: mean and standard deviation over 30 random splits."""
    with np.load(real_data / "mn_white_lines_labelled.npz") as data:
        X, y = data["spectra"], data["label"]
    accuracies = []
    for seed in range(30):
        train, test = next(StratifiedShuffleSplit(1, test_size=0.35, random_state=seed).split(X, y))
        folds = list(StratifiedKFold(2, shuffle=True, random_state=seed).split(X[train], y[train]))
        classifier = fit({"base": base, "params": params}, X[train], y[train], folds, tmp_path).classifier
        accuracies.append(np.mean(classifier.predict(X[test]) == y[test]))
    # Four standard errors of a mean over 30 splits; the spread itself is known to some 13 %.
    assert np.mean(accuracies) == pytest.approx(expected, abs=4 * spread / np.sqrt(30))
    assert np.std(accuracies, ddof=1) == pytest.approx(spread, rel=0.4)


def grouped_spectra(rng, n_groups):
    """Single spectra, averages with a tenth of the noise, codes and groups; each group has an offset of its own."""
    group = np.repeat(np.arange(n_groups), 40)
    codes = group % 2
    position = 2.0 * codes - 1.0 + rng.normal(0, 1.0, n_groups)[group]
    clean = position[:, np.newaxis] * np.full(20, 0.1)
    noise = rng.standard_normal(clean.shape)
    return (clean + noise).astype(np.float32), (clean + 0.1 * noise).astype(np.float32), codes, group


def calibration_error_of(classifier, X, codes):
    probability = classifier.predict_proba(X)
    chosen = np.asarray(classifier.classes_).searchsorted(classifier.predict(X))
    confidence = probability[np.arange(len(X)), chosen]
    bins = np.minimum(((confidence - 0.5) * 20).clip(0).astype(int), 9)
    gap = np.bincount(bins, weights=confidence - (chosen == codes), minlength=10)
    return np.abs(gap).sum() / len(X)


@pytest.mark.parametrize("base", ["svm-sgd", "svm-linear"])
def test_confidence_is_calibrated_for_the_averages_that_it_was_fitted_on(base, tmp_path):
    rng = np.random.default_rng(2)
    X, averages, codes, group = grouped_spectra(rng, 60)
    _, held_out, held_out_codes, _ = grouped_spectra(rng, 400)
    folds = list(StratifiedGroupKFold(4, shuffle=True, random_state=0).split(X, codes, group))
    params = {"alpha": 0.1} if base == "svm-sgd" else {"C": 0.01}
    model = {"name": base, "base": base, "params": params}
    y = NAMES[codes]
    without = fit(model, X, y, folds, tmp_path).classifier
    fitted = fit(model, X, y, folds, tmp_path, calibration_spectra=averages, calibration_group=group).classifier
    np.testing.assert_array_equal(fitted.predict(held_out), without.predict(held_out))
    before, after = (calibration_error_of(one, held_out, held_out_codes) for one in (without, fitted))
    assert after < 0.05
    assert after < 0.6 * before


def test_calibration_spectra_of_another_kind_are_refused(labelled, folds, tmp_path):
    with pytest.raises(DataSetError, match="cannot be fitted on spectra of shape"):
        fit("svm-sgd", *labelled, folds, tmp_path, calibration_spectra=labelled[0][:, :-1])
