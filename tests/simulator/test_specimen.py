"""Geometry: where the oxide is, and how much of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eelsflow.simulator.specimen import PHASES, Cube, SpecimenParameters, build_specimen, projected_thickness
from tests.strategies import angles, examples, factors, seeds


def turn(z: float, x: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad([z, x])), np.sin(np.deg2rad([z, x]))
    about_z = np.array([[c[0], -s[0], 0], [s[0], c[0], 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c[1], -s[1]], [0, s[1], c[1]]])
    return about_x @ about_z


def cube(edge_length: float, rotation: np.ndarray) -> Cube:
    return Cube((50.0, 50.0), edge_length, 0.6, rotation, "Fe3O4", "FeO")


def test_flat_cube_has_its_edge_as_thickness_inside_and_nothing_outside() -> None:
    thickness = projected_thickness(cube(40.0, np.eye(3)), shape=(100, 100), pixel_size=1.0)
    np.testing.assert_allclose(thickness[30:70, 30:70], 40.0)
    assert thickness.sum() == pytest.approx(40.0**3)


def test_cube_on_its_edge_is_as_thick_as_its_diagonal() -> None:
    thickness = projected_thickness(cube(30.0, turn(0.0, 45.0)), shape=(200, 200), pixel_size=0.5)
    assert thickness.max() == pytest.approx(30.0 * np.sqrt(2.0), rel=0.02)  # averaged over a pixel at the ridge


@examples(25)
@given(edge=factors(30.0, 50.0), z=angles(0.0, 90.0), x=angles(-40.0, 40.0))
def test_volume_is_kept_whatever_the_orientation(edge: float, z: float, x: float) -> None:
    thickness = projected_thickness(cube(edge, turn(z, x)), shape=(50, 50), pixel_size=2.0)
    # 3.5 %: beam positions are 0.5 nm apart, and a face along the rows may miss half a step of 30 nm at either side
    assert 4.0 * thickness.sum() == pytest.approx(edge**3, rel=0.035)


def test_core_volume_is_its_share_of_the_cube() -> None:
    one = SpecimenParameters(kind="core_shell", n_cubes=(1, 1), core_fraction=(0.6, 0.6))
    specimen = build_specimen(one, shape=(64, 64), pixel_size=2.0, rng=np.random.default_rng(1))
    core, shell = (specimen.thickness[PHASES.index(phase)].sum() for phase in ("FeO", "Fe3O4"))
    assert core / (core + shell) == pytest.approx(0.6**3, rel=0.01)
    assert specimen.cubes[0].core_phase == "FeO"


@examples(25)
@given(seed=seeds(), kind=st.sampled_from(["FeO", "Fe3O4", "core_shell"]), side=st.integers(20, 60))
def test_specimen_has_oxide_vacuum_and_fractions_that_add_up(seed: int, kind: str, side: int) -> None:
    parameters = SpecimenParameters.model_validate({"kind": kind})
    specimen = build_specimen(parameters, shape=(side, side), pixel_size=2.1, rng=np.random.default_rng(seed))
    total = specimen.oxide_thickness
    assert specimen.vacuum.any()
    assert not specimen.vacuum.all()
    assert (total[~specimen.vacuum] >= 0.25 * total.max()).all()
    assert (specimen.thickness >= 0).all()
    np.testing.assert_allclose(specimen.phase_fraction.sum(axis=0), total > 0, atol=1e-12)
    np.testing.assert_allclose(specimen.variants.sum(axis=0), 1.0)
    assert specimen.film.mean() == pytest.approx(1.0)
    for phase in PHASES:
        present = specimen.thickness[PHASES.index(phase)].any()
        assert present == (kind in (phase, "core_shell"))


def test_cubes_do_not_overlap() -> None:
    many = SpecimenParameters(n_cubes=(6, 6), kind="FeO", edge_length=(30.0, 35.0), tilt=0.0)
    for seed in range(5):
        specimen = build_specimen(many, shape=(96, 96), pixel_size=2.0, rng=np.random.default_rng(seed))
        assert len(specimen.cubes) >= 3
        assert specimen.oxide_thickness.max() <= 35.0 + 1e-9


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        SpecimenParameters(edge_length=(50.0, 30.0))
