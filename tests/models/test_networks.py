import numpy as np
import pytest

from eelsflow.errors import DataSetError
from eelsflow.models.networks import CNN_MIN_CHANNELS, Network, architecture_table, build_network


@pytest.mark.parametrize(("base", "n_channels", "n_classes"), [("fcnn-1", 7, 2), ("cnn-1", 299, 5), ("cnn-2", 300, 3)])
def test_networks_give_a_probability_for_each_class(base, n_channels, n_classes):
    model = build_network(base, n_channels, n_classes)
    X = np.random.default_rng(0).random((4, n_channels), dtype=np.float32)
    probabilities = Network(model.to_json(), model.get_weights()).predict_proba(X)
    assert probabilities.shape == (4, n_classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


def test_a_dense_network_takes_short_spectra_and_a_convolutional_one_says_why_not():
    assert build_network("fcnn-1", 5, 2).output_shape == (None, 2)
    assert build_network("cnn-1", CNN_MIN_CHANNELS, 2).layers[-3].output.shape[1] == 1
    with pytest.raises(DataSetError, match="spectra have 139 channels; cnn-2 needs 140 or more"):
        build_network("cnn-2", CNN_MIN_CHANNELS - 1, 2)


def test_the_convolutional_networks_differ_in_dropout_alone():
    one, two = (architecture_table(build_network(base, 300, 2)) for base in ("cnn-1", "cnn-2"))
    differing = [(a, b) for a, b in zip(one, two, strict=True) if a != b]
    assert [(a["type"], a["detail"], b["detail"]) for a, b in differing] == [("Dropout", "0.1", "0.5")]


def test_the_architecture_table_counts_parameters_by_hand():
    rows = architecture_table(build_network("fcnn-1", 300, 2, {"units": 32, "dropout": 0.3}))
    dense = [row for row in rows if row["type"] == "Dense"]
    assert [row["parameters"] for row in dense] == [301 * 32, 33 * 32, 33 * 2]
    assert dense[0]["detail"] == "32 units, relu"
    assert dense[0]["output_shape"] == [32]
    assert next(row for row in rows if row["type"] == "Dropout")["detail"] == "0.3"


def test_the_convolutional_blocks_are_those_of_the_published_variant():
    rows = architecture_table(build_network("cnn-1", 300, 2))
    blocks = [row["detail"] for row in rows if row["type"] == "Conv1D"]
    sizes = ("2 filters of 9", "2 filters of 7", "4 filters of 7", "4 filters of 5", "8 filters of 3")
    assert blocks == [*(f"{size}, relu" for size in sizes), "2 filters of 1"]
    kinds = [row["type"] for row in rows]
    first = kinds.index("Conv1D")  # after the reshaping
    assert kinds[first : first + 3] == ["Conv1D", "AveragePooling1D", "BatchNormalization"]


def test_a_network_saved_and_loaded_predicts_the_same(tmp_path):
    model = build_network("cnn-1", 150, 3)
    network = Network(model.to_json(), model.get_weights())
    network.save(tmp_path / "model.keras")
    X = np.random.default_rng(1).random((5, 150), dtype=np.float32)
    np.testing.assert_array_equal(Network.load(tmp_path / "model.keras").predict_proba(X), network.predict_proba(X))


def test_no_spectra_give_no_probabilities():
    model = build_network("fcnn-1", 10, 4)
    assert Network(model.to_json(), model.get_weights()).predict_proba(np.empty((0, 10))).shape == (0, 4)
