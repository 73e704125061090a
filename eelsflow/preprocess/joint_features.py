"""Vectors of several edges side by side, each edge's part made as for that edge alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.edges import Edge
from eelsflow.energy import Axis, EnergyAxis, JointAxis, axis_of, stretches
from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.presets import Preset
from eelsflow.store import read_json, write_json

LARGEST_WEIGHT = 5.0
"""By how much the part of one edge may count more than that of another (our choice)."""

_SCHEMA = "eelsflow-joint-features/1"


class JointTransform(FeatureTransform):
    """Turn wide prepared spectra of several edges into vectors: crop, components and normalisation edge by edge.

    A part is multiplied by a weight, so that the noise of a channel is the same in all parts: a distance between two
    vectors, which is what a machine with a kernel sees, would be that of the noisiest edge otherwise.

    Attributes
    ----------
    parts
        The transforms of the edges, in order of energy.
    weights
        What the vectors of each are multiplied by.
    """

    axis: Axis  # type: ignore[assignment]
    channels: NDArray[np.intp]  # type: ignore[assignment]

    def __init__(
        self, *, edge: Edge, preset: Preset, parts: Sequence[FeatureTransform], weights: Sequence[float]
    ) -> None:
        self.edge, self.preset = edge, preset
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.axis = JointAxis(tuple(part.axis for part in parts))
        self.scale = 1.0
        self.pca = None
        self.padded = False
        self._where = [where for _, where in stretches(self.axis)]
        self.channels = self.index

    @classmethod
    def fit_parts(
        cls,
        wide: NDArray[np.float32],
        axis: JointAxis,
        *,
        edge: Edge,
        preset: Preset,
        variance: NDArray[np.float32] | None = None,
    ) -> Self:
        """Fit on training spectra; see `fit_transform`."""
        parts, noises = [], []
        for (piece, where), one in zip(stretches(axis), edge.alone, strict=True):
            spread = None if variance is None else np.broadcast_to(variance, wide.shape)[:, where]
            part = FeatureTransform.fit(wide[:, where], piece.values, edge=one, preset=preset, variance=spread)
            parts.append(part)
            noises.append(1.0 if spread is None else _noise_of(part, wide[:, where], spread))
        weights = 1.0 / np.array(noises)
        weights /= np.exp(np.log(weights).mean())
        weights = np.clip(weights, 1.0 / LARGEST_WEIGHT, LARGEST_WEIGHT)
        return cls(edge=edge, preset=preset, parts=parts, weights=[float(weight) for weight in weights])

    def apply(self, wide: NDArray[np.float32], shift_ev: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return the vectors of wide spectra; see `FeatureTransform.apply`."""
        wide = self._check(wide)
        vectors = [
            weight * part.apply(wide[:, where], shift_ev)
            for part, weight, where in zip(self.parts, self.weights, self._where, strict=True)
        ]
        self.padded = any(part.padded for part in self.parts)
        return np.concatenate(vectors, axis=1, dtype=np.float32)

    def before_components(
        self, wide: NDArray[np.float32], shift_ev: ArrayLike | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return vectors, and the same before components were taken; see `FeatureTransform.before_components`."""
        wide = self._check(wide)
        found = [part.before_components(wide[:, w], shift_ev) for part, w in zip(self.parts, self._where, strict=True)]
        vectors, before = (
            np.concatenate([w * one[which] for w, one in zip(self.weights, found, strict=True)], axis=1)
            for which in range(2)
        )
        return vectors.astype(np.float32), before.astype(np.float32)

    @property
    def component_map(self) -> NDArray[np.float64] | None:
        """What the components make of a change of each channel; those of one edge leave the others alone."""
        if all(part.pca is None for part in self.parts):
            return None
        whole = np.zeros((self.n_channels, self.n_channels))
        first = 0
        for part in self.parts:
            here = slice(first, first + part.n_channels)
            of_part = part.component_map
            whole[here, here] = np.eye(part.n_channels) if of_part is None else of_part
            first += part.n_channels
        return whole

    @property
    def energy_loss(self) -> NDArray[np.float64]:
        """Energies of the vectors' channels, shape (channels,), eV."""
        return np.concatenate([part.energy_loss for part in self.parts])

    @property
    def n_channels(self) -> int:
        """Length of a vector."""
        return sum(part.n_channels for part in self.parts)

    @property
    def index(self) -> NDArray[np.intp]:
        """Channel of the wide spectra that each channel of a vector is."""
        return np.concatenate([where.start + part.index for part, where in zip(self.parts, self._where, strict=True)])

    @property
    def reach(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First and last channel of the stretch of the axis that each channel of a vector lies in."""
        sizes = [part.n_channels for part in self.parts]
        return (
            np.repeat([where.start for where in self._where], sizes),
            np.repeat([where.stop - 1 for where in self._where], sizes),
        )

    def save(self, directory: Path) -> None:
        """Write a folder an edge, and ``joint.json``, into an existing directory."""
        for number, part in enumerate(self.parts):
            (directory / f"{number}").mkdir()
            part.save(directory / f"{number}")
        write_json(
            directory / "joint.json",
            {
                "schema": _SCHEMA,
                "edge": self.edge.model_dump(mode="json"),
                "preset": self.preset.model_dump(mode="json"),
                "weights": list(self.weights),
            },
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        UnreadableFileError
            If a file is missing or damaged.
        """
        try:
            values = read_json(directory / "joint.json")
            weights = [float(weight) for weight in values["weights"]]
            edge, preset = Edge.model_validate(values["edge"]), Preset.model_validate(values["preset"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnreadableFileError(
                f"{directory} holds no usable feature transform ({type(error).__name__}: {error}): train the model "
                "again"
            ) from error
        parts = [FeatureTransform.load(directory / f"{number}") for number in range(len(weights))]
        return cls(edge=edge, preset=preset, parts=parts, weights=weights)


def fit_transform(
    wide: NDArray[np.float32],
    energy_loss: ArrayLike,
    *,
    edge: Edge,
    preset: Preset,
    variance: NDArray[np.float32] | None = None,
) -> FeatureTransform:
    """Fit what turns wide spectra into vectors, of one edge or of several that are judged together.

    Parameters
    ----------
    wide, energy_loss, edge, preset, variance
        As in `FeatureTransform.fit`. Of several edges `energy_loss` has a stretch for each.

    Raises
    ------
    EdgeOutOfRangeError, InputError
        See `FeatureTransform.fit`; also where the axis has not as many stretches as there are edges.
    """
    axis = axis_of(energy_loss)
    if not edge.beside:
        return FeatureTransform.fit(wide, energy_loss, edge=edge, preset=preset, variance=variance)
    if isinstance(axis, EnergyAxis) or len(axis.pieces) != len(edge.alone):
        raise InputError(
            f"{edge.name} are {len(edge.alone)} edges and the spectra lie at {axis}; expected a stretch for each edge: "
            "prepare the acquisitions for these edges"
        )
    return JointTransform.fit_parts(np.asarray(wide), axis, edge=edge, preset=preset, variance=variance)


def load_transform(directory: Path) -> FeatureTransform:
    """Read a transform that was saved, of one edge or of several.

    Raises
    ------
    UnreadableFileError
        If a file is missing or damaged.
    """
    return JointTransform.load(directory) if (directory / "joint.json").exists() else FeatureTransform.load(directory)


def _noise_of(part: FeatureTransform, wide: NDArray[np.float32], variance: NDArray[np.float32]) -> float:
    """Return the noise of a channel of training vectors, root mean square, components left out."""
    some = np.random.default_rng(0).permutation(len(wide))[:2048]
    cropped = np.asarray(wide[some][:, part.index], dtype=np.float64)
    vectors = part.apply(wide[some])
    centred = cropped - cropped.mean(axis=1, keepdims=True)
    slope = (centred * vectors).sum(axis=1) / np.maximum((centred**2).sum(axis=1), 1e-30)
    noise = np.square(slope) * np.maximum(variance[some][:, part.index], 0.0).mean(axis=1)
    return float(np.sqrt(max(np.median(noise), 1e-12)))
