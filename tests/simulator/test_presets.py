"""The presets: the narrow one as it always was, the wide one as wide as it says."""

import dataclasses
import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from eelsflow.simulator import PRESETS, simulate_acquisition
from eelsflow.simulator.edges import NOMINAL_LOW_LOSS, REFERENCE_ENERGY, calibrate_edges, detected, fine_energies
from eelsflow.simulator.generic_edges import FILM_EDGE, OTHER_OXIDES, GenericEdgeParameters
from eelsflow.simulator.parameters import AxisSettingParameters
from eelsflow.simulator.scenes import SCENES

PAPER, WIDE = PRESETS["paper"], PRESETS["wide"]
GRID = fine_energies(505.0, 620.0)
THICKNESS = 35.0 / NOMINAL_LOW_LOSS.mean_free_path

# Counts of 12 x 12 pixels, seed 11, as the simulator made them before it had any other preset.
DIGESTS = {
    "FeO": "9c7d0b34cbf8f4ad22f44cbd876e838e921fa46b69cba87021428c00b494566b",
    "Fe3O4": "5f05e4a7e2d4ab57f0099d9cf21efde1266c79f3136af8a39ef968b085ed6202",
    "core_shell": "f3c8bd63421e630348299b6cc875d9f339e18441214f034b80b4f51dc1031cd8",
}


@pytest.mark.parametrize("kind", DIGESTS)
def test_paper_draws_what_it_always_drew(kind: str) -> None:
    specimen = PAPER.specimen.model_copy(update={"kind": kind})
    parameters = PAPER.model_copy(update={"shape": (12, 12), "specimen": specimen})
    counts = simulate_acquisition(parameters, 11).image.values
    assert hashlib.sha256(counts.tobytes()).hexdigest() == DIGESTS[kind]


@pytest.mark.parametrize(
    ("phase", "assumed"),
    [
        ("feo", {"pre_peak_height": (0.35, 0.50), "main_position": (9.6, 10.8), "third_position": (27.0, 30.0)}),
        ("fe3o4", {"pre_peak_height": (0.55, 0.70), "main_position": (8.8, 9.6), "third_position": (29.0, 32.0)}),
    ],
)
def test_wide_covers_what_is_assumed_of_each_oxide_and_up_to_two_fifths_more(
    phase: str, assumed: dict[str, tuple[float, float]]
) -> None:
    common = {"pre_peak_sigma": (1.0, 1.4), "main_sigma": (2.0, 3.0), "third_sigma": (4.0, 5.0)}
    for name, (low, high) in {**assumed, **common}.items():
        lowest, highest = getattr(getattr(WIDE, phase), name)
        reserve = 0.42 * (high - low)
        assert low - reserve <= lowest < low < high < highest <= high + reserve, name


def test_wide_covers_the_instruments_of_the_literature() -> None:
    assert WIDE.low_loss.zero_loss_width == (0.3, 1.2)
    assert WIDE.low_loss.plasmon_energy == (22.0, 25.0)
    assert WIDE.low_loss.plasmon_width == (10.0, 20.0)
    assert WIDE.levels.background_exponent == WIDE.levels.support_exponent == (2.5, 4.5)
    assert WIDE.axis.offset_limit == 8.0


def test_wide_tells_the_oxides_apart_by_four_ranges_alone() -> None:
    different = {
        name
        for name in type(WIDE.feo).model_fields
        if getattr(WIDE.feo, name) != getattr(WIDE.fe3o4, name) and not name.endswith("density")
    }
    assert different == {"pre_peak_height", "main_position", "third_position", "ferric"}
    overlap = WIDE.feo.pre_peak_height[1] - WIDE.fe3o4.pre_peak_height[0]
    assert overlap <= 0.1 * np.ptp(WIDE.feo.pre_peak_height)


