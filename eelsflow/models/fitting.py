"""From a specification and training spectra to a classifier: search, fit, confidence."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eelsflow.errors import DataSetError
from eelsflow.executors import Executor
from eelsflow.models.classifier import Classifier, Ensemble, Model
from eelsflow.models.discriminant import Discriminant
from eelsflow.models.estimators import Estimator, EstimatorFit, EstimatorJob, find_class, run_estimator_fit
from eelsflow.models.inputs import Inputs
from eelsflow.models.open_networks import find_function
from eelsflow.models.spec import ENSEMBLE, ModelSpec, combinations, resolve_model, with_defaults
from eelsflow.models.svm import FitJob, Svm, decide, fit_calibration, independent_weights, run_fit
from eelsflow.models.training import TrainingJob, run_training
from eelsflow.search.gram import Kernel, save_array, save_products
from eelsflow.search.grid import Folds, Learner, best_cell, check_folds, save_folds, search_beyond, search_grid

REFERENCE_SPECTRA = 32
"""How many training spectra a classifier keeps to check itself with after loading."""

MAX_DISAGREEMENT = 0.05
"""Share of held-out spectra for which decision and probability may differ before the result says so."""


@dataclass(frozen=True)
class FittedModel:
    """A classifier and how it came about.

    Attributes
    ----------
    classifier
        Ready to predict.
    best_params
        Every parameter it was trained with.
    search
        ``accuracy`` over the grid and ``fold``; None if nothing was searched.
    history
        Of the training, for a network; see `eelsflow.models.training.Training`.
    search_seconds
        Wall time of the search; None if nothing was searched.
    train_seconds
        Of the fit with the best parameters.
    warnings
        Sentences for the report.
    """

    classifier: Classifier
    best_params: dict[str, Any]
    search: xr.Dataset | None
    history: dict[str, Any] | None
    search_seconds: float | None
    train_seconds: float
    warnings: list[str]


def fit_model(
    spec: ModelSpec,
    X: ArrayLike,
    y: ArrayLike,
    *,
    folds: Folds,
    calibration: Folds | None = None,
    calibration_spectra: ArrayLike | None = None,
    calibration_group: NDArray[np.str_] | None = None,
    validation: tuple[NDArray[np.intp], NDArray[np.intp]],
    peaks: NDArray[np.int64] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    extend_grid: bool = False,
    seed: int,
    executor: Executor,
    scratch: Path,
    epochs: int,
    batch_size: int,
    patience: int,
) -> FittedModel:
    """Search a model's grid and fit it with the best parameters, all inside the training part.

    Parameters
    ----------
    spec
        The model. Its augmentation is not applied here: `X` holds the altered copies, and a fold keeps a spectrum and
        its copies on one side.
    X
        Training spectra, (n_spectra, n_channels). Not modified.
    y
        Their class names, (n_spectra,).
    folds
        Rows to train on and rows to validate on, of the grid search of a support vector machine. Not used by networks.
    calibration
        Folds whose held-out decision values the confidence of a support vector machine is fitted on; `folds` if None.
    calibration_spectra
        What the confidence is fitted on, (n_originals, n_channels): the first rows of `X` in the form in which the
        classifier will be given spectra, such as averages over neighbours; `X` if None. Held-out rows of `calibration`
        are among them; of the rows that `validation` holds out, those that are.
    calibration_group
        What was recorded together, (n_originals,), where `calibration_spectra` are nearly alike in it; see
        `independent_weights`. None where each counts as one.
    validation
        Rows a network trains on, and rows its best epoch and its parameters are chosen on. Not used by the machines,
        which are fitted on all rows in the end.
    peaks
        Channels of two features of the edge, as `eelsflow.models.inputs.peak_channels` gives them; None where they are
        not known, and then no model may ask for their ratio.
    grid
        What to search: parameter -> values, as `ModelSpec.resolve_grid` gives it. Empty or None: nothing.
    extend_grid
        Whether a support vector machine searches on where the best value is the last of its grid.
    seed
        Of everything that is drawn at random.
    executor
        Runs the grid's jobs, the fits and the trainings.
    scratch
        A directory for arrays, which every worker must see.
    epochs, batch_size, patience
        Of networks, unless the parameters of the model name them.

    Raises
    ------
    DataSetError
        If there are fewer than two classes, or folds or the validation part cannot be used.
    MissingDependencyError
        If the model is a network and TensorFlow is not installed.
    """
    if spec.base == ENSEMBLE:
        fits = [
            fit_model(
                resolve_model(member),
                X,
                y,
                folds=folds,
                calibration=calibration,
                calibration_spectra=calibration_spectra,
                calibration_group=calibration_group,
                validation=validation,
                peaks=peaks,
                seed=seed,
                executor=executor,
                scratch=scratch,
                epochs=epochs,
                batch_size=batch_size,
                patience=patience,
            )
            for member in spec.members
        ]
        return _join(spec, fits)
    names, codes = np.unique(np.asarray(y, dtype=np.str_), return_inverse=True)
    spectra = np.asarray(X)
    if spectra.ndim != 2 or len(spectra) != len(codes):
        raise DataSetError(f"spectra have the shape {spectra.shape} for {len(codes)} labels; expected one row a label")
    if not np.isfinite(spectra).all():
        raise DataSetError("training spectra hold values that are not finite (NaN or infinity); leave them out")
    if len(names) < 2:
        raise DataSetError(f"the training spectra are all of the class {names.tolist()}; a classifier needs two")
    inputs, reference = None, spectra[np.unique(np.linspace(0, len(spectra) - 1, REFERENCE_SPECTRA).astype(np.intp))]
    judged = spectra if calibration_spectra is None else np.asarray(calibration_spectra)
    if judged.shape[1:] != spectra.shape[1:] or len(judged) > len(spectra):
        raise DataSetError(f"the confidence cannot be fitted on spectra of shape {judged.shape} for {spectra.shape}")
    if spec.features is not None:
        inputs = Inputs.fit(spec.features, spectra, peaks=peaks, seed=seed)
        seen = spectra
        spectra = inputs.apply(seen)
        judged = spectra if judged is seen else inputs.apply(judged)
    weight = np.ones(len(judged)) if calibration_group is None else independent_weights(calibration_group)
    data = _TrainingData(
        spec,
        spectra,
        codes,
        names.tolist(),
        dict(grid or {}),
        extend_grid,
        seed,
        executor,
        scratch,
        judged,
        weight,
        reference.astype(np.float32),
        inputs,
    )
    if spec.is_network:
        return _fit_network(data, validation, {"epochs": epochs, "batch_size": batch_size, "patience": patience})
    if spec.base == "mlls":
        return _fit_discriminant(data)
    if spec.is_open:
        return _fit_estimator(data, folds, calibration or folds)
    return _fit_svm(data, folds, calibration or folds)


@dataclass(frozen=True)
class _TrainingData:
    """What both ways of fitting start from."""

    spec: ModelSpec
    spectra: NDArray[Any]
    codes: NDArray[np.intp]
    names: list[str]
    grid: dict[str, Sequence[Any]]
    extend_grid: bool
    seed: int
    executor: Executor
    scratch: Path
    judged: NDArray[Any]  # what the confidence is fitted on, of the first rows
    weight: NDArray[np.float64]  # of each of these
    reference: NDArray[np.float32]  # some spectra before they became inputs
    inputs: Inputs | None

    def share(self) -> dict[str, Path]:
        """Write what every job reads, once for all jobs, and return the paths."""
        return {
            "spectra": save_array(self.spectra, self.scratch, name="spectra"),
            "labels": save_array(self.codes, self.scratch, name="labels"),
            "judged": save_array(self.judged, self.scratch, name="spectra"),
        }

    def classifier(self, model: Model, params: dict[str, Any]) -> Classifier:
        n_channels = self.reference.shape[1]
        return Classifier(self.spec.base, params, self.names, n_channels, model, self.reference, self.inputs)


def _fit_svm(data: _TrainingData, folds: Folds, calibration: Folds) -> FittedModel:
    spec, warnings, search, search_seconds = data.spec, [], None, None
    params: dict[str, Any] = dict(spec.params)
    if data.grid:
        # The search takes a value for every parameter of the kernel; those that are fixed are grids of one.
        grid = {name: data.grid.get(name, (value,)) for name, value in with_defaults(spec.base, params).items()}
        start = time.perf_counter()
        search = (search_beyond if data.extend_grid else search_grid)(
            data.spectra,
            data.codes,
            kernel=cast("Learner", spec.base.removeprefix("svm-")),
            grid=grid,
            folds=folds,
            executor=data.executor,
            scratch=data.scratch,
            seed=data.seed,
        )
        search_seconds = time.perf_counter() - start
        best = best_cell(search)
        params |= best.params
        searched = {name: search[name].values.tolist() for name in grid}
        warnings += [_edge_warning(name, best.params[name], searched[name]) for name in best.on_edge]
        n_open = int((~search["converged"]).sum())
        if n_open:
            warnings.append(
                f"{n_open} of {search['converged'].size} fits of the search did not meet libsvm's tolerance within "
                "their limit of steps; their accuracies are those of the machines as they were then"
            )
    params = with_defaults(spec.base, params)

    check_folds(calibration, data.codes)
    files = save_folds(calibration, data.scratch)
    is_sgd = spec.base == "svm-sgd"
    products = (
        None if is_sgd else save_products(data.spectra, cast("Kernel", spec.base.removeprefix("svm-")), data.scratch)
    )
    n_jobs = len(files) if is_sgd else min(2, len(files))
    jobs = [
        FitJob(
            **data.share(),
            products=products,
            folds=tuple(files[first::n_jobs]),
            base=spec.base,
            params=params,
            seed=data.seed,
            return_machine=first == 0,
        )
        for first in range(n_jobs)
    ]
    fits = data.executor.map(run_fit, jobs, label=f"fit-{spec.base}")
    whole = fits[0]
    if not all(fit.converged for fit in fits):
        warnings.append(
            "the machine did not meet libsvm's tolerance: its kernel is not positive semidefinite and the search for "
            "the optimum goes in circles; take its accuracy as it is, or another gamma and coef0"
        )
    by_fold = [fits[number % n_jobs].values[number // n_jobs] for number in range(len(files))]
    held_out = np.concatenate([rows for _, rows in calibration])
    codes = data.codes[held_out]
    values = np.concatenate(by_fold)
    if len(np.unique(codes)) < len(data.names):
        raise DataSetError(
            "a class is in no held-out fold, so no confidence can be fitted for it; every class must be held out once"
        )
    model = Svm(whole.machine, fit_calibration(values, codes, data.weight[held_out]))
    decided = decide(whole.machine, values)
    differing = float(np.mean(model.calibration.predict(values) != decided))
    if differing > MAX_DISAGREEMENT:
        warnings.append(
            f"for more than {MAX_DISAGREEMENT:.0%} of held-out training spectra the most probable class is not the "
            "decided one: the class is the machine's decision, and its probability is low where the two differ"
        )
    return FittedModel(data.classifier(model, params), params, search, None, search_seconds, whole.seconds, warnings)


def _join(spec: ModelSpec, fits: Sequence[FittedModel]) -> FittedModel:
    """Return the ensemble of fitted models."""
    first = fits[0].classifier
    members = [fit.classifier for fit in fits]
    classifier = Classifier(
        spec.base, {}, first.classes_, first.n_features_in_, Ensemble(members), first.reference, None
    )
    warnings = [f"{name}: {text}" for name, fit in zip(spec.members, fits, strict=True) for text in fit.warnings]
    return FittedModel(classifier, {}, None, None, None, sum(fit.train_seconds for fit in fits), warnings)


def _fit_discriminant(data: _TrainingData) -> FittedModel:
    start = time.perf_counter()
    model = Discriminant.fit(data.spectra, data.codes)
    return FittedModel(data.classifier(model, {}), {}, None, None, None, time.perf_counter() - start, [])


def _fit_estimator(data: _TrainingData, folds: Folds, calibration: Folds) -> FittedModel:
    spec, search, search_seconds = data.spec, None, None
    find_class(spec.base)
    shared = data.share()

    def run(params: Sequence[Mapping[str, Any]], files: Sequence[Path | None], label: str) -> list[EstimatorFit]:
        jobs = [
            EstimatorJob(**shared, fold=fold, base=spec.base, params=dict(cell), seed=data.seed)
            for cell in params
            for fold in files
        ]
        return data.executor.map(run_estimator_fit, jobs, label=f"{label}-{spec.name}")

    params = dict(spec.params)
    if data.grid:
        check_folds(folds, data.codes)
        files = save_folds(folds, data.scratch)
        cells = combinations(data.grid)
        start = time.perf_counter()
        found = run([{**params, **cell} for cell in cells], files, "search")
        search_seconds = time.perf_counter() - start
        dims, shape = (*data.grid, "fold"), (*map(len, data.grid.values()), len(files))
        search = xr.Dataset(
            {
                "accuracy": (dims, np.reshape([one.accuracy for one in found], shape)),
                "fit_seconds": (dims, np.reshape([one.seconds for one in found], shape), {"units": "s"}),
            },
            coords={
                **{name: [_coordinate(value) for value in values] for name, values in data.grid.items()},
                "fold": np.arange(len(files)),
            },
            attrs={"n_spectra": len(data.codes)},
        )
        mean = np.reshape([one.accuracy for one in found], (len(cells), len(files))).mean(axis=1)
        params |= cells[int(np.round(mean, 12).argmax())]  # of equal cells the first named
    check_folds(calibration, data.codes)
    whole, *parts = run([params], [None, *save_folds(calibration, data.scratch)], "fit")
    held_out = np.concatenate([rows for _, rows in calibration])
    values = np.concatenate([part.values for part in parts])
    if len(np.unique(data.codes[held_out])) < len(data.names):
        raise DataSetError(
            "a class is in no held-out fold, so no confidence can be fitted for it; every class must be held out once"
        )
    model = Estimator(whole.estimator, fit_calibration(values, data.codes[held_out], data.weight[held_out]))
    return FittedModel(data.classifier(model, params), params, search, None, search_seconds, whole.seconds, [])


def _coordinate(value: Any) -> Any:
    """Return a value of a grid as an axis of a table can hold it."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _edge_warning(name: str, value: float, values: Sequence[float]) -> str:
    return (
        f"the best {name}, {value:g}, is on the edge of its grid ({min(values):g} to {max(values):g}): a better value "
        "may lie outside; extend the grid (--extend-grid)"
    )


