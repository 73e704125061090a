"""A solution of ours as a machine of scikit-learn: it predicts, saves and reports what a fitted SVC does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.search.path import MAX_STEPS, TOLERANCE, ClassWeight, Solution, class_pairs, class_weights

if TYPE_CHECKING:
    from sklearn.svm import SVC


def build_machine(
    X: NDArray[np.floating[Any]],
    codes: NDArray[np.integer[Any]],
    solutions: Sequence[Solution],
    *,
    kernel: str,
    params: Mapping[str, float],
    class_weight: ClassWeight = "balanced",
) -> SVC:
    """Return a fitted SVC with the support vectors, weights and biases of our solutions.

    Parameters
    ----------
    X
        Training spectra, (n_spectra, n_channels), in the order of the solutions' weights.
    codes
        Their class numbers, (n_spectra,).
    solutions
        One a pair of classes, in the order of `class_pairs`, on the products of `save_products`.
    kernel, params
        As in scikit-learn's SVC.
    class_weight
        With which the solutions were found.

    Notes
    -----
    scikit-learn fits one spectrum of each class, which sets up every attribute that it keeps; then the result of that
    fit is replaced. The decision function has one column a pair ("ovo").
    """
    from sklearn.svm import SVC

    spectra = np.asarray(X, dtype=np.float64)
    n_classes = int(codes.max()) + 1
    machine = SVC(kernel=kernel, class_weight=class_weight, decision_function_shape="ovo", tol=TOLERANCE, **params)
    first = np.array([np.argmax(codes == number) for number in range(n_classes)])
    machine.fit(spectra[first], codes[first])

    used = np.any([solution.b != 0 for solution in solutions], axis=0)
    support = np.concatenate([np.flatnonzero(used & (codes == number)) for number in range(n_classes)])
    dual, intercept = np.zeros((n_classes - 1, len(support))), np.empty(len(solutions))
    of_class = codes[support]
    # The products had the mean spectrum subtracted, which moves the bias of a linear machine.
    center = spectra.mean(axis=0) if kernel == "linear" else None
    for column, ((one, other), solution) in enumerate(zip(class_pairs(n_classes), solutions, strict=True)):
        weights = solution.b[support]
        intercept[column] = solution.bias
        if center is not None:
            intercept[column] -= weights @ (spectra[support] @ center)
        if n_classes == 2:
            dual[0] = weights
        else:
            # libsvm keeps the weight of a vector against class j in row j, or j - 1 past its own class.
            dual[other - 1, of_class == one] = weights[of_class == one]
            dual[one, of_class == other] = weights[of_class == other]
    machine.support_ = support.astype(np.int32)
    machine.support_vectors_ = spectra[support]
    machine._n_support = np.bincount(of_class, minlength=n_classes).astype(np.int32)
    machine.dual_coef_, machine.intercept_ = dual, intercept
    sign = -1.0 if n_classes == 2 else 1.0  # inside, libsvm takes the first of two classes for the positive one
    machine._dual_coef_, machine._intercept_ = sign * dual, sign * intercept
    machine.class_weight_ = class_weights(codes, n_classes, class_weight)
    machine.shape_fit_ = spectra.shape
    machine.n_iter_ = machine._num_iter = np.array([solution.n_steps for solution in solutions], dtype=np.int32)
    machine.fit_status_ = int(any(solution.violation > TOLERANCE for solution in solutions))
    machine.max_iter = MAX_STEPS
    return machine
