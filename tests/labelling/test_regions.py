import json

import numpy as np
import pytest

from eelsflow.dataset.labels import MIXED, class_fractions, label_pixels, read_phase_fraction
from eelsflow.dataset.manifest import Acquisition, classes_held, read_rows
from eelsflow.dataset.spectra import gather_spectra
from eelsflow.errors import InputError, OutputPathError, StudyFileError, UnreadableFileError
from eelsflow.io.zarr_store import write_dataset, write_spectrum_image
from eelsflow.labelling.regions import (
    Drawing,
    Region,
    draw_labels,
    label_codes,
    parse_regions,
    phase_fraction,
    read_drawing,
    start_drawing,
    write_drawing,
)
from eelsflow.labelling.service import label_from_file
from eelsflow.maps.score import score_map
from eelsflow.spectrum_image import build_spectrum_image

CLASSES = ["FeO", "Fe3O4"]


def polygon(name, *points):
    return Region.model_validate({"class": name, "polygon": points})


def rectangle(name, x0, y0, x1, y1):
    return polygon(name, (x0, y0), (x1, y0), (x1, y1), (x0, y1))


def drawing(*regions, shape=(4, 5)):
    return Drawing(classes=tuple(CLASSES), regions=regions, shape=shape, sha256="abc")


def test_a_rectangle_between_pixel_corners_holds_just_these_pixels_whichever_way_it_is_drawn():
    expected = np.zeros((4, 5), dtype=bool)
    expected[1:3, 2:4] = True
    assert np.array_equal(rectangle("FeO", 2, 1, 4, 3).pixels((4, 5)), expected)
    assert np.array_equal(rectangle("FeO", 4, 3, 2, 1).pixels((4, 5)), expected)


def test_two_polygons_with_a_side_in_common_share_no_pixel_and_leave_none_out():
    one = polygon("FeO", (0, 0), (5, 0), (0, 5)).pixels((5, 5))
    other = polygon("FeO", (5, 0), (5, 5), (0, 5)).pixels((5, 5))
    assert np.array_equal(one, ~other)  # five pixel centres lie on the common side


def test_a_polygon_may_be_hollow_and_reach_past_the_image():
    horseshoe = polygon("FeO", (-9, 0), (9, 0), (9, 4), (3, 4), (3, 1), (1, 1), (1, 4), (-9, 4))
    expected = np.ones((4, 5), dtype=bool)
    expected[1:, 1:3] = False
    assert np.array_equal(horseshoe.pixels((4, 5)), expected)


def test_a_brush_holds_the_pixels_within_its_radius_of_the_stroke():
    stroke = Region.model_validate({"class": "FeO", "brush": [[1.5, 1.5], [3.5, 1.5]], "radius": 1})
    expected = np.zeros((4, 5), dtype=bool)
    expected[1, 0:5] = True
    expected[[0, 2], 1:4] = True
    assert np.array_equal(stroke.pixels((4, 5)), expected)
    dot = Region.model_validate({"class": "FeO", "brush": [[1.5, 1.5]], "radius": 0.6})
    assert dot.pixels((4, 5)).sum() == 1


def test_later_regions_win_and_an_empty_class_takes_a_label_away():
    regions = [rectangle("FeO", 0, 0, 4, 2), rectangle("Fe3O4", 2, 0, 4, 2), rectangle("mixed", 0, 0, 1, 1)]
    labels = draw_labels([*regions, rectangle("", 3, 0, 5, 1)], (2, 5), label_codes(CLASSES))
    assert labels.tolist() == [[2, 0, 1, -1, -1], [0, 0, 1, 1, -1]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "holds int and no list of regions"),
        ([{"class": "FeO", "polygon": [[0, 0], [1, 1]]}], "region 1 cannot be used.*three points"),
        ([{"class": "FeO"}], "region 1 cannot be used"),
        ([{"class": "FeO", "polygon": [[0, 0], [1, 0], [1, float("nan")]]}], "region 1 cannot be used"),
        ([{"class": "Fe2O3", "polygon": [[0, 0], [1, 0], [1, 1]]}], "'Fe2O3', which is none of"),
        ([{"class": "FeO", "polygon": [[0, 0], [1, 0], [1, 1]], "colour": 1}], "colour"),
    ],
)
def test_what_is_no_region_is_refused(value, message):
    with pytest.raises(InputError, match=message):
        parse_regions(value, CLASSES, where="regions.json")


