"""An explanation as a value: arrays with their names and units, a figure, and the files it is kept in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eelsflow.store import write_json

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

SCHEMA = "eelsflow-explanation/1"


@dataclass(frozen=True)
class Explanation:
    """Which energies decided between two classes.

    Attributes
    ----------
    dataset
        Over ``of`` (sets of spectra: the pixels of a class, single pixels, the mean spectrum of a class) and ``band``
        (centres, eV, with ``band_low`` and ``band_high``):

        - ``contribution``: what the band adds to the decision, mean over the set (and over the models);
        - ``spread``: standard deviation over the set's spectra, or over what acquisitions of the class differ by where
          the model alone is explained; NaN for a single pixel;
        - ``error``: standard deviation by the noise of one spectrum; NaN where no noise is known;
        - ``by_model`` (``model``, ``of``, ``band``): the contributions of each model, where several were given;
        - ``spectrum``: share of the window's counts, % per eV;
        - ``decision``, ``decision_at_mean`` (``of``): the mean decision, and that of the spectrum compared with;
        - ``n_spectra``, ``n_in_set`` (``of``): how many spectra were explained, and how many there are.

        And ``class_spectrum`` (``class``, ``energy_loss``), % of the window's counts per eV. Attributes: ``method``
        (exact, occlusion), ``classes`` (the pair; positive speaks for the first), ``unit``, ``model``, ``edge``,
        ``width`` (eV), ``compared_with``, ``spread_over``, ``note`` (what else is to be known; else empty).
    """

    dataset: xr.Dataset

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as lists and numbers by name, NaN as None."""
        variables = {str(name): _plain(self.dataset[name].values) for name in self.dataset.variables}
        return {"schema": SCHEMA, **self.dataset.attrs, **variables}

    def plot(self) -> Figure:
        """Draw the contributions under the classes' spectra."""
        from eelsflow.report.explanation_figure import explanation_figure

        return explanation_figure(self.as_dict())

    def sentences(self) -> list[str]:
        """Say for each set of spectra where half of what decides lies."""
        from eelsflow.report.explanation_figure import say_bands

        return say_bands(self.as_dict())

    def save(self, directory: Path) -> None:
        """Write ``explanation.json``, ``explanation.png`` and ``explanation.svg`` into an existing directory."""
        from eelsflow.report.style import render

        write_json(directory / "explanation.json", self.as_dict())
        figure = self.plot()
        for kind in ("png", "svg"):
            (directory / f"explanation.{kind}").write_bytes(render(figure, kind))


def _plain(values: Any) -> Any:
    if values.dtype.kind != "f":
        return values.tolist()
    if values.ndim == 0:
        return float(f"{values:.6g}") if np.isfinite(values) else None
    return [_plain(part) for part in values]
