"""Grid searches of support vector machines beside scikit-learn's: equal answers first, then seconds.

    python -m benchmarks.search [--quick] [--only linear] [--every 2] [--peer-folds 1] [--repetitions 1]

Both sides have two threads. Ours searches all ten folds; scikit-learn searches all cells on one of them, in two
processes, and its seconds are multiplied by ten. Each repetition takes another fold, so that three are compared (of
the sigmoid grid two: each takes eight minutes).
Wherever the accuracies of a cell differ by more than .004 the compared folds are fitted again by scikit-learn at a
tolerance of 1e-6, which decides; where that cannot decide, the row says how often and why.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from benchmarks.data import ACCURACY, MEASURED_SEED, TUNING_SEED, training_table
from benchmarks.measure import REPETITIONS, THREADS, Row, print_rows, ratio, take_turns
from eelsflow.executors import ThreadExecutor
from eelsflow.search.estimator import fit_machine
from eelsflow.search.gram import squared_distances
from eelsflow.search.grid import best_cell, search_grid

N_TRAIN, N_TEST, N_FOLDS, PEER_FOLDS = 7599, 1000, 10, 1
N_QUICK, QUICK_FOLDS = 500, 3
MAX_DIFFERENCE = 0.004
MIN_AGREEMENT = 0.999

GRIDS: dict[str, dict[str, list[float]]] = {
    "rbf": {"C": np.logspace(1, 5, 8).tolist(), "gamma": np.logspace(-3, 2, 11).tolist()},
    "rbf paper": {"C": np.logspace(-3, 5, 8).tolist(), "gamma": np.logspace(-6, 4, 11).tolist()},
    "rbf noisy": {"C": np.logspace(-3, 5, 8).tolist(), "gamma": np.logspace(-6, 4, 11).tolist()},
    "sigmoid": {
        "C": np.logspace(-3, 5, 8).tolist(),
        "gamma": np.logspace(-6, 1, 8).tolist(),
        "coef0": [0.0, 0.1, 1.0],
    },
}
TARGETS = {"rbf": 50.0, "rbf paper": 40.0, "rbf noisy": 20.0, "sigmoid": 20.0}
NOISY = "rbf noisy"
"""The row on spectra that were not denoised (preset `paper-raw`): thousands of support vectors, most of them free."""

ROUNDS = {"sigmoid": 2, NOISY: 2}
"""Repetitions, where one fold takes scikit-learn's two processes eight minutes."""

PEER_STEPS = 10_000_000
"""Of scikit-learn for a sigmoid machine: libsvm's own limit, which scikit-learn takes away. Without it the row
had not ended after half an hour, one of the two processes still busy."""

REFEREE_STEPS = {"sigmoid": 1_000_000}
"""Of scikit-learn at a tolerance of 1e-6, half a minute for a sigmoid; for other kernels five million."""

QUICK: dict[str, dict[str, list[float]]] = {
    "rbf": {"C": [1.0, 100.0, 1e4], "gamma": [0.01, 0.3, 10.0]},
    "sigmoid": {"C": [1.0, 100.0], "gamma": [1e-3, 1e-2], "coef0": [0.0, 0.1]},
    "linear grid": {"C": [0.01, 1.0, 100.0]},
}

