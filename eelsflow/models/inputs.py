"""What a learner is given of a vector: the spectrum itself, or features made of it. Fitted on the training spectra."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.edges import Edge
from eelsflow.errors import DataSetError, UnreadableFileError
from eelsflow.models.convolutions import Convolutions
from eelsflow.models.spec import Features

N_CONVOLUTIONS = 1008
"""Random convolution features: twelve for each of the 84 kernels."""

PEAK_EV = 1.5
"""Half the width over which the height of a peak is averaged, for its ratio to another."""

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Inputs:
    """From vectors to what a learner sees.

    Attributes
    ----------
    kind
        ``unit``: vectors of length one, so that a linear machine has the cosine kernel. ``cumulative``: their running
        sum over the sum of all. ``ratio``: the height of the edge's first feature over that of its second.
        ``convolutions``: see `eelsflow.models.convolutions`.
    scale
        What features are multiplied by: their median length is that of the training vectors, so that a grid of
        parameters means the same.
    peaks
        Channels of the two features of the edge, for ``ratio``: first and past the last of either, (2, 2).
    convolutions
        For ``convolutions``.
    """

    kind: Features
    scale: float
    peaks: NDArray[np.int64] | None = None
    convolutions: Convolutions | None = None

    @classmethod
    def fit(cls, kind: Features, X: NDArray[np.floating[Any]], *, peaks: NDArray[np.int64] | None, seed: int) -> Self:
        """Fit on training vectors, (n, n_channels).

        Raises
        ------
        DataSetError
            If the edge has no two features on the axis, and their ratio is wanted.
        """
        if kind == "ratio" and peaks is None:
            raise DataSetError(
                "the ratio of two peaks needs an edge with two `features` inside its elnes_window; name them in the "
                "study file, or leave this model out"
            )
        convolutions = Convolutions.fit(X, n_features=N_CONVOLUTIONS, seed=seed) if kind == "convolutions" else None
        plain = cls(kind, 1.0, peaks if kind == "ratio" else None, convolutions)
        if kind == "ratio":
            return plain
        some = X[np.random.default_rng([seed, 0x1F]).permutation(len(X))[:_ROWS_AT_ONCE]]
        length, own = (float(np.median(np.linalg.norm(rows, axis=1))) for rows in (some, plain.apply(some)))
        return cls(kind, length / own if own > 0 else 1.0, plain.peaks, convolutions)

    def apply(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return features, (n, n_features), of vectors (n, n_channels)."""
        spectra = np.asarray(X, dtype=np.float32)
        found: NDArray[np.floating[Any]]
        match self.kind:
            case "unit":
                length = np.linalg.norm(spectra, axis=1, keepdims=True)
                found = spectra / np.where(length > 0, length, 1.0)
            case "cumulative":
                total = np.cumsum(spectra, axis=1, dtype=np.float64)
                last = total[:, -1:]
                found = total / np.where(np.abs(last) > 0, last, 1.0)
            case "ratio":
                assert self.peaks is not None
                one, other = (spectra[:, first:last].mean(axis=1, dtype=np.float64) for first, last in self.peaks)
                found = np.clip(one / np.where(np.abs(other) > 0, other, 1.0), -100.0, 100.0)[:, None]
            case "convolutions":
                assert self.convolutions is not None
                found = self.convolutions.apply(spectra)
        return np.asarray(found * self.scale, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write an npz file."""
        arrays: dict[str, Any] = {"kind": np.array(self.kind), "scale": np.array(self.scale)}
        if self.peaks is not None:
            arrays["peaks"] = self.peaks
        if self.convolutions is not None:
            arrays |= {name: getattr(self.convolutions, name) for name in Convolutions.__dataclass_fields__}
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        UnreadableFileError
            If the file is missing or damaged.
        """
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                convolutions = None
                if "threshold" in stored.files:
                    convolutions = Convolutions(**{name: stored[name] for name in Convolutions.__dataclass_fields__})
                peaks = stored["peaks"] if "peaks" in stored.files else None
                return cls(str(stored["kind"]), float(stored["scale"]), peaks, convolutions)  # type: ignore[arg-type]
        except SystemError:  # of Python 3.11, where threads read numpy's headers at once: no fault of the file
            raise
        except Exception as error:  # zipfile.BadZipFile, KeyError and OSError share no base class
            raise UnreadableFileError(f"{path} holds no usable features: {error}; train the model again") from error


def peak_channels(edge: Edge, energy_loss: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Return the channels of the first two features of an edge, (2, 2); None where the axis does not show two."""
    found = []
    for feature in edge.features[:2]:
        place = edge.reference_energy + feature.position
        channels = np.flatnonzero(np.abs(energy_loss - place) <= PEAK_EV)
        if channels.size:
            found.append((channels[0], channels[-1] + 1))
    return np.array(found, dtype=np.int64) if len(found) == 2 else None
