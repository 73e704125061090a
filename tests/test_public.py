"""The library's face: what it is, what it loads, and that it gives what the command line gives."""

import gc
import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import eelsflow
from eelsflow.errors import EdgeOutOfRangeError, InputError, MissingDependencyError, SpectrumImageSchemaError
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.simulator import PRESETS, simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.spectrum_image import build_spectrum_image

PUBLIC = {
    "Map": ["dataset", "prepared", "recorded", "bundle", "pixels"],
    "classify": ["acquisition", "model", "edge", "low_loss", "executor"],
    "explain": ["value", "model", "models", "pixels", "classes", "width"],
    "from_hyperspy": ["value"],
    "grid_search": ["spectra", "labels", "kernel", "grid", "cv"],
    "info": ["file", "edge", "low_loss", "density"],
    "load_model": ["model", "edge"],
    "load_study": ["path"],
    "perturb": ["spectra", "shift_ev", "noise_sigma", "seed"],
    "plan_dose": ["acquisition", "model", "accuracy", "fraction_error", "labels"],
    "prepare": ["acquisition", "edge", "preset", "low_loss", "executor"],
    "read": ["acquisition"],
    "run_study": ["study", "out", "runner", "quick", "promote", "strict", "on_step", "say"],
    "simulate": [
        "directory",
        "acquisitions",
        "seed",
        "pixels",
        "preset",
        "detector",
        "dose",
        "dispersion_error",
        "low_loss",
        "progress",
    ],
    "to_hyperspy": ["value"],
}
"""A change here is a change for everybody who uses the library: say so in the handbook."""


@pytest.fixture(scope="module")
def image():
    """A simulated cube of 16 x 16 pixels."""
    axis = AxisParameters(start=470.0, n_channels=520)
    parameters = PRESETS["paper"].model_copy(update={"shape": (16, 16), "axis": axis})
    return simulate_acquisition(parameters, 3).image


@pytest.fixture(scope="module")
def mapped(image, saved_model):
    return eelsflow.classify(image, model=saved_model)


def test_the_public_names_and_what_they_take_are_these():
    found = {name: list(inspect.signature(getattr(eelsflow, name)).parameters) for name in eelsflow.__all__}
    assert found == PUBLIC
    assert set(PUBLIC) <= set(dir(eelsflow))
    assert all(inspect.getdoc(getattr(eelsflow, name)) for name in PUBLIC)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'classfy'"):
        eelsflow.classfy  # noqa: B018


def test_import_loads_nothing_heavy():
    heavy = ["numpy", "xarray", "prefect", "tensorflow", "matplotlib", "sklearn", "hyperspy", "bokeh"]
    code = f"import sys, eelsflow; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def run(request):
    """The command line; not by its own name, which the package has here."""
    return request.getfixturevalue("eelsflow")


def test_a_file_an_array_and_a_signal_give_the_map_of_the_command_line(image, mapped, saved_model, tmp_path, run):
    path = write_spectrum_image(image, tmp_path / "cube.zarr")
    by_file = eelsflow.classify(path, model=eelsflow.load_model(saved_model))
    by_signal = eelsflow.classify(eelsflow.to_hyperspy(image), model=saved_model)
    assert run("classify", path, "--model", saved_model, "--out", tmp_path)[0] == 0
    by_command = open_dataset(tmp_path / "cube" / "map.zarr").load()
    for other in (by_file.dataset, by_signal.dataset, by_command):
        xr.testing.assert_identical(other.drop_attrs(), mapped.dataset.drop_attrs())
    written = json.loads((tmp_path / "cube" / "summary.json").read_text())
    assert by_file.summary == {name: value for name, value in written.items() if name != "file_sha256"}