def test_a_truth_file_is_read_by_a_study_and_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "truth.npz"
    drawn = drawing(rectangle("FeO", 0, 0, 2, 2), rectangle("Fe3O4", 3, 0, 5, 2), rectangle("mixed", 0, 3, 5, 4))
    write_drawing(drawn, path)
    phases, fraction = read_phase_fraction(path)
    assert phases == CLASSES
    assert np.array_equal(fraction, phase_fraction(drawn.labels, 2), equal_nan=True)
    assert read_drawing(path) == drawn
    assert start_drawing(path, classes=["Fe2O3"], shape=(4, 5), sha256="abc").regions == drawn.regions
    assert start_drawing(path, classes=["Fe2O3"], shape=(4, 5), sha256="abc").classes == (*CLASSES, "Fe2O3")
    assert drawn.counts() == {"FeO": 4, "Fe3O4": 4, "mixed": 5}


def test_pixels_that_are_unlabelled_or_mixed_are_neither_trained_on_nor_scored(tmp_path, pixel_map):
    """The values that say so: NaN in every phase where nobody said anything, 0 in every phase where it is a mixture."""
    drawn = drawing(rectangle("FeO", 0, 0, 5, 1), rectangle("Fe3O4", 0, 1, 5, 2), rectangle("mixed", 0, 2, 5, 3))
    path, nowhere = tmp_path / "truth.npz", np.zeros((4, 5), dtype=bool)
    write_drawing(drawn, path)
    _, fraction = read_phase_fraction(path)
    assert (fraction[:, 2] == 0).all()
    assert np.isnan(fraction[:, 3]).all()

    labels = label_pixels(nowhere, label="", truth=path, classes=CLASSES, name="a")
    assert labels.tolist() == [["FeO"] * 5, ["Fe3O4"] * 5, [MIXED] * 5, [MIXED] * 5]
    acquisition = Acquisition(given="a", path=path, sha256="", truth=path)
    assert classes_held(acquisition, CLASSES) == set(CLASSES)
    write_dataset(pixel_map.product, tmp_path / "prepared.zarr")
    assert gather_spectra([tmp_path / "prepared.zarr"], [labels], ["a"], CLASSES).label.size == 10

    truth = class_fractions((4, 5), label="", truth=path, classes=CLASSES, name="a")
    scored = score_map(pixel_map.found, truth)
    assert scored["n"] == [5, 5]
    assert scored["recall"] == [1.0, 0.0]  # the map says FeO everywhere
    assert np.isfinite(scored["fraction_rmse"])


