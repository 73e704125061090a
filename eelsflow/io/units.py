"""Units of axes, as symbols or in words, in their own field or inside a label."""

from __future__ import annotations

import re

_ENERGY_EV = {
    **dict.fromkeys(("eV", "ev", "EV", "Ev", "electronvolt"), 1.0),
    **dict.fromkeys(("keV", "kev", "KeV", "KEV", "kiloelectronvolt"), 1e3),
    **dict.fromkeys(("meV", "millielectronvolt"), 1e-3),  # in this case only: MeV are a million
}
_LENGTH_NM = {
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1.0),
    # micro sign, Greek letter mu, and what keyboards have
    **dict.fromkeys(("µm", "μm", "um", "micron", "micrometer", "micrometre"), 1e3),
    "mm": 1e6,
    **dict.fromkeys(("m", "meter", "metre"), 1e9),
    "pm": 1e-3,
    **dict.fromkeys(("å", "a", "angstrom"), 0.1),  # the letter; the Angstrom sign is folded into it
}
_ENERGY_NAME = re.compile(r"energy|\bloss\b|eels", re.IGNORECASE)
# "Energy loss (eV)", "Energy loss [eV]", "ENERGY LOSS / eV", "Energy loss, eV", "Energy in eV", "Energy loss eV"
_ENCLOSED = re.compile(r"[(\[{]\s*([^()\[\]{}]+?)\s*[)\]}]")
_TRAILING = re.compile(r"(?:[/,:_\s]|\bin\b)\s*((?:\w+[\s-]?)?electron[\s-]?volts?|[kKmM]?[eE][vV])\s*$", re.IGNORECASE)


def energy_in_ev(units: object) -> float | None:
    """Return how many eV a unit of energy is, or None if it is none.

    >>> energy_in_ev(" keV "), energy_in_ev("Electron Volts"), energy_in_ev("MeV"), energy_in_ev("nm")
    (1000.0, 1.0, None, None)
    """
    text = str(units or "").strip().strip("()[]{}").strip().rstrip(".")
    if text in _ENERGY_EV:
        return _ENERGY_EV[text]
    word = re.sub(r"[\s-]", "", text).lower().removesuffix("s")
    return _ENERGY_EV.get(word) if word.endswith("electronvolt") else None


def energy_of_label(label: object) -> float | None:
    """Return how many eV the unit is that a label such as "Energy loss (eV)" names, or None.

    >>> [energy_of_label(name) for name in ("ENERGY LOSS / eV", "Energy [keV]", "Energy loss", "Level")]
    [1.0, 1000.0, None, None]
    """
    text = str(label or "").strip()
    enclosed = [found for found in map(energy_in_ev, _ENCLOSED.findall(text)) if found is not None]
    if enclosed:
        return enclosed[-1]
    trailing = _TRAILING.search(text)
    return energy_in_ev(trailing.group(1)) if trailing else energy_in_ev(text)


def axis_energy_in_ev(name: object, units: object) -> float | None:
    """Return how many eV one unit of an axis is: by its unit, by words in that field, or by its label."""
    for found in (energy_in_ev(units), energy_of_label(units), energy_of_label(name)):
        if found is not None:
            return found
    return None


def is_energy_name(name: object) -> bool:
    """Tell whether an axis is called an energy, with or without a unit."""
    return _ENERGY_NAME.search(str(name or "")) is not None


def length_in_nm(units: object) -> float:
    """Return how many nm a unit of length is; 0 if it is none.

    >>> length_in_nm("µm"), length_in_nm("s")
    (1000.0, 0.0)
    """
    text = str(units or "").strip().replace("\u212b", "å").lower()
    return _LENGTH_NM.get(text) or (_LENGTH_NM.get(text.removesuffix("s"), 0.0) if len(text) > 2 else 0.0)
