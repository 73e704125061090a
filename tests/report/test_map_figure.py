from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given

from eelsflow.errors import InputError, OutputPathError
from eelsflow.report.map_figure import map_figure, save_map_tiff
from eelsflow.report.style import render, scale_bar_length
from tests.strategies import factors

CLASSES = ("FeO", "Fe3O4")


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def draw(index, *, classes=CLASSES, pixel_size=2.0, pixel_unit="nm", **options):
    index = np.asarray(index)
    return map_figure(
        classes, index, np.full(index.shape, 0.9), pixel_size=pixel_size, pixel_unit=pixel_unit, **options
    )


def test_vacuum_is_left_blank_and_not_counted_as_specimen():
    figure = draw([[-1, 0, 0], [-1, 1, 0]])

    shown = figure.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == [[True, False, False], [True, False, False]]
    assert np.ma.getmaskarray(figure.axes[1].images[0].get_array())[:, 0].all()
    assert "FeO: 3 px, 75%" in texts(figure)
    assert "vacuum: 2 px" in texts(figure)


@pytest.mark.parametrize(("unit", "size", "label"), [("nm", 2.1, "20 nm"), ("px", 1.0, "10 px")])
def test_an_image_has_a_scale_bar_of_round_length(unit, size, label):
    figure = draw(np.zeros((48, 48), int), pixel_size=size, pixel_unit=unit)

    assert label in texts(figure)
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(float(label.split()[0]))


def test_the_scale_bar_is_at_least_one_pixel_when_uncalibrated():
    assert "1 px" in texts(draw(np.zeros((2, 2), int), pixel_size=1.0, pixel_unit="px"))


@given(factors(1e-3, 1e6))
def test_the_scale_bar_is_one_two_or_five_times_a_power_of_ten_and_a_readable_part_of_the_width(extent):
    length = scale_bar_length(extent)

    assert round(length / 10 ** np.floor(np.log10(length) + 1e-9), 6) in (1, 2, 5)
    assert extent / 7.6 < length <= extent / 3 * (1 + 1e-9)


def test_warnings_stand_in_the_picture():
    figure = draw(np.zeros((8, 8), int), warnings=["the spectra are unlike the training data " * 5])

    assert "Warning: the spectra are unlike" in texts(figure)
    assert render(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1)])
def test_a_line_scan_has_an_axis_with_its_unit_and_a_readable_height(shape):
    figure = draw(np.zeros(shape, int), pixel_size=0.8)
    render(figure, "png")

    assert "Position (nm)" in texts(figure)
    assert figure.axes[0].get_position().height * figure.get_figheight() > 0.3  # inches
    assert figure.axes[1].get_xlim() == (0, 0.8 * max(shape))


def test_an_all_vacuum_image_is_drawn():
    assert render(draw(np.full((4, 4), -1)), "svg")


def test_names_are_shown_letter_by_letter():
    figure = draw(np.zeros((4, 4), int), classes=("$x_", "_hidden"), title="a $b$ c")

    assert render(figure, "svg")
    assert len(figure.axes[0].get_legend().get_texts()) == 3


@pytest.mark.parametrize("index", [[[0, 2]], [[-2, 0]]])
def test_an_index_without_a_class_is_refused(index):
    with pytest.raises(InputError, match=r"class_index runs from .* expected -1 \(vacuum\) to 1"):
        draw(index)


def test_shapes_that_differ_are_refused():
    with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 2\)"):
        map_figure(CLASSES, np.zeros((2, 3), int), np.zeros((3, 2)), pixel_size=1, pixel_unit="px")


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[0.25, np.nan]]), np.float32),
        (np.array([[-1, 3]]), np.int16),
        (np.array([[0, 300]]), np.uint16),
        (np.array([[True, False]]), np.uint8),
    ],
)
def test_a_tiff_gives_back_its_values_and_its_scale(tmp_path: Path, array, dtype):
    save_map_tiff(tmp_path / "map.tif", array, 2.1)

    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        assert tiff.is_imagej
        assert tiff.imagej_metadata["unit"] == "nm"
        numerator, denominator = tiff.pages[0].tags["XResolution"].value
        assert denominator / numerator == pytest.approx(2.1)
        values = tiff.asarray().reshape(array.shape)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, array)
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_a_tiff_without_pixel_size_claims_none(tmp_path: Path):
    save_map_tiff(tmp_path / "map.tif", np.zeros((3, 4)), None)

    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        assert "unit" not in tiff.imagej_metadata


def test_a_tiff_refuses_what_imagej_cannot_hold(tmp_path: Path):
    with pytest.raises(InputError, match="16 bit cannot hold"):
        save_map_tiff(tmp_path / "map.tif", np.array([[0, 70000]]), 1.0)
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        save_map_tiff(tmp_path / "map.tif", np.zeros(3), 1.0)
    with pytest.raises(OutputPathError, match="cannot write"):
        save_map_tiff(tmp_path / "absent" / "map.tif", np.zeros((2, 2)), 1.0)


@pytest.mark.parametrize("shape", [(2, 3), (1, 6), (2, 12)])
def test_lost_pixels_are_drawn_apart_from_vacuum(shape):
    index = np.zeros(shape, int)
    index.flat[:3] = -1
    lost = np.zeros(shape, bool)
    lost.flat[1:3] = True
    good, figure = draw(index), draw(index, lost=lost)

    assert "vacuum: 3 px" in texts(good)
    assert "lost" not in texts(good)
    assert "vacuum: 1 px" in texts(figure)
    assert "lost: 2 px" in texts(figure)
    (entry,) = [patch for patch in figure.axes[0].get_legend().get_patches() if patch.get_label().startswith("lost")]
    (drawn,) = figure.axes[0].collections
    assert drawn.get_hatch() == entry.get_hatch()
    assert tuple(drawn.get_facecolor()[0]) == entry.get_facecolor() != (1, 1, 1, 1)
    assert render(figure, "png")
