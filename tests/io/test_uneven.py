import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.errors import InputError
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.uneven import to_uniform_axis
from tests.strategies import examples


@examples(60)
@given(
    steps=st.lists(st.floats(0.5, 1.9), min_size=45, max_size=60),
    values=st.lists(st.floats(0, 1e4), min_size=61, max_size=61),
)
def test_resampling_invents_nothing(steps, values):
    x = 500 + np.concatenate([[0.0], np.cumsum(steps)])
    y = np.array(values[: x.size])
    energy_loss, counts, note = to_uniform_axis(x, y, source="a.txt")
    step = np.diff(energy_loss).mean()
    assert step >= max(steps) * (1 - 1e-9)  # never finer than the spectrum's own sampling
    assert y.min() - 1e-6 <= counts.min() <= counts.max() <= y.max() + 1e-6
    assert energy_loss[0] - step / 2 >= x[0] - 1e-9
    assert energy_loss[-1] + step / 2 <= x[-1] + 1e-6
    inside = np.linspace(x[0], energy_loss[-1] + step / 2, 200_001)
    assert counts.sum() * step == pytest.approx(np.trapezoid(np.interp(inside, x, y), inside), rel=1e-4, abs=1e-3)
    assert f"{counts.size} channels" in note


def test_straight_line_stays_a_straight_line():
    x = 500 + np.cumsum(np.tile([0.5, 1.0], 20))
    energy_loss, counts, _ = to_uniform_axis(x, 3 * x, source="a.txt")
    np.testing.assert_allclose(counts, 3 * energy_loss)


@pytest.mark.parametrize(
    ("energies", "match"),
    [
        ([1.0, 2, 3, 2.5, 4], "3 eV is followed by 2.5 eV"),
        ([1.0, 2, 2, 3], "2 eV is followed by 2 eV"),
        ([*range(20), *range(30, 40)], "nothing lies between 19 and 30 eV"),
        ([1.0, 2, 4, 5], "leave 2 channels"),
        ([1.0, np.nan, 4, 5], "not finite"),
    ],
)
def test_axis_that_is_no_sampling_is_refused(energies, match):
    with pytest.raises(InputError, match=match):
        to_uniform_axis(np.array(energies), np.ones(len(energies)), source="a.txt")


def uneven_rows():
    x = 500 + np.concatenate([0.5 * np.arange(40), 20 + 1.0 * np.arange(20)])
    return x, 1000 - x


def test_uneven_text_says_so_in_notes_and_log(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("".join(f"{x:.2f} {y:.2f}\n" for x, y in zip(*uneven_rows(), strict=True)))
    with caplog.at_level(logging.INFO, logger="eelsflow.io.uneven"):
        image = read_spectrum_image(tmp_path / "a.txt")
    assert np.diff(image["energy_loss"]) == pytest.approx(1.0)
    [note] = json.loads(image.attrs["metadata"])["notes"]
    assert "averaged into 39 channels of 1 eV" in note
    assert note in caplog.text


def test_uneven_axis_of_a_hspy_spectrum_is_resampled_and_a_formula_is_not_evaluated(tmp_path):
    from rsciio.hspy import file_writer

    x, y = uneven_rows()
    axis = {"_type": "DataAxis", "name": "Energy loss", "units": "eV", "navigate": False, "axis": x, "size": x.size}
    signal = {"data": y, "axes": [axis], "metadata": {"General": {"title": ""}}, "original_metadata": {}, "models": {}}
    signal |= {
        "attributes": {"_lazy": False, "ragged": False},
        "learning_results": {},
        "package_info": {},
        "tmp_parameters": {},
    }
    file_writer(str(tmp_path / "a.hspy"), signal)
    image = read_spectrum_image(tmp_path / "a.hspy")
    assert np.diff(image["energy_loss"]) == pytest.approx(1.0)
    signal["axes"] = [{"name": "Energy", "units": "eV", "navigate": False, "expression": "x", "size": x.size}]
    file_writer(str(tmp_path / "b.hspy"), signal)
    with pytest.raises(InputError, match="formula, which is never evaluated"):
        read_spectrum_image(tmp_path / "b.hspy")
