"""What a reader wants to see behind a number: the spectra, masks and fits, kept beside each result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.io.zarr_store import open_dataset
from eelsflow.low_loss.companion import describe_companion
from eelsflow.robustness.perturb import add_gaussian_noise
from eelsflow.store import write_json

EXAMPLE_SHIFT_EV = 3.0
EXAMPLE_NOISE_SIGMA = 0.15


def summarize_prepared(prepared: Path, directory: Path, *, edge: Edge) -> None:
    """Write ``summary.json`` and ``evidence.npz`` of a prepared acquisition into `directory`.

    Parameters
    ----------
    prepared
        The product, zarr.
    directory
        Where to write.
    edge
        The edge it was prepared for.
    """
    product = open_dataset(prepared)
    lost = product["lost"].values
    vacuum_mask = product["vacuum_mask"].values & ~lost
    spike_channels = product["spike_channels"].values
    energy_loss = product["energy_loss"].values
    inside = (energy_loss >= edge.elnes_window[0]) & (energy_loss < edge.elnes_window[1])
    signal = np.nansum(product["intensity"].isel(energy_loss=np.flatnonzero(inside)).values, axis=2)
    signal[lost] = np.nan
    attrs = product.attrs
    low_loss = describe_companion(product)
    maps = {} if low_loss is None else {"t_over_lambda": product["t_over_lambda"].values}
    np.savez(
        directory / "evidence.npz",
        allow_pickle=False,
        energy_loss=product["mean_energy_loss"].values,
        mean_spectrum=product["mean_spectrum"].values,
        background=product["mean_background"].values,
        vacuum_mask=vacuum_mask,
        signal=signal.astype(np.float32),
        pixel_size=np.float64(attrs["pixel_size"]),
        reference_energy=np.float64(edge.reference_energy),
        **maps,
    )
    write_json(
        directory / "summary.json",
        {
            "source": attrs["source"],
            "sha256": attrs["sha256"],
            "pixels": int(vacuum_mask.size),
            "background_pixels": int(vacuum_mask.sum()),
            "lost_pixels": attrs["lost_pixels"],
            "pixel_size": float(attrs["pixel_size"]),
            "pixel_unit": attrs["pixel_unit"],
            "energy_offset": {
                "value": _finite(attrs["energy_offset"]),
                "error": _finite(attrs["energy_offset_error"]),
            },
            "spikes": {"channels": int(spike_channels.sum()), "pixels": int((spike_channels > 0).sum())},
            "low_loss": low_loss,
            "pca_rank": int(attrs["pca_rank"]) if int(attrs["pca_rank"]) > 0 else None,
            "warnings": json.loads(attrs["warnings"]),
        },
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def example_spectra(
    vectors: NDArray[np.float32],
    shifted: NDArray[np.float32],
    label: NDArray[np.str_],
    *,
    energy_loss: NDArray[np.float64],
    raw: NDArray[np.float32],
    raw_energy_loss: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``examples.npz``: class means, and one spectrum as it is, shifted and with noise.

    Parameters
    ----------
    vectors, shifted
        The same test spectra as vectors, as they are and shifted by `EXAMPLE_SHIFT_EV`; shape (n, channels).
    label
        Shape (n,).
    energy_loss
        Shape (channels,), eV.
    raw, raw_energy_loss
        The same spectra before normalisation, shape (n, wide channels), and their energies.
    """
    classes = np.unique(label)
    # The spectrum closest to the mean of the first class: typical, and chosen without looking at any result.
    first = np.flatnonzero(label == classes[0])
    distance = np.linalg.norm(vectors[first] - vectors[first].mean(axis=0), axis=1)
    chosen = first[np.argmin(distance)]
    noisy = add_gaussian_noise(vectors[chosen : chosen + 1], sigma=EXAMPLE_NOISE_SIGMA, rng=np.random.default_rng(530))
    return {
        "energy_loss": energy_loss,
        "classes": classes,
        "class_mean": np.stack([vectors[label == name].mean(axis=0) for name in classes]),
        "class_std": np.stack([vectors[label == name].std(axis=0) for name in classes]),
        "example": vectors[chosen],
        "example_class": label[chosen],
        "example_raw": raw[chosen],
        "example_raw_energy_loss": raw_energy_loss,
        "shifted": shifted[chosen],
        "shift_ev": np.float64(EXAMPLE_SHIFT_EV),
        "noisy": noisy[0],
        "noise_sigma": np.float64(EXAMPLE_NOISE_SIGMA),
    }
