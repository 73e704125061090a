"""Keep the small files of a study's results with the documents: tables, figures, and what made them.

eelsflow study deployments/studies/paper.yaml --out paper
python -m benchmarks.publish paper docs/results/paper --study deployments/studies/paper.yaml
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from eelsflow.report.beyond import go_beyond
from eelsflow.report.outside import choose_outside
from eelsflow.report.passport import stands_of
from eelsflow.report.results import chance_of, mean_of, read_dataset, read_results, unique
from eelsflow.report.tables import build_paper_tables, compare_with_best
from eelsflow.report.trends import find_trends
from eelsflow.store import read_json, write_json
from eelsflow.study.config import load_study

NOT_KEPT = ("links", "map_evidence", "acquisitions")
"""Of results.json: what concerns one machine, and the evidence that is not kept."""

PAPER_FIGURES = {
    1: "acquisition-0-paper",
    2: "example-paper",
    3: "architecture-cnn-1",
    4: "search-svm-rbf",
    5: "perturbed-paper",
    6: "training-paper-pixel",
}
"""Number in the paper -> figure of the report. Of the first three the paper's own content is ours to choose."""

FURTHER_FIGURES = ("robustness-*", "leakage-*", "outside-*")
VECTOR_FIGURES = ("figure-*", "robustness-shift_ev", "robustness-noise_sigma", "robustness-dose")
"""Kept as SVG too; of the others the picture is enough, and every study writes both."""
STANDS_WORDS = {"shift_ev": "stands shifts", "dose": "stands doses", "poisson_peak_counts": "stands counts"}
MOST_BYTES = 300_000


def publish(results: Path, target: Path, *, study: Path) -> None:
    """Copy what is small, and write a page that says what it is and which command made it."""
    if load_study(results / "study.yaml") != load_study(study):
        raise SystemExit(f"{results} holds the results of another study than {study}: run it as it is now")
    found = read_json(results / "results.json")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_json(target / "results.json", {name: value for name, value in found.items() if name not in NOT_KEPT})
    is_papers = _has_papers_values(read_results(results))
    for table in (*(results.glob("table*.csv") if is_papers else ()), *results.glob("outside.csv")):
        shutil.copyfile(table, target / table.name)
    wanted = {f"figure-{number}": name for number, name in PAPER_FIGURES.items()} if is_papers else {}
    for pattern in FURTHER_FIGURES:
        wanted |= {path.stem: path.stem for path in sorted((results / "figures").glob(f"{pattern}.png"))}
    if not is_papers:
        beyond = go_beyond(read_results(results), read_dataset(results / "robustness.zarr"))
        chosen = [choose_outside(read_results(results)), *(row["model"] for row in beyond[:3])]
        wanted |= {f"passport-{name}": f"passport-{name}" for name in dict.fromkeys(filter(None, chosen))}
    figures = [name for name, source in wanted.items() if _copy(results / "figures" / source, target / name)]
    (target / "README.md").write_text(page(results, target, study=study, figures=figures), encoding="utf-8")


def _copy(source: Path, target: Path) -> bool:
    """Copy a figure, in both forms where it is one of those; return whether there is a picture."""
    both = any(fnmatch(target.name, pattern) for pattern in VECTOR_FIGURES)
    for suffix in (".png", ".svg") if both else (".png",):
        path = source.with_name(source.name + suffix)
        if path.exists() and path.stat().st_size <= MOST_BYTES:
            shutil.copyfile(path, target.with_name(target.name + suffix))
    return target.with_name(target.name + ".png").exists()


def _has_papers_values(results: Mapping[str, Any]) -> bool:
    tables = build_paper_tables(results)
    return any(row["paper"] for name in ("first", "second") for row in tables[name])


def page(directory: Path, target: Path, *, study: Path, figures: list[str]) -> str:
    """Return the page in Markdown."""
    found = read_results(directory)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    machine = found["machine"]
    lines = [
        f"# Results of the study `{found['study']}`",
        "",
        f"    eelsflow study {study.as_posix()} --out {found['study']}",
        f"    python -m benchmarks.publish {found['study']} {target.as_posix()} --study {study.as_posix()}",
        "",
        f"{found['started'][:10]}, {found['seconds'] / 60:.0f} minutes on {machine['cores']} cores "
        f"({machine['processor']}). Seeds and everything else are in the study file. {versions}.",
        "",
    ]
    lines += _papers(found, target) if _has_papers_values(found) else _models(directory, found)
    lines += _outside(found)
    lines += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(lines).rstrip() + "\n"


def _papers(found: Mapping[str, Any], target: Path) -> list[str]:
    """Return Tables I and II, and which of the paper's trends come out."""
    lines = []
    for number in (1, 2):
        path = target / f"table{number}.csv"
        if path.exists():
            lines += [f"## Table {'I' * number}", "", *table(path), ""]
    lines += [
        "Mean over seeds, the 95 % interval in the CSV files; *paper*: the paper's value, on its own spectra, which "
        "are not public. Translation: every test spectrum shifted by its own amount from U(-5, 5) eV; noise: "
        "Gaussian, .15 of the spectrum's range. Two phases: pixels right in maps of held-out fields of two phases, "
        "the mean of the recalls.",
        "",
        "## What the paper found",
        "",
    ]
    rows = []
    for trend in find_trends(build_paper_tables(found), found["classes"]):
        why = f" Why not: {trend['why']}." if trend["why"] else ""
        rows.append([trend["trend"], "comes out" if trend["holds"] else "does not come out", f"{trend['found']}.{why}"])
    return [*lines, *_markdown(["the paper", "here", "figures"], rows), ""]


