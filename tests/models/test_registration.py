"""Spectra that lie elsewhere on the axis: found, summed over, and read there."""

import numpy as np
import pytest

from eelsflow.edges import Edge
from eelsflow.errors import UnreadableFileError
from eelsflow.models.disturbance import Disturbance, spectrum_span
from eelsflow.models.registration import Registration, _by_agreement, _Templates, fill
from eelsflow.preprocess.features import FeatureTransform, shift_spectra
from eelsflow.preprocess.presets import resolve_preset

EDGE = Edge(name="X", reference_energy=530.0, elnes_window=(525.0, 545.0))
ENERGY = 515.0 + 0.2 * np.arange(200)


def edges(n: int, seed: int, *, noise: float = 0.1, n_groups: int = 8):
    """Pre-peak, main peak and a step; a class is the height of the pre-peak, a group has a shape of its own."""
    random = np.random.default_rng(seed)
    group = np.arange(n) % n_groups
    code = group % 2
    height = 0.35 + 0.4 * code + random.normal(0, 0.04, n_groups)[group]
    place = 539.0 + random.normal(0, 0.3, n_groups)[group]

    def peak(position, width):
        return np.exp(-0.5 * ((ENERGY - np.asarray(position)[:, None]) / width) ** 2)

    spectra = height[:, None] * peak(np.full(n, 530.0), 1.3) + peak(place, 2.5) + 0.4 / (1 + np.exp(-(ENERGY - 537)))
    spectra = 200 * (spectra + noise * random.normal(size=spectra.shape))
    return spectra.astype(np.float32), np.where(code == 1, "B", "A"), group.astype(str)


@pytest.fixture(scope="module")
def transform():
    return FeatureTransform.fit(edges(400, 0)[0], ENERGY, edge=EDGE, preset=resolve_preset("none"))


def registration(transform, align, *, grouped=True):
    wide, label, group = edges(400, 0)
    return Registration.fit(
        wide, label, group if grouped else None, align=align, channels=transform.channels, dispersion=0.2
    )


@pytest.mark.parametrize("shift", [-5.0, 0.0, 3.2])
@pytest.mark.parametrize("align", ["spectrum", "acquisition", "marginal"])
def test_spectra_are_found_where_they_lie(transform, align, shift):
    wide, _, group = edges(160, 1)
    shifted = shift_spectra(wide, transform.axis, shift)
    place, weight = registration(transform, align).locate(shifted, group)
    np.testing.assert_allclose(weight.sum(axis=1), 1.0, rtol=1e-9)
    mean = 0.2 * (place * weight).sum(axis=1)
    assert abs(np.median(mean) - shift) < 0.25
    assert np.mean(np.abs(mean - shift) < 0.6) > (0.7 if align == "spectrum" else 0.9)
    if align == "acquisition":
        assert all(len(set(place[group == name, 0].tolist())) == 1 for name in set(group))


def test_spectra_that_disagree_are_found_one_by_one(transform):
    wide, _, group = edges(160, 1, noise=0.03)
    shift = np.random.default_rng(2).uniform(-4, 4, 160)
    shifted = shift_spectra(wide, transform.axis, shift)

    def error(align):
        place, weight = registration(transform, align).locate(shifted, group)
        return np.median(np.abs(0.2 * (place * weight).sum(axis=1) - shift))

    assert error("marginal") < 0.3
    assert error("acquisition") > 1.0


def test_without_groups_a_spectrum_is_alone(transform):
    wide, *_ = edges(60, 1)
    for align in ("spectrum", "acquisition", "marginal"):
        one = registration(transform, align).locate(wide, None)
        alone = [registration(transform, align).locate(row[None], None) for row in wide[:5]]
        for number, (place, weight) in enumerate(alone):
            np.testing.assert_array_equal(place[0], one[0][number])
            np.testing.assert_allclose(weight[0], one[1][number], atol=1e-9)


def test_misfit_is_that_of_templates_moved_one_by_one():
    spectra, label, _ = edges(6, 3)
    templates = _Templates.fit(spectra.astype(float), np.unique(label, return_inverse=True)[1])
    places = np.arange(-20, 21)
    found = templates.misfit(spectra.astype(float), places)
    channel = np.arange(200)
    for number, place in enumerate(places):
        for code, mean in enumerate(templates.mean):
            moved = mean[np.clip(channel - place, 0, 199)]
            left = 1.0 - np.corrcoef(spectra[4], moved)[0, 1] ** 2
            assert found[4, number, code] == pytest.approx(200 / templates.independent * np.log(left), rel=1e-6)


