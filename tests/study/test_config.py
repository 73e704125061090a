from pathlib import Path

import pytest
import yaml

from eelsflow.errors import EelsflowError, StudyFileError, UnreadableFileError
from eelsflow.models.spec import STANDARD
from eelsflow.preprocess.presets import Align
from eelsflow.study.config import EXAMPLE, AmplitudeRange, load_study

STUDIES = Path(__file__).parents[2] / "deployments" / "studies"

MINIMAL = {
    "name": "iron",
    "edge": "O_K",
    "classes": ["FeO", "Fe3O4"],
    "data": {"manifest": "manifest.csv"},
}


@pytest.fixture
def study_file(tmp_path):
    def write(content):
        path = tmp_path / "study.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def test_example_is_a_study_file_and_shows_every_key(study_file):
    study = load_study(study_file(EXAMPLE))
    assert study.edge.reference_energy == 530
    assert {key for key in study.model_dump() if key not in EXAMPLE} == set()


def test_defaults_are_recommended_preparation_and_all_seven_models(study_file):
    study = load_study(study_file(MINIMAL))
    assert [preset.name for preset in study.preprocess] == ["recommended"]
    assert [model.name for model in study.models] == list(STANDARD)
    assert (study.split.test_fraction, study.split.folds, study.split.seeds) == (0.35, 10, 10)


def test_table_is_taken_as_it_is_by_default(study_file):
    study = load_study(study_file({**MINIMAL, "data": {"spectra": "table.npz"}}))
    assert [preset.name for preset in study.preprocess] == ["none"]


def test_paths_are_relative_to_the_file_and_variables_are_expanded(study_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", "elsewhere")
    study = load_study(study_file({**MINIMAL, "data": {"manifest": "${WHERE}/manifest.csv"}}))
    assert study.data.manifest == tmp_path / "elsewhere" / "manifest.csv"


def test_resolved_study_is_a_study_file_that_means_the_same(study_file):
    study = load_study(study_file(EXAMPLE))
    again = load_study(study_file(yaml.safe_dump(study.model_dump(mode="json"))))
    assert again == study


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["background", "rebin"], "'mine' does not align acquisitions"),
        (
            [{"step": "align", "dispersion_error": 0.004}, "background", "rebin"],
            r"align of 'mine' says dispersion_error 0\.004 and the study 0\.0005",
        ),
    ],
)
def test_a_dispersion_that_a_preset_knows_otherwise_is_refused(study_file, steps, message):
    rest = {key: value for key, value in MINIMAL.items() if key != "edge"}
    preset = {"name": "mine", "steps": steps}
    with pytest.raises(EelsflowError, match=message):
        load_study(study_file({**rest, "edges": ["O_K", "Fe_L3"], "preprocess": preset, "dispersion_error": 5e-4}))


