"""Commands about one acquisition or a few: what it holds, its map, what decided, what dose it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from eelsflow import public
from eelsflow.cli.application import app
from eelsflow.cli.terminal import SimulatorDetector, SimulatorPreset, edge_named, one_thread_each, progress, say
from eelsflow.errors import EelsflowError, InputError
from eelsflow.io.formats import list_formats

PANEL = "Acquisitions"
"""Of the list that `--help` prints."""


@app.command(rich_help_panel=PANEL)
def info(
    file: Annotated[Path, typer.Argument(help=f"An acquisition or a table of spectra (npz). Read: {list_formats()}.")],
    edge: Annotated[
        str | None,
        typer.Option(help="Refuse (exit 2) where this edge is out of range: a shipped one, or a study file."),
    ] = None,
    low_loss: Annotated[
        Path | None,
        typer.Option(help="The low loss of the scan, if the file does not hold it: zero loss, t/lambda."),
    ] = None,
    density: Annotated[float | None, typer.Option(help="Of the specimen, g/cm3: makes nanometres of t/lambda.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe what a readable file holds."""
    from eelsflow.describe import format_description

    description = public.info(file, edge=edge_named(edge) if edge else None, low_loss=low_loss, density=density)
    typer.echo(json.dumps(description, indent=2) if as_json else format_description(description))


@app.command(rich_help_panel=PANEL)
def classify(
    files: Annotated[list[Path], typer.Argument(help="Acquisitions.")],
    model: Annotated[str, typer.Option(help="A study's results, a model directory, a registered name, or 'default'.")],
    out: Annotated[Path, typer.Option(help="Where a folder a file is written.")],
    edge: Annotated[str | None, typer.Option(help="The edge that must be in range; by default the model's.")] = None,
    low_loss: Annotated[
        Path | None, typer.Option(help="The low loss of the scan (of one file), if the file does not hold it.")
    ] = None,
) -> None:
    """Map the oxidation state: a class with its probability for every pixel."""
    from eelsflow.maps import classify_file
    from eelsflow.store import make_directory

    if low_loss is not None and len(files) > 1:
        raise InputError(f"--low-loss belongs to one acquisition and {len(files)} are given; classify them one by one")
    make_directory(out)
    if model == "default":
        _follow_champions()
    failures = []
    with progress("classify") as on_step:
        for number, file in enumerate(files):
            on_step(f"classify {file.name}", number, len(files))
            try:
                summary = classify_file(file, model=model, out=out, edge=edge, low_loss=low_loss)
            except EelsflowError as error:
                failures.append(str(error))
                continue
            counts = ", ".join(f"{name} {found['pixels']}" for name, found in summary["classes"].items())
            typer.echo(
                f"{file}: {counts} of {summary['pixels']} pixels, vacuum {summary['background_pixels']}, "
                f"unknown {summary['unknown']['pixels']}"
            )
            for warning in summary["warnings"]:
                say(f"warning: {file.name}: {warning}")
    if failures:
        raise InputError("\n".join(failures))


