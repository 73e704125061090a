import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eelsflow.errors import DataSetError
from eelsflow.models.spec import BASES, GRIDS, PARAMETERS, combinations, resolve_model, with_defaults
from tests.strategies import fractions


@pytest.mark.parametrize("base", BASES)
def test_every_base_resolves_by_its_name_and_has_defaults(base):
    spec = resolve_model(base)
    assert (spec.name, spec.base) == (base, base)
    assert spec.is_network == base.startswith(("fcnn", "cnn", "fcn"))
    assert bool(with_defaults(base, {})) == bool(PARAMETERS[base])
    assert set(with_defaults(base, {})) <= set(PARAMETERS[base])


def test_paper_grid_holds_the_optima_of_the_paper():
    paper = GRIDS["paper"]
    assert {name: len(values) for name, values in paper["svm-rbf"].items()} == {"C": 8, "gamma": 11}
    assert paper["svm-rbf"]["C"][5] == pytest.approx(10**2.714, rel=1e-3)
    assert paper["svm-rbf"]["gamma"][7] == pytest.approx(10.0)
    assert paper["svm-linear"]["C"][-1] == pytest.approx(1e5)
    assert paper["svm-sigmoid"]["C"][-1] == pytest.approx(1e5)
    assert 0.1 in np.round(paper["svm-sigmoid"]["gamma"], 12)
    assert 1.0 in paper["svm-sigmoid"]["coef0"]


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("base", BASES)
def test_named_grids_use_the_parameters_of_the_base_in_ascending_order(base, grids):
    grid = resolve_model(base).resolve_grid(grids)
    assert list(grid) == [name for name in PARAMETERS[base] if name in grid]
    assert all(list(values) == sorted(set(values)) for values in grid.values())


def test_small_grid_is_large_enough_for_a_heat_map():
    assert [len(values) for values in GRIDS["small"]["svm-rbf"].values()] >= [4, 5]


def test_a_fixed_parameter_leaves_the_grid_and_a_grid_of_its_own_replaces_the_named_one():
    spec = resolve_model({"name": "mine", "base": "svm-rbf", "params": {"C": 100}, "grid": {"gamma": [1.0, 0.1, 1.0]}})
    assert spec.resolve_grid("paper") == {"gamma": (0.1, 1.0)}


def test_numbers_that_yaml_reads_as_text_are_numbers():
    """YAML 1.1 takes 1e-4 for a string."""
    spec = resolve_model({"base": "cnn-2", "grid": {"learning_rate": ["1e-4", "1e-3"]}})
    assert spec.resolve_grid("small") == {"learning_rate": (1e-4, 1e-3)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("svm-cubic", "'svm-cubic'.*bases are mlls, svm-linear"),
        ({"base": "svm-rbf", "colour": 1}, "colour: Extra inputs"),
        ({"base": "svm-linear", "params": {"gamma": 1}}, "svm-linear has no parameter 'gamma'; it has C"),
        ({"base": "svm-rbf", "params": {"C": 1}, "grid": {"C": [1]}}, "either fixed or searched"),
        ({"base": "svm-rbf", "params": {"C": 0}}, "C is 0; it must be positive"),
        ({"base": "svm-rbf", "grid": {"C": []}}, "the grid of C is empty"),
        ({"base": "cnn-1", "params": {"dropout": 1}}, "0 <= dropout < 1"),
        ({"base": "cnn-1", "params": {"epochs": 2.5}}, "whole number"),
        ({"base": "cnn-1", "params": {"learning_rate": float("nan")}}, "finite"),
        ({"base": "cnn-1", "augment": {}}, "plain duplicates"),
        ({"base": "cnn-1", "name": "../x"}, "name: String should match"),
    ],
)
def test_models_that_make_no_sense_are_refused(model, message):
    with pytest.raises(DataSetError, match=message):
        resolve_model(model)


def test_a_specification_is_frozen():
    with pytest.raises(ValidationError):
        resolve_model("cnn-1").name = "other"


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.lists(fractions(), min_size=1, max_size=4, unique=True).map(tuple)
    )
)
def test_combinations_cover_the_grid_once(grid):
    cells = combinations(grid)
    assert len(cells) == np.prod([len(values) for values in grid.values()], initial=1)
    assert len({tuple(cell.items()) for cell in cells}) == len(cells)
    assert all(cell[name] in values for cell in cells for name, values in grid.items())
