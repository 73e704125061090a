"""What a person sees of a task that works in parts."""

from uuid import uuid4

import pytest

from tasks import progress


@pytest.fixture
def artifacts(monkeypatch):
    """Record what is asked of Prefect, without a server."""
    made, updated = [], []

    def create(share, **more):
        made.append((share, more))
        return uuid4()

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(progress, "update_progress_artifact", lambda artifact, share: updated.append(share))
    return made, updated


def test_an_artifact_is_made_once_and_moves_to_the_end(artifacts, monkeypatch):
    clock = iter(range(0, 1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    report = progress.follow("search and fit svm-rbf")
    for done in range(1, 11):
        report("search-My_net+.2", done, 10)
    made, updated = artifacts
    assert len(made) == 1
    assert made[0][1]["key"] == "progress-search-my-net-2"
    assert made[0][1]["description"] == "search and fit svm-rbf: search-My_net+.2"
    assert updated[-1] == 100.0
    assert len(updated) < 9  # not at every part
    assert updated == sorted(updated)


def test_work_in_one_part_has_no_artifact(artifacts):
    progress.follow("fit")("fit-svm-sgd", 1, 1)
    assert artifacts == ([], [])


@pytest.mark.usefixtures("artifacts")
def test_the_terminal_is_told_of_every_part():
    seen = []
    token = progress.ON_STEP.set(lambda *told: seen.append(told))
    try:
        report = progress.follow("search svm-rbf")
    finally:
        progress.ON_STEP.reset(token)
    report("search-rbf", 3, 11)
    report("fit-svm-rbf", 1, 1)
    assert seen == [("search svm-rbf: 3 of 11", None, None)]
