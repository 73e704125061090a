"""What every test may use."""

from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: machines are shared and noisy, and the first example pays for imports.
settings.register_profile("eelsflow", deadline=None)
settings.load_profile("eelsflow")

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real spectra beside the checkout; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real spectra are not at {REAL_DATA}; they are not part of the repository")
    return REAL_DATA
