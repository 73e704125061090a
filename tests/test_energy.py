import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.energy import EnergyAxis, format_window
from eelsflow.errors import InputError
from tests.strategies import energies

axes = st.builds(EnergyAxis, energies(-100, 2000), energies(0.01, 2), st.integers(2, 4096))


@given(axes)
def test_axis_from_its_own_values_is_the_axis(axis):
    again = EnergyAxis.from_values(axis.values)
    assert again.size == axis.size
    assert again.start == axis.start
    assert again.dispersion == pytest.approx(axis.dispersion, rel=1e-9)


@given(axes)
def test_boundaries_lie_half_a_channel_around_the_centres(axis):
    np.testing.assert_allclose(axis.boundaries[:-1] + 0.5 * axis.dispersion, axis.values, rtol=0, atol=1e-9)
    np.testing.assert_allclose(axis.boundaries[1:] - 0.5 * axis.dispersion, axis.values, rtol=0, atol=1e-9)
    assert axis.stop == pytest.approx(axis.values[-1])


def test_channels_of_a_window_are_half_open_and_immune_to_rounding():
    axis = EnergyAxis(513.0, 0.1, 540)
    window = axis.channels((525.0, 555.0))
    assert window == slice(120, 420)
    # 513 + .1 k is not exact for most k; the window still has 300 channels
    np.testing.assert_allclose(axis.values[window][[0, -1]], [525.0, 554.9])


@given(axes, energies(-200, 5000), energies(0, 500))
def test_channels_are_those_whose_centres_lie_in_the_window(axis, start, width):
    channels = axis.channels((start, start + width))
    assert 0 <= channels.start <= channels.stop <= axis.size
    tolerance = 1e-5 * axis.dispersion
    inside = np.zeros(axis.size, dtype=bool)
    inside[channels] = True
    values = axis.values
    clear = (np.abs(values - start) > tolerance) & (np.abs(values - start - width) > tolerance)
    np.testing.assert_array_equal(inside[clear], ((values >= start) & (values < start + width))[clear])


@given(axes, energies(-20, 20))
def test_shifting_moves_every_channel_and_shifting_back_undoes_it(axis, offset):
    shifted = axis.shifted(offset)
    np.testing.assert_allclose(shifted.values, axis.values + offset, atol=1e-9)
    assert shifted.shifted(-offset).start == pytest.approx(axis.start, abs=1e-9)


def test_covers_counts_whole_channels_and_allows_an_overhang():
    axis = EnergyAxis(500.0, 0.5, 101)  # centres 500-550, boundaries 499.75-550.25
    assert axis.covers((499.75, 550.25))
    assert not axis.covers((499.0, 540.0))
    assert axis.covers((499.0, 540.0), overhang=1.0)
    assert not axis.covers((510.0, 552.0), overhang=1.0)


def test_axis_prints_its_span():
    assert str(EnergyAxis(435.0, 0.025, 2048)) == "435.0-486.2 eV in 2048 channels of 0.025 eV"


@pytest.mark.parametrize(("start", "dispersion"), [(0.0, 0.0), (0.0, -0.1), (np.nan, 0.1), (0.0, np.inf)])
def test_axis_refuses_a_calibration_that_is_none(start, dispersion):
    with pytest.raises(InputError, match="both must be finite and the dispersion positive"):
        EnergyAxis(start, dispersion, 10)


def test_axis_refuses_a_single_channel():
    with pytest.raises(InputError, match="at least 2"):
        EnergyAxis(0.0, 1.0, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([500.0], "at least 2 channels"),
        ([[500.0, 501.0]], "at least 2 channels"),
        ([500.0, np.nan, 502.0], "values that are not finite"),
        ([500.0, 501.0, 503.0], "not increasing in equal steps"),
        ([502.0, 501.0, 500.0], "not increasing in equal steps"),
    ],
)
def test_axis_refuses_values_that_are_not_a_uniform_axis(values, message):
    with pytest.raises(InputError, match=message):
        EnergyAxis.from_values(values)


def test_falling_axis_is_said_to_fall():
    with pytest.raises(InputError, match=r"goes from 510 to 500 eV .* expected rising energies: turn") as error:
        EnergyAxis.from_values(np.linspace(510, 500, 11))
    assert "deviation" not in str(error.value)


def test_window_is_shown_without_the_type_of_its_bounds():
    assert format_window((np.float64(696.0), np.float32(689.5))) == "(696.0, 689.5) eV"
