"""Maps on disk: zarr, TIFF, pictures, a page and a summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xarray as xr
from numpy.typing import NDArray

from eelsflow.io.zarr_store import open_dataset, write_dataset
from eelsflow.maps.build import map_prepared
from eelsflow.maps.drift import tell_conditions
from eelsflow.maps.result import STORE, Map
from eelsflow.models.bundle import ModelBundle
from eelsflow.store import write_json


def map_product(
    prepared: Path, bundle: ModelBundle, directory: Path, *, title: str, recorded: xr.DataArray | None = None
) -> dict[str, Any]:
    """Classify every specimen pixel of a prepared acquisition and write the maps.

    Parameters
    ----------
    prepared
        The product (zarr).
    bundle
        A model for the same edge.
    directory
        Exists; see `Map.save` for what is written into it.
    title
        Above the picture.
    recorded
        What was recorded, by the schema, for ``map.html``; without it that shows the prepared spectra of single pixels
        with their background.

    Returns
    -------
    dict
        The summary.
    """
    found = map_prepared(open_dataset(prepared), bundle, recorded=recorded)
    write_map(found, directory, title=title)
    return found.summary


def write_map(found: Map, directory: Path, *, title: str) -> None:
    """Write a map into an existing directory; see `Map.save`."""
    from eelsflow.report.acquisition import write_acquisition_page
    from eelsflow.report.clickable import write_clickable_map
    from eelsflow.report.map_figure import save_map_tiff
    from eelsflow.report.maps import PAGE
    from eelsflow.report.style import render

    data, summary = found.dataset, found.summary
    size_nm = summary["pixel_size"] if summary["pixel_unit"] == "nm" else None
    images: dict[str, NDArray[Any]] = {
        "class": data["class_index"].values,
        "probability": found.confidence,
        "unknown": data["unknown"].values,
        **{name: data["fraction"].values[..., k] for k, name in enumerate(_file_names(found.classes))},
        **{name: data[name].values for name in ("valence", "t_over_lambda", "thickness") if name in data},
    }
    for earlier in (*directory.glob("fraction-*.tif"), directory / PAGE):  # of another map, whose classes were others
        earlier.unlink(missing_ok=True)
    for name, image in images.items():
        save_map_tiff(directory / f"{name}.tif", image, size_nm)

    def draw() -> None:
        (directory / "map.png").write_bytes(render(found.plot(title=title), "png"))
        (directory / "spectra.png").write_bytes(render(found.plot_spectra(), "png"))

    with ThreadPoolExecutor(1) as beside:  # pictures are Python's own work, the page is mostly packing
        pictures = beside.submit(draw)
        write_dataset(data, directory / STORE)
        if found.prepared is not None and found.pixels is not None and found.bundle is not None:
            write_clickable_map(
                directory / PAGE,
                data,
                found.prepared,
                found.bundle.references,
                judged=found.pixels.judged,
                noise=found.pixels.noise,
                axis=found.bundle.transform.axis,
                image=found.recorded,
                title=title,
                summary=summary,
            )
        pictures.result()
    write_json(directory / "summary.json", summary)
    write_acquisition_page(directory, summary, title=title, conditions=tell_conditions(summary))


def _file_names(classes: Sequence[str]) -> list[str]:
    """Return the name of each class's file of fractions; with its number where names of two would be the same."""
    names = ["fraction-" + re.sub(r"[^\w.+-]+", "-", name) for name in classes]
    many = {name for name, n in Counter(name.casefold() for name in names).items() if n > 1}
    return [f"{name}-{k}" if name.casefold() in many else name for k, name in enumerate(names)]
