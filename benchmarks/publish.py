"""Keep the small files of a study's results with the documents: tables, figures, and what made them.

eelsflow study deployments/studies/paper.yaml --out paper
python -m benchmarks.publish paper docs/results/paper --study deployments/studies/paper.yaml
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

from eelsflow.store import read_json, write_json

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

FURTHER_FIGURES = ("robustness-shift_ev", "robustness-noise_sigma")
MOST_BYTES = 500_000


def publish(results: Path, target: Path, *, study: Path) -> None:
    """Copy what is small, and write a page that says what it is and which command made it."""
    found = read_json(results / "results.json")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_json(target / "results.json", {name: value for name, value in found.items() if name not in NOT_KEPT})
    for table in results.glob("table*.csv"):
        shutil.copyfile(table, target / table.name)
    figures = []
    numbered = {f"figure-{number}": name for number, name in PAPER_FIGURES.items()}
    for name, source in {**numbered, **{name: name for name in FURTHER_FIGURES}}.items():
        for suffix in (".png", ".svg"):
            path = results / "figures" / f"{source}{suffix}"
            if path.exists() and path.stat().st_size <= MOST_BYTES:
                shutil.copyfile(path, target / f"{name}{suffix}")
                if suffix == ".png":
                    figures.append(name)
    (target / "README.md").write_text(page(found, target, study=study, figures=figures), encoding="utf-8")


def page(found: dict[str, Any], target: Path, *, study: Path, figures: list[str]) -> str:
    """Return the page in Markdown."""
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
    ]
    lines += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(lines).rstrip() + "\n"


def table(path: Path) -> list[str]:
    """Return a table of a study in Markdown, our values with the paper's beside them."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    heads = ["model", "trained on", "best parameters", "accuracy", "translation", "noise", "two phases"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row["model"], row["trained_on"], row["best_params"] if path.stem == "table1" else ""]
        for name in ("accuracy", "translation", "noise"):
            theirs = f" (paper {row[f'paper_{name}']})" if row[f"paper_{name}"] else ""
            cells.append(f"{_short(row[name])}{theirs}")
        cells.append(_short(row["two_phases"]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _short(value: str) -> str:
    return f"{float(value):.3f}".removeprefix("0") if value else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep a study's small results with the documents.")
    parser.add_argument("results", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--study", type=Path, required=True)
    options = parser.parse_args()
    publish(options.results, options.target, study=options.study)


if __name__ == "__main__":
    main()
