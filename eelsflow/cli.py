"""The command line: `eelsflow --help` explores it.

Exit status 0: done; 2: bad input or refused, with one clear message; 1: a fault of the program.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from eelsflow import public
from eelsflow.errors import EelsflowError, InputError, MissingDependencyError, UnusableModelError
from eelsflow.io.formats import list_formats

app = typer.Typer(
    name="eelsflow",
    help="From EELS acquisitions to oxidation-state maps, with the evidence behind them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


INTERRUPTED = 130
"""Exit status after Ctrl-C."""


class SimulatorPreset(StrEnum):
    """What the simulator draws from."""

    paper = "paper"
    wide = "wide"


class SimulatorDetector(StrEnum):
    """What the simulator records with."""

    ccd = "ccd"
    counting = "counting"
    both = "both"


class RunnerName(StrEnum):
    """Where a study runs."""

    prefect = "prefect"
    loop = "loop"


_debug = False


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    global _debug
    _debug = debug


def _say(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str, int | None, int | None], None]]:
    """Show progress on a terminal; elsewhere say nothing."""
    if not sys.stderr.isatty():
        yield lambda title, number, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda title, number, total: progress.update(task, description=title, completed=number, total=total)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help=f"An acquisition or a table of spectra (npz). Read: {list_formats()}.")],
    edge: Annotated[str | None, typer.Option(help="Refuse (exit 2) where this edge is out of range.")] = None,
    low_loss: Annotated[
        Path | None,
        typer.Option(help="The low loss of the scan, if the file does not hold it: zero loss, t/lambda."),
    ] = None,
    density: Annotated[float | None, typer.Option(help="Of the specimen, g/cm3: makes nanometres of t/lambda.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe what a readable file holds."""
    from eelsflow.describe import format_description

    description = public.info(file, edge=edge, low_loss=low_loss, density=density)
    typer.echo(json.dumps(description, indent=2) if as_json else format_description(description))


@app.command()
def simulate(
    directory: Annotated[Path, typer.Argument(help="Where acquisitions, truth and manifest.csv are written.")],
    acquisitions: Annotated[int, typer.Option(min=1, help="How many acquisitions.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same spectra.")] = 0,
    pixels: Annotated[int, typer.Option(min=8, help="Pixels along either side of a scan.")] = 48,
    preset: Annotated[
        SimulatorPreset,
        typer.Option(
            help="paper: nanocubes as one measured microscope shows them; wide: fields of particles with sharp, smooth "
            "and small boundaries, another oxide among them, edges, thickness, background, film and energy axis "
            "different in every acquisition."
        ),
    ] = SimulatorPreset.paper,
    detector: Annotated[
        SimulatorDetector,
        typer.Option(
            help="ccd: a camera, about 19 counts per electron, with read-out noise, point spread and spikes; counting: "
            "whole electrons, one count each; both: either, by chance, for each acquisition."
        ),
    ] = SimulatorDetector.ccd,
    dose: Annotated[
        float | None,
        typer.Option(min=0.001, help="Beam dose relative to the measured one (1); drawn by the preset if not given."),
    ] = None,
    low_loss: Annotated[
        bool, typer.Option("--low-loss", help="Write the low loss of every scan too: NAME.low-loss.zarr.")
    ] = False,
) -> None:
    """Simulate acquisitions of iron oxides with their ground truth."""
    with _progress("simulate") as on_step:
        manifest = public.simulate(
            directory,
            acquisitions=acquisitions,
            seed=seed,
            pixels=pixels,
            preset=preset.value,
            detector=detector.value,
            dose=dose,
            low_loss=low_loss,
            progress=lambda done, total: on_step("simulate", done, total),
        )
    typer.echo(str(manifest))