def test_the_share_of_those_anywhere_follows_from_agreement():
    near = np.zeros(40)
    near[20] = 1.0
    agreeing = np.full((30, 40), 1e-3)
    agreeing[:, 20] = 1.0
    assert _by_agreement(agreeing, near)[:, 20].min() > 0.999
    apart = np.full((30, 40), 1e-3)
    apart[np.arange(30), np.arange(30)] = 1.0
    weight = _by_agreement(apart, near)
    assert (weight.argmax(axis=1) == np.arange(30)).mean() > 0.9
    np.testing.assert_allclose(weight.sum(axis=1), 1.0)


def test_is_kept_and_a_damaged_file_is_refused(transform, tmp_path):
    wide, _, group = edges(40, 4)
    for grouped in (True, False):
        made = registration(transform, "marginal", grouped=grouped)
        assert (made.of_means is not None) == grouped
        made.save(tmp_path / "registration.npz")
        loaded = Registration.load(tmp_path / "registration.npz")
        for one, other in zip(made.locate(wide, group), loaded.locate(wide, group), strict=True):
            np.testing.assert_array_equal(one, other)
    (tmp_path / "registration.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnreadableFileError, match="holds no usable registration"):
        Registration.load(tmp_path / "registration.npz")


def test_places_are_as_many_on_either_side_and_a_third_of_the_window_at_most(transform):
    made = registration(transform, "spectrum")
    np.testing.assert_array_equal(made.places, np.arange(-33, 34))  # of 100 channels, where 10 eV are 50
    assert all(array.shape == (0, 1) for array in made.locate(np.empty((0, 200), np.float32), None))


@pytest.mark.parametrize("align", ["spectrum", "acquisition", "marginal"])
def test_spectra_no_wider_than_the_window_are_found_with_their_ends_held(align):
    wide, label, group = edges(400, 0)
    inside = slice(50, 150)
    made = Registration.fit(wide[:, inside], label, group, align=align, channels=slice(0, 100), dispersion=0.2)
    moved, _, of = edges(120, 3)
    shifted = shift_spectra(
        moved, FeatureTransform.fit(wide, ENERGY, edge=EDGE, preset=resolve_preset("none")).axis, 2.0
    )
    place, weight = made.locate(shifted[:, inside], of)
    assert abs(0.2 * np.median((place * weight).sum(axis=1)) - 2.0) < 0.4


def test_values_beyond_what_was_recorded_are_held():
    spectrum = np.array([[np.nan, np.nan, 3.0, 4.0, np.nan]])
    np.testing.assert_array_equal(fill(spectrum), [[3.0, 3.0, 3.0, 4.0, 4.0]])


def test_a_disturbance_is_what_it_says(transform):
    wide, *_ = edges(30, 5)
    vectors = transform.apply(wide)
    np.testing.assert_array_equal(Disturbance().vectors(transform, wide), vectors)
    shifted = Disturbance(shift_ev=1.3)
    np.testing.assert_array_equal(shifted.vectors(transform, wide), transform.apply(wide, shift_ev=1.3))
    np.testing.assert_allclose(
        shifted.spectra(transform, wide)[:, transform.channels], transform.apply(wide, shift_ev=1.3), rtol=1e-6
    )
    back = Disturbance(shift_ev=1.4).vectors(transform, wide, place=np.full(30, 7))
    np.testing.assert_allclose(back, vectors, atol=1e-3)
    noisy = Disturbance.of_noise(transform, 30, sigma=0.2, rng=np.random.default_rng(0))
    added = (noisy.vectors(transform, wide) - vectors) / spectrum_span(vectors)
    np.testing.assert_allclose(added, noisy.noise[:, transform.channels], atol=1e-5)
    of_wide = (noisy.spectra(transform, wide) - wide) / spectrum_span(vectors)  # without a normalisation: the same unit
    np.testing.assert_allclose(of_wide, noisy.noise, atol=1e-4)
    rows = np.array([3, 8])
    np.testing.assert_allclose(
        noisy.of(rows).vectors(transform, wide[rows]), noisy.vectors(transform, wide)[rows], atol=1e-5
    )


def test_noise_is_read_where_the_vector_is(transform):
    wide = np.tile(edges(1, 5)[0], (4, 1))
    noisy = Disturbance.of_noise(transform, 4, sigma=0.1, rng=np.random.default_rng(0))
    place = np.array([-10, 0, 5, 20])
    found = noisy.vectors(transform, wide, place=place)
    quiet = Disturbance().vectors(transform, wide, place=place)
    span = spectrum_span(transform.apply(wide))
    for row, moved in enumerate(place):
        channels = slice(transform.channels.start + moved, transform.channels.stop + moved)
        np.testing.assert_allclose((found - quiet)[row] / span[row], noisy.noise[row, channels], atol=1e-4)