def test_white_lines_follow_the_share_of_ferric_iron() -> None:
    """Positions, distance, ratio and width of the detected lines, on the oxide's own continuum, are the drawn ones."""
    grid, rng = fine_energies(480.0, 800.0), np.random.default_rng(6)
    for phase in ("feo", "fe3o4"):
        for _ in range(20):
            shape = dataclasses.replace(getattr(WIDE, phase).draw(rng), error=0.0)
            assert 0.1 <= shape.ferric <= 0.7
            bare = dataclasses.replace(shape, iron_density=0.0)
            lines = detected(
                calibrate_edges(shape, grid, relative_thickness=THICKNESS)
                - calibrate_edges(bare, grid, relative_thickness=THICKNESS),
                NOMINAL_LOW_LOSS,
                THICKNESS,
            )
            expected = REFERENCE_ENERGY + shape.l3_position + shape.ferric * shape.l3_shift
            l3, l2 = (np.abs(grid - expected - d) < 3.0 for d in (0.0, shape.l3_l2))
            assert grid[l3][lines[l3].argmax()] == pytest.approx(expected, abs=0.35)  # on a step, of a skewed mixture
            assert grid[l2][lines[l2].argmax()] == pytest.approx(expected + shape.l3_l2, abs=0.45)
            assert lines[l3].max() / lines[l2].max() == pytest.approx(shape.l3_l2_ratio, rel=0.05)
            below = (grid > expected - 8.0) & (grid < expected)  # the side without a continuum
            half = np.interp(0.5 * lines[l3].max(), lines[below], grid[below])
            ions = np.sqrt(shape.l3_width**2 + 5.545 * shape.ferric * (1 - shape.ferric) * shape.l3_shift**2)
            assert 2 * (expected - half) == pytest.approx(ions, abs=0.8)


def test_the_oxygen_edge_of_a_seed_does_not_depend_on_how_the_white_lines_are_drawn() -> None:
    """Also not on whether they are: the values are those from before they were."""
    narrow = WIDE.feo.model_copy(update={"ferric": (0.0, 0.0), "l3_shift": (0.0, 0.0), "l3_l2_ratio": (2.77, 2.77)})
    shapes = [one.draw(np.random.default_rng(9)) for one in (WIDE.feo, narrow)]
    assert shapes[0].ferric != shapes[1].ferric == 0.0
    for shape in shapes:
        found = (shape.pre_peak_height, shape.fourth_height, shape.error_length, shape.error_seed)
        assert found == pytest.approx((0.48969859477416655, 0.5448810711722779, 7.471638389761004, 2100731751))
    below = GRID < 690.0
    spectra = [calibrate_edges(shape, GRID[below], relative_thickness=THICKNESS) for shape in shapes]
    np.testing.assert_allclose(*spectra, rtol=0, atol=2e-6)


def test_acquisitions_differ_in_their_white_lines_without_a_random_factor_too() -> None:
    rng, even = np.random.default_rng(2), WIDE.feo.model_copy(update={"error": (0.0, 0.0)})
    assert len({even.draw(rng).ferric for _ in range(5)}) == 5


@pytest.mark.parametrize("phase", ["feo", "fe3o4"])
def test_every_wide_edge_is_positive_with_its_pre_peak_at_the_reference_energy(phase: str) -> None:
    """Also with the smooth random factor; without it, the heights that tell the oxides apart are the drawn ones."""
    rng = np.random.default_rng(4)
    near = np.abs(GRID - REFERENCE_ENERGY) < 2.0
    for _ in range(40):
        shape = getattr(WIDE, phase).draw(rng)
        for s in (shape, dataclasses.replace(shape, error=0.0)):
            spectrum = calibrate_edges(s, GRID, relative_thickness=THICKNESS)
            assert spectrum.min() >= 0.0
            seen = detected(spectrum, NOMINAL_LOW_LOSS, THICKNESS)
            assert GRID[near][seen[near].argmax()] == pytest.approx(REFERENCE_ENERGY, abs=0.101)  # a step of the grid
        ratio = np.interp(REFERENCE_ENERGY, GRID, seen) / np.interp(REFERENCE_ENERGY + s.main_position, GRID, seen)
        assert ratio == pytest.approx(shape.pre_peak_height, abs=0.015)


def test_the_random_factor_has_its_spread_and_its_length() -> None:
    rng = np.random.default_rng(0)
    fixed = WIDE.feo.model_copy(update={"error": (0.08, 0.08), "error_length": (6.0, 6.0)})
    energies = fine_energies(535.0, 620.0)  # where the edge is high enough to divide by
    factors = []
    for _ in range(150):
        shape = fixed.draw(rng)
        with_error, without = (
            calibrate_edges(s, energies, relative_thickness=THICKNESS)
            for s in (shape, dataclasses.replace(shape, error=0.0))
        )
        factors.append(with_error / without)
    relative = np.array(factors) / np.median(factors, axis=1, keepdims=True)  # the main peak is scaled to 1
    deviation = relative - relative.mean(axis=0)
    # 150 draws of some ten correlation lengths each; the median takes a little of the spread away
    assert deviation.std() == pytest.approx(0.08, rel=0.15)
    lag = 60  # steps: one length, at which a Gaussian correlation is exp(-1/2)
    correlation = (deviation[:, lag:] * deviation[:, :-lag]).mean() / deviation.var()
    assert correlation == pytest.approx(np.exp(-0.5), abs=0.12)


