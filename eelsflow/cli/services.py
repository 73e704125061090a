"""Commands of what runs by itself: an inbox, its catalogue and store, and everything started at once."""

from __future__ import annotations

import importlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from eelsflow import public
from eelsflow.cli.application import app
from eelsflow.cli.terminal import log_lines, one_thread_each, say, until_stopped
from eelsflow.errors import MissingDependencyError, UnusableModelError

PANEL = "Services"
"""Of the list that `--help` prints."""


@app.command(rich_help_panel=PANEL)
def watch(
    inbox: Annotated[str, typer.Argument(help="The folder, or s3://BUCKET/FOLDER, that acquisitions are put into.")],
    model: Annotated[str, typer.Option(help="As in `eelsflow classify`; looked for anew for every file.")] = "default",
    out: Annotated[
        str | None,
        typer.Option(
            help="Where `maps` and `quarantine` go, a folder or s3://BUCKET/FOLDER; eelsflow's home by default."
        ),
    ] = None,
    edge: Annotated[str | None, typer.Option(help="The edge that files must show; by default the model's.")] = None,
    once: Annotated[bool, typer.Option("--once", help="End when everything that is there is done.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks; a file is taken when it is the same at two.")
    ] = 5.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Files worked on at once; by default one a core.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Work on a Dask cluster, at the address of its scheduler such as tcp://HOST:8786."),
    ] = None,
) -> None:
    """Take every new acquisition of a folder to its map, once; until Ctrl-C."""
    one_thread_each()
    from eelsflow.catalogue import service

    order = service.make_order(inbox, out=out, model=model, edge=edge)
    _watch(order, once=once, interval=interval, workers=workers, cluster=cluster)


def _watch(
    order: Any,
    *,
    once: bool,
    interval: float,
    workers: int | None,
    cluster: str | None = None,
    since: float = 0.0,
) -> None:
    from eelsflow.catalogue import service

    with until_stopped() as stop, log_lines("eelsflow.watch"):
        pool = service.open_pool(workers=workers, cluster=cluster)
        if not once:
            say(f"watching {order.inbox}; maps go to {order.place}/maps; Ctrl-C stops it, `eelsflow status` tells more")
        waiting = service.watch(order, pool=pool, interval=interval, once=once, since=since, stop=stop)
    if once and waiting:
        raise UnusableModelError(
            f"{len(waiting)} files wait and are tried again by the next `watch`: {waiting[0].reason}"
        )


class ForcedStage(StrEnum):
    """From where acquisitions are done again."""

    ingested = "ingested"
    prepared = "prepared"
    classified = "classified"


@app.command(rich_help_panel=PANEL)
def backfill(
    inbox: Annotated[str, typer.Argument(help="As in `eelsflow watch`; or one file of an inbox.")],
    since: Annotated[str | None, typer.Option(help="Only files changed since this date, as 2026-11-29.")] = None,
    force: Annotated[
        ForcedStage | None,
        typer.Option(
            help="Do what is done already again: classified: the maps alone, as after a promotion; prepared: "
            "preparation and maps; ingested: everything. Without it, quarantined files are tried again."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="As in `eelsflow watch`.")] = "default",
    out: Annotated[str | None, typer.Option(help="As in `eelsflow watch`.")] = None,
    edge: Annotated[str | None, typer.Option(help="As in `eelsflow watch`.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="As in `eelsflow watch`.")] = None,
) -> None:
    """Work through an inbox again: what is new in it, what is quarantined, and, with --force, what is mapped."""
    one_thread_each()
    from eelsflow.catalogue import service
    from eelsflow.catalogue.ledger import Catalogue

    catalogue, path = Catalogue(), None
    known = catalogue.find(str(Path(inbox).absolute())) if "://" not in inbox else catalogue.find(inbox)
    if known is not None:
        path, inbox = known.path, known.path.rpartition("/")[0]
    order = service.make_order(inbox, out=out, model=model, edge=edge)
    start = 0.0 if since is None else service.parse_date(since)
    stage = None if force is None else service.Stage(force.value)
    again = service.send_back(order, catalogue, since=start, force=stage, path=path)
    say(f"{again} acquisitions are worked on again")
    _watch(order, once=True, interval=1.0, workers=workers, since=start)


@app.command(rich_help_panel=PANEL)
def status(
    inbox: Annotated[str | None, typer.Argument(help="Of this inbox alone.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what became of every acquisition that was seen in an inbox."""
    from eelsflow.catalogue.ledger import Catalogue
    from eelsflow.catalogue.status import describe_status, format_status

    rows = describe_status(Catalogue(), inbox)
    typer.echo(json.dumps(rows, indent=2) if as_json else format_status(rows))


store_app = typer.Typer(help="What was computed is kept in a store; see how much, and drop what nothing refers to.")
app.add_typer(store_app, name="store", no_args_is_help=True, rich_help_panel=PANEL)


@store_app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", help="Drop it without asking.")] = False,
) -> None:
    """Drop what no study's results and no map of the catalogue refers to; says what and how much before.

    What is in a bucket that machines share (EELSFLOW_STORE) stays there: others may refer to it.
    """
    from eelsflow.catalogue.ledger import Catalogue
    from eelsflow.catalogue.prune import find_unused, pruning, say_unused
    from eelsflow.store import Store, home

    store, catalogue = Store(home() / "store"), Catalogue()
    found = find_unused(store, catalogue)
    typer.echo(say_unused(found))
    if not found or not (yes or typer.confirm("drop them?")):
        return
    with pruning(store):  # looked at again, since a study may have begun and ended while a person thought
        agreed = {one.digest for one in found}
        for one in find_unused(store, catalogue):
            if one.digest in agreed:
                store.drop(one.digest)
    typer.echo("dropped")


@app.command(rich_help_panel=PANEL)
def up(
    inbox: Annotated[
        str | None,
        typer.Option(help="A folder whose new acquisitions are mapped every minute, as by `watch`."),
    ] = None,
    out: Annotated[str | None, typer.Option(help="As in `eelsflow watch`.")] = None,
) -> None:
    """Start everything on this machine until Ctrl-C: the pages of Prefect, MLflow and the catalogue, and schedules."""
    if not public.orchestration_importable():
        raise MissingDependencyError(
            "`eelsflow up` needs the flows of a checkout and Prefect; install with "
            "`pip install -e '.[cpu,orchestration]'`"
        )
    importlib.import_module("flows.up").serve_everything(inbox=inbox, out=out, say=say)