def test_a_map_is_saved_and_loaded_and_goes_to_hyperspy_and_back_equal_to_the_bit(mapped, tmp_path):
    loaded = eelsflow.Map.load(mapped.save(tmp_path / "map"))
    xr.testing.assert_identical(loaded.dataset, mapped.dataset)
    assert loaded.plot().axes
    assert "Map of" in repr(loaded)
    assert "<img alt=" in loaded._repr_html_()
    signals = eelsflow.to_hyperspy(loaded)
    back = eelsflow.from_hyperspy(signals)
    xr.testing.assert_identical(back.dataset, mapped.dataset)
    assert back.summary == mapped.summary
    along_x = signals["class_index"].axes_manager.signal_axes[0]
    assert (along_x.name, along_x.units, along_x.scale) == ("x", "nm", pytest.approx(mapped.summary["pixel_size"]))
    assert signals["probability"].axes_manager.navigation_size == len(mapped.classes)
    assert signals["reference"].axes_manager.signal_axes[0].units == "eV"
    stack = np.moveaxis(mapped.dataset["fraction"].values, -1, 0)
    assert np.array_equal(signals["fraction"].data, stack, equal_nan=True)


def test_a_map_is_explained_with_its_own_model_and_a_loaded_one_has_no_spectra(mapped, image, saved_model, tmp_path):
    explained = eelsflow.explain(mapped)
    xr.testing.assert_identical(explained.dataset, eelsflow.explain(image, model=saved_model).dataset)
    assert eelsflow.explain(model=saved_model).dataset["contribution"].sizes["band"] > 10
    with pytest.raises(InputError, match="keeps no spectra"):
        eelsflow.explain(eelsflow.Map.load(mapped.save(tmp_path / "map")))


def test_a_map_of_another_version_is_refused(mapped, tmp_path):
    from eelsflow.io.zarr_store import write_dataset

    write_dataset(mapped.dataset.assign_attrs(schema="eelsflow-map/1"), tmp_path / "map.zarr")
    with pytest.raises(InputError, match=r"'eelsflow-map/1'.*classify the acquisition again"):
        eelsflow.Map.load(tmp_path)


def test_an_image_goes_to_hyperspy_and_back(image):
    signal = eelsflow.to_hyperspy(image)
    assert signal.metadata.Signal.signal_type == "EELS"
    assert [axis.name for axis in signal.axes_manager.navigation_axes] == ["x", "y"]
    back = eelsflow.from_hyperspy(signal)
    assert np.array_equal(back.values, image.values)
    assert back["energy_loss"].values == pytest.approx(image["energy_loss"].values, abs=1e-9)
    assert (back.attrs["pixel_size"], back.attrs["pixel_unit"]) == (image.attrs["pixel_size"], "nm")
    assert eelsflow.from_hyperspy(signal.inav[2:5, 1:3]).shape == (2, 3, image.shape[2])
    assert back.attrs["sha256"] != eelsflow.from_hyperspy(signal + 1).attrs["sha256"]


def test_a_signal_that_is_no_spectrum_or_no_map_is_refused(image):
    import hyperspy.api as hs

    with pytest.raises(InputError, match="holds no map"):
        eelsflow.from_hyperspy({"class_index": hs.signals.Signal2D(np.zeros((3, 3)))})
    with pytest.raises(Exception, match="holds no energy-loss spectra"):
        eelsflow.from_hyperspy(hs.signals.Signal2D(np.zeros((3, 3))))


def test_signals_that_are_not_of_one_map_any_more_are_refused(mapped):
    signals = eelsflow.to_hyperspy(mapped)
    signals["unknown"] = signals["unknown"].isig[:4, :4]
    for given in (signals, {}):
        with pytest.raises(InputError, match="to_hyperspy"):
            eelsflow.from_hyperspy(given)
    with pytest.raises(InputError, match="no HyperSpy signal"):
        eelsflow.from_hyperspy("scan.dm3")


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan])
def test_a_pixel_size_that_is_none_is_pixels(size):
    array = xr.DataArray(
        np.ones((3, 4, 20)), dims=("y", "x", "energy_loss"), coords={"energy_loss": 500.0 + np.arange(20.0)},
        attrs={"pixel_size": size, "pixel_unit": "nm"},
    )  # fmt: skip
    array["energy_loss"].attrs["units"] = "eV"
    image = eelsflow.read(array)
    assert (image.attrs["pixel_size"], image.attrs["pixel_unit"]) == (1.0, "px")
    image.attrs["pixel_size"] = size
    with pytest.raises(SpectrumImageSchemaError, match="pixel_size"):
        eelsflow.read(image)


