"""A model that can be applied to a file: how to prepare it, how to make vectors of it, and the classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.errors import EelsflowError, MissingDependencyError, UnusableModelError
from eelsflow.models.classifier import Classifier, load_classifier
from eelsflow.models.disturbance import Disturbance
from eelsflow.models.registration import Registration
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.joint_features import load_transform
from eelsflow.preprocess.presets import Preset, resolve_preset
from eelsflow.store import read_json, write_json
from eelsflow.unmixing.references import References

SCHEMA = "eelsflow-model/2"

LEAST_WEIGHT = 1e-3
"""Of a place on the axis, for a classifier to be asked about it."""

KEYS: dict[str, type] = {"schema": str, "name": str, "edge": dict, "preset": dict, "classes": list, "provenance": dict}
"""What ``model.json`` holds."""


@dataclass(frozen=True)
class ModelBundle:
    """Everything between a raw acquisition and a class.

    Attributes
    ----------
    name
        What the model is called in tables and maps.
    edge, preset
        How an acquisition is prepared for it.
    transform
        From prepared wide spectra to vectors; fitted on the training part.
    classifier
        From vectors to classes and probabilities.
    references
        The classes' shapes in the training part, from which fractions and unknown spectra are judged.
    provenance
        Where it comes from: study, digests, parameters.
    registration
        Where on the axis spectra lie, for a model that looks for it; None for one that takes the axis as it is.
    means
        Mean spectrum of each class in the training set, scaled as vectors are but before principal components, shape
        (classes, channels of a vector), in the order of `classes`; None where it was not kept.
    """

    name: str
    edge: Edge
    preset: Preset
    transform: FeatureTransform
    classifier: Classifier
    references: References
    provenance: dict[str, Any] = field(default_factory=dict)
    registration: Registration | None = None
    means: NDArray[np.float32] | None = None

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of the probabilities' columns."""
        return list(self.classifier.classes_)

    @property
    def maps_by_fraction(self) -> bool:
        """Whether a map's classes follow from the fractions of its pixels, and not from each spectrum alone."""
        return self.classifier.base == "mlls"

    @property
    def acquisition_preset(self) -> Preset:
        """How a raw acquisition is prepared: the model's own steps, or `recommended` for a model of a ready table."""
        if self.preset.acquisition_steps:
            return self.preset.for_acquisition
        return resolve_preset("recommended").for_acquisition

    def predict(
        self, wide: NDArray[np.float32], *, group: NDArray[np.str_] | None = None
    ) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
        """Return classes (n,) and probabilities (n, classes) of prepared wide spectra (n, channels).

        `group` names what was recorded together, (n,), which a model that looks for its spectra on the axis makes use
        of; None: nothing is known of it.
        """
        if self.registration is not None:
            return self._sum_over_places(wide, Disturbance(), group)
        vectors = self.transform.apply(wide)
        return np.asarray(self.classifier.predict(vectors)), np.asarray(self.classifier.predict_proba(vectors))

    def predict_disturbed(
        self, wide: NDArray[np.float32], disturbance: Disturbance, *, group: NDArray[np.str_] | None = None
    ) -> NDArray[np.str_]:
        """Return the classes (n,) of prepared wide spectra that a disturbance is done to; see `predict`."""
        if self.registration is None:
            return self.classifier.predict(disturbance.vectors(self.transform, wide))
        return self._sum_over_places(wide, disturbance, group)[0]

    def _sum_over_places(
        self, wide: NDArray[np.float32], disturbance: Disturbance, group: NDArray[np.str_] | None
    ) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
        assert self.registration is not None
        place, weight = self.registration.locate(disturbance.spectra(self.transform, wide), group)
        probability = np.zeros((len(wide), len(self.classes)))
        decided = np.empty(len(wide), dtype=object)
        for column in range(place.shape[1]):
            rows = np.flatnonzero(weight[:, column] > LEAST_WEIGHT)
            if rows.size:
                vectors = disturbance.of(rows).vectors(self.transform, wide[rows], place=place[rows, column])
                probability[rows] += weight[rows, column, None] * self.classifier.predict_proba(vectors)
                if place.shape[1] == 1:
                    decided[rows] = self.classifier.predict(vectors)
        probability /= probability.sum(axis=1, keepdims=True)
        if place.shape[1] > 1:
            decided = np.asarray(self.classes)[probability.argmax(axis=1)]
        return decided.astype(np.str_), probability

    def save(self, directory: Path) -> None:
        """Write the bundle into an existing directory: JSON, npz, skops or Keras; no pickles."""
        for part, save in (("transform", self.transform.save), ("classifier", self.classifier.save)):
            (directory / part).mkdir()
            save(directory / part)
        self.references.save(directory / "references.npz")
        if self.registration is not None:
            self.registration.save(directory / "registration.npz")
        if self.means is not None:
            np.save(directory / "means.npy", self.means, allow_pickle=False)
        write_json(
            directory / "model.json",
            {
                "schema": SCHEMA,
                "name": self.name,
                "edge": self.edge.model_dump(mode="json"),
                "preset": self.preset.model_dump(mode="json"),
                "classes": self.classes,
                "provenance": self.provenance,
            },
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a bundle, and check that its parts belong together.

        Raises
        ------
        UnusableModelError
            If the directory holds no model, or one that is damaged.
        MissingDependencyError
            If it is a network and TensorFlow is not installed.
        """
        description = read_description(directory)
        aligned, means = directory / "registration.npz", directory / "means.npy"
        try:
            bundle = cls(
                name=description["name"],
                edge=Edge.model_validate(description["edge"]),
                preset=Preset.model_validate(description["preset"]),
                transform=load_transform(directory / "transform"),
                classifier=load_classifier(directory / "classifier"),
                references=References.load(directory / "references.npz"),
                provenance=description["provenance"],
                registration=Registration.load(aligned) if aligned.exists() else None,
                means=np.load(means, allow_pickle=False) if means.exists() else None,
            )
        except (MissingDependencyError, MemoryError, SystemError):  # the last as in `FeatureTransform.load`
            raise
        except EelsflowError as error:  # of a part: it says itself what to do
            raise UnusableModelError(f"the model in {directory} is damaged: {error}") from error
        except Exception as error:  # the readers of zip, skops, keras and npz each raise their own
            raise UnusableModelError(
                f"the model in {directory} is damaged ({type(error).__name__}: {' '.join(str(error).split())}); "
                "train or copy it again"
            ) from error
        if bundle.transform.n_channels != bundle.classifier.n_features_in_:
            raise UnusableModelError(
                f"the model in {directory} is damaged: its transform makes vectors of {bundle.transform.n_channels} "
                f"channels and its classifier was trained on {bundle.classifier.n_features_in_}, so they are not of "
                "one model; train or copy it again"
            )
        return bundle


def describe_model(directory: Path, *, name: str, **about: Any) -> None:
    """Call a saved model by another name, and add to what is said of where it comes from.

    Equal models of two names share one entry of the store.
    """
    description = read_description(directory)
    provenance = {**description["provenance"], **about}
    write_json(directory / "model.json", {**description, "name": name, "provenance": provenance})


def read_description(directory: Path) -> dict[str, Any]:
    """Read what a bundle says of itself, without loading the model.

    Raises
    ------
    UnusableModelError
        If the directory holds no model, one of another version of eelsflow, or one whose description is damaged.
    """
    path = directory / "model.json"
    try:
        description = read_json(path)
    except (OSError, ValueError) as error:
        raise UnusableModelError(
            f"{directory} holds no model ({error}); name the model folder of a study's results, or a saved model"
        ) from error
    if not isinstance(description, dict):
        raise _damaged(path, f"it holds {type(description).__name__}, expected keys and values")
    if description.get("schema") != SCHEMA:
        raise UnusableModelError(
            f"{path} has the schema {description.get('schema')!r}, expected {SCHEMA!r}; "
            "it was written by another version of eelsflow: train the model again"
        )
    missing = [name for name in KEYS if name not in description]
    if missing:
        raise _damaged(path, f"it lacks {', '.join(missing)}")
    for name, kind in KEYS.items():
        if not isinstance(description[name], kind):
            raise _damaged(path, f"{name} is {type(description[name]).__name__}, expected {kind.__name__}")
    try:
        Edge.model_validate(description["edge"])
    except ValueError as error:
        raise _damaged(path, f"its edge is not one: {' '.join(str(error).split())}") from error
    return description


def _damaged(path: Path, reason: str) -> UnusableModelError:
    return UnusableModelError(f"the model in {path.parent} is damaged: {path}: {reason}; train or copy it again")
