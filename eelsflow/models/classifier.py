"""One interface over all models: classes, predictions, probabilities, saving, and loading that checks itself."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.models.discriminant import Discriminant
from eelsflow.models.estimators import PREFIX, Estimator
from eelsflow.models.inputs import Inputs
from eelsflow.models.networks import Network
from eelsflow.models.spec import ENSEMBLE
from eelsflow.models.svm import Svm
from eelsflow.store import make_directory, read_json, write_json

SCHEMA = "eelsflow-classifier/1"

Model: TypeAlias = "Svm | Network | Discriminant | Estimator | Ensemble"
_INPUTS = "inputs.npz"

PROBABILITY_TOLERANCE = 1e-4
"""Single-precision networks on another processor differ by some 1e-6; wrong weights differ by far more."""


@dataclass(frozen=True)
class Classifier:
    """A trained model.

    Attributes
    ----------
    base
        One of `eelsflow.models.spec.BASES`.
    params
        The parameters it was trained with.
    classes_
        Names, in the order of the columns of the probabilities.
    n_features_in_
        Channels of a spectrum.
    model
        What decides.
    reference
        A few training spectra, (n, n_channels); saved with their predictions, so that loading can check itself.
    inputs
        From spectra to what the model sees; None where it sees the spectra.
    """

    base: str
    params: dict[str, Any]
    classes_: list[str]
    n_features_in_: int
    model: Model
    reference: NDArray[np.float32]
    inputs: Inputs | None = None

    def predict(self, X: ArrayLike) -> NDArray[np.str_]:
        """Return class names, (n_spectra,).

        Parameters
        ----------
        X
            Spectra, (n_spectra, n_channels), prepared as the training spectra were. Not modified.

        Raises
        ------
        InputError
            If the spectra have another number of channels, or a value that is not finite.

        Notes
        -----
        A network takes the most probable class. A support vector machine takes its own decision; see
        `eelsflow.models.svm.Svm` for the rare spectra where the two differ.
        """
        spectra = self._check(X)
        match self.model:
            case Network():
                codes = self.model.predict_proba(spectra).argmax(axis=1)
            case _:
                codes = self.model.predict_codes(spectra)
        classes: NDArray[np.str_] = np.asarray(self.classes_)
        return np.asarray(classes[codes])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return probabilities, (n_spectra, n_classes); each row sums to one.

        Parameters and errors are those of `predict`.
        """
        return self.model.predict_proba(self._check(X))

    def _check(self, X: ArrayLike) -> NDArray[np.floating[Any]]:
        spectra = np.asarray(X)
        if spectra.ndim != 2 or spectra.shape[1] != self.n_features_in_:
            raise InputError(
                f"spectra have the shape {spectra.shape}; this model was trained on {self.n_features_in_} channels and "
                f"expects (n_spectra, {self.n_features_in_}): prepare them with the edge and preset of the model"
            )
        if not np.isfinite(spectra).all():
            raise InputError(
                "spectra hold values that are not finite (NaN or infinity); no class can be told from them: "
                "interpolate or leave out these channels first"
            )
        return spectra if self.inputs is None else self.inputs.apply(spectra)

    def save(self, directory: Path) -> None:
        """Write the classifier into a directory: JSON, npz, and .skops or .keras; nothing that can run code.

        Raises
        ------
        OutputPathError
            If the directory cannot be written to.
        """
        make_directory(directory)
        self.model.save(directory / _file_name(self.base))
        if self.inputs is not None:
            self.inputs.save(directory / _INPUTS)
        np.savez(
            directory / "reference.npz",
            allow_pickle=False,
            spectra=self.reference,
            label=self.predict(self.reference),
            probability=self.predict_proba(self.reference),
        )
        write_json(
            directory / "classifier.json",
            {
                "schema": SCHEMA,
                "base": self.base,
                "params": self.params,
                "classes": self.classes_,
                "n_channels": self.n_features_in_,
            },
        )


@dataclass(frozen=True)
class Ensemble:
    """Several classifiers of the same spectra, whose probabilities are averaged."""

    members: list[Classifier]

    def predict_codes(self, X: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """Return class numbers, (n_spectra,)."""
        return np.asarray(self.predict_proba(X).argmax(axis=1), dtype=np.intp)

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return probabilities, (n_spectra, n_classes); each row sums to one."""
        return np.asarray(np.mean([member.predict_proba(X) for member in self.members], axis=0))

    def save(self, path: Path) -> None:
        """Write a directory of classifiers."""
        for number, member in enumerate(self.members):
            member.save(path / str(number))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        if not (path / "0").is_dir():
            raise FileNotFoundError(f"{path} holds no members")
        return cls([load_classifier(member) for member in sorted(path.iterdir(), key=lambda member: int(member.name))])


def load_classifier(directory: Path) -> Classifier:
    """Read a classifier and check that it predicts what it predicted when it was saved.

    Raises
    ------
    UnreadableFileError
        If files are missing or damaged, hold foreign types, or the predictions differ.
    MissingDependencyError
        If it is a network and TensorFlow is not installed.
    """
    try:
        described = read_json(directory / "classifier.json")
        if described.get("schema") != SCHEMA:
            raise UnreadableFileError(f"its schema is {described.get('schema')!r}, expected {SCHEMA!r}")
        # opened here because numpy forgets to close a damaged archive that it opened itself
        with (directory / "reference.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            reference, label, probability = stored["spectra"], stored["label"], stored["probability"]
        path = directory / _file_name(described["base"])
        classifier = Classifier(
            base=described["base"],
            params=described["params"],
            classes_=described["classes"],
            n_features_in_=described["n_channels"],
            model=_KINDS[_kind(described["base"])].load(path),
            reference=reference,
            inputs=Inputs.load(directory / _INPUTS) if (directory / _INPUTS).exists() else None,
        )
    # The readers of .skops, .keras and .npz raise whatever a damaged archive makes them raise.
    except (OSError, LookupError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UnreadableFileError(f"{directory} holds no usable classifier: {error}; train or copy it again") from error
    found = classifier.predict_proba(reference)
    if not np.array_equal(classifier.predict(reference), label) or not np.allclose(
        found, probability, rtol=0, atol=PROBABILITY_TOLERANCE
    ):
        raise UnreadableFileError(
            f"the classifier in {directory} predicts {np.abs(found - probability).max():.2g} off what it predicted "
            "when it was saved; a file or a library changed since, and its maps could be wrong: train it again"
        )
    return classifier


_KINDS: dict[str, type[Model]] = {
    "svm": Svm,
    "mlls": Discriminant,
    "network": Network,
    "sklearn": Estimator,
    "ensemble": Ensemble,
}


def _kind(base: str) -> str:
    if base in ("mlls", ENSEMBLE):
        return base
    if base.startswith(PREFIX):
        return "sklearn"
    return "svm" if base.startswith("svm-") else "network"


def _file_name(base: str) -> str:
    return {"network": "model.keras", ENSEMBLE: "members"}.get(_kind(base), "model.skops")