@app.command(rich_help_panel=PANEL)
def explain(
    model: Annotated[
        list[str], typer.Option(help="As in `eelsflow classify`; several: the same model trained with other seeds.")
    ],
    out: Annotated[Path, typer.Option(help="Where explanation.json, .png and .svg are written.")],
    file: Annotated[
        Path | None, typer.Argument(help="An acquisition; without it the model alone is explained, by its classes.")
    ] = None,
    pixel: Annotated[
        list[str] | None, typer.Option(help="X,Y of a pixel, counted from 0; without it, all pixels of each class.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="A,B: the two classes; by default the model's first two.")] = None,
    width: Annotated[float, typer.Option(help="Of an energy band, eV.")] = 1.0,
    low_loss: Annotated[
        Path | None, typer.Option(help="The low loss of the scan, if the file does not hold it.")
    ] = None,
) -> None:
    """Show which energies decided between two classes: in an acquisition, in single pixels, or in a model."""
    from eelsflow.explanation import explain_file

    if pixel and file is None:
        raise InputError("--pixel names pixels of an acquisition, and no file is given; name the file")
    pair = None
    if classes is not None:
        first, _, second = classes.partition(",")
        pair = first.strip(), second.strip()
    if "default" in model:
        _follow_champions()
    explanation = explain_file(
        file,
        models=model,
        out=out,
        pixels=[_pixel(text) for text in pixel] if pixel else None,
        classes=pair,
        width=width,
        low_loss=low_loss,
    )
    for sentence in explanation.sentences():
        typer.echo(sentence)
    typer.echo(str(out / "explanation.png"))


def _pixel(text: str) -> tuple[int, int]:
    """Return (y, x) of X,Y."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--pixel {text} is no pixel; write X,Y with two whole numbers, such as 12,7") from error
    return y, x


def _follow_champions() -> None:
    from eelsflow.catalogue.service import begin
    from eelsflow.study.champion import follow_champions

    def follow() -> None:
        try:
            for change in follow_champions():
                say(change)
        except Exception as error:  # a server that is away must not keep the model that is here from its work
            say(f"warning: MLflow's registry does not say who is champion ({error}); the one known here is used")

    begin(follow)


@app.command(rich_help_panel=PANEL)
def plan(
    file: Annotated[Path | None, typer.Argument(help="An acquisition, as a first look.")] = None,
    model: Annotated[str, typer.Option(help="As in `eelsflow classify`.")] = "default",
    accuracy: Annotated[
        float | None, typer.Option(help="Wanted share of single pixels of one class that are named rightly.")
    ] = None,
    fraction_error: Annotated[
        float | None, typer.Option(help="Wanted standard error of a class's fraction in a single pixel.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The class of every specimen pixel, where it is known.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Phase fractions of every pixel (zarr or npz), where they are known.")
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulate", help="Plan from a simulated field of both oxides instead of a file.")
    ] = False,
    detector: Annotated[SimulatorDetector, typer.Option(help="Of --simulate.")] = SimulatorDetector.ccd,
    thickness: Annotated[float | None, typer.Option(min=1.0, help="Of --simulate: the thickest place, nm.")] = None,
    preset: Annotated[SimulatorPreset, typer.Option(help="Of --simulate.")] = SimulatorPreset.wide,
    seed: Annotated[int, typer.Option(min=0, help="Of --simulate.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where plan.json, plan.png and plan.svg are written.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the curves.")] = False,
) -> None:
    """Plan a dose: how many electrons, or how many pixels to average, for a wanted accuracy or error of the fraction.

    Single pixels are planned for, each judged by itself: a map, where neighbours lend, does better inside a phase.
    """
    one_thread_each()
    if accuracy is None and fraction_error is None:
        raise InputError("nothing is wanted; name --accuracy SHARE, --fraction-error ERROR, or both")
    if (file is None) != simulated:
        raise InputError("a plan needs one acquisition: name a file, or --simulate for a simulated one, and not both")
    if label is not None and truth is not None:
        raise InputError("--label and --truth both say what the pixels are; name one of them")
    if simulated and (label or truth):
        raise InputError("a simulated field knows what its pixels are; leave --label and --truth out")
    from eelsflow.dose import simulate_specimen, write_plan

    acquisition: Any = file
    labels: Any = label if label is not None else truth
    if simulated:
        from eelsflow.maps.registry import find_model, read_edge

        edge = read_edge(find_model(model))
        acquisition, labels = simulate_specimen(
            preset=preset.value, detector=detector.value, thickness=thickness, seed=seed,
            window=edge.recorded_window if edge.beside else None,
        )  # fmt: skip
    found = public.plan_dose(acquisition, model=model, accuracy=accuracy, fraction_error=fraction_error, labels=labels)
    if out is not None:
        write_plan(found, out)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.sentences()))