Table = tuple[NDArray[np.float64], NDArray[np.int32]]
Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def rows(
    quick: bool,
    only: str = "",
    *,
    every: int = 1,
    peer_folds: int = PEER_FOLDS,
    repetitions: int = REPETITIONS,
    seed: int = MEASURED_SEED,
) -> Iterator[Row]:
    """Measure row by row; `every` thins the grids for a shorter run, another `seed` is for tuning."""

    def tables(preset: str) -> tuple[Table, Table, Folds]:
        X, y = quick_table() if quick else training_table(N_TRAIN + N_TEST, seed, preset=preset)
        n_train = N_QUICK if quick else N_TRAIN
        train, test = (X[:n_train].astype(float), y[:n_train]), (X[n_train:].astype(float), y[n_train:])
        return train, test, list(StratifiedKFold(QUICK_FOLDS if quick else N_FOLDS).split(*train))

    with threadpool_limits(1):
        compile_solver()
        for name, grid in (QUICK if quick else GRIDS).items():
            if only in ("", name):
                train, test, folds = tables("paper-raw" if name == NOISY else "paper")
                thinned = {parameter: values[::every] for parameter, values in grid.items()}
                starts = range(0, min(repetitions, ROUNDS.get(name, repetitions)) * peer_folds, peer_folds)
                rounds = [folds[:2]] if quick else [folds[first : first + peer_folds] for first in starts]
                yield compare_grid(name, thinned, train, test, folds, rounds=rounds, quick=quick)
        train, test, folds = tables("paper")
        if only in ("", "linear"):
            yield compare_linear(train, quick=quick, centred=False)
            yield compare_linear(train, quick=quick, centred=True)
        if only in ("", "intelex") and not quick:
            yield from compare_intelex(train, test, folds)


def quick_table() -> Table:
    """Two overlapping classes of peaks: no acquisition has to be simulated to check that answers are equal."""
    random = np.random.default_rng(MEASURED_SEED)
    y = (np.arange(N_QUICK + 200) % 2).astype(np.int32)
    position = 20.0 + 3.0 * y + random.normal(0, 1.5, len(y))
    peaks = np.exp(-0.5 * ((np.arange(60) - position[:, np.newaxis]) / 5) ** 2)
    return peaks + random.normal(0, 0.1, peaks.shape), y


def compile_solver() -> None:
    """Compile before any clock runs; an installation does it once."""
    X, y = quick_table()
    ours(X[:60], y[:60], "rbf", {"C": [1.0, 1e4], "gamma": [1.0]}, list(StratifiedKFold(3).split(X[:60], y[:60])))


def ours(X: NDArray[Any], y: NDArray[Any], kernel: str, grid: dict[str, list[float]], folds: Folds) -> xr.Dataset:
    """Search a grid with two threads; the distances are computed and written anew."""
    with tempfile.TemporaryDirectory() as scratch:
        return search_grid(
            X, y, kernel=kernel, grid=grid, folds=folds, executor=ThreadExecutor(THREADS), scratch=Path(scratch)
        )


def theirs(
    X: NDArray[Any], y: NDArray[Any], kernel: str, grid: dict[str, list[float]], folds: Folds
) -> dict[str, NDArray[Any]]:
    """Search the same cells on the given folds with scikit-learn in two processes."""
    limit = PEER_STEPS if kernel == "sigmoid" else -1
    machine = SVC(kernel=kernel, class_weight="balanced", cache_size=2000, max_iter=limit)
    return GridSearchCV(machine, grid, cv=folds, n_jobs=THREADS, refit=False).fit(X, y).cv_results_


def compare_grid(
    name: str,
    grid: dict[str, list[float]],
    train: Table,
    test: Table,
    folds: Folds,
    *,
    rounds: list[Folds],
    quick: bool,
) -> Row:
    """Search all folds with ours and those of one round with scikit-learn, round after round."""
    kernel, is_noisy = name.split()[0], name == NOISY
    scale = len(folds) / len(rounds[0])
    answers: list[dict[str, NDArray[Any]]] = []

    def peer() -> None:
        answers.append(theirs(*train, kernel, grid, rounds[len(answers)]))

    own, measured, scores, _ = take_turns(partial(ours, *train, kernel, grid, folds), peer, repetitions=len(rounds))
    peer_seconds = [seconds * scale for seconds in measured]
    compared = [fold for some in rounds for fold in some]
    found = [answer[f"split{number}_test_score"] for answer in answers for number in range(len(rounds[0]))]
    gates, note = equality(kernel, scores, answers[0]["params"], np.mean(found, axis=0), train, test, compared)
    if is_noisy:  # one noisy spectrum does not tell so much
        gates = {gate: holds for gate, holds in gates.items() if not gate.startswith("best accuracy")}
    size = " x ".join(f"{len(values)} {parameter}" for parameter, values in grid.items())
    title = f"{name.removesuffix(' grid')} grid, {size} x {len(folds)} folds"
    return Row(
        work=f"{title}, {train[0].shape[0]} x {train[0].shape[1]}{', not denoised' if is_noisy else ''}",
        peer="GridSearchCV(SVC(cache_size=2000), n_jobs=2)",
        ratio=ratio(own, peer_seconds),
        target=None if quick else TARGETS[name],
        ours=own,
        theirs=peer_seconds,
        gates=gates,
        note=f"peer on {len(rounds[0])} fold(s), others in each of {len(rounds)} repetitions, times {scale:g}"
        + (f", at most {PEER_STEPS:,} steps a machine" if kernel == "sigmoid" else "")
        + f"; {note}",
    )


