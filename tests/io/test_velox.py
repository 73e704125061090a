import numpy as np
import pytest

from eelsflow.errors import UnreadableFileError
from eelsflow.io.read import read_spectrum_image
from tests.io.cube_files import COUNTS, write_velox


def test_energy_loss_beside_x_ray_spectra_is_read_without_them(tmp_path):
    image = read_spectrum_image(write_velox(tmp_path / "a.emd", eds=True))
    np.testing.assert_array_equal(image, COUNTS)


def test_velox_file_without_energy_loss_names_what_it_holds(tmp_path):
    with pytest.raises(UnreadableFileError, match="no energy-loss spectra: of Velox data it has Image, SpectrumImage"):
        read_spectrum_image(write_velox(tmp_path / "a.emd", eels=False))
