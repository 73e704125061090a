import numpy as np
import pytest

from eelsflow.edges import FE_L3, O_K, Edge
from eelsflow.errors import DataSetError, UnreadableFileError
from eelsflow.models.inputs import Inputs, peak_channels

ENERGY = 525.0 + 0.1 * np.arange(300)
PEAKS = peak_channels(O_K, ENERGY)
X = np.random.default_rng(0).uniform(0.1, 1.0, (40, 300)).astype(np.float32)


@pytest.mark.parametrize("kind", ["unit", "cumulative", "ratio", "convolutions"])
def test_features_are_kept_and_have_the_length_of_spectra(kind, tmp_path):
    made = Inputs.fit(kind, X, peaks=PEAKS, seed=2)
    found = made.apply(X)
    made.save(tmp_path / "inputs.npz")
    np.testing.assert_array_equal(Inputs.load(tmp_path / "inputs.npz").apply(X), found)
    assert found.dtype == np.float32
    if kind != "ratio":
        length, own = (np.median(np.linalg.norm(rows, axis=1)) for rows in (X, found))
        assert own == pytest.approx(length, rel=1e-5)


def test_each_kind_is_what_its_name_says():
    unit = Inputs.fit("unit", X, peaks=None, seed=0)
    np.testing.assert_allclose(unit.apply(3 * X), unit.apply(X), rtol=1e-5)
    cumulative = Inputs.fit("cumulative", X, peaks=None, seed=0)
    np.testing.assert_allclose(
        cumulative.apply(X) / cumulative.scale, np.cumsum(X, axis=1) / X.sum(axis=1, keepdims=True), rtol=1e-4
    )
    spectrum = np.zeros((1, 300), np.float32)
    spectrum[0, np.abs(ENERGY - 530.0) < 2.0] = 0.6
    spectrum[0, np.abs(ENERGY - 539.4) < 2.0] = 1.2
    np.testing.assert_allclose(Inputs.fit("ratio", X, peaks=PEAKS, seed=0).apply(spectrum), [[0.5]], rtol=1e-6)


def test_a_spectrum_without_signal_gives_finite_features():
    for kind in ("unit", "cumulative", "ratio", "convolutions"):
        assert np.isfinite(Inputs.fit(kind, X, peaks=PEAKS, seed=0).apply(np.zeros((2, 300)))).all()


def test_a_ratio_needs_two_features_of_the_edge():
    bare = Edge(name="bare", reference_energy=530.0, elnes_window=(525.0, 555.0))
    assert peak_channels(bare, ENERGY) is None
    assert peak_channels(FE_L3, ENERGY) is None
    with pytest.raises(DataSetError, match="needs an edge with two `features`"):
        Inputs.fit("ratio", X, peaks=None, seed=0)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "inputs.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UnreadableFileError, match="holds no usable features"):
        Inputs.load(tmp_path / "inputs.npz")
