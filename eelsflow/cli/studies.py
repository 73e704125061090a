"""Commands that make models: simulated acquisitions, studies, the demonstration, their report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from eelsflow import public
from eelsflow.cli.application import app
from eelsflow.cli.terminal import (
    RunnerName,
    SimulatorDetector,
    SimulatorPreset,
    one_thread_each,
    progress,
    say,
)
from eelsflow.errors import InputError

PANEL = "Models"
"""Of the list that `--help` prints."""


@app.command(rich_help_panel=PANEL)
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
    dispersion_error: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.099,
            help="How far the channels' widths are from what files say, relatively (standard deviation): 0.0005 for "
            "calibrated files; by the preset, 0.004, if not given.",
        ),
    ] = None,
    low_loss: Annotated[
        bool, typer.Option("--low-loss", help="Write the low loss of every scan too: NAME.low-loss.zarr.")
    ] = False,
) -> None:
    """Simulate acquisitions of iron oxides with their ground truth."""
    with progress("simulate") as on_step:
        manifest = public.simulate(
            directory,
            acquisitions=acquisitions,
            seed=seed,
            pixels=pixels,
            preset=preset.value,
            detector=detector.value,
            dose=dose,
            dispersion_error=dispersion_error,
            low_loss=low_loss,
            progress=lambda done, total: on_step("simulate", done, total),
        )
    typer.echo(str(manifest))


@app.command(rich_help_panel=PANEL)
def study(
    study_file: Annotated[Path | None, typer.Argument(help="The study file (YAML).", metavar="STUDY.yaml")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results are written; needed, but for --init.")] = None,
    runner: Annotated[
        RunnerName | None,
        typer.Option(
            help="prefect: orchestrated on a Dask cluster, with the UI; the default where Prefect is installed. "
            "loop: in this process alone."
        ),
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
    one_thread_each()
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


def _run_study(resolved: Any, out: Path, *, runner: RunnerName | None, promote: bool, strict: bool) -> None:
    if runner is None:
        runner = RunnerName.prefect if public.orchestration_importable() else RunnerName.loop
    if runner is RunnerName.prefect:
        # The run's log is in the UI; the terminal has the progress bar and what goes wrong.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with progress("study") as on_step:
        results = public.run_study(
            resolved, out, runner=runner.value, promote=promote, strict=strict, on_step=on_step, say=say
        )
    _say_kept(results, out)
    _say_set_aside(results)
    typer.echo(f"report: {out / 'report.html'}")
    promotion = results.get("promotion")
    if promotion is not None and promotion["promote"]:
        say(f"promoted: {promotion['reason']}")
    elif promotion is not None:
        raise InputError(f"not promoted: {promotion['reason']}; the results are written all the same")


def _say_set_aside(results: dict[str, Any]) -> None:
    """Tell which acquisitions a study went on without, and of how many."""
    set_aside = results["set_aside"]
    for one in set_aside:
        say(f"warning: {one['acquisition']} set aside: {one['reason']}")
    if set_aside:
        used = {entry["sha256"] for entry in results["acquisitions"]}
        say(f"{len(set_aside)} of {len(used) + len(set_aside)} acquisitions set aside; --strict refuses them")


def _say_kept(results: dict[str, Any], out: Path) -> None:
    """Tell which model is kept, and how good it was on what it had not seen."""
    kept = (results["final_model"]["model"], results["final_model"]["preprocess"])
    of_maps = [row for row in results["maps"] if (row["model"], row["preprocess"]) == kept]
    of_spectra = [row for row in results["models"] if (row["model"], row["preprocess"]) == kept]
    if of_maps:
        how = f"score of maps of held-out fields {of_maps[0]['score']['mean']:.3f}"
    else:
        row = next((row for row in of_spectra if row["split"] == "group"), of_spectra[0])
        how = f"accuracy {row['accuracy']['mean']:.3f}, split by {row['split']}"
    say(f"kept: {kept[0]}, {kept[1]} ({how}); it is in {out / 'model'}")


DEMO_STUDY = """\
name: demo
edge: O_K
classes: [FeO, Fe3O4]
data: {manifest: acquisitions/manifest.csv}
preprocess: [recommended, paper]
split: {by: [group, pixel], folds: %(folds)d, seeds: %(seeds)d}
grids: small
training: {epochs: %(epochs)d, batch_size: 32, patience: 8}
robustness: {shift_ev: [-10, 10, 2], noise_sigma: [0, 0.3, 0.05]}
"""
WHOLE_DEMO, QUICK_DEMO = {"seeds": 2, "folds": 3, "epochs": 25}, {"seeds": 1, "folds": 2, "epochs": 3}
"""How much of it there is."""


@app.command(rich_help_panel=PANEL)
def demo(
    directory: Annotated[Path, typer.Argument(help="Where acquisitions and results are written.")] = Path("demo"),
    acquisitions: Annotated[int, typer.Option(min=6, help="How many acquisitions are simulated.")] = 6,
    pixels: Annotated[int, typer.Option(min=24, help="Pixels along either side of a scan.")] = 24,
    runner: Annotated[RunnerName | None, typer.Option(help="As in `eelsflow study`.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One repetition and three epochs: all pages, with less to see in them.")
    ] = False,
) -> None:
    """Run the whole main job on simulated acquisitions, pure and core-shell."""
    from eelsflow.store import make_directory

    one_thread_each()
    make_directory(directory)
    say(f"simulating {acquisitions} acquisitions of {pixels} x {pixels} pixels in {directory / 'acquisitions'}")
    simulate(directory / "acquisitions", acquisitions=acquisitions, seed=7, pixels=pixels)
    study_file = directory / "study.yaml"
    study_file.write_text(DEMO_STUDY % (QUICK_DEMO if quick else WHOLE_DEMO))
    from eelsflow.study.config import load_study

    _run_study(load_study(study_file), directory / "results", runner=runner, promote=False, strict=False)
    typer.echo("the models, grids and figures again, and the runs of the flow: eelsflow up")


@app.command(rich_help_panel=PANEL)
def report(directory: Annotated[Path, typer.Argument(help="A study's results.")]) -> None:
    """Build the HTML report of a study again."""
    from eelsflow.report.page import build_report

    typer.echo(str(build_report(directory)))
