"""What a study does, a function a stage. Each returns where its result lies; a second call computes nothing.

Both runners call these: the plain loop in `run`, and the Prefect tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.dataset.aside import SetAside, attempt
from eelsflow.dataset.labels import class_fractions, label_pixels, read_truth
from eelsflow.dataset.manifest import Acquisition
from eelsflow.dataset.outside import Outside, on_axis, read_recorded
from eelsflow.dataset.outside import place as place_outside
from eelsflow.dataset.spectra import LabelledSpectra, choose_spectra, gather_spectra, read_table
from eelsflow.dataset.splits import Split, inner_folds, split_spectra, validation_split
from eelsflow.energy import axis_of, stretches
from eelsflow.errors import EelsflowError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.zarr_store import blocks, open_dataset, remove_unfinished, write_dataset
from eelsflow.maps.pixels import map_pixels
from eelsflow.maps.score import score_map
from eelsflow.models.bundle import ModelBundle
from eelsflow.models.disturbance import Disturbance
from eelsflow.models.fitting import fit_model as search_and_fit
from eelsflow.models.inputs import peak_channels
from eelsflow.models.registration import Registration
from eelsflow.models.spec import Augment
from eelsflow.preprocess.features import FeatureTransform, require_window
from eelsflow.preprocess.joint_features import fit_transform, load_transform
from eelsflow.preprocess.noise import sample_indices
from eelsflow.preprocess.shapes import to_shapes
from eelsflow.robustness.curves import assess
from eelsflow.robustness.perturb import add_gaussian_noise, draw_shifts
from eelsflow.robustness.wide import MAX_TRAINING, blur
from eelsflow.store import Store, empty_directory, read_json, write_json
from eelsflow.study.evidence import summarize_prepared
from eelsflow.study.plan import (
    AssessModel,
    BuildDataSet,
    FitFeatures,
    FitModel,
    JudgeOutside,
    PrepareAcquisition,
    ScoreMaps,
)
from eelsflow.unmixing.references import References

MOST_BYTES = 256 << 20
"""Of spectra that are given to a worker at once, whose memory is limited; more are worked on where the stage runs."""


@dataclass(frozen=True)
class Place:
    """Where stages run and keep their results."""

    store: Store
    executor: Executor


def prepare_acquisition(
    step: PrepareAcquisition, place: Place, *, read: Callable[[], xr.DataArray] | None = None
) -> Path | SetAside:
    """Read an acquisition, prepare it block by block and keep the product with its evidence.

    Parameters
    ----------
    step, place
        What is prepared, and where.
    read
        Reads it, for a caller that keeps what was read; `eelsflow.io.read.read_spectrum_image` by default.

    Returns
    -------
    Path
        An entry with ``prepared.zarr``, ``summary.json`` and ``evidence.npz``.
    SetAside
        Instead, if the acquisition is bad input. Nothing of this is kept: the next run tries again.

    Raises
    ------
    EelsflowError
        If something else is to blame, such as a full disk; naming the acquisition.
    """
    from eelsflow.io.read import read_spectrum_image
    from eelsflow.preparation import find_low_loss, prepare_image, remove_counts, write_counts
    from eelsflow.preprocess.blocks import is_held

    acquisition = step.acquisition

    def write(directory: Path) -> None:
        image = read() if read is not None else read_spectrum_image(acquisition.path)
        n_y, n_x, _ = image.shape
        low_loss = find_low_loss(acquisition.path, image, given=acquisition.low_loss)
        if is_held(image, place.executor):
            prepared = prepare_image(
                image, low_loss, directory, edge=step.edge, preset=step.preset, executor=place.executor
            )
            summarize_prepared(prepared, directory, edge=step.edge)
            remove_counts(directory)
            return
        write_counts(image, low_loss, directory)
        del image, low_loss  # may be in memory
        if len(blocks(n_y, n_x)) == 1:  # nothing in it to share among workers
            place.executor.map(_prepare_alone, [(step, directory)], label="prepare")
        else:
            _prepare(step, directory, place.executor)
        remove_counts(directory)

    try:
        entry = attempt(acquisition.given, lambda: place.store.compute(step.digest, write))
    except EelsflowError as error:
        raise type(error)(f"acquisition {acquisition.path.name}: {error}") from error
    if isinstance(entry, SetAside):
        return entry
    product = open_dataset(entry / "prepared.zarr")  # not in the attempt: the acquisition is not to blame for the store
    return attempt(acquisition.given, partial(_require_usable, step, product)) or entry


def _require_usable(step: PrepareAcquisition, product: xr.Dataset) -> None:
    """Refuse an acquisition that could be prepared, but not studied: what the product's address does not tell."""
    require_window(product, step.edge)
    acquisition = step.acquisition
    if not acquisition.label and acquisition.truth is not None:
        read_truth(acquisition.truth, product["vacuum_mask"].shape, name=acquisition.name)