def equality(
    kernel: str,
    scores: xr.Dataset,
    cells: Sequence[dict[str, float]],
    expected: NDArray[np.float64],
    train: Table,
    test: Table,
    folds: Folds,
) -> tuple[dict[str, bool], str]:
    """Compare accuracies cell by cell, `expected` being scikit-learn's, and the best machine on test spectra."""
    X, y = train
    accuracy = scores["accuracy"]
    names = list(accuracy.dims[:-1])
    found = np.array([float(accuracy.sel(params).isel(fold=slice(len(folds))).mean()) for params in cells])
    differing = np.flatnonzero(np.abs(found - expected) > MAX_DIFFERENCE)
    pairs = list(itertools.product(differing.tolist(), range(len(folds))))
    decided = dict(
        zip(
            pairs,
            Parallel(n_jobs=THREADS)(
                delayed(referee)(kernel, cells[cell], X, y, folds[k], float(accuracy.sel(cells[cell])[k]))
                for cell, k in pairs
            ),
            strict=True,
        )
    )
    wrong, reasons = [], Counter[str]()
    for cell in differing:
        some = [k for k in range(len(folds)) if not decided[cell, k][1]]
        if not some:
            reasons[decided[cell, 0][1]] += 1
            continue
        tight = np.mean([decided[cell, k][0] for k in some])
        if abs(float(accuracy.sel(cells[cell])[some].mean()) - tight) > MAX_DIFFERENCE:
            wrong.append({name: float(f"{cells[cell][name]:.3g}") for name in names})
    best = best_cell(scores).params
    agreement, is_better = best_agreement(kernel, best, train, test)
    gates = {
        f"accuracy within {MAX_DIFFERENCE} of scikit-learn's, or of its at 1e-6, on every cell that has one": not wrong,
        "best machine predicts the same at 1e-6": agreement >= MIN_AGREEMENT or is_better,
    }
    n_open = int((~scores["converged"]).sum())
    if kernel != "sigmoid":  # which may go in circles, and says so
        gates["every fit met libsvm's tolerance"] = not n_open
    if len(y) == N_TRAIN:
        gates[f"best accuracy {ACCURACY[0]}-{ACCURACY[1]}"] = bool(ACCURACY[0] <= found.max() <= ACCURACY[1])
    undecided = "".join(f", {count} {reason}" for reason, count in reasons.items())
    note = (
        f"{len(differing)} of {len(found)} cells differ by more than {MAX_DIFFERENCE}{undecided}; wrong: "
        f"{wrong or 'none'}; best accuracy {found.max():.3f} (scikit-learn {expected.max():.3f}), agreement "
        f"{agreement:.4f}{' with a worse optimum' if is_better else ''}"
        + (f"; {n_open} of {scores['converged'].size} fits did not converge and say so" if n_open else "")
    )
    return gates, note


