from types import SimpleNamespace

import pytest

from eelsflow.store import Store, write_json
from eelsflow.study.map_scores import expected_of_chosen


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
