import json
import shutil

import numpy as np
import pytest

from eelsflow.errors import MissingDependencyError, UnusableModelError
from eelsflow.models.bundle import ModelBundle, read_description


@pytest.fixture
def model(saved_model, tmp_path):
    """A copy of a good model, to be damaged."""
    return shutil.copytree(saved_model, tmp_path / "model")


def test_bundle_is_loaded_as_it_was_saved(model):
    bundle = ModelBundle.load(model)
    assert (bundle.name, bundle.edge.name, bundle.classes) == ("svm-sgd", "O_K", ["Fe3O4", "FeO"])
    peaks = np.exp(-(((bundle.transform.axis.values - np.array([[538.0], [540.0]])) / 3) ** 2))
    classes, probability = bundle.predict(peaks.astype(np.float32))
    assert classes.tolist() == ["FeO", "Fe3O4"]
    assert np.allclose(probability.sum(axis=1), 1)


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "altered"])
def test_bundle_with_any_damaged_file_is_refused_as_a_model_and_not_as_input(model, damage):
    files = sorted(path for path in model.rglob("*") if path.is_file())
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            middle = len(whole) // 2
            altered = whole[: middle - 20] + bytes(40) + whole[middle + 20 :]
            path.write_bytes({"empty": b"", "half": whole[:middle], "altered": altered}[damage])
        with pytest.raises(UnusableModelError, match="model"):
            ModelBundle.load(model)
        path.write_bytes(whole)


def test_bundle_of_parts_that_do_not_belong_together_is_refused(model):
    described = (model / "transform" / "features.json").read_text()
    assert '"elnes_window": [\n      525.0' in described
    (model / "transform" / "features.json").write_text(described.replace("525.0", "526.0"))
    with pytest.raises(UnusableModelError, match=r"transform makes vectors of 290 channels.*trained on 300"):
        ModelBundle.load(model)


def test_model_that_lacks_a_dependency_is_not_called_damaged(model, monkeypatch):
    def load_classifier(directory):
        raise MissingDependencyError("TensorFlow is not installed")

    monkeypatch.setattr("eelsflow.models.bundle.load_classifier", load_classifier)
    with pytest.raises(MissingDependencyError, match="TensorFlow is not installed"):
        ModelBundle.load(model)


def test_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(UnusableModelError, match="holds no model"):
        read_description(tmp_path)


@pytest.mark.parametrize("key", ["name", "edge", "preset", "classes", "provenance"])
def test_description_that_lacks_a_key_or_has_another_type_is_refused_as_damaged(model, key):
    whole = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
    with pytest.raises(UnusableModelError, match=rf"damaged: .*model\.json: it lacks {key}; train or copy it again"):
        read_description(model)
    (model / "model.json").write_text(json.dumps(whole | {key: 3}))
    with pytest.raises(UnusableModelError, match=rf"damaged: .*model\.json: {key} is int, expected"):
        read_description(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "holds list"), ("null", "holds NoneType"), ("3", "holds int"), ("{}", "has the schema None")],
)
def test_description_that_is_something_else_is_refused(model, content, message):
    (model / "model.json").write_text(content)
    with pytest.raises(UnusableModelError, match=message):
        read_description(model)


def test_description_with_an_edge_that_is_none_is_refused(model):
    whole = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(whole | {"edge": {"name": "O_K"}}))
    with pytest.raises(UnusableModelError, match=r"damaged: .*its edge is not one.*reference_energy") as refused:
        read_description(model)
    assert "\n" not in str(refused.value)
