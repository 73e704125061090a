"""Presets are data: what they hold, and which orders of steps are refused."""

import itertools
import json

import pytest
from pydantic import ValidationError

from eelsflow.errors import StudyFileError
from eelsflow.preprocess.presets import PRESETS, Align, Normalize, Pca, Preset, Spikes, resolve_preset


def names(preset: Preset) -> list[str]:
    return [step.step for step in preset.steps]


def test_paper_runs_in_the_order_of_the_paper() -> None:
    paper = resolve_preset("paper")
    assert names(paper) == ["pca", "vacuum_mask", "align", "background", "spikes", "rebin", "normalize"]
    assert paper.steps[0] == Pca(scope="acquisition")
    assert names(resolve_preset("paper-raw")) == names(paper)[1:]


def test_recommended_fits_pca_on_the_training_set_alone() -> None:
    recommended = resolve_preset("recommended")
    assert [step.step for step in recommended.acquisition_steps] == [
        "spikes", "vacuum_mask", "align", "background", "rebin", "spatial",
    ]  # fmt: skip
    assert [step.step for step in recommended.training_steps] == ["pca", "normalize"]
    assert recommended.for_acquisition.training_steps == ()


def test_none_has_no_steps() -> None:
    assert resolve_preset("none").steps == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    preset = PRESETS[name]
    assert resolve_preset(json.loads(preset.model_dump_json())) == preset
    assert resolve_preset(preset) is preset


def test_presets_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PRESETS["paper"].name = "mine"  # type: ignore[misc]


def test_steps_may_be_spelled_out_by_name_or_with_parameters() -> None:
    preset = resolve_preset({"name": "mine", "steps": ["spikes", {"step": "align", "max_offset": 3}, "background"]})
    assert preset.name == "mine"
    assert preset.find(Align) == Align(max_offset=3)
    assert preset.find(Spikes) == Spikes()
    assert preset.find(Normalize) is None


@pytest.mark.parametrize(
    "steps",
    [
        ["align", "spikes", "vacuum_mask", "background", "rebin"],
        ["spikes", {"step": "pca", "scope": "acquisition"}, "vacuum_mask", "align", "background", "rebin"],
        ["background", "rebin", "normalize"],
        ["background", "spikes", "rebin", "pca"],
        [{"step": "pca", "scope": "acquisition"}, "background", "rebin", "pca", "normalize"],
    ],
)
def test_other_sensible_orders_are_taken(steps: list[object]) -> None:
    assert len(resolve_preset(steps).steps) == len(steps)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["align", "align"], "'align' appears 2 times"),
        (["rebin", "background"], "'rebin' comes before 'background'.*put 'background' first"),
        (["align", "rebin"], "'rebin' needs 'background'"),
        (["background", "align", "rebin"], "'background' comes before 'align'.*aligned axis"),
        (["background", "rebin", "spikes"], "'rebin' comes before 'spikes'"),
        (["background", "vacuum_mask", "rebin"], "'background' comes before 'vacuum_mask'"),
        (["background", {"step": "pca", "scope": "acquisition"}], "Poisson scaling"),
        (["normalize", "background", "rebin"], "'normalize' is fitted on the training set.*at the end"),
        (["background", "rebin", "normalize", "pca"], "'normalize' comes before 'pca of the training set'"),
        (["smooth"], "smooth"),
        ([{"step": "align", "max_ofset": 3}], "max_ofset"),
        ([{"step": "align", "max_offset": 20}], "max_offset"),
        ([{"step": "pca", "rank": 0}], "rank"),
        ([7], "steps"),
    ],
)
def test_steps_that_cannot_work_are_refused(steps: list[object], message: str) -> None:
    with pytest.raises(StudyFileError, match=message):
        resolve_preset(steps)


def test_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(StudyFileError, match=r"no preset is called 'papre'; there are paper, paper-raw, recommended"):
        resolve_preset("papre")


def test_every_permutation_of_recommended_is_taken_or_refused_clearly() -> None:
    steps = [step.step for step in PRESETS["recommended"].acquisition_steps]
    taken = 0
    for order in itertools.permutations(steps):
        try:
            resolve_preset(list(order))
        except StudyFileError as error:
            assert "first" in str(error)  # noqa: PT017 - either outcome is right; the message is what is asserted
        else:
            taken += 1
    # background before rebin, align and vacuum before background, spikes before rebin:
    # (align, vacuum in 2 orders) then background, rebin, with spikes at any of 4 places before rebin
    assert taken == 8


def test_components_before_spikes_are_cautioned_of():
    assert "hardly any spike is found" in (PRESETS["paper"].caution or "")
    assert [PRESETS[name].caution for name in ("paper-raw", "recommended", "none")] == [None] * 3
    mended = resolve_preset(["spikes", {"step": "pca", "scope": "acquisition"}, "align", "background", "rebin"])
    assert mended.caution is None
    without = resolve_preset([{"step": "pca", "scope": "acquisition"}, "align", "background", "rebin"])
    assert "spikes stay in the spectra" in (without.caution or "")