def _prepare_alone(item: tuple[PrepareAcquisition, Path]) -> None:
    step, directory = item
    remove_unfinished(directory / "prepared.zarr")  # of a worker that was lost
    _prepare(step, directory, LoopExecutor())


def _prepare(step: PrepareAcquisition, directory: Path, executor: Executor) -> None:
    from eelsflow.preparation import prepare_counts

    prepared = prepare_counts(directory, edge=step.edge, preset=step.preset, executor=executor)
    summarize_prepared(prepared, directory, edge=step.edge)


def build_dataset(step: BuildDataSet, place: Place) -> Path:
    """Collect labelled spectra.

    Returns
    -------
    Path
        An entry with the arrays of `LabelledSpectra`.
    """

    def write(directory: Path) -> None:
        if step.table is not None:
            table = read_table(step.table, step.classes)
            moved = replace(table, energy_loss=table.energy_loss + step.move_ev)
            choose_spectra(moved, step.n_spectra).save(directory)
            return
        prepared = [place.store.path(digest) / "prepared.zarr" for digest, _ in step.inputs]
        acquisitions = [acquisition for _, acquisition in step.inputs]
        labels: list[NDArray[Any]] = []
        for path, acquisition in zip(prepared, acquisitions, strict=True):
            vacuum_mask = open_dataset(path)["vacuum_mask"].values
            labels.append(
                label_pixels(
                    vacuum_mask,
                    label=acquisition.label,
                    truth=acquisition.truth,
                    classes=step.classes,
                    name=acquisition.name,
                )
            )
        groups = [acquisition.group for acquisition in acquisitions]
        choose_spectra(gather_spectra(prepared, labels, groups, step.classes), step.n_spectra).save(directory)

    return place.store.compute(step.digest, write)


def fit_features(step: FitFeatures, place: Place) -> Path:
    """Split a data set and fit the transform from wide spectra to vectors on the training part.

    Returns
    -------
    Path
        An entry with ``train.npy`` and ``test.npy`` (indices), ``vectors.npy`` (of the training part), ``transform``,
        and where maps are judged by averages over neighbours ``gathered.npy``, the vectors of these.
    """

    def write(directory: Path) -> None:
        spectra = LabelledSpectra.load(place.store.path(step.dataset)).intensity  # memory-mapped
        executor = place.executor if spectra.nbytes <= MOST_BYTES else LoopExecutor()
        executor.map(_fit_features, [(step, place.store.root, directory)], label="fit features")

    return place.store.compute(step.digest, write)


def _fit_features(item: tuple[FitFeatures, Path, Path]) -> None:
    step, root, directory = item
    empty_directory(directory)
    spectra = LabelledSpectra.load(Store(root).path(step.dataset))
    if step.split == "all":
        train, test = np.arange(spectra.label.size), np.arange(0)
    else:
        train, test = split_spectra(
            spectra.label, spectra.group, by=step.split, test_fraction=step.test_fraction, seed=step.seed
        )
    wide = spectra.intensity[train]
    transform = fit_transform(
        wide,
        spectra.energy_loss,
        edge=step.edge,
        preset=step.preset,
        variance=None if spectra.variance is None else spectra.variance[train],
    )
    np.save(directory / "train.npy", train)
    np.save(directory / "test.npy", test)
    np.save(directory / "vectors.npy", transform.apply(wide))
    if spectra.gathered is not None:
        np.save(directory / "gathered.npy", transform.apply(spectra.gathered[train]))
    # What the model will have seen: an acquisition of these groups is never evidence for it.
    groups = [] if spectra.group is None else sorted(set(spectra.group[train].tolist()))
    write_json(directory / "groups.json", groups)
    axis = axis_of(spectra.energy_loss)
    variance = None if spectra.variance is None else spectra.variance[train]
    References.fit(
        to_shapes(wide, variance, axis, step.edge),
        spectra.label[train],
        None if spectra.group is None else spectra.group[train],
    ).save(directory / "references.npz")
    (directory / "transform").mkdir()
    transform.save(directory / "transform")