def test_wide_axes_show_the_oxygen_edge_whatever_their_error() -> None:
    rng = np.random.default_rng(1)
    axes = [WIDE.axis.draw_setting(rng) for _ in range(300)]
    for axis in axes:
        assert axis.values[0] + 9.0 <= 495.0
        assert axis.values[-1] - 9.0 >= 570.0
    dispersions = np.array([axis.dispersion for axis in axes])
    assert 0.1 <= dispersions.min() < 0.12
    assert 0.48 < dispersions.max() <= 0.5
    assert {axis.size for axis in axes} == {1024, 2048}
    assert np.ptp([axis.values[0] for axis in axes]) > 70.0


def test_an_axis_too_short_for_its_window_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"1024 channels of 0.05 eV span 51.2 eV, the window and its reserve 93"):
        AxisSettingParameters(dispersion=(0.05, 0.5), n_channels=(1024,), window=(495.0, 570.0))


def test_wide_acquisitions_spread_over_dose_thickness_and_jump() -> None:
    attrs, depth = [], []
    parameters = WIDE.model_copy(update={"shape": (8, 8)})
    for seed in range(60):
        truth = simulate_acquisition(parameters, seed).truth
        attrs.append(truth.attrs)
        depth.append(float(truth["relative_thickness"].max()))
    doses = np.log([a["dose"] for a in attrs])
    assert np.log(0.3) <= doses.min() < np.log(0.4)
    assert np.log(2.3) < doses.max() <= np.log(3.0)
    assert abs(np.mean(doses) - np.log(np.sqrt(0.9))) < 0.3  # even in the logarithm: .66 / sqrt(60), thrice
    assert 0.15 <= min(depth) < 0.25
    assert 0.85 < max(depth) <= 1.01
    factors = [a["background_factor"] for a in attrs]
    assert max(factors) / min(factors) > 2.2
    assert 0.0 <= min(a["film_oxygen"] for a in attrs) < 0.02
    assert 0.18 < max(a["film_oxygen"] for a in attrs) <= 0.2


@pytest.mark.parametrize("family", OTHER_OXIDES.families)
def test_other_oxides_look_like_neither(family: str) -> None:
    """By the ratio of the pre-peak to the main peak, or by two lines instead of one."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        spectrum = OTHER_OXIDES.families[family].draw(rng).spectrum(GRID, relative_thickness=THICKNESS)
        seen = detected(spectrum, NOMINAL_LOW_LOSS, THICKNESS)
        assert spectrum.min() >= 0.0
        assert seen.max() == pytest.approx(1.0)
        pre = (GRID > 528.0) & (GRID < 532.0)
        main = (GRID > 535.5) & (GRID < 546.0)
        ratio = seen[pre].max() / seen[main].max()
        if family == "white_lines":
            lines = seen[(GRID > 528.5) & (GRID < 535.0)]
            assert ((lines[1:-1] > lines[:-2]) & (lines[1:-1] > lines[2:])).sum() >= 1
            assert seen[(GRID > 531.5) & (GRID < 534.2)].max() > 0.5 * seen[main].max()
        elif family == "no_pre_peak":
            assert ratio < 0.25
        else:
            assert ratio > 0.74


def test_the_film_has_no_pre_peak() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        seen = FILM_EDGE.draw(rng).spectrum(GRID, relative_thickness=0.0)
        assert seen[GRID < 530.5].max() < 0.06
        assert (np.diff(seen[(GRID > 525.0) & (GRID < 536.0)]) > 0).all()
        assert 536.0 < GRID[seen.argmax()] < 544.0


def test_a_peak_without_a_width_is_refused() -> None:
    with pytest.raises(ValidationError, match="every peak needs one of each"):
        GenericEdgeParameters(position=((0.0, 1.0),), sigma=(), height=((1.0, 1.0),), onset=(3.0, 4.0))


def test_every_scene_can_be_simulated_small() -> None:
    for kind in SCENES:
        specimen = WIDE.specimen.model_copy(update={"kind": kind})
        acquisition = simulate_acquisition(WIDE.model_copy(update={"shape": (12, 12), "specimen": specimen}), 1)
        pure = kind in ("FeO", "Fe3O4", "other")
        assert acquisition.truth.attrs["scene"] == ("pure" if pure else kind)
        specimen_counts = acquisition.image.values[~acquisition.truth["vacuum"].values].mean()
        assert specimen_counts > acquisition.image.values[acquisition.truth["vacuum"].values].mean()
