"""The report of a study: one HTML file with everything in it, from the files of a results directory."""

from __future__ import annotations

import shutil
import uuid
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eelsflow.errors import OutputPathError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.report import pictures, tables, wording
from eelsflow.report.beyond import go_beyond
from eelsflow.report.gallery import Gallery
from eelsflow.report.maps import show_maps
from eelsflow.report.outside import show_outside, write_outside
from eelsflow.report.passport import FOLDER, picture_of_final, show_passports
from eelsflow.report.results import mean_of, read_dataset, read_examples, read_results, read_text, unique
from eelsflow.report.robustness import show_robustness
from eelsflow.report.searches import show_searches
from eelsflow.report.style import format_number, model_styles
from eelsflow.report.trends import find_trends
from eelsflow.store import make_directory

if TYPE_CHECKING:
    from jinja2 import Environment


def build_report(directory: Path, *, executor: Executor | None = None) -> Path:
    """Write the report of a study, and its figures.

    Parameters
    ----------
    directory
        A results directory: ``results.json``, and what there is of ``evidence/``, ``search-*.zarr`` and
        ``robustness.zarr``. What is absent is said to be, with the reason.
    executor
        Where figures are drawn; a plain loop by default.

    Returns
    -------
    Path
        ``report.html`` in `directory`: images and styles are inside it, it needs no network. The figures are also in
        ``figures/`` as PNG and SVG, a page for each model in ``passports/``, the paper's tables in ``table1.csv`` and
        ``table2.csv``, and ``outside.csv`` of spectra of other laboratories. The same results give the same bytes.

    Raises
    ------
    InputError
        If this is not a results directory.
    UnreadableFileError
        If one of its files is damaged.
    OutputPathError
        If it cannot be written to.
    """
    directory = Path(directory)
    results = read_results(directory)
    figures = directory / "figures"
    if figures.is_dir():  # those of an earlier study in this directory must not stay
        shutil.rmtree(figures)
    gallery = Gallery(make_directory(figures))
    context = _context(directory, results, gallery)
    tables.write_tables(directory, context["tables"])
    write_outside(directory, results["outside"])
    environment = template_environment()
    report = environment.get_template("report.html.j2").render(**context)
    page = environment.get_template("passport.html.j2")
    pages = [page.render(passport=passport, results=results) for passport in context["passports"]]
    report, *pages = gallery.draw([report, *pages], executor or LoopExecutor())
    passports = directory / FOLDER
    if passports.is_dir():
        shutil.rmtree(passports)
    if pages:
        make_directory(passports)
    for passport, html in zip(context["passports"], pages, strict=True):
        _write(passports / passport["file"], html)
    path = directory / "report.html"
    _write(path, report)
    return path


def _write(path: Path, html: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputPathError(
            f"cannot write {path}: {error.strerror or error}; name a directory to write to"
        ) from error


def _context(directory: Path, results: dict[str, Any], gallery: Gallery) -> dict[str, Any]:
    """Return everything the template shows, in the order of the page."""
    styles = model_styles([(row["model"], row.get("base") or row["model"]) for row in results["models"]])
    examples = read_examples(directory, unique(results["models"], "preprocess"))
    provenance = read_text(directory / "provenance.json")
    robustness = read_dataset(directory / "robustness.zarr")
    paper_tables = tables.build_paper_tables(results)
    passports = show_passports(directory, robustness, results, gallery)
    return {
        "results": results,
        "edge": results.get("edge") or {},
        "warnings": tables.collect_warnings(results),
        "inputs": tables.list_inputs(results, provenance),
        "maps": show_maps(directory, results, gallery),
        "highlights": tables.choose_highlights(results),
        "examples": pictures.show_examples(examples, results, gallery),
        "tables": paper_tables,
        "trends": find_trends(paper_tables, results["classes"]),
        "comparisons": tables.compare_with_best(results),
        "missing_scores": tables.explain_missing_scores(results),
        "leakage": pictures.show_leakage(results, styles, gallery),
        "architectures": pictures.show_architectures(directory, gallery),
        "grids": show_searches(directory, results, gallery),
        "perturbed": pictures.show_perturbed(examples, gallery),
        "histories": pictures.show_histories(directory, gallery),
        "beyond": go_beyond(results, robustness),
        "outside": show_outside(results, styles, gallery),
        "passports": passports,
        "passport_of_final": picture_of_final(passports, results),
        "robustness": show_robustness(robustness, results, styles, gallery),
        "acquisitions": pictures.show_acquisitions(directory, results, gallery),
        "provenance": provenance,
        "study_file": read_text(directory / "study.yaml"),
        "max_acquisitions": pictures.MAX_ACQUISITIONS,
    }


@lru_cache(maxsize=1)
def template_environment() -> Environment:
    """Return what fills the templates of pages; it keeps those that it has read."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eelsflow.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": wording.duration,
        "parameters": wording.parameters,
        "number": format_number,
        "seconds": wording.seconds,
        "seeds": wording.seeds,
        "share": wording.share,
        "safe_link": wording.safe_link,
        "mean": mean_of,
    }
    return environment