def test_a_dispersion_that_is_known_is_known_to_every_preset(study_file):
    both = {"edges": ["O_K", "Fe_L3"], "preprocess": ["recommended", "paper"]}
    rest = {key: value for key, value in MINIMAL.items() if key != "edge"}
    study = load_study(study_file({**rest, **both, "dispersion_error": 5e-4}))
    assert [preset.find(Align).dispersion_error for preset in study.preprocess] == [5e-4, 5e-4]
    assert load_study(study_file(yaml.safe_dump(study.model_dump(mode="json")))) == study
    usual = load_study(study_file({**rest, **both}))
    assert [preset.find(Align).dispersion_error for preset in usual.preprocess] == [0.02, 0.02]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 3}, "folds: unknown key"),
        ({"split": {"fold": 3}}, "split.fold: unknown key"),
        ({"edge": "U_K"}, "no shipped edge is called 'U_K'; shipped are O_K"),
        ({"models": ["svm-quantum"]}, "svm-quantum.*bases are mlls, svm-linear"),
        ({"models": ["svm-rbf", "svm-rbf"]}, "more than once"),
        ({"preprocess": "magic"}, "no preset is called 'magic'"),
        ({"preprocess": "none"}, "raw acquisitions: use 'recommended'"),
        ({"data": {"spectra": "table.npz"}, "preprocess": "paper"}, "table of ready spectra: use 'none'"),
        ({"data": {}}, "data: name one of a manifest .*, a table"),
        ({"data": {"manifest": "${NOT_SET_ANYWHERE}/m.csv"}}, "NOT_SET_ANYWHERE}, which is not set"),
        ({"classes": ["FeO"]}, "at least two"),
        ({"split": {"test_fraction": 1.5}}, r"split\.test_fraction: .*less than 1, found 1\.5"),
        ({"robustness": {"shift_ev": [1, 2]}}, r"write \[start, stop, step\]"),
        ({"robustness": {"shift_ev": [-10, 10, 1e-9]}}, r"robustness\.shift_ev: .* 20000000000 steps.*at most 1000"),
        ({"robustness": {"noise_sigma": [-0.1, 0.3, 0.1]}}, r"robustness\.noise_sigma: .* begins at -0\.1"),
        ({"classes": ["mixed", "FeO"]}, "classes.*'mixed' is what"),
        ({"classes": ["", "FeO"]}, "classes.*'' is what"),
        ({"cluster": {"slurmx": {}}}, r"cluster.*'slurmx'.*is no cluster; write 'local'.*{slurm: {...}}"),
        ({"cluster": {"slurm": {}, "kubernetes": {}}}, "cluster.*is no cluster"),
        ({"cluster": "lokal"}, "cluster.*'lokal' is no cluster"),
        ({"preprocess": {"name": "a/b", "steps": ["background", "rebin"]}}, "preprocess.*'a/b'.*names of files"),
        ({"dispersion_error": 1e-3}, "dispersion_error: edges together .* the study has O_K alone"),
        ({"models": [{"base": "svm-rbf", "params": {"C": -1}}]}, r"models\.0: model 'svm-rbf': C is -1; it must be"),
    ],
)
def test_study_file_that_cannot_be_used_is_refused_by_key(study_file, change, message):
    with pytest.raises(EelsflowError, match=message):
        load_study(study_file({**MINIMAL, **change}))


EDGE = {"name": "X", "reference_energy": 530.0, "elnes_window": [525.0, 555.0]}
ONLY_NORMALIZED = {"name": "scaled", "steps": ["normalize"]}


@pytest.mark.parametrize("window", [None, [495.0, 530.0], [522.0, 495.0]])
def test_window_before_the_edge_counts_only_where_acquisitions_are_prepared(study_file, window):
    edge = EDGE if window is None else {**EDGE, "pre_edge_window": window}
    table = {**MINIMAL, "edge": edge, "data": {"spectra": "table.npz"}}
    for presets in ("none", ["none", ONLY_NORMALIZED]):
        study = load_study(study_file({**table, "preprocess": presets}))
        assert load_study(study_file(yaml.safe_dump(study.model_dump(mode="json")))) == study
    for data, presets in (
        ({"spectra": "table.npz"}, ["none", "recommended"]),
        ({"manifest": "manifest.csv"}, ["recommended"]),
    ):
        message = "preprocess: 'recommended' prepares raw acquisitions, and .*pre_edge_window"
        with pytest.raises(StudyFileError, match=message):
            load_study(study_file({**MINIMAL, "edge": edge, "data": data, "preprocess": presets}))


@pytest.mark.parametrize("content", ["- a\n- b\n", "name: [", "just text"])
def test_file_that_is_not_a_study_is_refused(study_file, content):
    with pytest.raises(StudyFileError, match=r"study\.yaml"):
        load_study(study_file(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: a\nedge: O_K\nname: b\n", r"line 3, column 1: the key 'name' was already given in line 1"),
        ("split:\n  folds: 3\n  seeds: 2\n  folds: 4\n", r"line 4, column 3: the key 'folds' .* in line 2"),
        ("split: {folds: 3, folds: 4}\n", r"line 1, column 19: the key 'folds' .* in line 1"),
        ("name: [a\nedge: O_K\n", r"line 2, column 5: .*expected ',' or '\]'"),
        ("name: a\n\tedge: O_K\n", r"line 2, column 1: .*'\\t' that cannot start any token"),
    ],
)
def test_what_is_wrong_with_the_yaml_is_said_in_one_line_with_its_place(study_file, content, message):
    with pytest.raises(StudyFileError, match=message) as refused:
        load_study(study_file(content))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cluster", ["local", "tcp://host:8786", {"slurm": {"cores": 4}}, {"kubernetes": {}}])
