from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.digest import code_version, digest_file, digest_of
from eelsflow.edges import FE_L3, O_K
from eelsflow.errors import UnreadableFileError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(json_values, json_values)
def test_digests_are_equal_exactly_for_equal_values(one, other):
    assert (digest_of(one) == digest_of(other)) == (repr(_sorted(one)) == repr(_sorted(other)))


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def test_order_of_keys_does_not_matter():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


def test_models_and_arrays_have_digests_by_content():
    assert digest_of(O_K) != digest_of(FE_L3)
    assert digest_of(O_K) == digest_of(O_K.model_copy())
    assert digest_of(np.arange(3)) == digest_of(np.arange(3))
    assert digest_of(np.arange(3)) != digest_of(np.arange(3.0))


def test_value_without_canonical_form_is_refused():
    with pytest.raises(TypeError, match="no canonical form for object"):
        digest_of(object())


def test_file_and_directory_digests_follow_bytes_and_names(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_bytes(b"1")
    before = digest_file(tmp_path / "store")
    assert digest_file(tmp_path / "store" / "a") == digest_file(tmp_path / "store" / "a")
    (tmp_path / "store" / "a").rename(tmp_path / "store" / "b")
    assert digest_file(tmp_path / "store") != before


def test_missing_file_is_named():
    with pytest.raises(UnreadableFileError, match=r"nowhere\.dm3 cannot be read: No such file"):
        digest_file(Path("nowhere.dm3"))


def test_code_version_differs_between_parts_of_the_library():
    assert code_version("preprocess") != code_version("models")


def test_templates_and_scripts_of_pages_count_as_sources(monkeypatch, tmp_path):
    for name in ("digest.py", "pages/__init__.py", "pages/map.js"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr("eelsflow.digest.resources.files", lambda _: tmp_path)
    version = code_version.__wrapped__  # its answers are kept for the life of a process
    before = version("digest", "pages")
    (tmp_path / "pages" / "__pycache__").mkdir()
    (tmp_path / "pages" / "__pycache__" / "map.pyc").write_text("1")
    assert version("digest", "pages") == before
    (tmp_path / "pages" / "map.js").write_text("2")
    assert version("digest", "pages") != before
