import numpy as np
import pytest

from eelsflow.errors import InputError
from eelsflow.io.read import read_spectrum_image

ENERGIES = 424 + 0.25 * np.arange(12)
COUNTS = 1000.5 - np.arange(12)


def write(path, *, header="", separator="\t", factor=1.0, comma=False, reverse=False):
    lines = [f"{factor * x:.6g}{separator}{y:.6g}" for x, y in zip(ENERGIES, COUNTS, strict=True)]
    text = "\n".join(reversed(lines) if reverse else lines) + "\n"
    path.write_text(header + (text.replace(".", ",") if comma else text))
    return path


@pytest.mark.parametrize("separator", [";", "\t", "  ", "; "])
@pytest.mark.parametrize("reverse", [False, True])
def test_decimal_commas_are_read(tmp_path, separator, reverse):
    image = read_spectrum_image(write(tmp_path / "a.csv", separator=separator, comma=True, reverse=reverse))
    np.testing.assert_allclose(image["energy_loss"], ENERGIES)
    np.testing.assert_allclose(image[0, 0], COUNTS)


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        *(("Energy loss (keV);Counts\n", 1e-3), ("# Energy / keV\tIntensity\n", 1e-3), ("# keV counts\n", 1e-3)),
        *(("# Beam energy: 200 keV\nEnergy (eV), Counts\n", 1.0), ("# Beam energy: 200 keV\n", 1.0), ("x y\n", 1.0)),
    ],
)
def test_unit_of_the_heading_is_taken_and_that_of_settings_is_not(tmp_path, header, factor):
    image = read_spectrum_image(write(tmp_path / "a.txt", header=header, factor=factor))
    np.testing.assert_allclose(image["energy_loss"], ENERGIES, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("1,234;5,678\n1,235;5,679\n", "'1,234', whose comma may be a decimal mark or one for thousands"),
        ("424,250 10\n424,500 20\n", "write points as decimal marks"),
        ("424.25;1,234\n424.50;1,235\n", "write points as decimal marks"),
        ("424,25,10\n424,50,11\n", "no.* rows|line 1|holds 0 rows|expected two numbers"),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_refused(tmp_path, content, match):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=match):
        read_spectrum_image(tmp_path / "a.csv")


def test_whole_numbers_between_commas_are_columns(tmp_path):
    (tmp_path / "a.csv").write_text("".join(f"{400 + i},{1000 + i}\n" for i in range(12)))
    np.testing.assert_allclose(read_spectrum_image(tmp_path / "a.csv")["energy_loss"], 400 + np.arange(12))