def _fit_network(
    data: _TrainingData, validation: tuple[NDArray[np.intp], NDArray[np.intp]], limits: dict[str, float]
) -> FittedModel:
    spec = data.spec
    if spec.is_open:
        find_function(spec.base)
    check_folds([validation], data.codes)
    (rows,) = save_folds([validation], data.scratch)
    weight = save_array(data.weight, data.scratch, name="weight")
    cells = [with_defaults(spec.base, {**limits, **spec.params, **cell}) for cell in combinations(data.grid)]
    jobs = [
        TrainingJob(
            **data.share(),
            weight=weight,
            rows=rows,
            base=spec.base,
            n_classes=len(data.names),
            params=cell,
            seed=data.seed,
        )
        for cell in cells
    ]
    start = time.perf_counter()
    trainings = data.executor.map(run_training, jobs, label=f"train-{spec.base}")
    seconds = time.perf_counter() - start
    accuracy, loss = np.array([training.best for training in trainings]).T
    chosen = int(np.lexsort((loss, -accuracy))[0])
    search = None
    if data.grid:
        dims, shape = (*data.grid, "fold"), (*map(len, data.grid.values()), 1)
        search = xr.Dataset(
            {
                "accuracy": (dims, accuracy.reshape(shape)),
                "loss": (dims, loss.reshape(shape)),
                "fit_seconds": (dims, np.reshape([one.seconds for one in trainings], shape), {"units": "s"}),
            },
            coords={
                **{name: [_coordinate(value) for value in values] for name, values in data.grid.items()},
                "fold": [0],
            },
            attrs={"n_spectra": len(data.codes)},
        )
    best = trainings[chosen]
    edges = [
        _edge_warning(name, cells[chosen][name], values)
        for name, values in data.grid.items()
        if len(values) > 1
        and all(isinstance(value, int | float) for value in values)
        and cells[chosen][name] in (min(values), max(values))
    ]
    return FittedModel(
        data.classifier(best.network, cells[chosen]),
        cells[chosen],
        search,
        best.history,
        seconds if data.grid else None,
        best.seconds,
        [*edges, *best.warnings],
    )
