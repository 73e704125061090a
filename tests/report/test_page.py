import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.report import build_report
from eelsflow.report.figures import grid_scores
from eelsflow.report.pictures import MAX_ACQUISITIONS
from eelsflow.report.robustness import average_curve
from eelsflow.report.searches import cut_panels

Factory = Callable[..., Path]

SMALL = {"presets": ("paper",), "splits": ("pixel",), "models": ("svm-sgd",), "shapes": (), "n_seeds": 1}


class Page(HTMLParser):
    """Collects what the tests ask about: references, images, and text by table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[tuple[str, str, str]] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.tables: list[str] = []
        self._in_table = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self._in_table = True
            self.tables.append("")
        if tag == "img":
            self.images.append(dict(attrs))
        self.references += [(tag, name, value or "") for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag == "table":
            self._in_table = False

    def handle_data(self, data):
        if self._in_table:
            self.tables[-1] += f" {data.strip()}"

    def table(self, start: str) -> str:
        found = [" ".join(table.split()) for table in self.tables if start in table]
        return found[0] if found else ""


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not rendered: for tests that read the page's text, which is quick without."""
    monkeypatch.setattr("eelsflow.report.gallery.render", lambda figure, format: b"not drawn")


@pytest.fixture(scope="module")
def html(full_report: Path) -> str:
    return full_report.read_text()


def test_the_report_needs_nothing_outside_itself(html: str):
    page = Page(html)

    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for tag, name, value in page.references:
        if name == "src":
            assert value.startswith("data:image/")
        else:
            assert tag == "a"
    assert not re.search(r"@import|url\(", html)


def test_every_figure_is_in_the_page_and_in_files(full_report: Path, html: str):
    names = {path.stem for path in (full_report.parent / "figures").glob("*.png")}
    wanted = {"example-paper", "perturbed-paper", "leakage-paper-raw", "architecture-cnn-2", "search-svm-rbf",
              "search-svm-linear", "training-paper-pixel", "robustness-shift_ev",
              "robustness-poisson_peak_counts", "acquisition-0-paper", "acquisition-1-paper-raw"}  # fmt: skip
    assert wanted <= names
    assert names == {path.stem for path in (full_report.parent / "figures").glob("*.svg")}
    page = Page(html)
    of_models = {name for name in names if name.startswith("passport-")}
    assert len(of_models) == 8  # four models, two presets; each is in a page of its own
    assert len(page.images) == len(names - of_models)
    assert all(image["alt"] for image in page.images)


def test_tables_hold_the_numbers_rounded_rightly(full_report: Path, html: str):
    results = json.loads((full_report.parent / "results.json").read_text())
    page = Page(html)
    table = page.table("Balanced accuracy")
    for row in results["models"]:
        for score in ("accuracy", "balanced_accuracy", "translation", "noise"):
            value = row[score]
            assert f"{value['mean']:.3f} {value['low']:.3f}\N{EN DASH}{value['high']:.3f}" in table
    leakage = page.table("Held-out acquisitions")
    for row in results["leakage"]:
        assert f"{row['pixel']:.3f} {row['group']:.3f} {row['gap']:+.3f}" in leakage
    acquisitions = page.table("Energy offset")
    for entry in results["acquisitions"]:
        assert f"{entry['energy_offset']['value']:+.2f} ± 0.03 eV".replace("-", "\N{MINUS SIGN}") in acquisitions


@pytest.mark.usefixtures("no_drawing")
def test_a_score_without_an_interval_is_shown_alone(results_factory: Factory, tmp_path):
    directory = results_factory(tmp_path, models=("svm-sgd",), presets=("paper",), splits=("group",), n_seeds=1)
    results = json.loads((directory / "results.json").read_text())
    for score in ("accuracy", "balanced_accuracy", "translation", "noise"):
        results["models"][0][score] = {"mean": 0.5703, "low": None, "high": None}
    (directory / "results.json").write_text(json.dumps(results))
    page = Page(build_report(directory).read_text())
    assert "0.570 0.570 0.570 0.570" in page.table("Balanced accuracy")


