import numpy as np
import pytest

from eelsflow.io.read import read_spectrum_image
from eelsflow.io.units import axis_energy_in_ev, energy_in_ev, length_in_nm

MSA = """#FORMAT      : EMSA/MAS Spectral Data File
#VERSION     : TC202v3.0
#TITLE       : test
#DATE        : 01-JAN-2024
#TIME        : 12:00
#OWNER       : test
#NPOINTS     : 12
#NCOLUMNS    : 1
{units}#XLABEL      : {label}
#DATATYPE    : Y
#XPERCHAN    : {step}
#OFFSET      : {start}
#SIGNALTYPE  : ELS
#SPECTRUM    : Spectral Data Starts Here
{data}
#ENDOFDATA   :
"""


def write_msa(path, *, label, units, start=500.0, step=0.5):
    data = "\n".join(f"{100 + i}.0," for i in range(12))
    keyword = "" if units is None else f"#XUNITS      : {units}\n"
    path.write_text(MSA.format(units=keyword, label=label, start=start, step=step, data=data))
    return path


@pytest.mark.parametrize(
    ("name", "units", "factor"),
    [
        *(("Energy Loss (eV)", "", 1.0), ("Energy loss [eV]", None, 1.0), ("ENERGY LOSS / eV", "", 1.0)),
        *(("Energy loss, keV", "", 1e3), ("Energy in eV", "", 1.0), ("Energy loss eV", "", 1.0), ("eV", "", 1.0)),
        *(("", "electron volts", 1.0), ("", "electronvolt", 1.0), ("x", "eV ", 1.0), ("x", "[eV]", 1.0)),
        *(("", "kiloelectronvolts", 1e3), ("", "Kilo-electron volts", 1e3), ("x", "Energy Loss (eV)", 1.0)),
        *(("Energy (keV)", "eV", 1.0), ("", "meV", 1e-3)),
        *(("x", "MeV", None), ("level", "nm", None), ("Energy loss", "", None), ("Counts (e)", "", None)),
    ],
)
def test_energy_unit_is_found_in_words_and_labels(name, units, factor):
    assert axis_energy_in_ev(name, units) == factor


@pytest.mark.parametrize("units", [None, "", "Energy Loss (eV)", "electron volts", "eV "])
def test_msa_with_the_unit_in_its_label_is_read(tmp_path, units):
    image = read_spectrum_image(write_msa(tmp_path / "a.msa", label="Energy Loss (eV)", units=units))
    np.testing.assert_allclose(image["energy_loss"], 500 + 0.5 * np.arange(12))


def test_msa_in_kev_of_its_label_is_read_in_ev(tmp_path):
    image = read_spectrum_image(write_msa(tmp_path / "a.msa", label="Energy [keV]", units=None, start=0.5, step=5e-4))
    np.testing.assert_allclose(image["energy_loss"], 500 + 0.5 * np.arange(12))


def test_msa_that_lists_energies_is_read_by_them(tmp_path):
    path = write_msa(tmp_path / "a.msa", label="Energy", units="eV", start=0.0, step=1.0)
    text = path.read_text().replace("DATATYPE    : Y", "DATATYPE    : XY")
    for i in range(12):
        text = text.replace(f"{100 + i}.0,", f"{500 + 0.5 * i:.1f}, {100 + i}.0")
    path.write_text(text)
    image = read_spectrum_image(path)
    np.testing.assert_allclose(image["energy_loss"], 500 + 0.5 * np.arange(12))
    np.testing.assert_array_equal(image[0, 0], 100 + np.arange(12))


def test_other_units_are_no_energies_and_no_lengths():
    assert energy_in_ev("volt") is None
    assert energy_in_ev("s") is None
    assert [length_in_nm(unit) for unit in ("nanometers", "s", "", None, "eV")] == [1.0, 0, 0, 0, 0]
