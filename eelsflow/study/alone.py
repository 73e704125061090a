"""Models of each edge alone, which a study of several edges leaves beside its own: for files that show only one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eelsflow.dataset.manifest import check_labels
from eelsflow.errors import DataSetError, InputError
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps.drift import conditions_of, ranges_of
from eelsflow.maps.registry import ALONE
from eelsflow.models.bundle import describe_model
from eelsflow.preprocess.features import require_window
from eelsflow.store import Store
from eelsflow.study.plan import BuildDataSet, FitModel, Plan, PrepareAcquisition, without_search
from eelsflow.study.stages import read_fit

Alone = tuple[tuple[PrepareAcquisition, ...], BuildDataSet, FitModel]
"""Prepared acquisitions, their spectra, and the model, for one edge."""


def prepare_alone(plan: Plan, final: FitModel) -> list[PrepareAcquisition]:
    """Return the preparation of the final model's training acquisitions for each edge alone; nothing for one edge."""
    if not plan.study.edge.beside:
        return []
    return [
        PrepareAcquisition(acquisition=acquisition, edge=edge, preset=final.preset.for_acquisition)
        for edge in plan.study.edge.alone
        for acquisition in _dataset_of(plan, final).acquisitions
    ]


def plan_alone(plan: Plan, final: FitModel, store: Store) -> list[Alone]:
    """Plan the final model for each edge alone, from the acquisitions that could be prepared for it.

    Its parameters are those that the final model, which is fitted, has chosen. An edge for which too few are left has
    no model.
    """
    prepared = prepare_alone(plan, final)
    found = []
    for edge in plan.study.edge.alone if prepared else ():
        steps = tuple(step for step in prepared if step.edge == edge and _is_usable(step, store))
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
        features = final.features.model_copy(update={"dataset": dataset.digest, "edge": edge})
        fit = final.model_copy(update={"features": features})
        if fit.grid:
            fit = without_search(fit, read_fit(final, store)["best_params"])
        found.append((steps, dataset, fit))
    return found


def write_alone(plan: Plan, final: FitModel, store: Store, model: Path, *, about: Mapping[str, Any]) -> None:
    """Copy the fitted models of each edge into the folder of the study's model.

    Parameters
    ----------
    plan, final, store
        As for `plan_alone`.
    model
        The folder.
    about
        What maps say of the study.
    """
    for steps, _, fit in plan_alone(plan, final, store):
        if not store.has(fit.digest):
            continue
        target = model / ALONE / fit.features.edge.name
        shutil.copytree(store.path(fit.digest) / "model", target)
        products = (open_dataset(store.path(step.digest) / "prepared.zarr") for step in steps)
        describe_model(
            target,
            name=final.model.name,
            **about,
            training=ranges_of([conditions_of(product) for product in products]),
            trained_on=sorted(step.acquisition.sha256 for step in steps),
            alone_of=plan.study.edge.name,
        )


def _is_usable(step: PrepareAcquisition, store: Store) -> bool:
    """Tell whether an acquisition could be prepared for an edge, and shows all of its window."""
    if not store.has(step.digest):
        return False
    try:
        require_window(open_dataset(store.path(step.digest) / "prepared.zarr"), step.edge)
    except InputError:
        return False
    return True


def _dataset_of(plan: Plan, final: FitModel) -> BuildDataSet:
    return next(dataset for dataset in plan.datasets if dataset.preset_name == final.preset.name)
