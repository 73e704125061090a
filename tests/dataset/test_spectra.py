import numpy as np
import pytest
import xarray as xr

from eelsflow.dataset.spectra import LabelledSpectra, choose_spectra, gather_spectra, read_table
from eelsflow.errors import DataSetError, InputError, UnreadableFileError
from eelsflow.io.zarr_store import write_dataset


@pytest.fixture
def table(tmp_path):
    def write(**changes):
        arrays = {
            "spectra": np.arange(40.0).reshape(4, 10),
            "energy_loss": 700 + 0.1 * np.arange(10),
            "label": np.array(["Mn2+", "Mn2+", "Mn3+", "Mn3+"]),
            **changes,
        }
        path = tmp_path / "table.npz"
        np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
        return path

    return write


def test_table_is_read_and_survives_saving(table, tmp_path):
    spectra = read_table(table(group=np.array(list("abab"))))
    spectra.save(tmp_path)
    again = LabelledSpectra.load(tmp_path)
    for name in ("intensity", "energy_loss", "label", "group"):
        assert np.array_equal(getattr(spectra, name), getattr(again, name))
    assert again.variance is None


def test_classes_choose_spectra(table):
    labels = np.array(["Mn2+", "Mn3+", "Mn4+", "Mn4+"])
    assert read_table(table(label=labels), ["Mn2+", "Mn3+"]).label.tolist() == ["Mn2+", "Mn3+"]


def test_spectra_of_no_class_or_without_signal_do_not_matter_where_classes_are_chosen(table):
    labels = np.array(["Mn2+", "Mn3+", "", "mixed"])
    spectra = np.arange(40.0).reshape(4, 10) * [[1], [1], [0], [1]]
    assert read_table(table(label=labels, spectra=spectra), ["Mn2+", "Mn3+"]).label.tolist() == ["Mn2+", "Mn3+"]


def test_partly_negative_spectra_are_taken_as_they_are(table):
    spectra = np.arange(40.0).reshape(4, 10) - 38.5 + 12 * np.arange(4.0)[:, np.newaxis]
    spectra[:, -1] = 1
    assert (read_table(table(spectra=spectra)).intensity < 0).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.array(["Mn2+"] * 4)}, "at least two classes"),
        ({"label": None}, r"lacks \['label'\]"),
        ({"spectra": np.zeros((4, 9))}, "expected .labels, energies."),
        ({"spectra": np.full((4, 10), np.nan)}, "4 of 4 spectra hold NaN"),
        ({"spectra": np.full((4, 10), 1e300)}, "4 of 4 spectra hold NaN or infinite"),
        ({"spectra": -1 - np.arange(40.0).reshape(4, 10)}, r"table.npz: 4 of 4 spectra show no signal.* number 0"),
        ({"spectra": np.zeros((4, 10))}, "4 of 4 spectra show no signal"),
        ({"spectra": np.arange(40.0).reshape(4, 10) * [[1], [1], [0], [0]]}, "2 of 4 .* number 2, labelled 'Mn3.'"),
        ({"label": np.array(["Mn2+", "Mn3+", "", "mixed"])}, "2 of 4 spectra are labelled 'mixed' or ''.* number 2"),
    ],
)
def test_table_that_cannot_be_used_is_refused(table, changes, message):
    with pytest.raises((DataSetError, UnreadableFileError), match=message):
        read_table(table(**changes))


@pytest.mark.parametrize("content", [b"", b"not a table", b"PK\x03\x04" + bytes(200)])
def test_damaged_table_is_refused(tmp_path, content):
    path = tmp_path / "table.npz"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"table\.npz"):
        read_table(path)


def test_truncated_table_is_refused(table):
    path = table()
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableFileError, match=r"table\.npz"):
        read_table(path)


@pytest.mark.parametrize(
    "changes",
    [{"energy_loss": 700 + np.arange(10.0) ** 2}, {"label": np.array(["Mn2+"] * 4)}],
    ids=["axis not uniform", "one class"],
)
def test_table_that_is_refused_is_named(table, changes):
    with pytest.raises((DataSetError, InputError), match=r"table\.npz: "):
        read_table(table(**changes))


def test_pickled_labels_are_refused_without_the_advice_to_load_them(tmp_path):
    np.savez(tmp_path / "a.npz", spectra=np.ones((2, 3)), label=np.array([{}, {}]))
    with pytest.raises(UnreadableFileError, match="pickled Python objects, which are never loaded") as error:
        read_table(tmp_path / "a.npz")
    assert "allow_pickle" not in str(error.value)


@pytest.mark.parametrize("has_spatial_step", [True, False])
def test_averages_over_neighbours_are_collected_of_the_same_pixels(tmp_path, has_spatial_step):
    prepared = []
    for number in range(2):
        values = np.arange(24.0).reshape(2, 3, 4) + 100 * number
        arrays = {"intensity": values, "variance": values + 1} | ({"gathered": -values} if has_spatial_step else {})
        product = xr.Dataset({name: (("y", "x", "energy_loss"), array) for name, array in arrays.items()})
        prepared.append(tmp_path / f"{number}.zarr")
        product["electrons"] = ("y", "x"), values[..., 0] / 8
        write_dataset(product.assign_coords(energy_loss=[700.0, 700.1, 700.2, 700.3]), prepared[-1])
    labels = [np.array([["a", "", "mixed"], ["a", "a", ""]]), np.array([["b", "b", ""], ["", "", "b"]])]
    found = gather_spectra(prepared, labels, ["one", "two"], ["a", "b"])
    found.save(tmp_path)
    again = LabelledSpectra.load(tmp_path)
    assert len(found.intensity) == 6
    np.testing.assert_array_equal(again.electrons, found.intensity[:, 0] / 8)
    if has_spatial_step:
        np.testing.assert_array_equal(again.gathered, -found.intensity)
    else:
        assert again.gathered is None


def test_a_choice_of_spectra_is_random_ordered_and_always_the_same():
    n = 200
    spectra = LabelledSpectra(
        intensity=np.arange(n, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32),
        variance=None,
        energy_loss=np.arange(3.0),
        label=np.array(["FeO", "Fe3O4"])[np.arange(n) % 2],
        group=np.arange(n).astype(str),
    )
    assert choose_spectra(spectra, None) is spectra
    one, other = choose_spectra(spectra, 50), choose_spectra(spectra, 50)
    np.testing.assert_array_equal(one.intensity, other.intensity)
    number = one.intensity[:, 0].astype(int)
    assert (np.diff(number) > 0).all()
    assert 60 < number.mean() < 140
    np.testing.assert_array_equal(one.group, number.astype(str))
    np.testing.assert_array_equal(one.label, spectra.label[number])
    assert one.variance is None
    with pytest.raises(DataSetError, match=r"201 labelled spectra were asked for \(split.spectra\) and there are 200"):
        choose_spectra(spectra, 201)
