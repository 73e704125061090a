from types import SimpleNamespace

import pytest

from eelsflow.store import Store, write_json
from eelsflow.study.map_scores import best_maps, expected_of_chosen, map_rows


def steps_of(store: Store, recalls: dict[str, list[list[float | None]]]) -> list[SimpleNamespace]:
    """Write the scores of one map an acquisition for each model, given the recalls of the two classes."""
    steps = []
    for model, values in recalls.items():

        def write(directory, values=values):
            maps = [{"acquisition": f"field-{number}", "recall": recall} for number, recall in enumerate(values)]
            write_json(directory / "scores.json", {"maps": maps})

        digest = model * 32
        store.compute(digest, write)
        fit = SimpleNamespace(model=SimpleNamespace(name=model), preset=SimpleNamespace(name="recommended"))
        steps.append(SimpleNamespace(digest=digest, fit=fit))
    return steps


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_expected_score_ignores_fields_that_candidates_do_not_show_alike(tmp_path, order):
    """A class that one map lacks is neither a miss nor a hit, whichever candidate is named first."""
    whole = [[0.9, 0.8]] * 6
    lacking = [[0.7, 0.6]] * 4 + [[1.0, None]] * 2
    recalls = {"a": whole, "b": lacking}
    found = expected_of_chosen(steps_of(Store(tmp_path), {name: recalls[name] for name in order}), Store(tmp_path))
    assert found is not None
    assert found.apparent == pytest.approx(0.85)
    assert found.expected == pytest.approx(0.85)
    assert found.best == order.index("a")


def scored(acquisition: str, kind: str, accuracy: float, *, one_class: bool = False) -> dict[str, object]:
    """Return the score of one map of ten pixels, all of one confidence."""
    return {
        "acquisition": acquisition,
        "kind": kind,
        "balanced_accuracy": accuracy,
        "one_class": one_class,
        "calibration": [[10, 9.0, 10 * accuracy]],
        "boundary_accuracy": accuracy if kind == "mixed" else None,
        "fraction_rmse": 1 - accuracy,
        "fraction_coverage": 0.9,
        "unknown": 0.0,
    }


def rows_of(directory, fields: dict[str, list[dict[str, object]]]):
    store = Store(directory)
    steps = []
    for model, maps in fields.items():
        store.compute(model * 32, lambda path, maps=maps: write_json(path / "scores.json", {"maps": maps}))
        fit = SimpleNamespace(model=SimpleNamespace(name=model), preset=SimpleNamespace(name="recommended"))
        steps.append(SimpleNamespace(digest=model * 32, fit=fit))
    return map_rows(steps, store)


def test_a_model_is_scored_by_pure_and_mixed_fields_alike_however_many_there_are(tmp_path):
    """Nine pure fields cannot outvote the one field of two phases that a model makes one class of."""
    pure = [scored(f"pure-{number}", "pure", 1.0) for number in range(9)]
    collapsing = [*pure, scored("core", "mixed", 0.5, one_class=True)]
    seeing = [*(dict(field, balanced_accuracy=0.9) for field in pure), scored("core", "mixed", 0.9)]
    rows = rows_of(tmp_path, {"a": collapsing, "b": seeing})
    assert [row["score"]["mean"] for row in rows] == pytest.approx([0.75, 0.9])
    assert [row["one_class"] for row in rows] == [1, 0]
    assert best_maps(rows)["model"] == "b"


def test_an_acquisition_that_is_mapped_by_several_seeds_counts_once(tmp_path):
    fields = [scored("a", "pure", 0.4)] + [scored("b", "pure", 1.0) for _ in range(3)]
    (row,) = rows_of(tmp_path, {"a": fields})
    assert (row["acquisitions"], row["maps"]) == (2, 4)
    assert row["pure"]["mean"] == pytest.approx(0.7)
    assert row["mixed"] is None


def test_calibration_of_maps_is_that_of_their_pixels_together(tmp_path):
    """Confidence .9 where 8 and then 10 of 10 pixels are right is right on the whole."""
    (row,) = rows_of(tmp_path, {"a": [scored("a", "pure", 0.8), scored("b", "pure", 1.0)]})
    assert row["calibration_error"] == pytest.approx(0.0)
    assert row["fraction_rmse"] == pytest.approx((0.04 / 2) ** 0.5)
