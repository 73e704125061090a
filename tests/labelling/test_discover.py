import json
import shutil

import numpy as np
import pytest
import yaml

from eelsflow.dataset.manifest import read_manifest, read_rows
from eelsflow.edges import SHIPPED
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.labelling.discover import write_discovered
from eelsflow.simulator import PRESETS, LowLossRecording, simulate_acquisition, simulate_directory
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.spectrum_image import build_spectrum_image
from eelsflow.study.config import load_study

AXIS = AxisParameters(start=485.0, n_channels=400)
O_K = SHIPPED["O_K"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A folder as `eelsflow simulate --low-loss` writes it, of five acquisitions."""
    directory = tmp_path_factory.mktemp("simulated")
    preset = PRESETS["paper"].model_copy(update={"axis": AXIS})
    simulate_directory(directory, n_acquisitions=5, seed=3, shape=(12, 12), preset=preset, low_loss=LowLossRecording())
    return directory


@pytest.fixture
def folder(simulated, tmp_path):
    """A copy of it without its manifest, in a folder of the day, with files that do not belong."""
    day = tmp_path / "scans" / "day 1"
    shutil.copytree(simulated, day)
    (day / "manifest.csv").unlink()
    shutil.copytree(day / "cubes-000-FeO.zarr", tmp_path / "scans" / "again.zarr")
    (day / "notes.txt").write_text("the second cube is thick\n")
    (day / "cut.dm3").write_bytes(b"\0\0\0\3" + 60 * b"\0")
    (day / ".hidden.dm3").write_bytes(b"")
    (day / "picture.tif").write_bytes(b"")
    late = build_spectrum_image(np.ones((4, 4, 100)), 800.0 + np.arange(100.0))
    write_spectrum_image(late, day / "late.zarr")
    return tmp_path / "scans"


def discover(folder, **options):
    out = options.pop("out", folder / "manifest.csv")
    return write_discovered(folder, out, edge=O_K, **options)


def test_a_manifest_says_what_can_be_known_and_leaves_out_the_rest_with_the_reason(folder):
    found = discover(folder, classes=["FeO", "Fe3O4"])
    rows = {row.path: row for row in read_rows(folder / "manifest.csv")}
    assert list(rows) == [
        f"day 1/cubes-{name}.zarr" for name in ("000-FeO", "001-Fe3O4", "002-FeO", "003-Fe3O4", "004-core-shell")
    ]
    assert [row.label for row in rows.values()] == ["FeO", "Fe3O4", "FeO", "Fe3O4", ""]
    assert len({row.group for row in rows.values()}) == 5
    assert {row.session for row in rows.values()} == {"day 1"}
    for path, row in rows.items():
        stem = path.removesuffix(".zarr")
        assert (row.truth, row.low_loss) == (f"{stem}.truth.zarr", f"{stem}.low-loss.zarr")
    reasons = dict(found.left_out)
    assert set(reasons) == {"again.zarr", "day 1/notes.txt", "day 1/cut.dm3", "day 1/late.zarr"}
    assert reasons["again.zarr"] == "the same content as day 1/cubes-000-FeO.zarr"  # which has its truth beside it
    assert "outside the energy axis" in reasons["day 1/late.zarr"]
    assert (found.added, found.kept) == (5, 0)


def test_a_study_takes_what_was_written(folder, tmp_path):
    discover(folder, classes=["FeO", "Fe3O4"], out=tmp_path / "manifest.csv")
    assert [one.name for one in read_manifest(tmp_path / "manifest.csv")][-1] == "cubes-004-core-shell"
    study = {"name": "s", "edge": "O_K", "classes": ["FeO", "Fe3O4"], "data": {"manifest": "manifest.csv"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert load_study(tmp_path / "study.yaml").data.manifest == (tmp_path / "manifest.csv").resolve()


def test_rows_that_a_person_filled_are_kept_and_new_files_are_added(folder):
    manifest = folder / "manifest.csv"
    manifest.write_text("path,label,group,session\nday 1/cubes-001-Fe3O4.zarr,mine,g7,tuesday\ngone.dm3,FeO,,\n")
    found = discover(folder)
    kept, gone = read_rows(manifest)[:2]
    assert (kept.label, kept.group, kept.session, kept.truth) == ("mine", "g7", "tuesday", "")
    assert (gone.path, gone.label) == ("gone.dm3", "FeO")
    assert (found.kept, found.added) == (2, 4)
    assert ("gone.dm3", "the manifest names it and it is not there; its row was kept") in found.remarks
    before = manifest.read_text()
    assert discover(folder).added == 0
    assert manifest.read_text() == before


def scan(directory, name, *, seed=4, date=None, zero_loss=False, shape=(12, 12)):
    """Write an acquisition, or a low loss, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    parameters = PRESETS["paper"].model_copy(update={"axis": AXIS, "shape": shape})
    made = simulate_acquisition(parameters, seed, low_loss=LowLossRecording())
    image = made.low_loss if zero_loss else made.image
    metadata = {"metadata": {}, "original_metadata": {"ImageList": {"DataBar": {"Acquisition Date": date}}}}
    return write_spectrum_image(image.assign_attrs(metadata=json.dumps(metadata)), directory / name)


def test_a_manifest_of_a_header_alone_is_extended(folder):
    out = folder / "manifest.csv"
    out.write_text("path,label,group,session\n")
    found = write_discovered(folder, out, edge=O_K)
    assert found.added > 0
    assert found.kept == 0
    assert len(read_rows(out)) == found.added


def test_a_link_round_in_circles_is_not_followed(tmp_path):
    image = simulate_acquisition(PRESETS["paper"].model_copy(update={"shape": (8, 8)}), 1).image
    write_spectrum_image(image, tmp_path / "a.zarr")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to("..")
    found = write_discovered(tmp_path, tmp_path / "manifest.csv", edge=O_K)
    assert (found.added, found.left_out) == (1, [])


def test_session_is_folder_and_date_and_files_of_one_scan_are_one_group(tmp_path):
    scan(tmp_path / "a", "map 1 core.zarr", seed=1, date="12/14/2019")
    scan(tmp_path / "a", "map_1.zarr", seed=2, date="12/14/2019")
    scan(tmp_path / "a", "map 2.zarr", seed=3, date="12/15/2019")
    scan(tmp_path / "b", "map 2.zarr", seed=5)
    discover(tmp_path)
    rows = {row.path: row for row in read_rows(tmp_path / "manifest.csv")}
    assert {path: row.session for path, row in rows.items()} == {
        "a/map 1 core.zarr": "a 12/14/2019", "a/map_1.zarr": "a 12/14/2019", "a/map 2.zarr": "a 12/15/2019",
        "b/map 2.zarr": "b",
    }  # fmt: skip
    assert rows["a/map 1 core.zarr"].group == rows["a/map_1.zarr"].group
    assert len({row.group for row in rows.values()}) == 3


def test_a_low_loss_belongs_to_the_scan_of_its_name_or_is_alone_with_it_in_a_folder(tmp_path):
    scan(tmp_path / "named", "p1_HL.zarr", seed=1)
    scan(tmp_path / "named", "p1_LL.zarr", seed=1, zero_loss=True)
    scan(tmp_path / "named", "p2_HL.zarr", seed=2)
    scan(tmp_path / "named", "p2_LL.zarr", seed=2, zero_loss=True, shape=(6, 6))
    scan(tmp_path / "alone", "core.zarr", seed=3)
    scan(tmp_path / "alone", "other name.zarr", seed=3, zero_loss=True)
    found = discover(tmp_path)
    low = {row.path: row.low_loss for row in read_rows(tmp_path / "manifest.csv")}
    assert low == {
        "alone/core.zarr": "alone/other name.zarr", "named/p1_HL.zarr": "named/p1_LL.zarr", "named/p2_HL.zarr": "",
    }  # fmt: skip
    assert [path for path, _ in found.left_out] == ["named/p2_LL.zarr"]


def test_names_label_only_where_they_name_one_class(tmp_path):
    scan(tmp_path / "FeO", "one.zarr", seed=1)
    scan(tmp_path / "FeO", "FeO-Fe3O4.zarr", seed=2)
    scan(tmp_path / "FeO", "fe3o4_2.zarr", seed=3)
    scan(tmp_path, "FeOOH.zarr", seed=5)
    found = discover(tmp_path, classes=["FeO", "Fe3O4"])
    labels = {row.path: row.label for row in read_rows(tmp_path / "manifest.csv")}
    assert labels == {"FeO/FeO-Fe3O4.zarr": "", "FeO/fe3o4_2.zarr": "Fe3O4", "FeO/one.zarr": "FeO", "FeOOH.zarr": ""}
    assert "names FeO and Fe3O4" in dict(found.remarks)["FeO/FeO-Fe3O4.zarr"]


def test_what_is_beside_an_acquisition_and_no_truth_of_it_is_said_and_not_named(tmp_path):
    scan(tmp_path, "one.zarr")
    np.savez(tmp_path / "one.npz", phase=np.array(["FeO"]), phase_fraction=np.ones((1, 3, 3)))
    found = discover(tmp_path)
    assert read_rows(tmp_path / "manifest.csv")[0].truth == ""
    assert "one.npz beside it is not taken for its truth" in found.remarks[0][1]


def test_an_acquisition_that_looks_odd_is_listed_and_said(tmp_path):
    path = scan(tmp_path, "noisy.zarr")
    shutil.rmtree(path)
    parameters = PRESETS["paper"].model_copy(update={"axis": AXIS, "shape": (12, 12)})
    image = simulate_acquisition(parameters, 4).image
    spoilt = image.values.copy()
    rng = np.random.default_rng(0)
    for pixel in rng.permutation(144)[:60]:
        spoilt[pixel // 12, pixel % 12, rng.integers(50, 350)] += 50_000
    write_spectrum_image(image.copy(data=spoilt), path)
    found = discover(tmp_path)
    assert found.added == 1
    assert any("hold spikes" in remark for _, remark in found.remarks)


def test_a_folder_without_acquisitions_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing\n")
    with pytest.raises(InputError, match=r"no file below .* shows O_K.*left out were:\n  notes\.txt"):
        discover(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        discover(tmp_path / "elsewhere")
    assert not (tmp_path / "manifest.csv").exists()


def test_the_command_says_what_it_left_out(folder, eelsflow):
    status, out, err = eelsflow("manifest", folder, "--classes", "FeO, Fe3O4")
    assert status == 0
    assert out == f"{folder / 'manifest.csv'}: acquisitions added: 5, left out: 4\n"
    assert "left out: again.zarr: the same content as day 1/cubes-000-FeO.zarr" in err
    _, out, _ = eelsflow("manifest", folder)
    assert "acquisitions added: 0, kept as they were: 5" in out