def test_the_papers_values_stand_beside_those_of_its_presets(html: str):
    page = Page(html)

    first, second = page.table("Support vector machines"), page.table("Table II")
    assert "C=2714, gamma=10" in first
    assert ".8-.9" in first
    assert re.search(r"cnn-2 Clean \S+ \S+ \.86 \S+ \S+ \.85 \S+ \S+ \.61", second)
    assert re.search(r"cnn-2 Raw \S+ \S+ \.72 \S+ \S+ \.70 \S+ \S+ \N{EN DASH}", second)
    assert "the paper's values, FeO against Fe3O4 on the paper's own spectra" in html


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"edge": "Mn_L3"}, "for the O K edge, and this study is of Mn_L3"),
        ({"classes": ("FeO", "Fe3O4", "Fe2O3")}, "for two classes, and this study has 3"),
        ({"splits": ("group",)}, "for a random split of pixels, which this study did not run"),
        ({"presets": ("recommended",)}, "for the presets paper and paper-raw, which this study did not run"),
    ],
)
def test_the_papers_values_are_not_shown_where_they_do_not_fit(results_factory: Factory, tmp_path, changes, reason):
    directory = results_factory(tmp_path / "out", **{**SMALL, "models": ("svm-rbf",), **changes})

    text = build_report(directory).read_text()

    assert reason in text
    assert "C=2714" not in text


def test_an_optimum_on_the_edge_of_a_grid_is_a_warning(html: str):
    assert "Optimum on the edge of the grid" in html
    assert "C = 1e5 is the highest value of the grid" in html


def test_warnings_come_first_and_once_with_their_sources(html: str):
    start = html.index("1 warning: read before the numbers")
    assert start < html.index("What was run on what</h2>")
    listed = html[start : html.index("</div>", start)]
    assert "lies on the edge of the grid" not in listed  # it concerns one model and stands in its row
    table = html[html.index("All models, presets and splits") :]
    assert table.count("lies on the edge of the grid") == 1


@pytest.mark.usefixtures("no_drawing")
def test_what_is_absent_is_said_with_the_reason(results_factory: Factory, tmp_path):
    directory = results_factory(tmp_path / "out", **SMALL)
    results = json.loads((directory / "results.json").read_text())
    results["models"][0] |= {"translation": None, "noise": None, "warnings": ["spectra are too narrow to shift"]}
    (directory / "results.json").write_text(json.dumps(results))
    for name in ("robustness.zarr", "evidence"):
        (directory / name).rename(tmp_path / name)

    text = " ".join(build_report(directory).read_text().split())

    for reason in (
        "Table II: not computed, because the study has no networks under this split",
        "Leakage: not computed, because the study has no split by group",
        "Architectures: not computed, because the study has no networks",
        "Grid search: not computed, because no model of the study has a grid",
        "Robustness curves: not computed, because the study kept none",
        "Example spectrum: not computed, because the study kept no example",
        "Acquisitions: not computed, because the study reads a table of spectra",
        "translation, noise: not computed, because spectra are too narrow to shift",
    ):
        assert reason in text


@pytest.mark.usefixtures("no_drawing")
def test_the_least_that_is_a_result_is_reported(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps({"study": "bare", "models": []}))

    text = build_report(tmp_path).read_text()

    assert "the study has no models" in text
    assert "provenance.json is absent" in text


@pytest.mark.usefixtures("no_drawing")
def test_names_are_escaped(results_factory: Factory, tmp_path):
    directory = results_factory(
        tmp_path / "out",
        **SMALL,
        study="<script>alert(1)</script>",
        warnings=['"><img src=x>'],
        links={"bad": "javascript:alert(1)", "good": "https://example.org/?a=1&b=2"},
    )

    text = build_report(directory).read_text()

    page = Page(text)
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    hrefs = [value for tag, name, value in page.references if name == "href" and not value.startswith("#")]
    assert hrefs == ["https://example.org/?a=1&b=2", "passports/svm-sgd.html"]
    passport = (directory / "passports" / "svm-sgd.html").read_text()
    assert "script" not in Page(passport).tags


def test_models_with_odd_names_are_drawn(results_factory: Factory, tmp_path):
    directory = results_factory(tmp_path / "out", **{**SMALL, "models": ("_$mine$_", "a b/c")})

    for path in (directory / "evidence").glob("examples-*"):
        path.unlink()
    build_report(directory)

    assert (directory / "figures" / "robustness-shift_ev.svg").exists()


