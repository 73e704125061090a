"""The map of one acquisition as a value: arrays over its pixels with what was found, and what made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.errors import InputError
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps.pixels import PixelMap
from eelsflow.models.bundle import ModelBundle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "eelsflow-map/2"
STORE = "map.zarr"


@dataclass(frozen=True, eq=False, repr=False)
class Map:
    """The oxidation state of every pixel of one acquisition.

    Attributes
    ----------
    dataset
        ``class_index`` (y, x; -1 where there is no specimen), ``probability``, ``fraction`` and ``fraction_error``
        (y, x, class; 1 sigma), ``unknown`` and ``lost`` (y, x), ``distance`` (y, x; about 1 where a spectrum is
        usual), ``effective_spectra`` (y, x; of how many each is the mean), ``class_spectrum`` and its error
        (class, band; share of the window's counts), ``reference`` and ``reference_spread`` of the model; ``valence``
        and its error where the model knows it; ``t_over_lambda``, ``zero_loss_offset`` (eV) and ``thickness`` (nm)
        where there is a low loss. Coordinates ``y`` and ``x`` in nm or px, ``class``, ``band`` in eV.
    prepared
        The prepared spectra, as `eelsflow.prepare` returns them; None for a map that was loaded.
    recorded
        The counts, by the schema of `eelsflow.spectrum_image`; None for a map that was loaded.
    bundle
        The model that made it; None for a map that was loaded.
    pixels
        How its pixels were judged; None for a map that was loaded.
    """

    dataset: xr.Dataset
    prepared: xr.Dataset | None = None
    recorded: xr.DataArray | None = None
    bundle: ModelBundle | None = None
    pixels: PixelMap | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds: pixels of each class, energy offset, conditions, model, warnings."""
        summary: dict[str, Any] = json.loads(self.dataset.attrs["summary"])
        return summary

    @property
    def classes(self) -> list[str]:
        """Names, in the order of ``class_index``."""
        return [str(name) for name in self.dataset["class"].values]

    @property
    def warnings(self) -> list[str]:
        """What must be known before the map is believed, the gravest first."""
        warnings: list[str] = self.summary["warnings"]
        return warnings

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of the class given, shape (y, x); NaN where there is no specimen."""
        index, probability = self.dataset["class_index"].values, self.dataset["probability"].values
        chosen = np.take_along_axis(probability, np.maximum(index, 0)[..., None].astype(np.intp), axis=-1)[..., 0]
        return np.where(index >= 0, chosen, np.float32(np.nan))

    def plot(self, *, title: str | None = None) -> Figure:
        """Draw class, confidence, fractions and thickness, with scale bar and warnings."""
        from eelsflow.report.map_figure import map_figure

        data, summary = self.dataset, self.summary
        return map_figure(
            self.classes,
            data["class_index"].values,
            self.confidence,
            lost=data["lost"].values,
            pixel_size=summary["pixel_size"],
            pixel_unit=summary["pixel_unit"],
            fraction=data["fraction"].values,
            unknown=data["unknown"].values,
            t_over_lambda=data["t_over_lambda"].values if "t_over_lambda" in data else None,
            reach=summary["spatial"]["reach_px"],
            title=summary["source"] if title is None else title,
            warnings=summary["warnings"],
        )

    def plot_spectra(self) -> Figure:
        """Draw the mean spectrum of each class over the references of the model."""
        from eelsflow.report.class_spectra import class_spectra_figure

        data, summary = self.dataset, self.summary
        return class_spectra_figure(
            self.classes,
            data["band"].values,
            data["class_spectrum"].values,
            data["class_spectrum_error"].values,
            references=(data["band"].values, data["reference"].values, data["reference_spread"].values),
            pixels=[summary["classes"][name]["pixels"] for name in self.classes],
        )

    def save(self, directory: Path | str, *, title: str | None = None) -> Path:
        """Write the map into a folder, which is made if it is not there.

        ``map.zarr``, ``class.tif``, ``probability.tif``, ``fraction-CLASS.tif``, ``unknown.tif``, ``map.png``,
        ``spectra.png``, ``summary.json`` and the page ``index.html`` are written; ``map.html``, on which a click shows
        the spectrum of a pixel, unless the map was loaded; and ``valence.tif``, ``t_over_lambda.tif`` and
        ``thickness.tif`` where these are known.

        Raises
        ------
        OutputPathError
            If the folder cannot be written.
        """
        from eelsflow.maps.write import write_map
        from eelsflow.store import make_directory

        directory = make_directory(Path(directory))
        write_map(self, directory, title=self.summary["source"] if title is None else title)
        return directory

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read a map that `save`, `eelsflow classify` or `eelsflow watch` wrote.

        Raises
        ------
        UnreadableFileError
            If there is none, or it is damaged.
        InputError
            If another version of eelsflow wrote it.
        """
        path = Path(directory)
        data = open_dataset(path if path.name == STORE else path / STORE).load()
        if data.attrs.get("schema") != SCHEMA or "reference" not in data:
            raise InputError(
                f"{path} holds a map of the schema {data.attrs.get('schema')!r} without the references it was judged "
                "by; it was written by another version of eelsflow: classify the acquisition again"
            )
        return cls(data)

    def to_hyperspy(self) -> dict[str, Any]:
        """Return every map as a HyperSpy signal; see `eelsflow.to_hyperspy`."""
        from eelsflow.io.hyperspy_signals import signals_of_dataset

        return signals_of_dataset(self.dataset)

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        import base64
        from html import escape

        from eelsflow.report.style import render

        picture = base64.b64encode(render(self.plot(), "png")).decode()
        text = escape("\n".join(self._lines()))
        return f'<pre>{text}</pre><img alt="{text}" src="data:image/png;base64,{picture}">'

    def _lines(self) -> Sequence[str]:
        summary = self.summary
        n_y, n_x = self.dataset["class_index"].shape
        size = f" of {summary['pixel_size']:.3g} {summary['pixel_unit']}" if summary["pixel_unit"] != "px" else ""
        lines = [f"Map of {summary['source']}: {n_y} x {n_x} pixels{size}, {summary['model']['edge']}"]
        for name, found in summary["classes"].items():
            fraction = "" if found["mean_fraction"] is None else f", mean fraction {found['mean_fraction']:.2f}"
            lines.append(f"  {name}: {found['pixels']:,} pixels{fraction}")
        lines.append(f"  no specimen: {summary['background_pixels']:,}, unknown: {summary['unknown']['pixels']:,}")
        offset = summary["energy_offset"]
        if offset["value"] is not None:
            lines.append(f"  energy offset {offset['value']:+.2f} +- {offset['error']:.2f} eV")
        lines.append(f"  model {summary['model']['name']}, preset {summary['model']['preset']}")
        return [*lines, *(f"  warning: {text}" for text in summary["warnings"])]