def test_an_empty_drawing_never_takes_the_place_of_a_file(tmp_path):
    path = tmp_path / "truth.npz"
    write_drawing(drawing(rectangle("FeO", 0, 0, 2, 2)), path)
    before = path.read_bytes()
    for empty in (drawing(), drawing(rectangle("FeO", 0, 0, 2, 2), rectangle("", 0, 0, 5, 5))):
        with pytest.raises(InputError, match="no pixel is labelled"):
            write_drawing(empty, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["truth.npz"]


def test_a_truth_of_another_program_or_acquisition_is_not_overwritten(tmp_path):
    foreign, own = tmp_path / "foreign.npz", tmp_path / "own.npz"
    np.savez(foreign, phase=np.array(CLASSES), phase_fraction=np.ones((2, 4, 5)))
    with pytest.raises(UnreadableFileError, match="holds no regions that were drawn here"):
        start_drawing(foreign, classes=CLASSES, shape=(4, 5), sha256="abc")
    write_drawing(drawing(rectangle("FeO", 0, 0, 2, 2)), own)
    for shape, sha256 in (((5, 4), "abc"), ((4, 5), "other")):
        with pytest.raises(InputError, match="drawn on another acquisition"):
            start_drawing(own, classes=CLASSES, shape=shape, sha256=sha256)
    with pytest.raises(InputError, match="--classes"):
        start_drawing(tmp_path / "new.npz", classes=[], shape=(4, 5), sha256="abc")
    with pytest.raises(OutputPathError, match=r"written as \.npz"):
        write_drawing(drawing(rectangle("FeO", 0, 0, 2, 2)), tmp_path / "truth.zarr")
    np.savez(foreign, regions=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UnreadableFileError, match="pickled"):
        read_drawing(foreign)


@pytest.fixture
def labelled(tmp_path):
    """An acquisition, regions in a file, and a manifest of it."""
    image = build_spectrum_image(np.ones((4, 5, 30)), 500.0 + np.arange(30.0))
    write_spectrum_image(image, tmp_path / "scan.zarr")
    (tmp_path / "manifest.csv").write_text("path,label,group,session\nscan.zarr,,g,monday\nother.zarr,FeO,,\n")
    regions = [{"class": "FeO", "polygon": [[0, 0], [2, 0], [2, 2], [0, 2]]}]
    (tmp_path / "regions.json").write_text(json.dumps({"classes": CLASSES, "regions": regions}))
    return tmp_path


def test_regions_from_a_file_become_a_truth_that_the_manifest_names(labelled, eelsflow):
    command = ("label", labelled / "scan.zarr", "--regions", labelled / "regions.json")
    status, out, _ = eelsflow(*command, "--manifest", labelled / "manifest.csv")
    assert status == 0
    assert out.endswith("scan.truth.npz: FeO 4, Fe3O4 0, mixed 0 of 20 pixels\n")
    first, second = read_rows(labelled / "manifest.csv")
    assert (first.truth, first.group, first.session) == ("scan.truth.npz", "g", "monday")
    assert (second.path, second.label, second.truth) == ("other.zarr", "FeO", "")


def test_regions_from_a_file_come_after_those_that_were_drawn_and_once(labelled):
    path, truth = labelled / "scan.zarr", labelled / "truth.npz"
    label_from_file(path, labelled / "regions.json", truth=truth)
    again = label_from_file(path, labelled / "regions.json", truth=truth)
    assert len(again.regions) == 1
    other = [{"class": "Fe3O4", "polygon": [[1, 0], [3, 0], [3, 2], [1, 2]]}]
    (labelled / "more.json").write_text(json.dumps(other))
    both = label_from_file(path, labelled / "more.json", truth=truth)
    assert both.counts() == {"FeO": 2, "Fe3O4": 4, "mixed": 0}


@pytest.mark.parametrize(
    ("regions", "options", "message"),
    [
        ("{", [], "regions cannot be read"),
        ("[]", ["--classes", "FeO"], "no pixel is labelled"),
        ("[]", [], "--classes FeO,Fe3O4"),
        ('[{"class": "FeO", "polygon": [[0, 0], [9, 0], [9, 9]]}]', ["--classes", "Fe3O4"], "'FeO', which is none of"),
        ('[{"class": "FeO", "polygon": [[50, 0], [59, 0], [59, 9]]}]', ["--classes", "FeO"], "the centre of no pixel"),
        ('[{"class": "FeO", "polygon": [[1e308, 0], [0, 0], [9, 9]]}]', ["--classes", "FeO"], "less than or equal to"),
        ('{"classes": "FeO", "regions": []}', [], "expected a list of names"),
        ('{"classes": 5, "regions": []}', [], "expected a list of names"),
    ],
)
def test_regions_that_cannot_be_used_leave_no_truth_behind(labelled, eelsflow, regions, options, message):
    (labelled / "bad.json").write_text(regions)
    status, _, err = eelsflow("label", labelled / "scan.zarr", "--regions", labelled / "bad.json", *options)
    assert status == 2
    assert message in err
    assert not (labelled / "scan.truth.npz").exists()


def test_a_manifest_that_labels_the_whole_acquisition_or_lacks_it_is_not_changed(labelled):
    manifest = labelled / "manifest.csv"
    for text, message in (
        ("path,label,group\nscan.zarr,FeO,\n", "has the label FeO"),
        ("path,label,group\nother.zarr,,\n", "has no row of"),
    ):
        manifest.write_text(text)
        with pytest.raises(StudyFileError, match=message):
            label_from_file(
                labelled / "scan.zarr", labelled / "regions.json", truth=labelled / "t.npz", manifest=manifest
            )
        assert manifest.read_text() == text
        assert not (labelled / "t.npz").exists()
