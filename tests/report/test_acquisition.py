import re

import numpy as np
import pytest

from eelsflow.report.acquisition import write_acquisition_page
from eelsflow.report.class_spectra import class_spectra_figure
from eelsflow.report.style import render

BANDS = np.arange(525.5, 555.0)
SHAPE = np.full((2, BANDS.size), 1 / BANDS.size)


def figure(n_first=3, n_second=0):
    mean = np.array([SHAPE[0], np.full(BANDS.size, np.nan)])
    return class_spectra_figure(
        ["FeO", "Fe_3$O"],
        BANDS,
        mean,
        0.1 * mean,
        references=(BANDS, SHAPE, 0.1 * SHAPE[0]),
        pixels=[n_first, n_second],
    )


def test_spectra_are_drawn_with_units_and_a_class_without_pixels_is_said_to_have_none():
    drawn = figure()
    first, second = drawn.axes
    assert first.get_xlabel() == "energy loss (eV)"
    assert "%" in first.get_ylabel()
    assert len(first.lines) == 2
    assert len(second.lines) == 1
    assert any(text.get_text() == "no pixel" for text in second.texts)
    assert render(drawn, "png") == render(figure(), "png")


@pytest.fixture
def summary():
    return {
        "warnings": ["do not rely on it <b>"],
        "drift": [{"quantity": "dose", "sentence": "dose 1, training 2 to 3"}],
        "classes": {"FeO": {"pixels": 3, "mean_probability": None, "mean_fraction": 0.5}},
        "background_pixels": 1,
        "unknown": {"pixels": 0},
        "energy_offset": {"value": 1.0, "error": 0.1},
        "sha256": "a" * 64,
        "model": {"name": "mlls", "edge": "O_K", "preset": "recommended"},
        "eelsflow": "0.1.0",
    }


def test_the_page_needs_nothing_else_and_shows_warnings_and_drift(tmp_path, summary):
    for name in ("map", "spectra"):
        (tmp_path / f"{name}.png").write_bytes(b"a picture")
    rows = [{"title": "dose", "value": "1", "training": "2 to 3", "outside": True}]
    html = write_acquisition_page(tmp_path, summary, title="a & b", conditions=rows).read_text()
    assert "do not rely on it &lt;b&gt;" in html
    assert "outside of what the model was trained on: dose 1, training 2 to 3" in html
    assert "<h1>a &amp; b</h1>" in html
    assert not re.findall(r"(?:src|href)=\"(?!data:)[^\"]*", html)
    (tmp_path / "map.html").touch()
    html = write_acquisition_page(tmp_path, summary, title="a & b", conditions=rows).read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*", html) == ['href="map.html']
    assert "<script" not in html
