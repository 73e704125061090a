"""Whether a study's model may take the place of the champion of its edge: only if its maps are no worse."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eelsflow.champions import Champion, check_digest, fetch_champion, has_registry, read_champions, set_champion
from eelsflow.dataset.manifest import Acquisition
from eelsflow.digest import digest_file
from eelsflow.errors import EelsflowError, UnusableModelError
from eelsflow.maps.registry import champion_of, register_model
from eelsflow.models.bundle import ModelBundle
from eelsflow.store import Store, home, make_directory, read_json
from eelsflow.study import stages
from eelsflow.study.map_scores import score_of
from eelsflow.study.plan import FitModel, Plan, PrepareAcquisition, ScoreMaps
from eelsflow.study.stages import Place


def judge_promotion(plan: Plan, scored: Sequence[ScoreMaps], final: FitModel, place: Place) -> dict[str, Any]:
    """Compare a study's model with the present champion, on acquisitions that the study has held out.

    Every acquisition that a fit of the final model and preset did not see is mapped by the champion too. Where the
    champion was trained on it, what counts is its score when its own study had held the acquisition out.

    Parameters
    ----------
    plan, scored, final, place
        Of the study.

    Returns
    -------
    dict
        ``promote`` (whether it may), ``reason`` in a sentence, ``score`` and ``champion_score`` (mean of the recall of
        pure fields and that of mixed ones, None where nothing could be compared), ``acquisitions`` (how many).
    """
    edge = plan.study.edge.name
    try:
        follow_champions()
    except Exception as error:  # of MLflow, of many kinds
        return _verdict(
            False, f"MLflow's registry, where the champion is named, cannot be asked ({error}); the same command again"
        )
    champion = champion_of(edge)
    if champion is None:
        return _verdict(True, f"there was no champion for {edge} yet")
    try:
        bundle = ModelBundle.load(champion)
    except UnusableModelError as error:
        return _verdict(True, f"the champion of {edge} cannot be used any more: {error}")
    if bundle.classes != sorted(plan.study.classes):
        return _verdict(True, f"the champion of {edge} tells other classes apart, {', '.join(bundle.classes)}")
    steps = _of_final(scored, final)
    acquisitions = {one.sha256: one for step in steps for one in step.acquisitions}
    own = held_out_scores(scored, final, place.store)
    known: dict[str, Any] = bundle.provenance.get("held_out") or {}
    seen = set(bundle.provenance.get("trained_on") or ())
    theirs_by = {sha256: known[sha256] for sha256 in own if sha256 in known}
    new = [acquisitions[sha256] for sha256 in own if sha256 not in seen and sha256 not in known]
    items = [_Item(champion, _prepared(one, bundle, place), one) for one in new]
    for one, field in zip(new, place.executor.map(_score, items, label="champion"), strict=True):
        if field is not None:
            theirs_by[one.sha256] = field
    common = sorted(set(own) & set(theirs_by))
    fields, own_fields = [theirs_by[one] for one in common], [own[one] for one in common]
    if not common:
        return _verdict(True, "no whole acquisition was held out, so that nothing could be compared with the champion")
    score, theirs = score_of(own_fields), score_of(fields)
    may = score >= theirs
    compared = f"{score:.3f} on the {len(common)} held-out acquisitions of this study, the champion {theirs:.3f}"
    reason = f"its maps score {compared}" + ("" if may else "; the champion stays")
    return _verdict(may, reason, score=score, champion_score=theirs, acquisitions=len(common))


def held_out_scores(scored: Sequence[ScoreMaps], final: FitModel, store: Store) -> dict[str, dict[str, Any]]:
    """Return the score of each acquisition in the splits that held it out from the final model, by its content."""
    found: dict[str, list[dict[str, Any]]] = {}
    for step in _of_final(scored, final):
        by_name = {one.name: one.sha256 for one in step.acquisitions}
        for field in read_json(store.path(step.digest) / "scores.json")["maps"]:
            found.setdefault(by_name[field["acquisition"]], []).append(field)
    return {sha256: _kept(sha256, fields) for sha256, fields in found.items()}


def _of_final(scored: Sequence[ScoreMaps], final: FitModel) -> list[ScoreMaps]:
    wanted = final.model.name, final.preset.name
    return [step for step in scored if (step.fit.model.name, step.fit.preset.name) == wanted]


def _kept(sha256: str, fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mean = float(np.mean([field["balanced_accuracy"] for field in fields]))
    return {"acquisition": sha256, "kind": fields[0]["kind"], "balanced_accuracy": mean}


def _verdict(promote: bool, reason: str, **figures: Any) -> dict[str, Any]:
    return {"promote": promote, "reason": reason, "score": None, "champion_score": None, "acquisitions": 0} | figures


@dataclass(frozen=True)
class _Item:
    """One acquisition for the champion, small to send to a worker."""

    champion: Path
    prepared: Path
    acquisition: Acquisition


def _prepared(acquisition: Acquisition, bundle: ModelBundle, place: Place) -> Path:
    """Return the acquisition as the champion wants it prepared; it is in the store, or is prepared now."""
    step = PrepareAcquisition(acquisition=acquisition, edge=bundle.edge, preset=bundle.acquisition_preset)
    entry = stages.prepare_acquisition(step, place)
    return entry / "prepared.zarr" if isinstance(entry, Path) else Path()


def _score(item: _Item) -> dict[str, Any] | None:
    if not item.prepared.exists():
        return None
    score = stages.score_prepared(item.prepared, ModelBundle.load(item.champion), item.acquisition)
    return None if score is None else _kept(item.acquisition.sha256, [score])


def keep_champion(directory: Path, *, edge: str, name: str, registered: str) -> Path:
    """Make a model the champion of its edge; return where it is kept, whatever becomes of the study's results.

    Where MLflow is installed, its alias is given to the model first: what is read there is what maps acquisitions.
    """
    if importlib.util.find_spec("mlflow") is not None:
        try:
            set_champion(directory, edge=edge, name=name)
        except Exception as error:  # of MLflow, of many kinds
            raise EelsflowError(
                "the results are written, "
                f"but the model is not champion: MLflow's registry does not take it ({error}); "
                "the same command makes it so when the registry answers"
            ) from error
    kept = _folder_of(edge, digest_file(directory))
    if not kept.exists():
        unfinished = Store(home() / "store").temporary()
        shutil.copytree(directory, unfinished, dirs_exist_ok=True)
        unfinished.rename(kept)
    register_model(kept, name=name, registered=registered, champion=True)
    return kept


def follow_champions() -> list[str]:
    """Make those the champions here that have the alias in MLflow's registry; return what changed, in sentences."""
    if not has_registry():
        return []
    changed, failures = [], []
    for champion in read_champions():
        try:
            if _follow(champion):
                changed.append(f"the champion of {champion.edge} is {champion.name} now, as MLflow's registry says")
        except UnusableModelError as error:  # those of other edges are followed all the same
            failures.append(error)
    if failures:
        raise failures[0]
    return changed


def _follow(champion: Champion) -> bool:
    check_digest(champion)
    kept = _folder_of(champion.edge, champion.digest)
    if champion_of(champion.edge) == kept:
        return False
    if not kept.exists():
        work = Store(home() / "store").temporary()
        try:
            fetch_champion(champion, work / "model")
            with contextlib.suppress(OSError):  # another watcher has fetched it meanwhile
                (work / "model").rename(kept)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    register_model(kept, name=champion.name, registered=now, champion=True)
    return True


def _folder_of(edge: str, digest: str) -> Path:
    return make_directory(home() / "models" / quote(edge, safe="")).resolve() / digest[:16]