def referee(
    kernel: str,
    params: dict[str, float],
    X: NDArray[Any],
    y: NDArray[Any],
    fold: tuple[NDArray[np.intp], NDArray[np.intp]],
    found: float,
) -> tuple[float, str]:
    """Return the accuracy of scikit-learn at a tolerance of 1e-6 on a fold, and why that does not decide, if so.

    It does not where no support vector is free, nor where ours has a better optimum: a machine that decides as well as
    that of the search, `found` being its accuracy. The problem of a sigmoid is not convex; and libsvm's kernel is in
    single precision: at gamma = 1e-5, where all its entries are close to one, and a large C, a machine that has met any
    tolerance is far from the optimum in double precision.
    """
    fit_on, held_out = fold
    limit = REFEREE_STEPS.get(kernel, 5_000_000)
    machine = SVC(kernel=kernel, class_weight="balanced", tol=1e-6, cache_size=900, max_iter=limit, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(X[fit_on], y[fit_on])
    accuracy = float(machine.score(X[held_out], y[held_out]))
    share = np.abs(machine.dual_coef_[0]) / np.repeat(params["C"] * machine.class_weight_, machine.n_support_)
    if not ((share > 1e-6) & (share < 1 - 1e-6)).any():
        return accuracy, "without a free support vector"
    own = fit_machine(X[fit_on], y[fit_on], kernel=kernel, params=params)
    is_that_of_search = abs(own.score(X[held_out], y[held_out]) - found) <= MAX_DIFFERENCE
    if is_that_of_search and is_lower(own, machine, y[fit_on], params):
        return accuracy, "with an optimum better than scikit-learn's"
    if machine.fit_status_:
        return accuracy, f"on which scikit-learn did not reach 1e-6 in {limit:,} steps"
    return accuracy, ""


def is_lower(one: SVC, other: SVC, y: NDArray[Any], params: dict[str, float]) -> bool:
    """Tell whether one machine has a lower dual objective than another, by more than rounding.

    libsvm's kernel is in single precision: where all its entries are close to one, a machine that has met its tolerance
    is far from it by the kernel in double precision (by .7 at C = 1e5, gamma = .1, coef0 = 1, where ours has met it).
    """
    reached, to_reach = (dual_objective(machine, y, params) for machine in (one, other))
    return reached < to_reach - 1e-5 * abs(to_reach)


def dual_objective(machine: SVC, y: NDArray[Any], params: dict[str, float]) -> float:
    """Return what a machine of two classes makes small: b'Kb/2 - y'b, with b = alpha y."""
    b, vectors = machine.dual_coef_[0], machine.support_vectors_
    if machine.kernel == "sigmoid":
        K = np.tanh(params["gamma"] * (vectors @ vectors.T) + params["coef0"])
    else:
        K = np.exp(-params["gamma"] * squared_distances(vectors))
    return 0.5 * float(b @ K @ b) - float((2.0 * y[machine.support_] - 1.0) @ b)


def best_agreement(kernel: str, params: dict[str, float], train: Table, test: Table) -> tuple[float, bool]:
    """Return the share of test spectra that our machine and scikit-learn's at a tolerance of 1e-6 decide alike.

    And whether ours, a sigmoid, has a better optimum, which may decide otherwise.
    """
    X, y = train
    fitted = fit_machine(X, y, kernel=kernel, params=params)
    limit = PEER_STEPS if kernel == "sigmoid" else -1
    machine = SVC(kernel=kernel, class_weight="balanced", tol=1e-6, cache_size=2000, max_iter=limit, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(X, y)
    is_better = kernel == "sigmoid" and is_lower(fitted, machine, y, params)
    return float(np.mean(fitted.predict(test[0]) == machine.predict(test[0]))), is_better


def compare_linear(train: Table, *, quick: bool, centred: bool) -> Row:
    """One linear machine at C=1e5, where libsvm crawls or gives up; the primal objective says which is better.

    On spectra as they are libsvm's single precision ends it early, far from the optimum. On spectra less their mean,
    which ours subtracts by itself, it goes on.
    """
    X, y = train
    X = X - X.mean(axis=0) if centred else X
    C = 1e5

    def own() -> Any:
        return fit_machine(X, y, kernel="linear", params={"C": C})

    def peer() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            limit = 200_000 if quick else -1
            return SVC(kernel="linear", C=C, class_weight="balanced", cache_size=2000, max_iter=limit).fit(X, y)

    with threadpool_limits(THREADS):  # of BLAS; libsvm has but one
        own_seconds, peer_seconds, machine, reference = take_turns(own, peer, repetitions=1 if quick else REPETITIONS)
    objectives = [hinge_objective(fitted, X, y, C) for fitted in (machine, reference)]
    return Row(
        work=f"linear, C=1e5, {len(y)} x {X.shape[1]}, {'less the mean spectrum' if centred else 'as they are'}",
        peer='SVC(kernel="linear")',
        ratio=ratio(own_seconds, peer_seconds),
        target=None if quick else 100.0,
        ours=own_seconds,
        theirs=peer_seconds,
        gates={
            "objective equal or lower": objectives[0] <= objectives[1] * (1 + 1e-6),
            "met libsvm's tolerance": machine.fit_status_ == 0,
        },
        note=f"primal objective {objectives[0]:.6g}, scikit-learn {objectives[1]:.6g}",
    )


def hinge_objective(machine: Any, X: NDArray[Any], y: NDArray[Any], C: float) -> float:
    limit = C * machine.class_weight_[y]
    hinge = np.maximum(0.0, 1.0 - (2.0 * y - 1.0) * machine.decision_function(X))
    return 0.5 * float(machine.coef_[0] @ machine.coef_[0]) + float(limit @ hinge)


def compare_intelex(train: Table, test: Table, folds: Folds) -> Iterator[Row]:
    """The first grid beside scikit-learn-intelex, where that is installed: every third C and gamma on one fold."""
    try:
        from sklearnex import svm as intel
    except ImportError:
        return
    X, y = train
    some = {name: values[::3] for name, values in GRIDS["rbf"].items()}
    cells = [{"C": C, "gamma": gamma} for C, gamma in itertools.product(*some.values())]

    def peer() -> list[float]:
        fit_on, held_out = folds[0]
        machines = (intel.SVC(class_weight="balanced", cache_size=2000, **params) for params in cells)
        return [machine.fit(X[fit_on], y[fit_on]).score(X[held_out], y[held_out]) for machine in machines]

    run: Callable[[], Any] = partial(ours, X, y, "rbf", some, folds)
    own, seconds, scores, expected = take_turns(run, peer)
    gates, note = equality("rbf", scores, cells, np.array(expected), train, test, folds[:1])
    scaled = [one * len(folds) for one in seconds]
    yield Row(
        work=f"rbf grid, every third C and gamma ({len(cells)} cells) x {len(folds)} folds, {len(y)} x {X.shape[1]}",
        peer="scikit-learn-intelex SVC, its own threads",
        ratio=statistics.median(scaled) / statistics.median(own),
        target=20.0,
        ours=own,
        theirs=scaled,
        gates=gates,
        note=f"peer on 1 fold, times {len(folds)}; {note}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Grid searches beside scikit-learn's.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="one row: rbf, 'rbf paper', sigmoid, linear or intelex")
    parser.add_argument("--every", type=int, default=1, help="take every n-th value of a grid")
    parser.add_argument(
        "--peer-folds", type=int, default=PEER_FOLDS, help="folds that scikit-learn searches in each repetition"
    )
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--seed", type=int, default=MEASURED_SEED, help=f"of the spectra; {TUNING_SEED} to tune on")
    options = parser.parse_args()
    print_rows(
        rows(
            options.quick,
            options.only,
            every=options.every,
            peer_folds=options.peer_folds,
            repetitions=options.repetitions,
            seed=options.seed,
        )
    )


if __name__ == "__main__":
    main()
