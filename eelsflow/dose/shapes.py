"""The shapes of the model's classes in the acquisition that is planned from, as far as it tells them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eelsflow.dataset.labels import UNLABELLED
from eelsflow.dose.pilot import FEWEST_PIXELS, Pilot, expected_counts, predict_spectra, prepare_again
from eelsflow.dose.recording import record
from eelsflow.errors import InputError
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.shapes import band_edges
from eelsflow.preprocess.transform import product_axis
from eelsflow.unmixing.field import COMMON, unmix
from eelsflow.unmixing.references import mean_shape
from eelsflow.unmixing.structure import STRUCTURED

Floats = NDArray[np.float64]

_N_NOISE = 2048  # spectra that the covariance of the noise is learnt from
_LEAST_POSTERIOR = 1e-6  # keeps the covariance of shapes that are known from being singular


@dataclass(frozen=True)
class Reading:
    """What the acquisition may hold, and the shapes that its classes have then.

    With G groups of pixels whose mean shapes were measured, K classes and the composition F (G, K) of the groups, the
    classes' shapes are normal about the references' with the covariance C (K, K) over the classes times the spread over
    the bands, C = COMMON + (1 - COMMON) 1, before the groups are looked at.
    """

    weight: float
    group: NDArray[np.intp]  # (pixels,), -1 where a pixel takes no part
    measured: Floats  # (groups, bands)
    measured_variance: Floats  # (groups,), relative
    mean: Floats  # (classes, bands)
    gain: Floats  # (classes, groups): what a class follows of what is measured
    left: Floats  # (classes, classes): of the spread, what is still open
    own: NDArray[np.intp]  # (classes,): the group that a class's pixels are taken from, -1 for all

    @classmethod
    def of(
        cls, weight: float, group: NDArray[np.intp], composition: Floats, pilot: Pilot, references: Floats
    ) -> Reading:
        """Learn the classes' shapes from those of the groups, shape (groups, classes) the composition."""
        n_classes = len(references)
        shapes = pilot.single[pilot.telling]
        means = [mean_shape(shapes[group == number]) for number in range(len(composition))]
        measured = np.concatenate([one.values for one in means])
        common = COMMON + (1.0 - COMMON) * np.eye(n_classes)
        seen = composition @ common @ composition.T + _LEAST_POSTERIOR * np.eye(len(composition))
        gain = np.asarray(np.linalg.solve(seen, composition @ common).T, dtype=np.float64)
        mean = references + gain @ (measured - composition @ references)
        own = np.full(n_classes, -1, dtype=np.intp)
        for number, share in enumerate(composition):
            if len(composition) > 1:
                own[share.argmax()] = number
        return cls(
            weight, group, measured, np.concatenate([one.relative_variance for one in means]),
            mean, gain, np.asarray(common - gain @ composition @ common), own,
        )  # fmt: skip

    def draw(self, n_pairs: int, spread: Floats, noise: Floats, rng: np.random.Generator) -> Floats:
        """Draw the classes' shapes in acquisitions such as this one, (2 pairs, classes, bands), mean `self.mean`."""
        open_part = _root(self.left) @ rng.standard_normal((n_pairs, *self.mean.shape)) @ _root(spread).T
        error = rng.standard_normal((n_pairs, len(self.measured), self.mean.shape[1])) @ _root(noise).T
        part = open_part + self.gain @ (error * np.sqrt(self.measured_variance)[:, None])
        return np.asarray(self.mean + np.concatenate([part, -part]))


@dataclass(frozen=True)
class ClassShapes:
    """All readings of the acquisition, and what the bands vary by."""

    readings: list[Reading]
    composition: Floats  # (classes,)
    spread: Floats  # (bands, bands), between acquisitions
    noise: Floats  # (bands, bands), for a relative variance of 1
    within: Floats  # (bands, bands), between the pixels of one class


