"""Events and relations: validation, JSON, and the one place where counts are added."""

import copy
import dataclasses
import json
import math
import pickle

import pytest

from accounting.accountant import Bounds
from accounting.events import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    Event,
    FixedSizeSampledEvent,
    GaussianEvent,
    LaplaceEvent,
    MixtureOfGaussiansEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    PureEvent,
    RandomAllocationEvent,
    RandomizedResponseEvent,
    TruncatedPoissonSampledEvent,
    UnverifiedSamplingEvent,
    ZeroConcentratedEvent,
    event_from_dict,
    merge_counts,
    user_level,
)
from accounting.events.sampling import _EVENT_TYPES

# One of each kind at least.
EVENTS = [
    GaussianEvent(0),
    GaussianEvent(1.1),
    PoissonSampledEvent(0.004, GaussianEvent(0.7)),
    UnverifiedSamplingEvent(GaussianEvent(2)),
    FixedSizeSampledEvent(60_000, 256, GaussianEvent(1.1)),
    LaplaceEvent(3),
    PoissonSampledEvent(0.1, LaplaceEvent(3)),
    DiscreteGaussianEvent(10, 2),
    DiscreteLaplaceEvent(1.5),
    MixtureOfGaussiansEvent(1.1, [0, 1.5], [0.9, 0.1]),
    user_level(0.01, 1.0, 5),
    RandomizedResponseEvent(0.5, 3),
    PureEvent(1),
    ApproximateEvent(1, 1e-9),
    ZeroConcentratedEvent(0.1),
    TruncatedPoissonSampledEvent(0.01, GaussianEvent(1.1), 1000, 20),
    RandomAllocationEvent(100, GaussianEvent(1)),
]


def test_every_known_event_is_tested() -> None:
    assert {type(event).__name__ for event in EVENTS} == set(_EVENT_TYPES)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_event_survives_json_pickle_and_copy(event) -> None:
    text = json.dumps(event.to_dict(), allow_nan=False)
    for twin in (
        event_from_dict(json.loads(text)),
        pickle.loads(pickle.dumps(event)),
        copy.deepcopy(event),
    ):
        assert twin == event
        assert hash(twin) == hash(event)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_event_describes_itself_in_one_line(event) -> None:
    text = event.describe()
    assert len(text) > 10
    assert "\n" not in text


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_event_cannot_be_changed(event) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, 9.0)


def test_event_itself_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Event()


def test_equal_events_typed_differently_are_equal() -> None:
    assert GaussianEvent(1) == GaussianEvent(1.0)
    assert repr(GaussianEvent(1)) == repr(GaussianEvent(1.0))


@pytest.mark.parametrize("noise", [-0.1, math.inf, math.nan])
def test_noise_out_of_range_is_refused(noise) -> None:
    with pytest.raises(ValueError, match=r"Pass a number such as 1\.1"):
        GaussianEvent(noise)


@pytest.mark.parametrize("noise", ["1.1", True, None])
def test_noise_that_is_no_number_is_refused(noise) -> None:
    with pytest.raises(ValueError, match="Pass a real number"):
        GaussianEvent(noise)


@pytest.mark.parametrize("probability", [-0.1, 1.0001, math.nan])
def test_sampling_probability_out_of_range_is_refused(probability) -> None:
    with pytest.raises(ValueError, match="Pass expected batch size / number"):
        PoissonSampledEvent(probability, GaussianEvent(1.0))


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: MixtureOfGaussiansEvent(1, [0, 1], [0.5, 0.4]), "of sum 1"),
        (lambda: MixtureOfGaussiansEvent(1, [1], [0.5, 0.5]), "for each sensitivity"),
        (lambda: MixtureOfGaussiansEvent(1, [-1], [1]), "proved for the release"),
        (lambda: RandomizedResponseEvent(1.5, 2), "Pass for example 0.5"),
        (lambda: RandomizedResponseEvent(0.5, 0), "how many categories"),
        (lambda: DiscreteGaussianEvent(1.0, 1.5), "how far one example moves"),
        (lambda: PureEvent(math.inf), "proved for the release"),
        (lambda: ApproximateEvent(1.0, 2.0), "Pass for example 1e-6"),
        (lambda: ZeroConcentratedEvent(-1.0), "proved for the release"),
        (lambda: RandomAllocationEvent(0, GaussianEvent(1)), "steps of an epoch"),
        (lambda: user_level(0.1, 1.0, 2000), "Bound the examples of a user"),
        (
            lambda: TruncatedPoissonSampledEvent(0.1, GaussianEvent(1), 9, 0),
            "Pass that",
        ),
    ],
)
def test_facts_out_of_range_are_refused(build, advice) -> None:
    with pytest.raises(ValueError, match=advice):
        build()


