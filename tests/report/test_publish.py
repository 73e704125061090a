"""Results kept with the documents: the page says what results say, and holds nothing of one machine."""

import json

import pytest

from benchmarks.publish import publish
from eelsflow.report.page import build_report


@pytest.fixture
def published(results_factory, tmp_path):
    def write(**changes):
        directory = results_factory(tmp_path / "results", presets=("paper",), **changes)
        build_report(directory)
        publish(directory, tmp_path / "kept", study=directory / "study.yaml")
        return tmp_path / "kept"

    return write


def test_a_study_like_the_papers_has_its_tables_and_trends(published):
    kept = published()
    text = (kept / "README.md").read_text()
    assert "## Table I\n" in text
    assert "## Table II\n" in text
    assert "RBF above linear above sigmoid" in text
    assert "(paper .97)" in text
    assert (kept / "table1.csv").exists()
    results = json.loads((kept / "results.json").read_text())
    assert not {"links", "map_evidence", "acquisitions"} & set(results)
    for line in text.splitlines():
        if line.startswith("!["):
            assert (kept / line.partition("(")[2].rstrip(")")).exists()


def test_another_study_has_its_models_and_other_laboratories(published):
    judged = {
        "model": "mlls", "preprocess": "paper", "test": "literature", "right": 6, "of": 10, "curve": [],
        "accuracy": {"mean": 0.6, "low": 0.3, "high": 0.8}, "by_class": {"Mn2+": [6, 10]}, "held_ev": 0.0,
        "apart": {"mixed": {"Mn2+": 2}}, "moved_ev": [1.5, 1.5],
    }  # fmt: skip
    kept = published(models=("mlls", "forest"), classes=("Mn2+", "Mn3+"), outside=[judged])
    text = (kept / "README.md").read_text()
    assert "Table I" not in text
    results = json.loads((kept / "results.json").read_text())
    for row in results["models"]:
        if row["split"] == "group":
            assert f"| {row['model']} | {row['accuracy']['mean']:.3f}".replace("0.", ".") in text
    assert "| mlls | 6 of 10 | 6 of 10 | mixed: Mn2+ 2 |" in text
    assert "eV on the axis" in text or "an axis off by" in text
    assert (kept / "outside.csv").exists()


def test_results_of_another_study_are_not_published(results_factory, tmp_path):
    directory = results_factory(tmp_path / "results", models=("mlls",), presets=("paper",))
    other = directory / "other.yaml"
    other.write_text((directory / "study.yaml").read_text() + "grids: small\n")
    with pytest.raises(SystemExit, match="results of another study"):
        publish(directory, tmp_path / "kept", study=other)
    assert not (tmp_path / "kept").exists()
