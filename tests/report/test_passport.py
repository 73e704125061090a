"""Passports: what a model stands, in numbers, in words and as a page."""

import json
from pathlib import Path

import numpy as np
import pytest

from eelsflow.report.page import build_report
from eelsflow.report.passport import AT_CHANCE, STANDS, Range, find_range, say_range, say_stand
from eelsflow.robustness.curves import COUNTS_CURVE, DOSE_CURVE, FURTHER_CURVES

SHIFTS = np.arange(-3.0, 4.0)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ([0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5], Range(-2, 2, -3, 3)),  # shifts from -3 to 3 eV
        ([0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9], Range(-1, 3, -2, None)),  # what comes back later does not count
        ([0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5], Range(0, 0, -1, 1)),
        ([0.9] * 7, Range(-3, 3, None, None)),
        ([0.81] * 3 + [0.9] + [0.809] * 3, Range(-3, 0, None, 1)),  # nine tenths is enough
    ],
)
def test_a_range_ends_before_the_first_amplitude_below_nine_tenths(accuracy, expected):
    assert find_range(SHIFTS, np.array(accuracy), clean=0.9, mildest=0.0) == expected


def test_a_dose_is_read_from_its_high_end():
    electrons = np.array([0.5, 1.0, 3.0, 10.0, 30.0])
    found = find_range(electrons, np.array([0.5, 0.7, 0.85, 0.9, 0.9]), clean=0.9, mildest=np.inf)
    assert (found.low, found.first_low) == (3.0, 1.0)
    assert say_range("dose", found) == (True, "to 3 electrons per channel of 0.1 eV")
    broken = find_range(electrons, np.array([0.5, 0.5, 0.5, 0.5, 0.6]), clean=0.9, mildest=np.inf)
    assert say_range("dose", broken)[0] is False
    never = find_range(electrons, np.full(5, 0.9), clean=0.9, mildest=np.inf)
    assert say_range("dose", never)[1].endswith("(the least tried)")


def test_what_a_model_stands_is_said_plainly():
    assert say_stand({"shift_ev": Range(-8, 8, -9, 9), "dose": Range(12, 30, 10, None, mildest=30)}) == (
        "Holds to \N{PLUS-MINUS SIGN}8 eV on the axis and to 12 electrons per channel of 0.1 eV."
    )
    assert say_stand({"shift_ev": Range(-1, 4, -2, 5), "dispersion_error": Range(-0.02, 0.02, None, None)}) == (
        "Holds with \N{MINUS SIGN}1 to +4 eV on the axis and to a dispersion wrong by \N{PLUS-MINUS SIGN}2 % "
        "(the most tried)."
    )
    assert say_stand({"shift_ev": Range(0, 0, -0.5, 1), "noise_sigma": Range(0.0, 0.1, None, 0.15)}) == (
        "Holds to Gaussian noise of 0.1 of the spectrum's range. Does not hold with an axis off by 0.5 eV."
    )
    assert say_stand({"noise_sigma": Range(0, 0, None, 0.05), "shift_ev": Range(0, 0, -1, 1)}) == (
        "Does not hold with Gaussian noise of 0.05 or an axis off by 1 eV."
    )


def test_every_curve_of_a_study_has_its_words():
    tried = {"shift_ev", "noise_sigma", *(curve.perturbation for curve in (DOSE_CURVE, COUNTS_CURVE, *FURTHER_CURVES))}
    assert tried == set(STANDS)


