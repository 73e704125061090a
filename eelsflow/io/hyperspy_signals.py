"""Spectrum images and maps as HyperSpy signals, with axes and units, and back.

HyperSpy is imported where a signal is made; without it only files are read.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from eelsflow.digest import digest_of
from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError, MissingDependencyError
from eelsflow.io.signals import image_of_signals
from eelsflow.spectrum_image import check_spectrum_image

_OURS = "eelsflow"  # node of a signal's metadata


def is_signal(value: object) -> bool:
    """Tell whether something is a HyperSpy signal, without importing HyperSpy."""
    return hasattr(value, "axes_manager") and hasattr(value, "original_metadata") and hasattr(value, "data")


def signal_of_image(image: xr.DataArray) -> Any:
    """Return a spectrum image as a HyperSpy signal.

    Parameters
    ----------
    image
        By the schema of `eelsflow.spectrum_image`; not modified, its counts are shared.

    Returns
    -------
    hyperspy.api.signals.Signal1D
        Of the type EELS, which is exspy's `EELSSpectrum` where exspy is installed: with its models and edges.

    Raises
    ------
    MissingDependencyError
        If HyperSpy is not installed.
    """
    check_spectrum_image(image)
    axis = EnergyAxis.from_values(image.coords["energy_loss"].values)
    size, unit = image.attrs["pixel_size"], image.attrs["pixel_unit"]
    axes = [
        *({"name": name, "size": n, "offset": 0.0, "scale": size, "units": unit, "navigate": True}
          for name, n in zip("yx", image.shape, strict=False)),
        {"name": "Energy loss", "size": axis.size, "offset": axis.start, "scale": axis.dispersion, "units": "eV",
         "navigate": False},
    ]  # fmt: skip
    signal = _hyperspy().signals.Signal1D(image.data, axes=axes)
    _set_signal_type(signal, "EELS")
    signal.metadata.General.title = image.attrs["source"]
    return signal


def image_of_signal(signal: Any) -> xr.DataArray:
    """Return a HyperSpy signal of energy-loss spectra as a spectrum image.

    Parameters
    ----------
    signal
        A spectrum, line scan or image with one axis in eV; not modified.

    Raises
    ------
    EelsflowError
        If it holds no energy-loss spectra, or its energy axis is not uniform.
    """
    if not hasattr(signal, "axes_manager"):
        raise InputError(f"{type(signal).__name__} is no HyperSpy signal; `eelsflow.read` takes files and arrays")
    described = {
        "data": signal.data,
        "axes": list(signal.axes_manager.as_dictionary().values()),
        "metadata": signal.metadata.as_dictionary(),
        "original_metadata": signal.original_metadata.as_dictionary(),
    }
    name = Path(signal.metadata.get_item("General.title") or "signal")
    counts = np.asarray(signal.data)
    sha256 = digest_of(counts, [[axis.get(key) for key in ("offset", "scale")] for axis in described["axes"]])
    return image_of_signals(name, "HyperSpy", [described], sha256=sha256)


def signals_of_dataset(dataset: xr.Dataset) -> dict[str, Any]:
    """Return the maps of a dataset as HyperSpy signals that lie beside those of the acquisition.

    Parameters
    ----------
    dataset
        Of `eelsflow.maps.Map`; not modified, its arrays are shared.

    Returns
    -------
    dict
        Name -> signal. Maps (y, x) are images (`Signal2D`) with axes in nm or px; those with classes are stacks of
        images, one a class; spectra (class, band) are `Signal1D` over bands in eV. What HyperSpy has no place for is
        in ``metadata.eelsflow``, so that `dataset_of_signals` gives the same dataset.

    Raises
    ------
    MissingDependencyError
        If HyperSpy is not installed.
    """
    summary = json.loads(dataset.attrs["summary"])
    size, unit = float(summary["pixel_size"]), summary["pixel_unit"]
    signals = {}
    for name, variable in dataset.data_vars.items():
        ordered = variable.transpose(*(dim for dim in ("class", "y", "x", "band") if dim in variable.dims))
        axes = [_axis(str(dim), dataset, size, unit) for dim in ordered.dims]
        kind = _hyperspy().signals.Signal1D if "band" in ordered.dims else _hyperspy().signals.Signal2D
        signal = kind(ordered.values, axes=axes)
        signal.metadata.General.title = f"{summary['source']}: {str(name).replace('_', ' ')}"
        if "units" in variable.attrs:
            signal.metadata.set_item("Signal.quantity", f"{str(name).replace('_', ' ')} ({variable.attrs['units']})")
        ours = {"variable": variable.to_dict(data=False), "dims": list(variable.dims), "attrs": dataset.attrs}
        coords = {str(key): value.to_dict(data="list") for key, value in dataset.coords.items()}
        signal.metadata.set_item(_OURS, json.dumps({**ours, "coords": coords}))
        signals[str(name)] = signal
    return signals


def dataset_of_signals(signals: Mapping[str, Any]) -> xr.Dataset:
    """Return the dataset that `signals_of_dataset` made signals of, with the values that they hold now.

    Raises
    ------
    InputError
        If a signal is of another origin.
    """
    variables, attrs, coords = {}, {}, {}
    for name, signal in signals.items():
        text = signal.metadata.get_item(_OURS)
        if not isinstance(text, str):
            raise InputError(
                f"the signal {name!r} holds no map of eelsflow (its metadata lack {_OURS!r}), so its classes and pixel "
                "size are not known; expected signals that `to_hyperspy` made of a map"
            )
        ours = json.loads(text)
        dims = ours["dims"]
        ordered = [dim for dim in ("class", "y", "x", "band") if dim in dims]
        values = np.asarray(signal.data)
        if signal.metadata.Signal.signal_type == "" and values.shape[:1] == (1,) and values.ndim == len(dims) + 1:
            values = values[0]
        variables[name] = xr.Variable(ordered, values, ours["variable"]["attrs"]).transpose(*dims)
        attrs, coords = ours["attrs"], ours["coords"]
    made = {key: (one["dims"], np.asarray(one["data"]), one["attrs"]) for key, one in coords.items()}
    try:
        dataset = xr.Dataset(variables, coords=made, attrs=attrs)
    except ValueError as error:
        raise InputError(
            f"the signals are not of one map any more ({error}); expected all that `to_hyperspy` made of it, with the "
            "pixels that it had"
        ) from error
    if "summary" not in dataset.attrs:
        raise InputError("there are no signals of a map; expected those that `to_hyperspy` made of it")
    return dataset


def _axis(dim: str, dataset: xr.Dataset, size: float, unit: str) -> dict[str, Any]:
    n = dataset.sizes[dim]
    if dim in ("y", "x"):
        return {"name": dim, "size": n, "offset": 0.0, "scale": size, "units": unit, "navigate": False}
    if dim == "class":
        return {"name": "class", "size": n, "offset": 0.0, "scale": 1.0, "units": "", "navigate": True}
    bands = dataset["band"].values
    step = float(bands[1] - bands[0]) if n > 1 else 1.0
    return {
        "name": "Energy loss",
        "size": n,
        "offset": float(bands[0]),
        "scale": step,
        "units": "eV",
        "navigate": False,
    }


def _set_signal_type(signal: Any, name: str) -> None:
    """Make it a signal of exspy where that is installed; elsewhere the type is a label, and HyperSpy warns of it."""
    logger = logging.getLogger("hyperspy.io")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Importing `Lazy")  # exspy by HyperSpy, when it is loaded
            signal.set_signal_type(name)
    finally:
        logger.setLevel(level)


def _hyperspy() -> Any:
    try:
        import hyperspy.api
    except ImportError as error:
        raise MissingDependencyError(
            "a signal is asked for and HyperSpy is not installed; `pip install hyperspy exspy`, or use the xarray "
            "dataset of the map"
        ) from error
    return hyperspy.api
