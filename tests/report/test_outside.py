"""Spectra of other laboratories, and what goes beyond the paper, in the report."""

import csv
import json

import pytest

from eelsflow.report.beyond import go_beyond
from eelsflow.report.page import build_report
from eelsflow.report.results import read_dataset, read_results


def judged(model, right, *, curve=()):
    return {
        "model": model, "preprocess": "paper", "test": "literature", "right": right, "of": 10,
        "accuracy": {"mean": right / 10, "low": 0.1, "high": 0.9}, "by_class": {"FeO": [right, 6], "Fe3O4": [0, 4]},
        "apart": {"mixed": {"FeO": 2}}, "moved_ev": [-1.5, -1.5], "held_ev": 0.4, "curve": list(curve),
    }  # fmt: skip


def test_other_laboratories_have_a_table_a_figure_and_a_file(results_factory, tmp_path):
    curve = [{"shift_ev": shift, "right": 5, "held_ev": 0.4} for shift in (-1.0, 0.0, 1.0)]
    rows = [judged("svm-rbf", 5, curve=curve), judged("mlls", 6, curve=curve)]
    directory = results_factory(tmp_path / "out", models=("svm-rbf", "mlls"), presets=("paper",), outside=rows)
    text = build_report(directory).read_text()
    part = text[text.index('<section id="outside">') :]
    part = part[: part.index("</section>")]
    assert part.index("mlls") < part.index("6 of 10") < part.index("5 of 10")
    assert "All moved by \N{MINUS SIGN}1.50 eV" in part
    assert "(by up to 0.4 eV) its last value is held" in part
    results = json.loads((directory / "results.json").read_text())
    stands = max(results["models"], key=lambda row: row["translation"]["mean"])["model"]
    assert f"<b>{stands}</b> stands shifts best" in part
    assert (directory / "figures" / "outside-1.svg").exists()
    with (directory / "outside.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["model"], line["right"], line["by_class"]) for line in lines] == [
        ("svm-rbf", "5", "FeO 5 of 6; Fe3O4 0 of 4"),
        ("mlls", "6", "FeO 6 of 6; Fe3O4 0 of 4"),
    ]


def test_a_report_without_them_says_nothing(results_factory, tmp_path):
    directory = results_factory(tmp_path / "out", models=("svm-rbf",), presets=("paper",))
    text = build_report(directory).read_text()
    assert 'id="outside"' not in text
    assert 'id="beyond"' not in text
    assert not (directory / "outside.csv").exists()


def test_beyond_the_paper_compares_three_models_of_each_split(results_factory, tmp_path):
    directory = results_factory(tmp_path / "out", models=("svm-rbf", "mlls", "aligned"), presets=("paper",))
    path = directory / "results.json"
    results = json.loads(path.read_text())
    for row in results["models"]:
        row["base"] = {"aligned": "mlls"}.get(row["model"], row["model"])
        row["align"] = "marginal" if row["model"] == "aligned" else None
    path.write_text(json.dumps(results))
    found = go_beyond(read_results(directory), read_dataset(directory / "robustness.zarr"))
    assert [row["role"] for row in found] == ["stands shifts best", "best plain", "the paper's best"] * 2
    by_role = {row["role"]: row for row in found if row["split"] == "group"}
    assert by_role["the paper's best"]["model"] == "svm-rbf"
    assert by_role["best plain"]["loss"] == 0
    assert by_role["best plain"]["accuracy"]["mean"] >= by_role["the paper's best"]["accuracy"]["mean"]
    curves = read_dataset(directory / "robustness.zarr")
    for row in found:
        curve = curves["accuracy"].sel(
            perturbation="shift_ev", model=row["model"], preprocess="paper", split=row["split"]
        )
        amplitude = curves["amplitude_value"].sel(perturbation="shift_ev")
        worst = float(curve.mean("seed").where(abs(amplitude) <= 8).min())
        assert row["shifted"] == pytest.approx(worst)
        assert row["shifted_share"] == pytest.approx(worst / row["accuracy"]["mean"])
    assert 'id="beyond"' in build_report(directory).read_text()
