import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import skops.io

from eelsflow.models.archives import EPOCH, dump_skops, strip_keras

FIT = """
import sys
from pathlib import Path
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from eelsflow.models.archives import dump_skops

junk = [object() for _ in range(int(sys.argv[2]))]  # addresses differ
rng = np.random.default_rng(0)
X, y = rng.normal(size=(60, 4)), np.array(["Mn3+", "Mn4+", "Mn2+"] * 20)
models = {"machine": SVC(C=10.0), "forest": RandomForestClassifier(3, random_state=0), "line": LogisticRegression()}
dump_skops({name: model.fit(X, y) for name, model in models.items()} | {"nothing": None}, Path(sys.argv[1]))
"""


def fitted_in_a_process_of_its_own(path, n_junk, hash_seed):
    command = [sys.executable, "-W", "ignore", "-c", FIT, str(path), str(n_junk)]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": str(hash_seed), "PATH": ""})
    return path.read_bytes()


def test_the_same_models_of_two_processes_are_the_same_bytes(tmp_path):
    one = fitted_in_a_process_of_its_own(tmp_path / "one.skops", 10, 1)
    assert one == fitted_in_a_process_of_its_own(tmp_path / "other.skops", 123_457, 2)
    with zipfile.ZipFile(io.BytesIO(one)) as archive:
        assert {member.date_time for member in archive.infolist()} == {EPOCH}


def test_what_is_loaded_is_what_was_saved(tmp_path):
    shared = np.arange(6.0)
    saved = {"a": shared, "b": [shared, np.ones(3)], "c": {"text": "x", "number": 1.5, "none": None, "yes": True}}
    dump_skops(saved, tmp_path / "model.skops")
    loaded = skops.io.load(tmp_path / "model.skops", trusted=[])
    np.testing.assert_array_equal(loaded["a"], shared)
    np.testing.assert_array_equal(loaded["b"][1], np.ones(3))
    assert loaded["b"][0] is loaded["a"]  # one array, as it was
    assert loaded["c"] == saved["c"]


def test_other_content_is_other_bytes(tmp_path):
    dump_skops({"a": np.arange(3)}, tmp_path / "one.skops")
    dump_skops({"a": np.arange(1, 4)}, tmp_path / "other.skops")
    assert (tmp_path / "one.skops").read_bytes() != (tmp_path / "other.skops").read_bytes()


@pytest.mark.parametrize("date", ["2026-01-01@00:00:00", "2030-06-05@01:02:03"])
def test_keras_files_do_not_say_when_they_were_written(tmp_path, date):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3", "date_saved": date}))
        archive.writestr("config.json", json.dumps([{"shared_object_id": id(date)}, {"shared_object_id": id(path)}]))
    strip_keras(path)
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("metadata.json")) == {"keras_version": "3"}
        assert json.loads(archive.read("config.json")) == [{"shared_object_id": 1}, {"shared_object_id": 2}]
        assert {member.date_time for member in archive.infolist()} == {EPOCH}