def test_clusters_that_exist_are_accepted(study_file, cluster):
    assert load_study(study_file({**MINIMAL, "cluster": cluster})).cluster == cluster


def test_missing_study_file_is_named(tmp_path):
    with pytest.raises(UnreadableFileError, match=r"nowhere\.yaml cannot be read"):
        load_study(tmp_path / "nowhere.yaml")


def test_range_holds_both_ends():
    assert AmplitudeRange(start=-1, stop=1, step=0.5).values == (-1, -0.5, 0, 0.5, 1)
    assert AmplitudeRange(start=0, stop=0.3, step=0.05).values[-1] == 0.3


def test_quick_study_is_smaller_but_leaves_out_no_model(study_file):
    study = load_study(study_file(EXAMPLE))
    quick = study.quick()
    assert (quick.split.seeds, quick.split.folds, quick.grids, quick.training.epochs) == (2, 3, "small", 30)
    assert quick.models == study.models


def test_quick_study_has_few_copies(study_file):
    copies = {"name": "many", "base": "svm-sgd", "augment": {"shift_ev": 5, "copies": 12}}
    (model,) = load_study(study_file({**MINIMAL, "models": [copies]})).quick().models
    assert model.augment.copies == 2
    assert model.augment.shift_ev == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"outside": [{"name": "a", "spectra": "a.npz", "label": "FeO"}], "data": {"manifest": "m.csv"}},
            "outside: spectra of other laboratories are judged by models of a table",
        ),
        ({"data": {"manifest": "m.csv", "move_ev": 3}}, "move_ev moves the axis of a table"),
        (
            {"outside": [{"name": "a", "spectra": "a.npz", "label": "FeO"}] * 2, "data": {"spectra": "t.npz"}},
            r"outside names \['a'\] more than once",
        ),
        (
            {"outside": [{"name": "a", "spectra": "a.npz"}], "data": {"spectra": "t.npz"}},
            "outside.0: give either labels",
        ),
        (
            {"outside": [{"name": "a", "spectra": "a.npz", "label": "FeO", "further_ev": [1, 0, 1]}],
             "data": {"spectra": "t.npz"}},
            "outside.0.further_ev: range from 1",
        ),
        (
            {"outside": [{"name": "a", "spectra": "a.npz", "labels": {"x": "FeOOH"}}], "data": {"spectra": "t.npz"}},
            r"outside, a: \['FeOOH'\] is no class of the study",
        ),
        (
            {"outside": [{"name": "a", "spectra": "a.npz", "label": "FeO", "place": {"spectra": "b.npz"}}],
             "data": {"spectra": "t.npz"}},
            "outside.0.place.Like.label: Field required",
        ),
        ({"outside": 5, "data": {"spectra": "t.npz"}}, "outside: "),
        ({"choose_by": "luck"}, "choose_by: .*'luck'"),
    ],
)  # fmt: skip
def test_tests_of_other_laboratories_that_cannot_be_used_are_refused(study_file, change, message):
    with pytest.raises(StudyFileError, match=message):
        load_study(study_file({**MINIMAL, **change}))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_study_files_are_valid_and_mean_the_same_as_resolved(path, monkeypatch, study_file):
    monkeypatch.setenv("EELSFLOW_DATA", "somewhere")
    study = load_study(path)
    assert load_study(study_file(yaml.safe_dump(study.model_dump(mode="json")))) == study
    assert len(study.models) == {"oxides": 2, "paper": 9, "manganese": 28, "rigorous": 21}.get(path.stem, 8)
