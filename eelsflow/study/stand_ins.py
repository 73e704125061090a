"""Models that a study of several edges leaves beside its own, for files that its own does not suit.

Of each edge alone, for files that show only one; and where the study says that the dispersion of its files is known,
one that does not expect it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eelsflow.dataset.manifest import check_labels
from eelsflow.edges import Edge
from eelsflow.errors import DataSetError, InputError
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps.drift import conditions_of, ranges_of
from eelsflow.maps.registry import ALONE, UNCALIBRATED
from eelsflow.models.bundle import describe_model
from eelsflow.preprocess.features import require_window
from eelsflow.preprocess.presets import DISPERSION_ERROR, Align, Preset
from eelsflow.store import Store
from eelsflow.study.plan import BuildDataSet, FitModel, Plan, PrepareAcquisition, without_search
from eelsflow.study.stages import read_fit


@dataclass(frozen=True)
class StandIn:
    """What is computed for such a model.

    Attributes
    ----------
    folder
        Where it lies in that of the study's own.
    about
        What its maps say of it.
    prepare, dataset, fit
        Prepared acquisitions, their spectra, and the model.
    """

    folder: Path
    about: Mapping[str, Any]
    prepare: tuple[PrepareAcquisition, ...]
    dataset: BuildDataSet
    fit: FitModel


def prepare_stand_ins(plan: Plan, final: FitModel) -> list[PrepareAcquisition]:
    """Return the preparation of the final model's training acquisitions for each of them; nothing for one edge."""
    return [
        PrepareAcquisition(acquisition=acquisition, edge=edge, preset=preset.for_acquisition)
        for _, edge, preset, _ in _kinds(plan, final)
        for acquisition in _dataset_of(plan, final).acquisitions
    ]


def plan_stand_ins(plan: Plan, final: FitModel, store: Store) -> list[StandIn]:
    """Plan the final model once more for each of them, from the acquisitions that could be prepared for it.

    Its parameters are those that the final model, which is fitted, has chosen. Where too few are left there is none.
    """
    found = []
    for folder, edge, preset, about in _kinds(plan, final):
        prepared = [
            PrepareAcquisition(acquisition=acquisition, edge=edge, preset=preset.for_acquisition)
            for acquisition in _dataset_of(plan, final).acquisitions
        ]
        steps = tuple(step for step in prepared if _is_usable(step, store))
        try:
            check_labels([step.acquisition for step in steps], plan.study.classes, split_by=())
        except DataSetError:
            continue
        dataset = _dataset_of(plan, final).model_copy(
            update={
                "acquisitions": tuple(step.acquisition for step in steps),
                "prepared": tuple(step.digest for step in steps),
            }
        )
        features = final.features.model_copy(update={"dataset": dataset.digest, "edge": edge, "preset": preset})
        fit = final.model_copy(update={"features": features, "preset": preset})
        if fit.grid:
            fit = without_search(fit, read_fit(final, store)["best_params"])
        found.append(StandIn(folder, about, steps, dataset, fit))
    return found


def write_stand_ins(plan: Plan, final: FitModel, store: Store, model: Path, *, about: Mapping[str, Any]) -> None:
    """Copy those that were fitted into the folder of the study's model.

    Parameters
    ----------
    plan, final, store
        As for `plan_stand_ins`.
    model
        The folder.
    about
        What maps say of the study.
    """
    for one in plan_stand_ins(plan, final, store):
        if not store.has(one.fit.digest):
            continue
        target = model / one.folder
        shutil.copytree(store.path(one.fit.digest) / "model", target)
        products = (open_dataset(store.path(step.digest) / "prepared.zarr") for step in one.prepare)
        describe_model(
            target,
            name=final.model.name,
            **about,
            **one.about,
            training=ranges_of([conditions_of(product) for product in products]),
            trained_on=sorted(step.acquisition.sha256 for step in one.prepare),
        )


def _kinds(plan: Plan, final: FitModel) -> list[tuple[Path, Edge, Preset, dict[str, Any]]]:
    """Return folder, edge and preset of each, and what is said of it."""
    whole = plan.study.edge
    if not whole.beside:
        return []
    kinds: list[tuple[Path, Edge, Preset, dict[str, Any]]] = [
        (Path(ALONE) / edge.name, edge, final.preset, {"alone_of": whole.name}) for edge in whole.alone
    ]
    align = final.preset.find(Align)
    if align is not None and align.dispersion_error <= DISPERSION_ERROR / 2:
        preset = final.preset.knowing_the_dispersion(DISPERSION_ERROR)
        kinds.append((Path(UNCALIBRATED), whole, preset, {"stands_in_for": "files whose dispersion is not known"}))
    return kinds


def _is_usable(step: PrepareAcquisition, store: Store) -> bool:
    """Tell whether an acquisition could be prepared, and shows all of the edge's window."""
    if not store.has(step.digest):
        return False
    try:
        require_window(open_dataset(store.path(step.digest) / "prepared.zarr"), step.edge)
    except InputError:
        return False
    return True


def _dataset_of(plan: Plan, final: FitModel) -> BuildDataSet:
    return next(dataset for dataset in plan.datasets if dataset.preset_name == final.preset.name)