def fit_model(step: FitModel, place: Place) -> Path:
    """Search a model's parameters inside the training part and fit it with the best.

    Returns
    -------
    Path
        An entry with ``model`` (a bundle), ``fit.json``, and where they exist ``search.zarr`` and ``history.json``.
    """

    def write(directory: Path) -> None:
        features = place.store.path(step.features.digest)
        spectra = LabelledSpectra.load(place.store.path(step.features.dataset))
        train = np.load(features / "train.npy")
        transform = load_transform(features / "transform")
        vectors = np.load(features / "vectors.npy", mmap_mode="r")
        label = spectra.label[train]
        group = spectra.group[train] if spectra.group is not None and step.features.split != "pixel" else None
        seed = step.features.seed

        before = transform.before_components(spectra.intensity[train])[1]
        means = {name: before[label == name].mean(axis=0) for name in np.unique(label).tolist()}
        del before
        warnings: list[str] = []
        folds: list[Split] = []
        if not step.model.is_network and step.grid:
            folds, warnings = inner_folds(label, group, n_folds=step.folds, seed=seed)
        calibration, calibration_warnings = inner_folds(label, group, n_folds=min(step.folds, 5), seed=seed)
        validation, validation_warnings = validation_split(label, group, seed=seed)
        warnings += validation_warnings if step.model.is_network else calibration_warnings
        # The confidence is fitted on what maps are judged by, of the spectra as they were measured.
        gathered = features / "gathered.npy"
        calibration_spectra = np.load(gathered, mmap_mode="r") if gathered.exists() else vectors
        calibration_group = group if gathered.exists() else None
        if step.model.augment is not None:
            copies, origin = _augmented(spectra.intensity[train], transform, step.model.augment, seed=seed)
            vectors = np.concatenate([vectors, copies])
            label = label[origin]
            folds = [(_with_copies(fit, origin), _with_copies(held, origin)) for fit, held in folds]
            calibration = [(_with_copies(fit, origin), held) for fit, held in calibration]
            validation = (_with_copies(validation[0], origin), _with_copies(validation[1], origin))

        registration = None
        if step.model.align is not None:
            # of several edges the lowest tells where on the axis spectra lie
            first = stretches(transform.axis)[0][1]
            window = transform.index[transform.index < first.stop]
            registration = Registration.fit(
                spectra.intensity[train][:, first],
                spectra.label[train],
                None if spectra.group is None else spectra.group[train],
                align=step.model.align,
                channels=slice(int(window[0]), int(window[-1]) + 1),
                dispersion=transform.axis.dispersion,
            )
        scratch = directory / "scratch"
        scratch.mkdir()
        fitted = search_and_fit(
            step.model,
            np.asarray(vectors),
            label,
            folds=folds,
            calibration=calibration,
            calibration_spectra=calibration_spectra,
            calibration_group=calibration_group,
            validation=validation,
            peaks=peak_channels(step.features.edge, transform.energy_loss),
            grid=step.grid,
            extend_grid=step.extend_grid,
            seed=seed,
            executor=place.executor,
            scratch=scratch,
            epochs=step.training.epochs,
            batch_size=step.training.batch_size,
            patience=step.training.patience,
        )
        shutil.rmtree(scratch)

        provenance = {
            "dataset": step.features.dataset,
            "split": step.features.split,
            "seed": seed,
            "best_params": fitted.best_params,
            "groups": sorted(training_groups(step, place.store)),
            "n_train": int(train.size),
        }
        bundle = ModelBundle(
            name=step.model.name,
            edge=step.features.edge,
            preset=step.preset,
            transform=transform,
            classifier=fitted.classifier,
            references=References.load(features / "references.npz"),
            provenance=provenance,
            registration=registration,
            means=np.stack([means[name] for name in fitted.classifier.classes_]),
        )
        # A network is small, and the workers have loaded TensorFlow already; a machine may hold all spectra.
        saver = place.executor if step.model.is_network else LoopExecutor()
        saver.map(_save_bundle, [(bundle, directory / "model")], label="save")
        if fitted.search is not None:
            write_dataset(fitted.search, directory / "search.zarr")
        if fitted.history is not None:
            write_json(directory / "history.json", fitted.history)
        write_json(
            directory / "fit.json",
            {
                "best_params": fitted.best_params,
                "search_seconds": fitted.search_seconds,
                "train_seconds": fitted.train_seconds,
                "warnings": list(dict.fromkeys([*warnings, *fitted.warnings])),
            },
        )

    return place.store.compute(step.digest, write)


