import numpy as np
import pytest

from eelsflow.edges import SHIPPED
from eelsflow.executors import LoopExecutor
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps.drift import conditions_of, find_drift, ranges_of, tell_conditions
from eelsflow.preparation import prepare_counts, write_counts
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.simulator import simulate_directory

NOW = {"energy_offset": 1.0, "dispersion": 0.5, "resolution": None, "noise_gain": 4.0, "dose": 10.0}


def test_the_range_is_that_of_the_training_acquisitions_that_are_known():
    ranges = ranges_of([NOW, NOW | {"energy_offset": -2.0, "dose": None}])
    assert ranges["energy_offset"] == {"low": -2.0, "high": 1.0}
    assert ranges["dose"] == {"low": 10.0, "high": 10.0}
    assert "resolution" not in ranges


def test_what_was_trained_on_is_no_drift_and_nothing_is_without_ranges():
    assert find_drift(NOW, ranges_of([NOW])) == []
    assert find_drift(NOW, {}) == []


@pytest.mark.parametrize(
    ("quantity", "value", "told"),
    [
        ("energy_offset", 1.6, "energy offset 1.6 eV, training 1 to 1"),
        ("dispersion", 0.51, "dispersion 0.51 eV per channel, training 0.5 to 0.5"),
        ("noise_gain", 2.9, "counts per electron 2.9, training 4 to 4"),
        ("dose", 4.0, "dose 4 electrons per channel of 0.1 eV, training 10 to 10"),
    ],
)
def test_what_lies_outside_is_told_with_the_range(quantity, value, told):
    (one,) = find_drift(NOW | {quantity: value}, ranges_of([NOW]))
    assert (one["quantity"], one["value"], one["sentence"]) == (quantity, value, told)
    assert not one["low"] <= value <= one["high"]


def test_conditions_are_read_as_sentences_beside_the_training():
    ranges = ranges_of([NOW])
    conditions = NOW | {"dose": 100.0}
    rows = tell_conditions({"conditions": conditions, "training": ranges, "drift": find_drift(conditions, ranges)})
    (dose,) = [row for row in rows if row["outside"]]
    assert dose == {
        "title": "dose (electrons per channel of 0.1 eV)",
        "value": "100",
        "training": "10 to 10",
        "outside": True,
    }
    assert rows[2]["value"] is None
    assert len(tell_conditions({"conditions": NOW, "training": None, "drift": []})) == len(rows)


@pytest.mark.slow
def test_conditions_are_those_of_the_simulated_recording(tmp_path):
    """Offset and dispersion as the truth has them; twice the dose is told as twice the dose."""
    found = []
    for dose in (1.0, 4.0):
        folder = tmp_path / f"{dose}"
        folder.mkdir()
        simulate_directory(
            folder, n_acquisitions=1, seed=4, shape=(24, 24), preset="paper", detector="ccd", dose=(dose, dose)
        )
        path = next(path for path in folder.glob("*.zarr") if ".truth" not in path.name)
        image = read_spectrum_image(path)
        write_counts(image, None, folder)
        prepared = prepare_counts(
            folder, edge=SHIPPED["O_K"], preset=resolve_preset("recommended").for_acquisition, executor=LoopExecutor()
        )
        found.append(conditions_of(open_dataset(prepared)))
    nominal = float(np.diff(image["energy_loss"].values).mean())
    assert found[0]["dispersion"] == pytest.approx(nominal, rel=0.01)
    assert found[1]["dose"] / found[0]["dose"] == pytest.approx(4.0, rel=0.1)
    assert found[0]["resolution"] is None