def test_a_passport_says_what_results_say(results_factory, tmp_path):
    directory: Path = results_factory(tmp_path / "out", models=("svm-rbf", "mlls"), presets=("paper",), n_seeds=2)
    groups = [
        {"name": "one", "label": "FeO", "right": 90.0, "tested": 100.0, "seeds": 2},
        {"name": "two", "label": "Fe3O4", "right": 20.0, "tested": 40.0, "seeds": 1},
        {"name": "both", "label": "", "right": 30.0, "tested": 30.0, "seeds": 1},
    ]
    about = {"preprocess": "paper", "split": "group", "train_spectra": 1234.0, "train_groups": 7.0, "groups": groups}
    (directory / "evidence" / "passports.json").write_text(json.dumps([{"model": "svm-rbf", **about}]))
    build_report(directory)
    assert sorted(path.name for path in (directory / "passports").iterdir()) == ["mlls.html", "svm-rbf.html"]
    text = (directory / "passports" / "svm-rbf.html").read_text()
    rows = json.loads((directory / "results.json").read_text())["models"]
    row = next(row for row in rows if (row["model"], row["split"]) == ("svm-rbf", "group"))
    assert f"Right for {row['accuracy']['mean']:.3f} of single spectra of acquisitions that it has not seen" in text
    assert "1,234 spectra of FeO, Fe3O4 at O_K" in text
    assert "from 7 acquisitions" in text
    assert text.index(">both<") < text.index(">one<") < text.index(">two<")
    assert "0.900" in text
    assert "data:image" in text
    assert "not-drawn" not in text
    assert (directory / "figures" / "passport-svm-rbf.png").exists()
    assert "passports/svm-rbf.html" in (directory / "report.html").read_text()


def test_what_is_no_better_than_chance_stands_nothing(results_factory, tmp_path):
    flat = np.full(SHIFTS.size, 0.5)
    found = find_range(SHIFTS, flat, clean=0.502, mildest=0.0, chance=0.5)
    assert say_range("shift_ev", found)[0] is False
    good = find_range(SHIFTS, np.full(SHIFTS.size, 0.7), clean=0.7, mildest=0.0, chance=0.5)
    assert say_range("shift_ev", good) == (True, "to \N{PLUS-MINUS SIGN}3 eV on the axis (the most tried)")
    directory = results_factory(tmp_path / "out", models=("svm-rbf",), presets=("paper",))
    path = directory / "results.json"
    results = json.loads(path.read_text())
    for row in results["models"]:
        row["accuracy"] = {"mean": 0.5, "low": 0.49, "high": 0.51}
    path.write_text(json.dumps(results))
    build_report(directory)
    assert AT_CHANCE in (directory / "passports" / "svm-rbf.html").read_text()


@pytest.mark.parametrize(
    ("name", "amplitudes", "accuracy", "expected"),
    [
        ("noise_sigma", [0.05, 0.1, 0.15], [0.5, 0.5, 0.5], (False, "Gaussian noise of 0.05")),
        ("noise_sigma", [0.05, 0.1, 0.15], [0.9, 0.5, 0.5], (False, "Gaussian noise of 0.1")),
        ("noise_sigma", [0.05, 0.1, 0.15], [0.9, 0.9, 0.5], (True, "to Gaussian noise of 0.1 of the spectrum's range")),
        ("shift_ev", [-4.0, -1.0, 2.0], [0.5, 0.5, 0.5], (False, "an axis off by 1 eV")),
        ("shift_ev", [-4.0, -1.0, 2.0], [0.5, 0.9, 0.9],
         (True, "with \N{MINUS SIGN}1 to +2 eV on the axis")),
        ("poisson_peak_counts", [10.0, 100.0, 1000.0], [0.5, 0.5, 0.5], (False, "1000 counts at the peak")),
        ("poisson_peak_counts", [10.0, 100.0, 1000.0], [0.5, 0.5, 0.9], (False, "100 counts at the peak")),
        ("dose", [1.0, 10.0], [0.9, 0.9], (True, "to 1 electrons per channel of 0.1 eV (the least tried)")),
    ],
)  # fmt: skip
def test_ends_of_what_was_tried_are_said_rightly(name, amplitudes, accuracy, expected):
    found = find_range(np.array(amplitudes), np.array(accuracy), clean=0.9, mildest=STANDS[name].mildest)
    assert say_range(name, found) == expected
