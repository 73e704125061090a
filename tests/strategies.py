"""Numbers as measurements give them, for property tests: the one place they are drawn from.

A property over every float fails on numbers that no detector delivers: 0.4 of 5e-324 counts is 0 counts, whatever the
method. So nothing here is subnormal, and what may be zero is zero or stands clear of it.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

RESOLUTION = 1e-6
"""The smallest magnitude that is not zero, of counts, eV and fractions; a digital detector's own step is larger."""


def examples(number: int) -> Callable[[Any], Any]:
    """Draw this many examples where the profile draws a hundred: for tests that take long."""
    return settings(max_examples=max(1, number * settings.default.max_examples // 100))


def _measured(low: float, high: float, *, width: int = 64, exclude_high: bool = False) -> st.SearchStrategy[float]:
    numbers = st.floats(low, high, allow_subnormal=False, width=width, exclude_max=exclude_high)
    if low > 0:
        return numbers
    return numbers.map(lambda value: 0.0 if abs(value) < RESOLUTION else value)


def counts(low: float = 0.0, high: float = 1e5, *, width: int = 64) -> st.SearchStrategy[float]:
    """Counts of a channel; negative ones are what the subtraction of a dark frame or a background leaves."""
    return _measured(low, high, width=width)


def energies(low: float, high: float) -> st.SearchStrategy[float]:
    """Energies, shifts and widths in eV."""
    return _measured(low, high)


def fractions(low: float = 0.0, high: float = 1.0, *, exclude_high: bool = False) -> st.SearchStrategy[float]:
    """Parts of a whole, relative heights and errors."""
    return _measured(low, high, exclude_high=exclude_high)


def factors(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive factors: of thickness, dose or unit."""
    if low <= 0:
        raise ValueError(f"a factor is positive, and the lowest was to be {low}")
    return st.floats(low, high, allow_subnormal=False)


def exponents(low: float, high: float) -> st.SearchStrategy[float]:
    """Exponents of a power law, and decimal logarithms of hyper-parameters."""
    return _measured(low, high)


def angles(low: float, high: float) -> st.SearchStrategy[float]:
    """Angles in degrees."""
    return _measured(low, high)


def seeds(high: int = 2**32) -> st.SearchStrategy[int]:
    """Seeds of a random generator."""
    return st.integers(0, high)