def test_user_level_is_the_binomial_law() -> None:
    event = user_level(0.3, 1.0, 4)
    assert event.sensitivities == (0, 1, 2, 3, 4)
    expected = [0.2401, 0.4116, 0.2646, 0.0756, 0.0081]
    assert event.probabilities == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("wrap", [lambda e: PoissonSampledEvent(0.1, e)])
def test_inner_event_that_is_none_is_refused(wrap) -> None:
    for build in (wrap, UnverifiedSamplingEvent):
        with pytest.raises(ValueError, match=r"Pass for example GaussianEvent\(1\.1\)"):
            build(1.1)


@pytest.mark.parametrize(
    ("mapping", "advice"),
    [
        ("GaussianEvent", "Pass what Event.to_dict returned"),
        ({}, "Known types: ApproximateEvent, DiscreteGaussianEvent"),
        (
            {"type": "os.system", "command": "ls"},
            "Known types: ApproximateEvent, DiscreteGaussianEvent",
        ),
        (
            {"type": ["GaussianEvent"]},
            "Known types: ApproximateEvent, DiscreteGaussianEvent",
        ),
        ({"type": "GaussianEvent"}, "Pass what Event.to_dict returned"),
        (
            {"type": "GaussianEvent", "noise_multiplier": 1.0, "count": 2},
            "Pass what Event.to_dict returned",
        ),
        ({"type": "GaussianEvent", "noise_multiplier": -1.0}, "Pass a number such"),
        (
            {"type": "UnverifiedSamplingEvent", "event": 3},
            "Pass what Event.to_dict returned",
        ),
    ],
)
def test_mapping_that_is_no_event_is_refused(mapping, advice) -> None:
    with pytest.raises(ValueError, match=advice):
        event_from_dict(mapping)


def test_counts_of_equal_events_are_added_in_order_of_appearance() -> None:
    first, second = GaussianEvent(1.0), GaussianEvent(2.0)
    merged = merge_counts([(first, 1), (second, 5), (GaussianEvent(1), 2)])
    assert merged == ((first, 3), (second, 5))


def test_replacing_doubles_the_sensitivity_and_nothing_else_does() -> None:
    factors = {relation: relation.sensitivity(1.5) for relation in NeighboringRelation}
    assert factors == {
        NeighboringRelation.ADD_OR_REMOVE_ONE: 1.5,
        NeighboringRelation.REPLACE_ONE: 3.0,
        NeighboringRelation.ZERO_OUT: 1.5,
    }


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_clip_that_bounds_nothing_is_refused(clip) -> None:
    with pytest.raises(ValueError, match="Pass the positive clip norm"):
        NeighboringRelation.ZERO_OUT.sensitivity(clip)


def test_every_relation_explains_itself_in_one_sentence() -> None:
    for relation in NeighboringRelation:
        assert relation.description.startswith("Compares training with one example")
        assert relation.description.count(".") == 1
        assert NeighboringRelation(relation.value) is relation


def test_bounds_are_printed_rounded_outward() -> None:
    assert str(Bounds(0.0, 2.5965001, 2.5965001, True)) == "at most 2.597"
    bracket = Bounds(2.38099, 2.3815, 2.3815001, True)
    assert str(bracket) == "between 2.38 and 2.382"
    assert str(Bounds(0.0, 0.0, 0.0, True)) == "0"
    assert str(Bounds(0.0, math.inf, math.inf, True)) == "unbounded"
    assert Bounds(0.0, math.inf, math.inf, True).to_dict()["upper"] == "infinity"


def test_bounds_out_of_order_are_refused() -> None:
    for values in [(2.0, 1.0, 3.0), (0.0, 2.0, 1.0), (0.0, math.nan, 1.0)]:
        with pytest.raises(ValueError, match="Pass them in order"):
            Bounds(*values, converged=True)


@pytest.mark.parametrize("name", ["sensitivities", "probabilities"])
def test_mixture_of_a_lone_number_is_refused(name) -> None:
    values = {"sensitivities": [1.0], "probabilities": [1.0], name: 5}
    with pytest.raises(ValueError, match="Pass two tuples"):
        event_from_dict(
            {"type": "MixtureOfGaussiansEvent", "noise_multiplier": 1.0, **values}
        )