@pytest.mark.usefixtures("no_drawing")
def test_many_acquisitions_are_all_in_the_table_and_some_in_full(results_factory: Factory, tmp_path):
    directory = results_factory(tmp_path / "out", **SMALL)
    entry = {"preprocess": "paper", "pixels": 9, "background_pixels": 3, "energy_offset": {"value": 1.0, "error": None}}
    results = json.loads((directory / "results.json").read_text())
    results["acquisitions"] = [{"name": f"scan-{number}", "sha256": "ab", **entry} for number in range(30)]
    (directory / "results.json").write_text(json.dumps(results))

    text = build_report(directory).read_text()

    assert f"The first {MAX_ACQUISITIONS} of 30 acquisitions are shown" in text
    assert text.count("<details class=") == MAX_ACQUISITIONS
    assert all(f"scan-{number} " in Page(text).table("Energy offset") + " " for number in range(30))
    assert "the study kept no evidence of this acquisition" in text


def test_the_same_results_give_the_same_bytes(results_factory: Factory, tmp_path):
    directory = results_factory(tmp_path / "out", **SMALL)
    (directory / "robustness.zarr").rename(tmp_path / "robustness.zarr")  # drawn above; what is left is quicker

    first = build_report(directory).read_bytes()

    assert build_report(directory).read_bytes() == first


def test_a_directory_without_results_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no results\.json"):
        build_report(tmp_path)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", ["results.json", "evidence/histories.json", "evidence/examples-paper.npz"])
def test_a_damaged_file_is_named(results_factory: Factory, tmp_path, name):
    directory = results_factory(tmp_path / "out", **SMALL)
    (directory / name).write_bytes(b"\x00\x01{")

    with pytest.raises(UnreadableFileError, match=re.escape(Path(name).name)):
        build_report(directory)


def test_breakdown_is_found_on_each_side_of_zero_and_from_the_mild_end_of_a_dose():
    shifts = np.array([-2.0, -1, 0, 1, 2])
    assert average_curve("shift_ev", shifts, np.array([[0.5, 0.8, 1.0, 0.95, 0.6]]), None).breakdown == (-1.0, 2.0)
    counts = np.array([10.0, 30, 100, 300])
    assert average_curve("poisson_peak_counts", counts, np.array([[0.5, 0.7, 0.95, 1.0]]), 1.0).breakdown == (30.0,)
    assert average_curve("noise_sigma", np.array([0.0, 0.1]), np.array([[1.0, 0.95]]), None).breakdown == ()


def test_importing_the_report_loads_no_matplotlib():
    code = "import sys, eelsflow.report, eelsflow.report.map_figure; print('matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_grid_of_three_parameters_becomes_panels_with_the_best_cell_in_one(results_factory: Factory, tmp_path):
    directory = results_factory(tmp_path / "out", **{**SMALL, "models": ("svm-sigmoid",)})
    with xr.open_zarr(directory / "search-svm-sigmoid.zarr", consolidated=False) as search:
        mean = search["accuracy"].isel(preprocess=0, split=0, seed=0).mean("fold").load()
    best = {"C": float(mean.C[2]), "gamma": float(mean.gamma[3]), "coef0": 1.0}

    panels = cut_panels(mean, best, title="paper")

    assert [panel.title for panel in panels] == [f"paper, coef0 {value}" for value in ("0", "0.1", "1")]
    assert [panel.best is not None for panel in panels] == [False, False, True]
    assert {panel.scores.dims for panel in panels} == {("C", "gamma")}
    figure = grid_scores(panels)
    assert [len(axes.patches) for axes in figure.axes[:3]] == [0, 0, 1]


@pytest.mark.usefixtures("no_drawing")
def test_a_sweep_on_a_validation_part_is_not_called_cross_validation(results_factory: Factory, tmp_path):
    directory = results_factory(tmp_path / "out", **{**SMALL, "models": ("svm-linear",)})
    with xr.open_zarr(directory / "search-svm-linear.zarr", consolidated=False) as search:
        sweep = search.isel(fold=[0]).load()
    shutil.rmtree(directory / "search-svm-linear.zarr")
    sweep.to_zarr(directory / "search-svm-linear.zarr", consolidated=False, zarr_format=3)
    html = build_report(directory).read_text()
    assert "Accuracy on the validation part of svm-linear over its grid" in html
    assert "accuracy on the validation part, mean over" in html
    assert "1 fold" not in html
    panels = cut_panels(sweep["accuracy"][0, 0, 0, :, 0], {"C": float(sweep.C[0])}, title="")
    assert grid_scores(panels, measure="Mine").axes[0].get_ylabel() == "Mine"
