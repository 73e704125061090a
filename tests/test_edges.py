import pytest
from pydantic import ValidationError

from eelsflow.edges import FE_L3, MN_L3, O_K, SHIPPED, Edge, Feature, resolve_edge
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EdgeOutOfRangeError, StudyFileError


def test_shipped_oxygen_edge_is_that_of_the_paper():
    assert O_K.reference_energy == 530.0
    assert O_K.align_on == "first_peak"
    assert O_K.elnes_window == (525.0, 555.0)
    assert O_K.pre_edge_window == (495.0, 522.0)


@pytest.mark.parametrize("edge", SHIPPED.values(), ids=SHIPPED)
def test_shipped_edges_are_consistent(edge):
    assert SHIPPED[edge.name] is edge
    assert edge.elnes_window[0] <= edge.reference_energy < edge.elnes_window[1]
    assert edge.elnes_window[1] - edge.elnes_window[0] == 30.0
    assert max(feature.height for feature in edge.features) == 1.0
    for feature in edge.features:
        if feature.position_range is not None:
            assert feature.position_range[0] <= feature.position <= feature.position_range[1]


@pytest.mark.parametrize("edge", SHIPPED.values(), ids=SHIPPED)
def test_edges_survive_a_round_trip_through_json(edge):
    assert Edge.model_validate_json(edge.model_dump_json()) == edge


def test_resolve_takes_names_values_and_edges():
    assert resolve_edge("Fe_L3") is FE_L3
    assert resolve_edge(MN_L3) is MN_L3
    custom = {
        "name": "Cr_L3",
        "reference_energy": 578.0,
        "elnes_window": [570.0, 600.0],
        "pre_edge_window": [540.0, 568.0],
    }
    edge = resolve_edge(custom)
    assert edge.align_on == "maximum"
    assert edge.features == ()
    assert edge.elnes_window == (570.0, 600.0)


def test_resolve_refuses_an_unknown_name_and_says_which_there_are():
    with pytest.raises(StudyFileError, match="no shipped edge is called 'Cr_L3'; shipped are O_K, Fe_L3, Mn_L3"):
        resolve_edge("Cr_L3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elnes_window": (555.0, 525.0)}, "elnes_window .* is empty"),
        ({"reference_energy": -1.0}, "greater than 0"),
        ({"align_on": "nearest"}, "first_peak"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
        ({"features": [{"name": "a", "position": 1.0, "sigma": 1.0, "height": 1.0}]}, "reference feature comes first"),
        (
            {
                "features": [
                    {"name": name, "position": position, "sigma": 1.0, "height": 1.0}
                    for name, position in (("a", 0.0), ("b", 20.0), ("c", 10.0))
                ]
            },
            "then the others by energy",
        ),
    ],
)
def test_edge_refuses_contradictions(change, message):
    values = {"name": "X", "reference_energy": 530.0, "elnes_window": (525.0, 555.0), "pre_edge_window": (495.0, 522.0)}
    with pytest.raises(ValidationError, match=message):
        Edge(**{**values, **change})


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (None, r"has no pre_edge_window.*below its elnes_window \(525.0, 555.0\) eV"),
        ((522.0, 495.0), "is empty"),
        ((495.0, 530.0), "overlaps elnes_window"),
    ],
)
def test_window_of_the_background_is_refused_where_it_is_needed_and_not_before(window, message):
    edge = Edge(name="X", reference_energy=530.0, elnes_window=(525.0, 555.0), pre_edge_window=window)
    edge.require_within(EnergyAxis(525.0, 0.1, 300), pre_edge=False, overhang=1.0)
    with pytest.raises(StudyFileError, match=message):
        _ = edge.background_window
    with pytest.raises(StudyFileError, match=message):
        edge.require_within(EnergyAxis(450.0, 0.25, 2048))


def test_feature_needs_a_width():
    with pytest.raises(ValidationError, match="greater than 0"):
        Feature(name="L3", position=0.0, sigma=0.0, height=1.0)


def test_require_within_passes_an_axis_that_shows_the_edge():
    O_K.require_within(EnergyAxis(450.0, 0.25, 2048))
    O_K.require_within(EnergyAxis(525.0, 0.1, 300), pre_edge=False, overhang=1.0)
    O_K.require_within(EnergyAxis(500.0, 0.25, 400), overhang=9.0)


def test_require_within_says_what_the_axis_spans_and_what_is_needed():
    with pytest.raises(
        EdgeOutOfRangeError,
        match=r"pre-edge window \(495.0, 522.0\) eV for O_K lies outside the energy axis, which spans 600.0-855.8 eV; "
        r"this file cannot show the O_K edge: record 495-555 eV",
    ):
        O_K.require_within(EnergyAxis(600.0, 0.25, 1024))
    with pytest.raises(EdgeOutOfRangeError, match="ELNES window"):
        O_K.require_within(EnergyAxis(480.0, 0.25, 200))


@pytest.mark.parametrize("overhang", [0.0, 5.0])
def test_require_within_refuses_more_than_the_overhang(overhang):
    with pytest.raises(EdgeOutOfRangeError):
        O_K.require_within(EnergyAxis(501.0 + overhang, 0.25, 400), overhang=overhang)
