"""Fisher's linear discriminant with a confidence: what `mlls` is for single spectra.

Multiple linear least squares on references, weighted by the covariance of what spectra of one class differ by, is for a
single spectrum the same direction as the discriminant of Fisher (1936). For a whole field more is known, see
`eelsflow.unmixing.field`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import UnreadableFileError
from eelsflow.models.archives import dump_skops


@dataclass(frozen=True)
class Discriminant:
    """A fitted discriminant.

    Attributes
    ----------
    model
        scikit-learn's LinearDiscriminantAnalysis on class numbers, its covariance drawn to a diagonal by Ledoit and
        Wolf, the classes taken as equally frequent.
    """

    model: Any

    @classmethod
    def fit(cls, X: NDArray[np.floating[Any]], codes: NDArray[np.integer[Any]]) -> Self:
        """Fit on spectra (n, channels) and their class numbers (n,)."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        n_classes = int(codes.max()) + 1
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(n_classes, 1.0 / n_classes))
        return cls(model.fit(np.asarray(X, dtype=np.float64), codes))

    def predict_codes(self, X: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """Return class numbers, (n_spectra,)."""
        return np.asarray(self.predict_proba(X).argmax(axis=1), dtype=np.intp)

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return probabilities, (n_spectra, n_classes); each row sums to one."""
        if len(X) == 0:
            return np.empty((0, len(self.model.classes_)))
        return np.asarray(self.model.predict_proba(np.asarray(X, dtype=np.float64)))

    def save(self, path: Path) -> None:
        """Write a .skops file."""
        dump_skops({"discriminant": self.model}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a .skops file.

        Raises
        ------
        UnreadableFileError
            If it holds a type that a discriminant has no use for: it may run code of its own.
        """
        import skops.io

        unknown = skops.io.get_untrusted_types(file=path)
        if unknown:
            raise UnreadableFileError(f"{path} holds {', '.join(unknown)}, which no discriminant needs; do not load it")
        return cls(skops.io.load(path, trusted=[])["discriminant"])
