"""A small map, and the product that it was made of."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from eelsflow.maps.pixels import PixelMap
from eelsflow.preprocess.shapes import Shapes


@pytest.fixture
def pixel_map():
    """A map of 4 x 5 pixels that says FeO throughout, and what of a prepared product a study reads."""
    shape = (4, 5)
    probability = np.stack([np.full(shape, 0.9), np.full(shape, 0.1)], axis=-1).astype(np.float32)
    found = PixelMap(
        classes=["FeO", "Fe3O4"],
        class_index=np.zeros(shape, dtype=np.int16),
        probability=probability,
        fraction=probability.copy(),
        fraction_error=np.full((*shape, 2), 0.02, dtype=np.float32),
        unknown=np.zeros(shape, dtype=bool),
        distance=np.ones(shape, dtype=np.float32),
        effective_spectra=np.ones(shape, dtype=np.float32),
        relative_variance=1e-3,
        mean_distance=1.0,
        correlation=0.0,
        ends=None,
        class_shape=np.zeros((2, 3)),
        class_shape_error=np.zeros((2, 3)),
        bands=np.arange(3.0),
        judged=Shapes(np.full((*shape, 3), 1 / 3), np.ones(shape), np.ones(shape), np.arange(3.0)),
        noise=np.eye(3),
    )
    cube, flat = ("y", "x", "energy_loss"), ("y", "x")
    values = np.ones((*shape, 300), dtype=np.float32)
    product = xr.Dataset(
        {
            "intensity": (cube, values),
            "variance": (cube, 0.01 * values),
            "vacuum_mask": (flat, np.zeros(shape, dtype=bool)),
            "electrons": (flat, np.ones(shape, dtype=np.float32)),
        },
        coords={"energy_loss": 525.0 + 0.1 * np.arange(300)},
    )
    return SimpleNamespace(found=found, product=product)
