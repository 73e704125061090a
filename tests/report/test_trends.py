"""What the paper found: told from the tables of a study, with the reason where it does not come out."""

import csv

import pytest

from eelsflow.report.tables import build_paper_tables, write_tables
from eelsflow.report.trends import find_trends

ACCURACY = {"svm-linear": 0.94, "svm-rbf": 0.97, "svm-sigmoid": 0.82, "svm-sgd": 0.85, "cnn-1": 0.9, "cnn-2": 0.9}
TRANSLATION = {"svm-linear": 0.55, "svm-rbf": 0.61, "svm-sigmoid": 0.52, "svm-sgd": 0.58, "cnn-1": 0.77, "cnn-2": 0.85}
NOISE = {"svm-linear": 0.52, "svm-rbf": 0.60, "svm-sigmoid": 0.57, "svm-sgd": 0.76, "cnn-1": 0.49, "cnn-2": 0.61}
PARAMS = {"svm-linear": {"C": 1e5}, "svm-rbf": {"C": 2714.0, "gamma": 10.0}, "svm-sigmoid": {"C": 1e5, "gamma": 0.1}}


def score(mean):
    return {"mean": mean, "low": mean - 0.005, "high": mean + 0.005}


def results(*, accuracy=ACCURACY, translation=TRANSLATION, noise=NOISE, params=PARAMS, preprocess="paper"):
    rows = [
        {
            "model": name, "base": name, "preprocess": preprocess, "split": "pixel", "seeds": 10, "searches": 1,
            "best_params": params.get(name, {}), "best_params_by_seed": None, "train_seconds": 0.5,
            "accuracy": score(accuracy[name]), "translation": score(translation[name]), "noise": score(noise[name]),
            "further": {"noise_0.10": score(0.7)},
        }
        for name in accuracy
    ]  # fmt: skip
    maps = [{"model": "svm-rbf", "preprocess": "paper", "mixed": score(0.8)}]
    return {"models": rows, "edge": {"name": "O_K"}, "classes": ["FeO", "Fe3O4"], "maps": maps}


def trends(**changes):
    found = results(**changes)
    return find_trends(build_paper_tables(found), found["classes"])


def test_the_papers_own_figures_show_all_of_its_trends():
    found = trends()
    assert len(found) == 4
    assert all(one["holds"] and not one["why"] for one in found)
    assert "svm-rbf 0.970, svm-linear 0.940, svm-sigmoid 0.820" in found[0]["found"]


@pytest.mark.parametrize(
    ("changes", "number", "why"),
    [
        (
            {
                "accuracy": {**ACCURACY, "svm-sigmoid": 0.941},
                "params": {**PARAMS, "svm-sigmoid": {"C": 1e5, "gamma": 1e-3}},
            },
            0,
            "the search chose gamma = 0.001 for svm-sigmoid",
        ),
        ({"accuracy": {**ACCURACY, "svm-rbf": ACCURACY["svm-linear"]}}, 0, "a plane tells the classes"),
        ({"accuracy": {**ACCURACY, "svm-rbf": 0.93}}, 0, "within the intervals or the other way round"),
        ({"translation": {**TRANSLATION, "svm-linear": 0.7}}, 1, "svm-linear keep more"),
        ({"translation": {**TRANSLATION, "cnn-1": 0.6}}, 2, "pooling did not"),
        ({"noise": {**NOISE, "svm-sgd": 0.5}}, 3, "not fitted to directions that noise fills"),
    ],
)
def test_a_trend_that_does_not_come_out_has_a_reason(changes, number, why):
    found = trends(**changes)
    assert [one["holds"] for one in found] == [place != number for place in range(4)]
    assert why in found[number]["why"]


def test_without_the_papers_protocol_there_is_nothing_to_compare():
    assert trends(preprocess="recommended") == []
    few = results()
    few["models"] = few["models"][:1]
    assert [one["trend"][:6] for one in find_trends(build_paper_tables(few), few["classes"])] == ["Shifts"]


def test_tables_are_written_with_the_papers_values_beside_ours(tmp_path):
    write_tables(tmp_path, build_paper_tables(results()))
    with (tmp_path / "table1.csv").open() as stream:
        first = {row["model"]: row for row in csv.DictReader(stream)}
    with (tmp_path / "table2.csv").open() as stream:
        second = {row["model"]: row for row in csv.DictReader(stream)}
    assert list(first) == ["svm-linear", "svm-rbf", "svm-sigmoid", "svm-sgd"]
    assert list(second) == ["cnn-1", "cnn-2"]
    rbf = first["svm-rbf"]
    assert (rbf["accuracy"], rbf["accuracy_low"], rbf["accuracy_high"]) == ("0.9700", "0.9650", "0.9750")
    assert (rbf["paper_accuracy"], rbf["paper_best_params"]) == (".97", "C=2714, gamma=10")
    assert (rbf["two_phases"], first["svm-sgd"]["two_phases"]) == ("0.8000", "")
    assert (rbf["noise_0.10"], rbf["search"], rbf["trained_on"]) == ("0.7000", "first of 10 seeds", "Clean")
    assert second["cnn-2"]["paper_translation"] == ".85"
