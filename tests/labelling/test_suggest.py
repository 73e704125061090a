import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from eelsflow.labelling.page import outline
from eelsflow.labelling.suggest import (
    FEWEST_PIXELS,
    REGION_RADIUS,
    judge_usefulness,
    pixel_doubt,
    suggest_regions,
    telling_pixels,
)

SHAPE = (4, 5)


def test_doubt_is_the_entropy_of_the_classes_and_whole_where_spectra_are_unknown(pixel_map):
    found = pixel_map.found
    found.probability[0, 0] = (0.5, 0.5)
    found.probability[0, 1] = (1.0, 0.0)
    found.unknown[0, 2] = True
    doubt = pixel_doubt(found, np.ones(SHAPE, dtype=np.float32))
    assert doubt[0, :3] == pytest.approx([1.0, 0.0, 1.0], abs=1e-6)
    assert doubt[1, 1] == pytest.approx(0.469, abs=1e-3)  # of .9 and .1, in bits


def test_no_label_is_asked_of_mixtures_vacuum_and_what_is_too_thin(pixel_map):
    found, strength = pixel_map.found, np.ones(SHAPE, dtype=np.float32)
    found.fraction[0, 0] = (0.7, 0.3)  # 5 standard errors below pure
    found.fraction[0, 1] = (0.79, 0.21)  # perhaps pure
    found.fraction[0, 2] = np.nan  # no signal to tell
    found.class_index[0, 3] = -1
    strength[0, 4] = 0.1
    asked = np.isfinite(pixel_doubt(found, strength))
    assert asked[0].tolist() == [False, True, True, False, False]
    assert asked[1:].all()


def doubtful_field():
    """Two particles with a gap between them; the right one is doubtful in its middle."""
    telling = np.zeros((30, 40), dtype=bool)
    telling[2:28, 2:18] = telling[2:28, 22:38] = True
    y, x = np.mgrid[:30, :40]
    doubt = np.where(telling, np.exp(-((y - 15) ** 2 + (x - 30) ** 2) / 50.0), np.nan)
    return doubt.astype(np.float32), telling


def test_regions_are_compact_connected_apart_and_where_the_doubt_is():
    doubt, telling = doubtful_field()
    regions = suggest_regions(doubt, telling, n=4)
    assert len(regions) == 4
    assert [one.doubt for one in regions] == sorted((one.doubt for one in regions), reverse=True)
    y0, x0, y1, x1 = regions[0].box
    assert (y0 + y1) / 2 == pytest.approx(15.5)
    assert (x0 + x1) / 2 == pytest.approx(30.5)
    taken = np.zeros(telling.shape, dtype=int)
    for one in regions:
        mask = np.zeros(telling.shape, dtype=bool)
        mask[tuple(np.transpose(one.members))] = True
        assert ndimage.label(mask)[1] == 1
        assert not (mask & ~telling).any()
        assert one.pixels == mask.sum() >= FEWEST_PIXELS
        assert max(one.box[2] - one.box[0], one.box[3] - one.box[1]) <= 2 * REGION_RADIUS + 1
        taken += mask
    assert taken.max() == 1


def test_a_region_does_not_reach_over_a_gap_and_corners_of_an_image_are_no_trouble():
    doubt, telling = doubtful_field()
    doubt[:] = np.where(telling, 0.5, np.nan)
    for one in suggest_regions(doubt, telling, n=12):
        columns = [x for _, x in one.members]
        assert max(columns) < 18 or min(columns) >= 22
    whole = np.full((5, 5), 0.5, dtype=np.float32)
    assert suggest_regions(whole, np.ones((5, 5), dtype=bool))[0].pixels <= 25
    assert suggest_regions(whole, np.zeros((5, 5), dtype=bool)) == []
    assert suggest_regions(np.full((5, 5), np.nan, dtype=np.float32), np.ones((5, 5), dtype=bool)) == []


def test_the_outline_of_a_region_is_its_border():
    lines = outline(((0, 0), (0, 1)))
    assert len(lines) == 6
    assert [[1, 0], [1, 1]] not in lines


def test_thin_pixels_do_not_tell():
    strength = np.array([[np.nan, 1.0, 2.4, 2.6, 10.0, 10.0, 10.0]], dtype=np.float32)
    specimen = np.array([[True, True, True, True, True, True, False]])
    assert telling_pixels(strength, specimen).tolist() == [[False, False, False, True, True, True, False]]


def test_two_classes_in_one_recording_count_most_then_doubt_then_distance(pixel_map):
    strength = np.ones(SHAPE, dtype=np.float32)
    model = SimpleNamespace(references=SimpleNamespace(mean_limit=2.0))

    def score(**changes):
        return judge_usefulness(replace(pixel_map.found, **changes), strength, model, acquisition="a").score

    half = np.zeros(SHAPE, dtype=np.int16)
    half[:2] = 1
    doubtful = np.full((*SHAPE, 2), 0.5, dtype=np.float32)
    plain = score()
    assert plain < score(mean_distance=1.5) < score(mean_distance=2.0) == score(mean_distance=50.0)
    assert plain < score(probability=doubtful) < score(class_index=half) < score(class_index=half, probability=doubtful)
    assert score(class_index=np.full(SHAPE, -1, dtype=np.int16)) == 0
    found = judge_usefulness(replace(pixel_map.found, class_index=half), strength, model, acquisition="a")
    assert found.shares == {"FeO": 0.5, "Fe3O4": 0.5}


@pytest.mark.slow
def test_the_command_ranks_what_has_no_label_yet_and_leaves_out_what_cannot_be_read(
    simulated_files, saved_model, tmp_path, eelsflow
):
    names = sorted(path.name for path in simulated_files.glob("*.zarr") if "truth" not in path.name)
    for name in (names[0], names[4]):
        shutil.copytree(simulated_files / name, tmp_path / name)
    (tmp_path / "bad.dm3").write_bytes(b"nothing")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"path,label,group\n{names[0]},,\n{names[4]},,\nbad.dm3,,\nother.dm3,FeO,\n")
    status, out, err = eelsflow("label", "--suggest", manifest, "--model", saved_model, "--json")
    ranked = json.loads(out)
    assert status == 0
    assert {one["acquisition"] for one in ranked} == {names[0], names[4]}
    assert ranked[0]["score"] >= ranked[1]["score"]
    assert {"box", "pixels", "doubt"} == set(ranked[0]["regions"][0])
    assert "warning: bad.dm3 left out" in err
    status, out, _ = eelsflow("label", "--suggest", tmp_path / names[4], "--model", saved_model)
    assert out.startswith(f"1. {tmp_path / names[4]}: score ")
    assert " pixels, doubt " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suggest", "a.dm3"], "--suggest needs --model"),
        (["a.dm3", "b.dm3"], "one is labelled at a time"),
        (["--suggest", "manifest.csv", "--model", "{model}"], "all 1 rows of"),
        (["--suggest", "none.dm3", "--model", "{model}"], "no acquisition can be used:\n  none.dm3"),
    ],
)
def test_what_cannot_be_asked_is_refused(saved_model, tmp_path, monkeypatch, eelsflow, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.csv").write_text("path,label,group\na.dm3,FeO,\n")
    status, _, err = eelsflow("label", *(one.format(model=saved_model) for one in arguments))
    assert status == 2
    assert message in err
