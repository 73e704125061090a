"""The champion of each edge in MLflow's registry: a person may move its alias there, and machines that share it follow.

The registered model of an edge is ``eelsflow-EDGE``, each version a model that was champion once, with its digest as a
tag; the alias ``champion`` is on the one that new acquisitions are mapped by. What maps them is a copy in eelsflow's
home, so that they do not wait for a server.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from eelsflow.artifacts import DIGEST_TAG, experiment_id, open_client
from eelsflow.digest import digest_file
from eelsflow.errors import UnusableModelError
from eelsflow.store import home

ALIAS = "champion"
PREFIX = "eelsflow-"
EXPERIMENT = "eelsflow champions"
NAME_TAG = "eelsflow.name"


@dataclass(frozen=True)
class Champion:
    """A version of a registered model that has the alias.

    Attributes
    ----------
    edge, name
        What it is for, and what it is called.
    digest
        Of its folder.
    source
        URL of its files.
    """

    edge: str
    name: str
    digest: str
    source: str


def has_registry() -> bool:
    """Tell whether there may be champions in MLflow: it is installed, and was used in this home or is configured."""
    if importlib.util.find_spec("mlflow") is None:
        return False
    return "MLFLOW_TRACKING_URI" in os.environ or (home() / "mlflow" / "mlflow.db").is_file()


def set_champion(directory: Path, *, edge: str, name: str) -> str:
    """Give a model the alias of its edge's champion; a version of these bytes is made once.

    Parameters
    ----------
    directory
        Of the model.
    edge, name
        What it is for, and what it is called.

    Returns
    -------
    str
        The number of its version.
    """
    from mlflow.exceptions import MlflowException

    client, digest, model = open_client(), digest_file(directory), PREFIX + quote(edge, safe="")
    try:
        client.create_registered_model(model, description=f"Models that map acquisitions of {edge}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{model}'")
    number = next((str(one.version) for one in versions if one.tags.get(DIGEST_TAG) == digest), None)
    if number is None:
        run = client.create_run(experiment_id(client, EXPERIMENT), run_name=f"{edge} {name}").info
        client.log_artifacts(run.run_id, str(directory), "model")
        client.set_terminated(run.run_id, "FINISHED")
        tags = {DIGEST_TAG: digest, NAME_TAG: name}
        version = client.create_model_version(model, f"{run.artifact_uri}/model", run_id=run.run_id, tags=tags)
        number = str(version.version)
    client.set_registered_model_alias(model, ALIAS, number)
    return number


def read_champions() -> list[Champion]:
    """Return the models that have the alias now."""
    client = open_client()
    found = []
    for model in client.search_registered_models(f"name LIKE '{PREFIX}%'"):
        if ALIAS not in model.aliases:
            continue
        version = client.get_model_version_by_alias(model.name, ALIAS)
        edge, digest = unquote(model.name.removeprefix(PREFIX)), version.tags.get(DIGEST_TAG, "")
        found.append(Champion(edge, version.tags.get(NAME_TAG, model.name), digest, str(version.source)))
    return found


def check_digest(champion: Champion) -> None:
    """Refuse a champion that no study has promoted.

    Raises
    ------
    UnusableModelError
        If its version has no digest.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", champion.digest):
        raise UnusableModelError(
            f"the champion of {champion.edge} in MLflow's registry has no digest: no study promoted it; move the alias "
            "to a version that has the tag eelsflow.digest, or promote a model"
        )


def fetch_champion(champion: Champion, directory: Path) -> None:
    """Copy a champion's files into a new folder.

    Raises
    ------
    UnusableModelError
        If they are not those of the model that became champion.
    """
    from mlflow.artifacts import download_artifacts

    open_client()  # sets up what MLflow must know
    got = Path(download_artifacts(artifact_uri=champion.source, dst_path=str(directory.parent)))
    if got != directory:
        got.rename(directory)
    if digest_file(directory) != champion.digest:
        shutil.rmtree(directory)
        raise UnusableModelError(
            f"the champion of {champion.edge} at {champion.source} is not the model that became champion: its files "
            "were changed in the artifact store; promote a model anew, or move the alias to another version"
        )