def _save_bundle(item: tuple[ModelBundle, Path]) -> None:
    bundle, directory = item
    bundle.save(empty_directory(directory))


def _augmented(
    wide: NDArray[np.float32], transform: FeatureTransform, augment: Augment, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return altered copies of training spectra as vectors, and the origin of all vectors, the unaltered first."""
    copies = []
    for number in range(augment.copies):
        rng = np.random.default_rng([seed, 4, number])
        shifts = draw_shifts(len(wide), amplitude=augment.shift_ev, rng=rng) if augment.shift_ev else None
        altered = wide
        if augment.broaden_ev:
            altered = blur(wide, transform.axis, fwhm_ev=rng.uniform(0.0, augment.broaden_ev, len(wide)))
        vectors = transform.apply(altered, shift_ev=shifts)
        copies.append(add_gaussian_noise(vectors, sigma=augment.noise_sigma, rng=rng))
    return np.concatenate(copies), np.tile(np.arange(len(wide)), augment.copies + 1)


def _with_copies(indices: NDArray[np.intp], origin: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the positions of these spectra and of their copies: a copy never leaves its original's fold."""
    return np.flatnonzero(np.isin(origin, indices))


def assess_model(step: AssessModel, place: Place) -> Path:
    """Measure a fitted model on its test part, on a worker.

    Returns
    -------
    Path
        An entry with ``correct.npz`` (score name -> right or wrong for each test spectrum), ``hits.npz`` (perturbation
        -> how many of each group, amplitude by amplitude) and ``assessment.json``.
    """

    def write(directory: Path) -> None:
        place.executor.map(_assess, [(step, place.store.root, directory)], label="assess")

    return place.store.compute(step.digest, write)


def _assess(item: tuple[AssessModel, Path, Path]) -> None:
    step, root, directory = item
    store = Store(root)
    features = store.path(step.fit.features.digest)
    spectra = LabelledSpectra.load(store.path(step.fit.features.dataset))
    train, test = np.load(features / "train.npy"), np.load(features / "test.npy")
    train = train[sample_indices(train.size, MAX_TRAINING)]
    bundle = ModelBundle.load(store.path(step.fit.digest) / "model")
    group = None if spectra.group is None else np.asarray(spectra.group[test])

    def predict(wide: NDArray[np.float32], disturbance: Disturbance) -> NDArray[np.str_]:
        return bundle.predict_disturbed(wide, disturbance, group=group)

    result = assess(
        predict,
        bundle.transform,
        test=spectra.intensity[test],
        test_label=spectra.label[test],
        training=spectra.intensity[train],
        curves=step.curves,
        seed=step.fit.features.seed,
        test_variance=None if spectra.variance is None else spectra.variance[test],
        training_variance=None if spectra.variance is None else spectra.variance[train],
        test_electrons=None if spectra.electrons is None else np.asarray(spectra.electrons[test]),
        test_group=group,
    )
    np.savez(directory / "correct.npz", allow_pickle=False, **result.correct)
    np.savez(directory / "hits.npz", allow_pickle=False, **result.hits)
    write_json(directory / "assessment.json", {"curves": result.curves, "padded": result.padded})


def score_maps(step: ScoreMaps, place: Place) -> Path:
    """Map every acquisition with a truth that a fitted model was not trained on, and score the maps, on a worker.

    Returns
    -------
    Path
        An entry with ``scores.json``: for each acquisition its name, group, and what `score_map` says.
    """

    def write(directory: Path) -> None:
        place.executor.map(_score_maps, [(step, place.store.root, directory)], label="score maps")

    return place.store.compute(step.digest, write)


def _score_maps(item: tuple[ScoreMaps, Path, Path]) -> None:
    step, root, directory = item
    store = Store(root)
    bundle = ModelBundle.load(store.path(step.fit.digest) / "model")
    scores = []
    for acquisition, digest in zip(step.acquisitions, step.prepared, strict=True):
        if acquisition.group in training_groups(step.fit, store):
            continue
        prepared = store.path(digest) / "prepared.zarr"
        score = score_prepared(prepared, bundle, acquisition)
        if score is not None:
            scores.append({"acquisition": acquisition.name, "group": acquisition.group, **score})
    write_json(directory / "scores.json", {"classes": bundle.classes, "maps": scores})


def score_prepared(prepared: Path, bundle: ModelBundle, acquisition: Acquisition) -> dict[str, Any] | None:
    """Map a prepared acquisition that has a label or a truth, and score the map; None where it shows no class."""
    found = map_pixels(open_dataset(prepared), bundle)
    truth = class_fractions(
        found.class_index.shape,
        label=acquisition.label,
        truth=acquisition.truth,
        classes=bundle.classes,
        name=acquisition.name,
    )
    assert truth is not None  # asked for acquisitions with a truth alone
    return score_map(found, truth)


def judge_outside(step: JudgeOutside, place: Place) -> Path:
    """Let a fitted model judge spectra of other laboratories, on a worker.

    Returns
    -------
    Path
        An entry with ``outside.json``: for each test its labels, the classes that the spectra are called, by how much
        they were moved, and what further shifts change.
    """

    def write(directory: Path) -> None:
        place.executor.map(_judge_outside, [(step, place.store.root, directory)], label="outside")

    return place.store.compute(step.digest, write)


def _judge_outside(item: tuple[JudgeOutside, Path, Path]) -> None:
    step, root, directory = item
    store = Store(root)
    bundle = ModelBundle.load(store.path(step.fit.digest) / "model")
    table = LabelledSpectra.load(store.path(step.fit.features.dataset))
    write_json(directory / "outside.json", [_judge(test, bundle, table) for test in step.tests])


def _judge(test: Outside, bundle: ModelBundle, table: LabelledSpectra) -> dict[str, Any]:
    recorded = read_recorded(test)
    labels = {test.label: test.label} if test.label is not None else test.labels
    moved = place_outside(
        test, recorded, energy_loss=table.energy_loss, table=table.intensity, label=np.asarray(table.label)
    )
    axis = bundle.transform.axis
    truth = np.array([labels.get(label, "") for label in recorded.label.tolist()])
    spectra, held = on_axis(recorded, moved, axis)
    predicted, probability = bundle.predict(spectra)
    curve = []
    for further in test.further_ev.values if test.further_ev is not None else ():
        spectra, held_there = on_axis(recorded, moved + further, axis)
        right = int(np.sum((bundle.predict(spectra)[0] == truth) & (truth != "")))
        curve.append({"shift_ev": further, "right": right, "held_ev": held_there})
    return {
        "test": test.name,
        "label": recorded.label.tolist(),
        "class": truth.tolist(),
        "predicted": predicted.tolist(),
        "probability": np.round(probability.max(axis=1), 4).tolist(),
        "moved_ev": np.round(moved, 3).tolist(),
        "held_ev": held,
        "curve": curve,
    }


def training_groups(step: FitModel, store: Store) -> set[str]:
    """Return the groups that a fitted model has seen spectra of: their acquisitions are no evidence for it."""
    return set(read_json(store.path(step.features.digest) / "groups.json"))


def read_fit(step: FitModel, store: Store) -> dict[str, Any]:
    """Return what `fit_model` noted: best parameters, seconds, warnings."""
    fit: dict[str, Any] = read_json(store.path(step.digest) / "fit.json")
    return fit