def test_what_cannot_be_asked_for_is_refused_in_the_words_of_the_library(mapped, image, tmp_path):
    prepared = eelsflow.prepare(image)["intensity"]
    refused = [
        lambda: eelsflow.run_study(tmp_path / "study.yaml", tmp_path, runner="lop"),
        lambda: eelsflow.simulate(tmp_path, pixels=0),
        lambda: eelsflow.perturb(prepared, shift_ev=np.nan),
        lambda: eelsflow.perturb(prepared, noise_sigma=-1.0),
        lambda: eelsflow.perturb(prepared.values),
        lambda: eelsflow.grid_search(np.full((20, 5), np.nan), ["a", "b"] * 10),
        lambda: eelsflow.grid_search(np.ones((20, 5)), ["a", "b"]),
        lambda: eelsflow.explain(mapped, classes="FeO"),
        lambda: eelsflow.explain(mapped, model="another"),
    ]
    for ask in refused:
        with pytest.raises(InputError):
            ask()


def test_the_package_says_that_it_is_typed():
    assert (Path(eelsflow.__file__).parent / "py.typed").is_file()


def test_without_hyperspy_it_is_said_how_to_have_it(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperspy", None)
    monkeypatch.setitem(sys.modules, "hyperspy.api", None)
    with pytest.raises(MissingDependencyError, match="pip install hyperspy"):
        eelsflow.to_hyperspy(image)


@pytest.mark.parametrize("n_dims", [1, 2, 3])
def test_arrays_of_one_to_three_dimensions_become_images(n_dims):
    dims, shape = ("row", "column", "energy_loss")[-n_dims:], (4, 5, 60)[-n_dims:]
    counts = np.random.default_rng(0).poisson(50, shape)
    coords = {"energy_loss": 500 + 0.5 * np.arange(60)}
    if n_dims > 1:
        coords["column"] = ("column", 0.4 * np.arange(5), {"units": "nm"})
    read = eelsflow.read(xr.DataArray(counts, dims=dims, coords=coords))
    assert read.dims == ("y", "x", "energy_loss")
    assert np.array_equal(read.values.reshape(shape), counts)
    assert (read.attrs["pixel_size"], read.attrs["pixel_unit"]) == ((0.4, "nm") if n_dims > 1 else (1.0, "px"))


def test_dimensions_in_another_order_are_put_right(image):
    turned = image.transpose("energy_loss", "x", "y")
    xr.testing.assert_identical(eelsflow.read(turned), image)


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (lambda image: image.values, "found ndarray"),
        (lambda image: image.rename(energy_loss="E"), "expected a coordinate 'energy_loss'"),
        (lambda image: image.expand_dims(frame=2), "select one image"),
        (
            lambda image: image.assign_coords(energy_loss=image.energy_loss.assign_attrs(units="keV")),
            "has the unit 'keV'",
        ),
    ],
)
def test_what_is_no_acquisition_is_refused(image, spoilt, words):
    with pytest.raises((InputError, SpectrumImageSchemaError), match=words):
        eelsflow.read(spoilt(image))


def test_an_array_without_the_edge_is_refused_by_its_name(saved_model):
    image = build_spectrum_image(np.ones((4, 4, 100)), 600 + np.arange(100.0), source="late.dm4")
    with pytest.raises(EdgeOutOfRangeError, match=r"late\.dm4.*outside the energy axis"):
        eelsflow.classify(image, model=saved_model)


