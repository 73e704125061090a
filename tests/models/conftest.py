import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

N_CHANNELS = 150


def draw_spectra(n_per_class: tuple[int, ...], seed: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Noisy peaks scaled to 0-1 whose position is the class."""
    random = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(n_per_class)), n_per_class)
    position = 60 + 12 * codes + random.normal(0, 2.5, len(codes))
    peaks = np.exp(-0.5 * ((np.arange(N_CHANNELS) - position[:, np.newaxis]) / 8) ** 2)
    peaks += random.normal(0, 0.08, peaks.shape)
    peaks -= peaks.min(axis=1, keepdims=True)
    return (peaks / peaks.max(axis=1, keepdims=True)).astype(np.float32), codes


@pytest.fixture(scope="session")
def spectra() -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Training spectra of three unequally frequent classes."""
    return draw_spectra((60, 45, 30), seed=0)


@pytest.fixture(scope="session")
def test_spectra() -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """More of the same kind, never trained on."""
    return draw_spectra((40, 40, 40), seed=1)


@pytest.fixture(scope="session")
def folds(spectra):
    return list(StratifiedKFold(4, shuffle=True, random_state=0).split(*spectra))