def _models(directory: Path, found: Mapping[str, Any]) -> list[str]:
    """Return a table of all models, and what goes beyond the paper."""
    curves = read_dataset(directory / "robustness.zarr")
    gaps = {(row["model"], row["preprocess"]): row for row in found["leakage"]}
    known = set() if curves is None else set(curves["perturbation"].values.tolist())
    tried = [name for name in ("shift_ev", "dose", "poisson_peak_counts") if name in known]
    splits = unique(found["models"], "split")
    main = "group" if "group" in splits else splits[0]
    equal_noise = any(row["equal_noise"] for row in found["models"])
    rows = []
    for row in sorted(
        (row for row in found["models"] if row["split"] == main), key=lambda row: -(mean_of(row["accuracy"]) or 0)
    ):
        gap = gaps.get((row["model"], row["preprocess"]))
        score = row["accuracy"]
        interval = "" if score["low"] is None else f" ({_short(score['low'])}-{_short(score['high'])})"
        rows.append(
            [
                row["model"],
                f"{_short(score['mean'])}{interval}",
                *([_short(gap["pixel"]), f"{gap['gap']:+.3f}"] if gap else []),
                _short(mean_of(row["translation"])),
                _short(mean_of(row["noise"])),
                *([_short(mean_of(row["equal_noise"]))] if equal_noise else []),
                *stands_of(curves, row, tried, chance=chance_of(found)),
            ]
        )
    of = "held-out acquisitions" if main == "group" else "random test spectra"
    heads = ["model", f"accuracy, {of}", *(["random pixels", "gap"] if gaps else []), "shifted by up to 5 eV", "noise"]
    heads += ["among equal noise"] if equal_noise else []
    lines = ["## Models", "", *_markdown([*heads, *(STANDS_WORDS[name] for name in tried)], rows), ""]
    lines += ["To stand is to keep nine tenths of the accuracy on spectra as they are.", ""]
    beyond = go_beyond(found, curves)
    if beyond:
        heads = ["split", "role", "model", "accuracy", "below the best plain one by", "worst within 8 eV",
                 "share of its accuracy", "noise .15", "share"]  # fmt: skip
        cells = [
            [
                row["split"], row["role"], row["model"], _short(mean_of(row["accuracy"])), f"{row['loss']:+.3f}",
                _short(row["shifted"]), _short(row["shifted_share"]),
                _short(row["noisy"]), _short(row["noisy_share"]),
            ]
            for row in beyond
        ]  # fmt: skip
        lines += ["## Beyond the paper", "", *_markdown(heads, cells), ""]
    for row in found["shortcuts"]:
        told = "**The labels can be told without chemistry.** " if row["told"] else ""
        lines += [
            f"{told}A classifier of noise, counts, background, place and offset alone: "
            f"{_short(row['accuracy']['mean'])} (chance {row['chance']:.2f}).",
            "",
        ]
    compared = compare_with_best(found)
    for part in compared:
        apart = [row["model"] for row in part["rows"] if row["differs"]]
        alike = [row["model"] for row in part["rows"] if not row["differs"]]
        lines += [
            f"{part['best']} ({part['split']}) against each of the others, with what was recorded together resampled "
            f"together and Holm's correction for all pairs: better than {', '.join(apart) or 'none'}; not shown to "
            f"differ from {', '.join(alike) or 'none'}.",
            "",
        ]
    return lines


def _outside(found: Mapping[str, Any]) -> list[str]:
    """Return what models make of spectra of other laboratories."""
    if not found["outside"]:
        return []
    lines = ["## Spectra of other laboratories", ""]
    choice = choose_outside(found)
    if choice:
        lines += [
            f"Taken without their labels, because it stands shifts best on the table's test spectra: {choice}.",
            "",
        ]
    for name in unique(found["outside"], "test"):
        rows = sorted(
            (row for row in found["outside"] if row["test"] == name), key=lambda row: (-row["right"], row["model"])
        )
        classes = list(rows[0]["by_class"])
        cells = [
            [
                row["model"],
                f"{row['right']} of {row['of']}",
                *(f"{right} of {of}" for right, of in row["by_class"].values()),
                "; ".join(
                    f"{kind}: " + ", ".join(f"{called} {n}" for called, n in seen.items())
                    for kind, seen in row["apart"].items()
                ),
            ]
            for row in rows
        ]
        low, high = rows[0]["moved_ev"]
        moved = f"{low:+.2f} eV" if low == high else f"{low:+.2f} to {high:+.2f} eV"
        lines += [f"### {name} (moved by {moved})", "", *_markdown(["model", "right", *classes, "others"], cells), ""]
    return lines


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows),
    ]


def table(path: Path) -> list[str]:
    """Return a table of a study in Markdown, our values with the paper's beside them."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    cells = []
    for row in rows:
        line = [row["model"], row["trained_on"], row["best_params"] if path.stem == "table1" else ""]
        for name in ("accuracy", "translation", "noise"):
            theirs = f" (paper {row[f'paper_{name}']})" if row[f"paper_{name}"] else ""
            line.append(f"{_short(row[name])}{theirs}")
        cells.append([*line, _short(row["two_phases"])])
    heads = ["model", "trained on", "best parameters", "accuracy", "translation", "noise", "two phases"]
    return _markdown(heads, cells)


def _short(value: str | float | None) -> str:
    return f"{float(value):.3f}".removeprefix("0") if value not in ("", None) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep a study's small results with the documents.")
    parser.add_argument("results", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--study", type=Path, required=True)
    options = parser.parse_args()
    publish(options.results, options.target, study=options.study)


if __name__ == "__main__":
    main()
