"""Commands that make a manifest and its labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eelsflow.cli.application import app
from eelsflow.cli.terminal import edge_named, progress, say, until_stopped
from eelsflow.errors import InputError

PANEL = "Labels"
"""Of the list that `--help` prints."""


@app.command(rich_help_panel=PANEL)
def manifest(
    directory: Annotated[Path, typer.Argument(help="The folder whose acquisitions are listed, with all below it.")],
    out: Annotated[
        Path | None, typer.Option(help="The manifest; DIRECTORY/manifest.csv by default. Rows that are there are kept.")
    ] = None,
    edge: Annotated[
        str, typer.Option(help="Files that do not show this edge are left out: a shipped one, or a study file.")
    ] = "O_K",
    classes: Annotated[
        str, typer.Option(help="As FeO,Fe3O4: label files whose name, or whose folder's, has one of them as a word.")
    ] = "",
) -> None:
    """Write a manifest of the acquisitions below a folder; what is left out or odd is said with the reason."""
    from eelsflow.labelling.discover import write_discovered

    out = out or directory / "manifest.csv"
    with progress("manifest") as on_step:
        found = write_discovered(
            directory, out, edge=edge_named(edge), classes=_as_list(classes),
            progress=lambda name, done, total: on_step(name, done, total),
        )  # fmt: skip
    for name, remark in found.remarks:
        say(f"warning: {name}: {remark}")
    for name, reason in found.left_out:
        say(f"left out: {name}: {reason}")
    kept = f", kept as they were: {found.kept}" if found.kept else ""
    typer.echo(f"{out}: acquisitions added: {found.added}{kept}, left out: {len(found.left_out)}")


@app.command(rich_help_panel=PANEL)
def label(
    files: Annotated[
        list[Path], typer.Argument(help="An acquisition; with --suggest acquisitions, or a manifest (csv).")
    ],
    classes: Annotated[
        str, typer.Option(help="As FeO,Fe3O4; those of the truth file, the model and the manifest by default.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="The truth file; NAME.truth.npz beside FILE by default.")] = None,
    model: Annotated[
        str | None, typer.Option(help="As in `eelsflow classify`: its class, confidence and doubt are shown too.")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Draw nothing: take the regions from this JSON file, and end.")
    ] = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Rank what to label next by what the model doubts, and end.")
    ] = False,
    manifest_file: Annotated[
        Path | None, typer.Option("--manifest", help="Name the truth file in this manifest's row of FILE.")
    ] = None,
    edge: Annotated[
        str | None, typer.Option(help="A shipped one, or a study file; by default that of the model, or O_K.")
    ] = None,
    low_loss: Annotated[
        Path | None, typer.Option(help="The low loss of the scan, if the file does not hold it.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, and open no browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (of --suggest).")] = False,
) -> None:
    """Draw regions of a class on an acquisition; they become the truth file that a study takes."""
    from eelsflow.labelling import service

    if suggest:
        if model is None:
            raise InputError("--suggest needs --model: what to label next is what a model doubts")
        with progress("suggest") as on_step:
            ranked, aside = service.suggest_next(files, model=model, progress=on_step)
        for one in aside:
            say(f"warning: {one.acquisition} left out: {one.reason}")
        typer.echo(
            json.dumps([one.model_dump() for one in ranked], indent=2) if as_json else service.format_ranked(ranked)
        )
        return
    if len(files) != 1:
        raise InputError(f"{len(files)} files are given, and one is labelled at a time; --suggest takes many")
    (path,) = files
    truth = out or service.truth_beside(path)
    if regions is not None:
        drawing = service.label_from_file(path, regions, truth=truth, classes=_as_list(classes), manifest=manifest_file)
        typer.echo(f"{truth}: {service.describe_counts(drawing)}")
        return
    session = service.open_session(
        path, truth=truth, classes=_as_list(classes), model=model, low_loss=low_loss, manifest=manifest_file,
        edge=edge_named(edge) if edge else None, say=say,
    )  # fmt: skip
    from eelsflow.labelling.serve import serving

    with until_stopped() as stop, serving(session) as address:
        typer.echo(address)
        say("draw and save there; Ctrl-C ends it")
        if not no_browser:
            import webbrowser

            webbrowser.open(address)
        stop.wait()
    say(f"{truth}: {service.describe_counts(session.drawing)}" if truth.exists() else "nothing was saved")


def _as_list(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]