@app.command()
def study(
    study_file: Annotated[Path | None, typer.Argument(help="The study file (YAML).", metavar="STUDY.yaml")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results are written.")] = None,
    runner: Annotated[
        RunnerName | None,
        typer.Option(help="prefect: orchestrated on a Dask cluster, with the UI; loop: in this process alone."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small grids, 2 seeds, 30 epochs: a first look.")] = False,
    extend_grid: Annotated[
        bool, typer.Option("--extend-grid", help="Search on where the best value is the last of its grid.")
    ] = False,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Search the grid on every seed, also where the study file says first.")
    ] = False,
    promote: Annotated[
        bool,
        typer.Option("--promote", help="Make the best model the champion of its edge, unless it is worse (exit 2)."),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse acquisitions that cannot be used (exit 2); else they are set aside."),
    ] = False,
    init: Annotated[bool, typer.Option("--init", help="Print a commented study file.")] = False,
) -> None:
    """Run a study: prepare, search, train, assess, report."""
    _one_thread_each()
    from eelsflow.study.config import EXAMPLE, load_study

    if init:
        typer.echo(EXAMPLE, nl=False)
        return
    if study_file is None or out is None:
        raise InputError("a study needs a study file and --out DIR; `eelsflow study --init` prints a study file")
    resolved = load_study(study_file)
    if extend_grid:
        resolved = resolved.model_copy(update={"extend_grid": True})
    if exhaustive:
        resolved = resolved.model_copy(update={"split": resolved.split.model_copy(update={"search": "every"})})
    _run_study(resolved.quick() if quick else resolved, out, runner=runner, promote=promote, strict=strict)


def _one_thread_each() -> None:
    """Keep numerical libraries to one thread: parallelism is the cluster's, and sums then round alike everywhere.

    They read it when they are loaded, so this comes before anything that imports NumPy.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _run_study(resolved: Any, out: Path, *, runner: RunnerName | None, promote: bool, strict: bool) -> None:
    if runner is None:
        runner = RunnerName.prefect if public.orchestration_importable() else RunnerName.loop
    if runner is RunnerName.prefect:
        # The run's log is in the UI; the terminal has the progress bar and what goes wrong.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with _progress("study") as on_step:
        results = public.run_study(
            resolved, out, runner=runner.value, promote=promote, strict=strict, on_step=on_step, say=_say
        )
    _say_set_aside(results)
    typer.echo(f"report: {out / 'report.html'}")
    promotion = results.get("promotion")
    if promotion is not None and promotion["promote"]:
        _say(f"promoted: {promotion['reason']}")
    elif promotion is not None:
        raise InputError(f"not promoted: {promotion['reason']}; the results are written all the same")


def _say_set_aside(results: dict[str, Any]) -> None:
    """Tell which acquisitions a study went on without, and of how many."""
    set_aside = results["set_aside"]
    for one in set_aside:
        _say(f"warning: {one['acquisition']} set aside: {one['reason']}")
    if set_aside:
        used = {entry["sha256"] for entry in results["acquisitions"]}
        _say(f"{len(set_aside)} of {len(used) + len(set_aside)} acquisitions set aside; --strict refuses them")


DEMO_STUDY = """\
name: demo
edge: O_K
classes: [FeO, Fe3O4]
data: {manifest: acquisitions/manifest.csv}
preprocess: [recommended, paper]
split: {by: [group, pixel], folds: 3, seeds: 2}
grids: small
training: {epochs: 25, batch_size: 32, patience: 8}
robustness: {shift_ev: [-10, 10, 2], noise_sigma: [0, 0.3, 0.05]}
"""


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Where acquisitions and results are written.")] = Path("demo"),
    acquisitions: Annotated[int, typer.Option(min=6, help="How many acquisitions are simulated.")] = 6,
    pixels: Annotated[int, typer.Option(min=24, help="Pixels along either side of a scan.")] = 24,
    runner: Annotated[RunnerName | None, typer.Option(help="As in `eelsflow study`.")] = None,
) -> None:
    """Run the whole main job on simulated acquisitions, pure and core-shell."""
    from eelsflow.store import make_directory

    _one_thread_each()
    make_directory(directory)
    _say(f"simulating {acquisitions} acquisitions of {pixels} x {pixels} pixels in {directory / 'acquisitions'}")
    simulate(directory / "acquisitions", acquisitions=acquisitions, seed=7, pixels=pixels)
    study_file = directory / "study.yaml"
    study_file.write_text(DEMO_STUDY)
    from eelsflow.study.config import load_study

    _run_study(load_study(study_file), directory / "results", runner=runner, promote=False, strict=False)
    typer.echo("the models, grids and figures again, and the runs of the flow: eelsflow up")


@app.command()
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
    with _progress("classify") as on_step:
        for number, file in enumerate(files):
            on_step(f"classify {file.name}", number, len(files))
            try:
                summary = classify_file(file, model=model, out=out, edge=edge, low_loss=low_loss)
            except EelsflowError as error:
                failures.append(str(error))
                continue
            counts = ", ".join(f"{name} {found['pixels']}" for name, found in summary["classes"].items())
            typer.echo(f"{file}: {counts} of {summary['pixels']} pixels, vacuum {summary['background_pixels']}")
            for warning in summary["warnings"]:
                _say(f"warning: {file.name}: {warning}")
    if failures:
        raise InputError("\n".join(failures))


@app.command()
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
                _say(change)
        except Exception as error:  # a server that is away must not keep the model that is here from its work
            _say(f"warning: MLflow's registry does not say who is champion ({error}); the one known here is used")

    begin(follow)


@app.command()
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
    _one_thread_each()
    if accuracy is None and fraction_error is None:
        raise InputError("nothing is wanted; name --accuracy SHARE, --fraction-error ERROR, or both")
    if (file is None) != simulated:
        raise InputError("a plan needs one acquisition: name a file, or --simulate for a simulated one, and not both")
    if label is not None and truth is not None:
        raise InputError("--label and --truth both say what the pixels are; name one of them")
    if simulated and (label or truth):
        raise InputError("a simulated field knows what its pixels are; leave --label and --truth out")
    import numpy as np

    from eelsflow.dataset.labels import label_pixels
    from eelsflow.dose import plan_dose, write_plan
    from eelsflow.io.read import read_spectrum_image
    from eelsflow.maps.registry import find_model
    from eelsflow.models.bundle import ModelBundle
    from eelsflow.spectrum_image import energy_axis

    if file is None:
        image, labels = _simulate_both(preset, detector, thickness=thickness, seed=seed)
    else:
        image, labels = read_spectrum_image(file).load(), None
    bundle = ModelBundle.load(find_model(model, axis=energy_axis(image)))
    if label is not None or truth is not None:
        no_vacuum = np.zeros(image.shape[:2], dtype=bool)  # thin pixels take no part in a plan, whatever they are
        labels = label_pixels(no_vacuum, label=label or "", truth=truth, classes=bundle.classes, name=str(file))
    found = plan_dose(image, bundle, accuracy=accuracy, fraction_error=fraction_error, labels=labels)
    if out is not None:
        write_plan(found, out)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.sentences()))


def _simulate_both(
    preset: SimulatorPreset, detector: SimulatorDetector, *, thickness: float | None, seed: int
) -> tuple[Any, Any]:
    """Return a simulated field that holds both oxides, and the class of each of its pixels."""
    import numpy as np

    from eelsflow.dataset.labels import MIXED, PURE_FRACTION
    from eelsflow.simulator import PRESETS, plan_directory, simulate_acquisition

    parameters, scene = PRESETS[preset.value], "core_shell"
    if preset is SimulatorPreset.wide:
        scene = "mosaic"
        if thickness is not None:
            specimen = parameters.specimen.model_copy(update={"peak_thickness": (thickness, thickness)})
            parameters = parameters.model_copy(update={"specimen": specimen})
    elif thickness is not None:
        raise InputError("the cubes of the preset paper have the thickness of their size; use --preset wide")
    planned = plan_directory(
        n_acquisitions=1, seed=seed, preset=parameters, detector=detector.value, scenes=(scene,), dose=(1.0, 1.0),
        shape=(48, 48),
    )[0]  # fmt: skip
    acquisition = simulate_acquisition(planned.parameters, planned.seed, name=planned.name)
    fraction = acquisition.truth["phase_fraction"].values
    labels = np.full(fraction.shape[1:], MIXED, dtype="<U8")
    for number, name in enumerate(acquisition.truth["phase"].values):
        labels[fraction[number] >= PURE_FRACTION] = name
    return acquisition.image, labels


@app.command()
def manifest(
    directory: Annotated[Path, typer.Argument(help="The folder whose acquisitions are listed, with all below it.")],
    out: Annotated[
        Path | None, typer.Option(help="The manifest; DIRECTORY/manifest.csv by default. Rows that are there are kept.")
    ] = None,
    edge: Annotated[str, typer.Option(help="Files that do not show this edge are left out.")] = "O_K",
    classes: Annotated[
        str, typer.Option(help="As FeO,Fe3O4: label files whose name, or whose folder's, has one of them as a word.")
    ] = "",
) -> None:
    """Write a manifest of the acquisitions below a folder; what is left out or odd is said with the reason."""
    from eelsflow.edges import resolve_edge
    from eelsflow.labelling.discover import write_discovered

    out = out or directory / "manifest.csv"
    with _progress("manifest") as on_step:
        found = write_discovered(
            directory, out, edge=resolve_edge(edge), classes=_as_list(classes),
            progress=lambda name, done, total: on_step(name, done, total),
        )  # fmt: skip
    for name, remark in found.remarks:
        _say(f"warning: {name}: {remark}")
    for name, reason in found.left_out:
        _say(f"left out: {name}: {reason}")
    kept = f", {found.kept} kept as they were" if found.kept else ""
    typer.echo(f"{out}: {found.added} acquisitions added{kept}, {len(found.left_out)} files left out")


def _as_list(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]


@app.command()
def label(
    files: Annotated[
        list[Path], typer.Argument(help="An acquisition; with --suggest acquisitions, or a manifest (csv).")
    ],
    classes: Annotated[str, typer.Option(help="As FeO,Fe3O4; those of the truth file and the model by default.")] = "",
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
    edge: Annotated[str | None, typer.Option(help="By default that of the model, or O_K.")] = None,
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
        with _progress("suggest") as on_step:
            ranked, aside = service.suggest_next(files, model=model, progress=on_step)
        for one in aside:
            _say(f"warning: {one.acquisition} left out: {one.reason}")
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
        path, truth=truth, classes=_as_list(classes), model=model, edge=edge, low_loss=low_loss,
        manifest=manifest_file, say=_say,
    )  # fmt: skip
    from eelsflow.labelling.serve import serving

    with _until_stopped() as stop, serving(session) as address:
        typer.echo(address)
        _say("draw and save there; Ctrl-C ends it")
        if not no_browser:
            import webbrowser

            webbrowser.open(address)
        stop.wait()
    _say(f"{truth}: {service.describe_counts(session.drawing)}" if truth.exists() else "nothing was saved")


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A study's results.")]) -> None:
    """Build the HTML report of a study again."""
    from eelsflow.report.page import build_report

    typer.echo(str(build_report(directory)))


@app.command()
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
    _one_thread_each()
    from eelsflow.catalogue import service

    order = service.make_order(inbox, out=out, model=model, edge=edge)
    if not once:
        _say(f"watching {order.inbox}; maps go to {order.place}/maps; Ctrl-C stops it, `eelsflow status` tells more")
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

    with _until_stopped() as stop, _log_lines("eelsflow.watch"):
        pool = service.open_pool(workers=workers, cluster=cluster)
        waiting = service.watch(order, pool=pool, interval=interval, once=once, since=since, stop=stop)
    if once and waiting:
        raise UnusableModelError(
            f"{len(waiting)} files wait and are tried again by the next `watch`: {waiting[0].reason}"
        )


@contextmanager
def _until_stopped() -> Iterator[Any]:
    """Turn Ctrl-C and SIGTERM into an event, so that what is worked on is given back."""
    import signal
    from threading import Event

    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _log_lines(name: str) -> Iterator[None]:
    """Print what a part of the program says of its work."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class ForcedStage(StrEnum):
    """From where acquisitions are done again."""

    ingested = "ingested"
    prepared = "prepared"
    classified = "classified"


@app.command()
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
    _one_thread_each()
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
    _say(f"{again} acquisitions are worked on again")
    _watch(order, once=True, interval=1.0, workers=workers, since=start)


@app.command()
def status(
    inbox: Annotated[str | None, typer.Argument(help="Of this inbox alone.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what became of every acquisition that was seen in an inbox."""
    from eelsflow.catalogue import service
    from eelsflow.catalogue.ledger import Catalogue

    rows = service.describe_status(Catalogue(), inbox)
    typer.echo(json.dumps(rows, indent=2) if as_json else service.format_status(rows))


store_app = typer.Typer(help="What was computed is kept in a store; see how much, and drop what nothing refers to.")
app.add_typer(store_app, name="store", no_args_is_help=True)


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


@app.command()
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
    importlib.import_module("flows.up").serve_everything(inbox=inbox, out=out, say=_say)


def main() -> None:
    """Run the command line and exit."""
    try:
        app()  # exits by itself when done (0), for misuse (2) and for Ctrl-C (130)
    except SystemExit as exit_:
        if exit_.code == INTERRUPTED:  # typer makes this of Ctrl-C, and says nothing
            _say("interrupted; what was finished is kept, and the same command goes on from there")
        raise
    except EelsflowError as error:
        _report(error, f"error: {error}")
        sys.exit(2)
    except Exception as error:  # the one place that may catch everything: it turns a fault into a message
        _report(error, f"fault: {type(error).__name__}: {error} (a fault of eelsflow; --debug shows where)")
        sys.exit(1)


def _report(error: BaseException, text: str) -> None:
    if _debug:
        traceback.print_exception(error)
    _say(text)


if __name__ == "__main__":
    main()
