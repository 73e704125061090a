import numpy as np
import pytest

from eelsflow.dataset.register import register_table
from eelsflow.dataset.spectra import read_table
from eelsflow.errors import DataSetError, UnreadableFileError

SAME = {"Mn2+": "Mn2", "Mn4+": "Mn4"}


def white_lines(energy_loss, maximum):
    return np.exp(-(((energy_loss - maximum) / 2) ** 2)) + 0.5 * np.exp(-(((energy_loss - maximum - 11) / 2) ** 2))


@pytest.fixture
def files(tmp_path):
    """A table placed 68.4 eV too high, and references of other ranges, scales and baselines."""
    energy_loss = 700 + 0.1 * np.arange(299)
    places = {"Mn2+": 640.5, "Mn4+": 643.2}
    spectra = np.array([white_lines(energy_loss - 68.4, place) for place in places.values() for _ in range(3)])
    noise = 0.02 * np.random.default_rng(0).standard_normal(spectra.shape)
    np.savez(tmp_path / "table.npz", spectra=spectra + noise, energy_loss=energy_loss, label=np.repeat(list(places), 3))
    ranges = np.array([[633.0, 661.0], [634.0, 664.0], [632.0, 659.0]])
    references = [
        0.1 + 3 * white_lines(np.linspace(*window, 300), place)
        for window, place in zip(ranges, (640.5, 640.5, 643.2), strict=True)
    ]
    np.savez(tmp_path / "references.npz", X=references, energy_min_max=ranges, label=["Mn2", "Mn2", "Mn4"])
    return tmp_path


def test_table_is_moved_to_where_the_references_lie(files):
    out = files / "registered.npz"
    shifts = register_table(files / "table.npz", files / "references.npz", out, same=SAME)
    assert shifts == pytest.approx({"Mn2+": -68.4, "Mn4+": -68.4}, abs=0.06)
    before, after = read_table(files / "table.npz"), read_table(out)
    assert after.energy_loss[0] == pytest.approx(631.6, abs=0.06)
    assert np.array_equal(before.intensity, after.intensity)
    assert np.array_equal(before.label, after.label)


def test_class_without_a_reference_is_refused(files):
    with pytest.raises(DataSetError, match=r"table\.npz has 3 spectra of 'Mn2\+' and .* 0 of 'Mn3'"):
        register_table(files / "table.npz", files / "references.npz", files / "out.npz", same={"Mn2+": "Mn3"})


def test_references_without_ranges_are_refused(files):
    with pytest.raises(UnreadableFileError, match="an energy range each"):
        register_table(files / "table.npz", files / "table.npz", files / "out.npz", same=SAME)