def class_shapes(
    pilot: Pilot, bundle: ModelBundle, labels: NDArray[np.str_] | None
) -> tuple[ClassShapes, float | None]:
    """Return the shapes of the classes, and the share of labelled pixels that the model names rightly."""
    references = bundle.references
    order = [references.classes.index(name) for name in bundle.classes]
    means, n_classes = references.mean[order], len(order)
    everywhere = np.ones(pilot.telling.shape)
    unmixed = unmix(pilot.single, pilot.single, everywhere, pilot.telling, references)
    if labels is not None:
        group, held = _labelled_groups(labels, pilot, bundle.classes)
        reading = Reading.of(1.0, group, np.eye(n_classes)[held], pilot, means)
        composition = np.bincount(np.array(held)[group[group >= 0]], minlength=n_classes) / (group >= 0).sum()
        shapes = ClassShapes([reading], composition, references.spread, *_recorded_shapes(pilot, group))
        return shapes, _share_right(pilot, bundle, labels, [bundle.classes[k] for k in held])
    fraction = unmixed.fraction[pilot.telling][:, order]
    composition = fraction.mean(axis=0)
    if unmixed.correlation >= STRUCTURED:
        nearest = fraction.argmax(axis=1)
        held = [k for k in range(n_classes) if np.count_nonzero(nearest == k) >= FEWEST_PIXELS]
        group = np.full(len(nearest), -1, dtype=np.intp)
        for number, k in enumerate(held):
            group[nearest == k] = number
        of_groups = np.array([fraction[group == number].mean(axis=0) for number in range(len(held))])
        readings = [Reading.of(1.0, group, of_groups, pilot, means)]
    else:
        probability = unmixed.probability[pilot.telling][0, order]
        group = np.zeros(len(fraction), dtype=np.intp)
        readings = [
            Reading.of(float(share), group, np.eye(n_classes)[[k]], pilot, means) for k, share in enumerate(probability)
        ]
    return ClassShapes(readings, composition, references.spread, *_recorded_shapes(pilot, group)), None


def _recorded_shapes(pilot: Pilot, group: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Return the covariance of a shape's noise for a relative variance of 1, and of pixels' shapes without noise.

    Of pixels that are recorded anew, since what neighbours differ by holds boundaries too, the more the higher the
    dose. The latter is within the groups: thickness and film change a shape. Both have the shape (bands, bands).
    """
    taking_part = np.flatnonzero(group >= 0)
    rows = taking_part[np.arange(max(_N_NOISE, taking_part.size)) % taking_part.size]
    expected = expected_counts(pilot, group)[rows]
    counts = record(expected, pilot.fitted.noise, np.random.default_rng(0))
    (mean, _), (intensity, variance) = (prepare_again(part, pilot.fitted) for part in (expected, counts))
    axis, edge = product_axis(pilot.fitted), pilot.fitted.whole_edge
    shapes, deviations, relative = [], [], []
    for one in edge.alone:
        starts = band_edges(axis, one)
        window = slice(starts[0], starts[-1])
        bands, deviation = (
            np.add.reduceat(part[:, window], starts[:-1] - starts[0], axis=1, dtype=np.float64)
            for part in (mean, intensity - mean)
        )
        total = bands.sum(axis=1, keepdims=True)
        shapes.append(bands / total / len(edge.alone))
        # linear: a ratio of few counts has no variance
        deviations.append(
            (deviation / total - bands / total**2 * deviation.sum(axis=1, keepdims=True)) / len(edge.alone)
        )
        relative.append(variance[:, window].sum(axis=1, dtype=np.float64) / total[:, 0] ** 2)
    shape = np.concatenate(shapes, axis=1)
    deviation = np.concatenate(deviations, axis=1) / np.sqrt(np.mean(relative, axis=0))[:, None]
    for number in range(group.max() + 1):
        members = group[rows] == number
        shape[members] -= shape[members].mean(axis=0)
    return np.asarray(deviation.T @ deviation / len(deviation)), np.asarray(shape.T @ shape / len(shape))


def _labelled_groups(
    labels: NDArray[np.str_], pilot: Pilot, classes: Sequence[str]
) -> tuple[NDArray[np.intp], list[int]]:
    """Return the number of each pixel's group, and the class of each group."""
    if labels.shape != pilot.telling.shape:
        raise InputError(
            f"the labels have the shape {labels.shape} and the image {pilot.telling.shape}; they must be of the same "
            "scan"
        )
    own = labels[pilot.telling]
    held = [k for k, name in enumerate(classes) if np.count_nonzero(own == name) >= FEWEST_PIXELS]
    if not held:
        found = sorted(set(own.tolist()) - {UNLABELLED})
        raise InputError(
            f"no class of the model ({', '.join(classes)}) has {FEWEST_PIXELS} labelled pixels that show an edge; the "
            f"labels are {', '.join(found) or 'empty'}: leave them out, or name a model of these classes"
        )
    group = np.full(own.size, -1, dtype=np.intp)
    for number, k in enumerate(held):
        group[own == classes[k]] = number
    return group, held


def _share_right(pilot: Pilot, bundle: ModelBundle, labels: NDArray[np.str_], classes: Sequence[str]) -> float:
    """Return the share of labelled pixels that the model names rightly, mean over the classes."""
    predicted = predict_spectra(pilot.intensity[pilot.telling], product_axis(pilot.fitted), bundle, None)
    own = labels[pilot.telling]
    return float(np.mean([(predicted[own == name] == name).mean() for name in classes]))


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
