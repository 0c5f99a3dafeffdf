"""Properties every accountant must have, whatever its mathematics."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import pytest

from accounting.accountant import Accountant, Bounds
from accounting.events import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    Ledger,
    MixtureOfGaussiansEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    PureEvent,
    RandomAllocationEvent,
    RandomizedResponseEvent,
    TruncatedPoissonSampledEvent,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
    ZeroConcentratedEvent,
    event_from_dict,
    user_level,
)

DELTA = 1e-6


@dataclasses.dataclass(frozen=True)
class UnknownEvent(Event):
    """An event no accountant has heard of."""

    def describe(self) -> str:
        return "unknown"


def sampled(probability: float, noise: float) -> Event:
    return PoissonSampledEvent(probability, GaussianEvent(noise))


# Each kind by one number, more of which reveals less (noise) or more (the rest).
OF_NOISE: dict[str, Callable[[float], Event]] = {
    "gaussian": GaussianEvent,
    "sampled gaussian": lambda s: sampled(0.02, s),
    "laplace": LaplaceEvent,
    "sampled laplace": lambda s: PoissonSampledEvent(0.1, LaplaceEvent(s)),
    "discrete gaussian": lambda s: DiscreteGaussianEvent(s, 2),
    "sampled discrete gaussian": lambda s: PoissonSampledEvent(
        0.1, DiscreteGaussianEvent(s, 2)
    ),
    "discrete laplace": lambda s: DiscreteLaplaceEvent(s, 3),
    "sampled discrete laplace": lambda s: PoissonSampledEvent(
        0.1, DiscreteLaplaceEvent(s, 3)
    ),
    "mixture": lambda s: MixtureOfGaussiansEvent(s, [0, 0.5, 2], [0.9, 0.08, 0.02]),
    "user level": lambda s: user_level(0.02, s, 3),
    "truncated": lambda s: TruncatedPoissonSampledEvent(
        0.05, GaussianEvent(s), 1000, 90
    ),
    "often truncated": lambda s: TruncatedPoissonSampledEvent(
        0.05, GaussianEvent(s), 1000, 55
    ),
    "allocated": lambda s: RandomAllocationEvent(20, GaussianEvent(s)),
    "response": lambda s: RandomizedResponseEvent(min(s / 5, 1.0), 3),
    "pure": lambda s: PureEvent(1 / s) if s else GaussianEvent(0),
    "zero concentrated": lambda s: (
        ZeroConcentratedEvent(1 / s**2) if s else GaussianEvent(0)
    ),
    "approximate": lambda s: (
        ApproximateEvent(1 / s, 1e-9) if s else ApproximateEvent(1, 1)
    ),
}
OF_PROBABILITY: dict[str, Callable[[float], Event]] = {
    "laplace": lambda q: PoissonSampledEvent(q, LaplaceEvent(1.0)),
    "discrete gaussian": lambda q: PoissonSampledEvent(q, DiscreteGaussianEvent(1.5)),
    "discrete laplace": lambda q: PoissonSampledEvent(q, DiscreteLaplaceEvent(1.5, 2)),
    "user level": lambda q: user_level(q, 3.0, 3),
    "truncated": lambda q: TruncatedPoissonSampledEvent(q, GaussianEvent(3.0), 99, 98),
}


def assert_rises(values: list[float]) -> None:
    """Fails unless each value is above the one before."""
    pairs = list(zip(values, values[1:], strict=False))
    assert all(before < after for before, after in pairs), values


class AccountantBattery:
    """Inherit and set `make`.

    `tolerance` is how far an upper bound may be off, relatively, and
    `log_delta_tolerance` what that and the width of a delta make of ln delta.
    """

    make: ClassVar[Callable[..., Accountant]]
    tolerance: ClassVar[float] = 1e-6
    log_delta_tolerance: ClassVar[float] = 1e-5

    @pytest.fixture(params=list(NeighboringRelation), ids=lambda r: r.value)
    def relation(self, request: pytest.FixtureRequest) -> NeighboringRelation:
        return request.param

    def epsilon(self, relation: NeighboringRelation, *pairs: tuple) -> Bounds:
        accountant = type(self).make(relation)
        for event, count in pairs:
            accountant = accountant.compose(event, count)
        return accountant.epsilon(DELTA)

    def upper(self, relation: NeighboringRelation, *pairs: tuple) -> float:
        return self.epsilon(relation, *pairs).upper

    def assert_supported(self, relation: NeighboringRelation, event: Event) -> bool:
        """False where the event is refused with a reason and something to do."""
        try:
            type(self).make(relation).compose(event)
        except UnsupportedEventError as error:
            text = str(error)
            assert repr(event) in text
            assert relation.value in text
            assert "State" in text or "Use " in text
            return False
        return True

    @pytest.mark.parametrize("kind", OF_NOISE)
    def test_every_event_has_the_properties(self, relation, kind) -> None:
        """Counts, order, JSON, steps, delta, and the sides of the bracket."""
        event = OF_NOISE[kind](2.0)
        assert event_from_dict(event.to_dict()) == event
        if not self.assert_supported(relation, event):
            return
        once = self.epsilon(relation, (event, 3))
        assert once == self.epsilon(relation, *[(event, 1)] * 3)
        assert 0 <= once.lower <= once.estimate <= once.upper < math.inf
        assert_rises([self.upper(relation, (event, n)) for n in (1, 3, 40)])
        mixed = [(event, 2), (sampled(0.1, 3.0), 5), (PureEvent(0.1), 2)]
        both = self.epsilon(relation, *mixed)
        again = self.epsilon(relation, *reversed(mixed))
        assert again.upper == pytest.approx(both.upper, 1e-12)
        assert again.lower == pytest.approx(both.lower, 1e-12)
        alone = self.epsilon(relation, *mixed[:1])
        assert both.upper > alone.lower
        accountant = type(self).make(relation).compose(event, 3)
        deltas = (0.5, 1e-2, 1e-4, 1e-6)
        uppers = [accountant.epsilon(delta).upper for delta in deltas]
        assert uppers == sorted(uppers)
        at_upper = accountant.delta(once.upper)
        assert at_upper.lower <= DELTA * (1 + 1e-9)
        assert accountant.delta(once.lower).upper >= DELTA * (1 - 1e-9)

    @pytest.mark.parametrize("kind", OF_NOISE)
    def test_every_event_costs_less_with_noise(self, relation, kind) -> None:
        build = OF_NOISE[kind]
        if not self.assert_supported(relation, build(1.0)):
            return
        uppers = [self.upper(relation, (build(s), 2)) for s in (4.0, 2.0, 1.0, 0.6)]
        assert_rises(uppers)
        without = type(self).make(relation).compose(build(0.0))
        assert without.epsilon(DELTA).upper == math.inf
        assert without.delta(1.0).upper == 1

    @pytest.mark.parametrize("kind", OF_PROBABILITY)
    def test_every_sampled_event_rises_to_the_unsampled_one(
        self, relation, kind
    ) -> None:
        build = OF_PROBABILITY[kind]
        if not self.assert_supported(relation, build(0.1)):
            return
        probabilities = (1e-3, 0.03, 0.3, 0.9)
        uppers = [self.upper(relation, (build(q), 3)) for q in probabilities]
        assert_rises(uppers)
        assert self.upper(relation, (build(0.0), 3)) == 0
        whole = build(1.0)
        if isinstance(whole, PoissonSampledEvent):
            assert self.epsilon(relation, (whole, 3)) == self.epsilon(
                relation, (whole.event, 3)
            )

    @pytest.mark.parametrize(
        "event",
        [GaussianEvent(3.0), sampled(0.02, 1.2), sampled(0.0, 1.0), sampled(1.0, 4.0)],
        ids=str,
    )
    def test_count_n_equals_n_entries(self, relation, event) -> None:
        once = self.epsilon(relation, (event, 7))
        many = self.epsilon(relation, *[(event, 1)] * 7)
        assert once == many

    def test_count_n_of_ready_made_batches_equals_n_entries(self) -> None:
        event = UnverifiedSamplingEvent(GaussianEvent(3.0))
        for relation in (NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE):
            once = self.epsilon(relation, (event, 5))
            assert once == self.epsilon(relation, *[(event, 1)] * 5)
            assert once == self.epsilon(relation, (GaussianEvent(3.0), 5))

    def test_order_does_not_matter(self, relation) -> None:
        pairs = [(sampled(0.01, 1.0), 100), (GaussianEvent(9.0), 3)]
        pairs.append((sampled(0.3, 20.0), 50))
        forward = self.upper(relation, *pairs)
        assert self.upper(relation, *reversed(pairs)) == pytest.approx(forward, 1e-12)

    def test_sampling_every_example_equals_no_sampling(self, relation) -> None:
        whole = self.epsilon(relation, (sampled(1.0, 2.0), 10))
        assert whole == self.epsilon(relation, (GaussianEvent(2.0), 10))

    def test_sampling_nobody_costs_nothing(self, relation) -> None:
        pairs = [(sampled(0.0, 0.0), 10), (sampled(0.0, 1.0), 10**6)]
        assert self.epsilon(relation, *pairs) == Bounds(0.0, 0.0, 0.0, True)

    def test_nothing_composed_costs_nothing(self, relation) -> None:
        assert type(self).make(relation).epsilon(DELTA).upper == 0
        assert type(self).make(relation).delta(1.0).upper == 0

    def test_epsilon_rises_with_sampling_probability(self, relation) -> None:
        probabilities = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.999999, 1.0)
        all_bounds = [
            self.epsilon(relation, (sampled(q, 3.0), 99)) for q in probabilities
        ]
        assert_rises([bounds.estimate for bounds in all_bounds])
        for before, after in itertools.pairwise(all_bounds):
            assert before.upper <= after.upper * (1 + self.tolerance)

    def test_epsilon_rises_with_steps(self, relation) -> None:
        counts = (1, 2, 10, 1000, 10**5, 10**7)
        assert_rises([self.upper(relation, (sampled(0.01, 1.0), n)) for n in counts])

    def test_epsilon_falls_with_noise(self, relation) -> None:
        noises = (1000.0, 100.0, 10.0, 2.0, 1.0, 0.5, 0.2)
        assert_rises([self.upper(relation, (sampled(0.1, s), 99)) for s in noises])

    def test_epsilon_falls_with_delta(self, relation) -> None:
        accountant = type(self).make(relation).compose(sampled(0.01, 1.0), 1000)
        deltas = (0.5, 0.1, 1e-3, 1e-6, 1e-12, 1e-20)
        assert_rises([accountant.epsilon(delta).upper for delta in deltas])

    def test_delta_inverts_epsilon(self, relation) -> None:
        for event, count in [(sampled(0.01, 1.0), 1000), (GaussianEvent(2.0), 4)]:
            accountant = type(self).make(relation).compose(event, count)
            for delta in (1e-3, 1e-6, 1e-12):
                epsilon = accountant.epsilon(delta).upper
                back = accountant.delta(epsilon).upper
                error = abs(math.log(back / delta))
                assert error <= self.log_delta_tolerance

    def test_replacing_costs_at_least_as_much_as_adding_or_zeroing(self) -> None:
        for event in (GaussianEvent(2.0), sampled(0.02, 1.0), sampled(0.9, 5.0)):
            add, replace, zero = (
                self.upper(relation, (event, 50)) for relation in NeighboringRelation
            )
            assert add == zero < replace

    def test_zero_noise_is_infinite(self, relation) -> None:
        for event in (GaussianEvent(0.0), sampled(0.01, 0.0)):
            accountant = type(self).make(relation).compose(sampled(0.01, 1.0))
            accountant = accountant.compose(event)
            assert accountant.epsilon(DELTA).upper == math.inf
            assert accountant.delta(5.0).upper == 1

    @pytest.mark.parametrize(
        "event",
        [
            UnknownEvent(),
            PoissonSampledEvent(0.1, UnknownEvent()),
            PoissonSampledEvent(0.1, sampled(0.1, 1.0)),
            PoissonSampledEvent(0.1, UnverifiedSamplingEvent(GaussianEvent(1.0))),
            UnverifiedSamplingEvent(sampled(0.1, 1.0)),
        ],
        ids=str,
    )
    def test_unknown_event_is_refused(self, relation, event) -> None:
        with pytest.raises(UnsupportedEventError, match="State the release as one of"):
            type(self).make(relation).compose(event)

    def test_ready_made_batches_are_refused_under_add_or_remove(self) -> None:
        accountant = type(self).make(NeighboringRelation.ADD_OR_REMOVE_ONE)
        with pytest.raises(UnsupportedEventError, match="Pass arrays to fit") as caught:
            accountant.compose(UnverifiedSamplingEvent(GaussianEvent(1.0)))
        assert "zero_out" in str(caught.value)
        assert accountant.name in str(caught.value)

    @pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", None])
    def test_count_that_is_not_a_whole_number_is_refused(self, count) -> None:
        with pytest.raises(ValueError, match="Pass the number of releases"):
            type(self).make().compose(GaussianEvent(1.0), count)

    @pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 2.0, math.nan])
    def test_delta_outside_the_open_interval_is_refused(self, delta) -> None:
        with pytest.raises(ValueError, match="Pass for example 1e-6"):
            type(self).make().compose(GaussianEvent(1.0)).epsilon(delta)

    @pytest.mark.parametrize("epsilon", [-1.0, math.inf, math.nan])
    def test_epsilon_that_is_no_bound_is_refused(self, epsilon) -> None:
        with pytest.raises(ValueError, match=r"Pass for example 2\.0"):
            type(self).make().compose(GaussianEvent(1.0)).delta(epsilon)

    def test_relation_that_is_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Pass NeighboringRelation"):
            type(self).make("add_or_remove_one")

    def test_ledger_costs_what_its_releases_cost(self, relation) -> None:
        ledger = Ledger()
        for event, count in [(sampled(0.01, 1.0), 40), (GaussianEvent(8.0), 2)]:
            ledger.charge(event, l2_norm_clip=1.0, noise_source="secure", count=count)
            ledger.charge(event, l2_norm_clip=2.0, noise_source="secure", count=count)
        from_ledger = type(self).make(relation).compose_ledger(ledger).epsilon(DELTA)
        direct = self.upper(relation, (sampled(0.01, 1.0), 80), (GaussianEvent(8.0), 4))
        assert from_ledger.upper == pytest.approx(direct, 1e-12)

    def test_gaussian_is_bounded_by_its_closed_form(self, relation) -> None:
        for noise, count in [(1.0, 1), (5.0, 25), (100.0, 10**6)]:
            bounds = self.epsilon(relation, (GaussianEvent(noise), count))
            distance = relation.sensitivity(1.0) * math.sqrt(count) / noise
            true_delta = gaussian_delta(distance, bounds.upper)
            assert true_delta <= DELTA * (1 + 1e-9)


def gaussian_delta(distance: float, epsilon: float) -> float:
    """delta(epsilon) of N(0, 1) and N(distance, 1), Balle and Wang 2018, Eq 6."""
    upper = math.erfc((epsilon / distance - distance / 2) / math.sqrt(2)) / 2
    lower = math.erfc((epsilon / distance + distance / 2) / math.sqrt(2)) / 2
    return upper - (math.exp(epsilon + math.log(lower)) if lower else 0.0)