def test_spectra_of_a_map_go_with_it_and_of_a_refused_acquisition_at_once(image, saved_model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match="the acquisition: "):
        eelsflow.classify(image.where(image["x"] < 0).assign_attrs(source=""), model=saved_model)
    assert not list(tmp_path.iterdir())
    found = eelsflow.classify(image, model=saved_model)
    assert list(tmp_path.iterdir())
    del found
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_prepare_gives_what_the_chain_gives(image):
    from eelsflow.edges import SHIPPED
    from eelsflow.preprocess.chain import prepare

    expected = prepare(image, edge=SHIPPED["O_K"], preset=resolve_preset("recommended").for_acquisition)
    xr.testing.assert_allclose(eelsflow.prepare(image)["intensity"], expected["intensity"])


def test_perturb_moves_features_and_adds_noise_of_the_asked_size():
    energy_loss = 500 + 0.1 * np.arange(600)
    peak = np.exp(-(((energy_loss - 530) / 2) ** 2))
    peak[:5] = np.nan
    spectra = xr.DataArray(
        np.tile(peak, (2, 50, 1)), dims=("y", "x", "energy_loss"), coords={"energy_loss": energy_loss}
    )
    moved = eelsflow.perturb(spectra, shift_ev=2.0)
    assert np.allclose(moved.values[0, 0, 50:-50], np.exp(-(((energy_loss - 532) / 2) ** 2))[50:-50], atol=2e-3)
    each = eelsflow.perturb(spectra, shift_ev=np.linspace(-1, 1, 100).reshape(2, 50))
    assert energy_loss[np.nanargmax(each.values[1, -1])] == pytest.approx(531, abs=0.11)
    noisy = eelsflow.perturb(spectra, noise_sigma=0.1, seed=4)
    residual = (noisy - spectra).values[..., 5:]
    span = np.subtract(*np.percentile(peak[5:], (99, 1)))
    assert residual.std() == pytest.approx(0.1 * span, rel=0.02)
    assert np.isnan(noisy.values[..., :5]).all()
    assert not np.isnan(noisy.values[..., 5:]).any()
    xr.testing.assert_identical(noisy, eelsflow.perturb(spectra, noise_sigma=0.1, seed=4))
    with pytest.raises(InputError, match="'energy_loss' last"):
        eelsflow.perturb(spectra.transpose("energy_loss", "y", "x"))


def test_grid_search_finds_the_parameters_of_scikit_learn():
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    random = np.random.default_rng(0)
    y = np.repeat(["Fe3O4", "FeO"], 40)
    X = random.normal(size=(80, 5)) + 0.8 * (y == "FeO")[:, np.newaxis]
    grid = {"C": [1, 10, 100], "gamma": [0.01, 0.1]}  # below, every weight is at its bound and the bias is open
    found = eelsflow.grid_search(X, y, grid=grid, cv=4)
    peer = GridSearchCV(SVC(kernel="rbf", class_weight="balanced"), grid, cv=4).fit(X, y)
    assert found.best_score_ == pytest.approx(peer.best_score_)
    assert set(eelsflow.grid_search(X, y, kernel="linear", cv=2).results_["accuracy"].dims) == {"C", "fold"}


def test_a_study_runs_from_its_file(labelled_table, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: table\nedge: {{name: Mn, reference_energy: 709, elnes_window: [700, 725]}}\nclasses: [Mn2+, Mn4+]\n"
        f"data: {{spectra: {labelled_table}}}\npreprocess: none\nmodels: [svm-linear]\ngrids: small\n"
        "split: {by: [group], folds: 2, seeds: 1}\nrobustness: {shift_ev: [0, 0, 1], noise_sigma: [0, 0, 1]}\n"
    )
    steps = []
    results = eelsflow.run_study(study, tmp_path / "out", on_step=lambda title, *_: steps.append(title))
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["models"][0]["accuracy"]["mean"] > 0.9
    assert steps
    assert eelsflow.load_model(tmp_path / "out").classes == ["Mn2+", "Mn4+"]
    assert eelsflow.load_study(study).name == "table"
