"""Fields of particles: every scene holds what its name says, at any size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import find_objects, label
from sklearn.svm import SVC

from eelsflow.errors import InputError
from eelsflow.simulator.scenes import OTHER, SCENES, TILE, FieldParameters, _fill, build_field
from eelsflow.simulator.specimen import Specimen

SEEDS = range(6)


def field(kind: str, seed: int, shape: tuple[int, int] = (40, 48)) -> Specimen:
    parameters = FieldParameters.model_validate({"kind": kind})
    return build_field(parameters, shape=shape, rng=np.random.default_rng(seed))


def share_of_feo(specimen: Specimen) -> np.ndarray:
    """Share of FeO where there is specimen, NaN elsewhere."""
    return np.where(specimen.oxide_thickness > 0, specimen.phase_fraction[0], np.nan)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(SCENES), height=st.integers(12, 70), width=st.integers(12, 70))
def test_a_field_of_any_size_is_filled_but_for_some_film(seed: int, kind: str, height: int, width: int) -> None:
    specimen = field(kind, seed, (height, width))
    assert 0.35 <= 1.0 - specimen.vacuum.mean() <= 0.85
    assert 18.5 <= specimen.oxide_thickness.max() <= 123.0
    assert (specimen.thickness >= 0).all()
    np.testing.assert_allclose(specimen.phase_fraction.sum(axis=0), specimen.oxide_thickness > 0, atol=1e-12)


def test_the_number_of_particles_grows_with_the_area() -> None:
    small, large = (np.mean([field("FeO", seed, (side, side)).n_particles for seed in range(12)]) for side in (48, 96))
    assert large / small == pytest.approx(4.0, rel=0.35)  # twelve fields of some 10 to 50 particles


def test_thickness_varies_inside_the_particles() -> None:
    for seed in SEEDS:
        thickness = field("Fe3O4", seed).oxide_thickness
        inside = thickness[thickness > 0.25 * thickness.max()]
        assert inside.std() / inside.mean() > 0.1


@pytest.mark.parametrize(("kind", "share"), [("FeO", 1.0), ("Fe3O4", 0.0)])
def test_pure_fields_hold_one_phase(kind: str, share: float) -> None:
    for seed in SEEDS:
        found = share_of_feo(field(kind, seed))
        assert (found[np.isfinite(found)] == share).all()


def test_cores_hold_their_share_of_feo_and_shells_none() -> None:
    sharp = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        particles = _fill(FieldParameters(), shape=(40, 48), rng=rng)
        share = share_of_feo(field("core_shell", seed))
        middle = particles.oxide & (particles.radial < 0.15)
        assert (share[middle] >= 0.5).all()
        assert (share[middle] <= 0.9).all()
        # a core reaches out to .8 + .35 at most, where half the field's particles have no pixel
        assert np.nanmin(share) == 0.0
        between = np.count_nonzero((share > 0.02) & (share < 0.48)) / np.count_nonzero(np.isfinite(share))
        sharp += between < 0.02
    assert 2 <= sharp <= 10  # some fields have sharp cores and some have not


def test_an_interface_is_one_straight_and_sharp_boundary() -> None:
    for seed in SEEDS:
        share = share_of_feo(field("interface", seed))
        pure = (share == 0) | (share == 1)
        assert 0.2 < np.nanmean(share) < 0.8
        mixed = np.count_nonzero(np.isfinite(share) & ~pure)
        assert 0 < mixed < 2 * max(share.shape)
        places = np.argwhere(pure)
        assert SVC(kernel="linear", C=1e6).fit(places, share[pure]).score(places, share[pure]) == 1.0


def test_a_gradient_rises_evenly_over_most_of_the_field() -> None:
    for seed in SEEDS:
        share = share_of_feo(field("gradient", seed))
        between = (share > 0) & (share < 1)
        assert between.sum() > 0.5 * np.isfinite(share).sum()
        assert np.nanmin(share) < 0.1
        assert np.nanmax(share) > 0.9
        design = np.column_stack([np.argwhere(between), np.ones(between.sum())])
        slope, *_ = np.linalg.lstsq(design, share[between], rcond=None)
        np.testing.assert_allclose(design @ slope, share[between], atol=1e-9)


def test_inclusions_are_two_to_five_pixels_across_and_either_phase_is_host() -> None:
    hosts, sizes = set(), set()
    for seed in range(12):
        specimen = field("inclusions", seed)
        share = share_of_feo(specimen)
        assert set(np.unique(share[np.isfinite(share)])) == {0.0, 1.0}
        host = float(np.nanmean(share) > 0.5)
        hosts.add(host)
        guest = np.isfinite(share) & (share != host)
        assert guest.sum() < 0.3 * np.isfinite(share).sum()
        assert not (guest & specimen.vacuum).any()
        parts, n_parts = label(guest, np.ones((3, 3)))
        assert n_parts >= 2
        for rows, columns in find_objects(parts):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            assert height == width
            sizes.add(height)
    assert hosts == {0.0, 1.0}
    assert sizes == {2, 3, 4, 5}


def test_neighboring_particles_are_of_different_phases() -> None:
    for seed in SEEDS:
        particles = _fill(FieldParameters(), shape=(40, 48), rng=np.random.default_rng(seed))
        share = share_of_feo(field("two_particles", seed))
        values = [np.unique(share[particles.owner == n]) for n in range(len(particles.centers))]
        assert all(value.size <= 1 for value in values)  # none: hidden behind a thicker one
        assert {float(value[0]) for value in values if value.size} == {0.0, 1.0}
        distance = np.hypot(*(particles.centers[1] - particles.centers[0]))
        assert distance > 0
        assert values[0].size == 0 or values[1].size == 0 or values[0][0] != values[1][0]


def test_tiles_of_a_mosaic_are_pure_and_of_both_phases() -> None:
    for seed in SEEDS:
        share = share_of_feo(field("mosaic", seed))
        phases = set()
        for y in range(0, share.shape[0], TILE):
            for x in range(0, share.shape[1], TILE):
                tile = share[y : y + TILE, x : x + TILE]
                found = set(np.unique(tile[np.isfinite(tile)]))
                assert len(found) <= 1
                phases |= found
        assert phases == {0.0, 1.0}
        assert 0.2 < np.nanmean(share) < 0.8


def test_a_field_of_another_oxide_has_a_third_phase_alone() -> None:
    specimen = field("other", 0)
    assert specimen.phases == ("FeO", "Fe3O4", OTHER)
    oxide = specimen.oxide_thickness > 0
    np.testing.assert_array_equal(specimen.phase_fraction, np.stack([0 * oxide, 0 * oxide, oxide]))


def test_a_specimen_made_of_one_phase_is_as_thick_as_before() -> None:
    specimen = field("gradient", 1)
    alone = specimen.made_of("Fe3O4")
    np.testing.assert_allclose(alone.oxide_thickness, specimen.oxide_thickness)
    assert not alone.thickness[0].any()
    with pytest.raises(InputError, match="the specimen has no phase 'other'; it knows FeO, Fe3O4"):
        specimen.made_of("other")


def test_an_unknown_scene_is_refused() -> None:
    with pytest.raises(ValidationError, match="two_particles"):
        FieldParameters.model_validate({"kind": "spheres"})
