"""Calibration: the safe side, close to the best, and the refusals."""

import functools
import math

import pytest

from accounting import calibrate
from accounting.budget import BudgetSpentError
from accounting.events import (
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
)
from accounting.pld import DefaultAccountant, PldAccountant
from accounting.rdp import RdpAccountant
from tests.accounting.battery import sampled

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE


def epsilon(event, count, delta, relation=ADD, spent=None) -> float:
    accountant = DefaultAccountant(relation).compose(event, count)
    if spent is not None:
        accountant.compose_ledger(spent)
    return accountant.epsilon(delta).upper


def spent_ledger() -> Ledger:
    ledger = Ledger()
    ledger.charge(
        sampled(0.01, 1.0), l2_norm_clip=1.0, noise_source="secure", count=1000
    )
    return ledger


@pytest.mark.parametrize("relation", list(NeighboringRelation), ids=lambda r: r.value)
@pytest.mark.parametrize(
    ("target", "delta", "q", "steps"),
    [
        (1.0, 1e-6, 0.01, 10_000),
        (3.0, 1e-5, 0.00427, 14_062),
        (8.0, 1e-9, 0.001, 20_000),
        (0.01, 1e-9, 1.0, 10**7),
        (500.0, 1e-5, 0.5, 100),
        (0.001, 1e-9, 0.001, 10**6),
        (30.0, 1e-5, 1.0, 1),
    ],
)
def test_noise_is_safe_and_within_1e_4_of_the_smallest(
    relation, target, delta, q, steps
) -> None:
    noise = calibrate.noise_multiplier(target, delta, q, steps, relation=relation)
    assert epsilon(sampled(q, noise), steps, delta, relation) <= target
    assert epsilon(sampled(q, noise * (1 - 1e-4)), steps, delta, relation) > target


def test_noise_counts_what_was_spent() -> None:
    ledger = spent_ledger()
    noise = calibrate.noise_multiplier(3.0, 1e-5, 0.01, 1000, spent=ledger)
    assert noise > calibrate.noise_multiplier(3.0, 1e-5, 0.01, 1000)
    event = sampled(0.01, noise)
    assert epsilon(event, 1000, 1e-5, spent=ledger) <= 3.0
    smaller = sampled(0.01, noise * (1 - 1e-4))
    assert epsilon(smaller, 1000, 1e-5, spent=ledger) > 3.0


def test_noise_of_another_event_is_found_by_make_event() -> None:
    noise = calibrate.noise_multiplier(
        2.0,
        1e-5,
        0.5,
        100,
        relation=NeighboringRelation.ZERO_OUT,
        make_event=lambda value: UnverifiedSamplingEvent(GaussianEvent(value)),
    )
    unsampled = calibrate.noise_multiplier(2.0, 1e-5, 1.0, 100)
    assert noise == pytest.approx(unsampled, rel=1e-4)


def test_search_never_evaluates_the_degenerate_end() -> None:
    seen = []

    def make_event(noise: float):
        seen.append(noise)
        return sampled(0.01, noise)

    calibrate.noise_multiplier(2.0, 1e-5, 0.01, 1000, make_event=make_event)
    assert min(seen) >= 0.25
    assert len(seen) < 25


def test_noise_stops_at_its_documented_floor() -> None:
    assert calibrate.noise_multiplier(1e9, 1e-5, 1.0, 1) == calibrate.LEAST_NOISE


def test_budget_that_is_spent_is_refused_with_its_epsilon() -> None:
    spent = epsilon(sampled(0.01, 1.0), 1000, 1e-5)
    with pytest.raises(BudgetSpentError, match="Raise target_epsilon") as caught:
        calibrate.noise_multiplier(1.5, 1e-5, 0.01, 10, spent=spent_ledger())
    assert f"{spent:.6g}" in str(caught.value)


def test_target_no_noise_can_reach_is_refused() -> None:
    spent = epsilon(sampled(0.01, 1.0), 1000, 1e-5)
    with pytest.raises(BudgetSpentError, match="No noise reaches such a target"):
        calibrate.noise_multiplier(
            spent * (1 + 1e-14), 1e-5, 1.0, 10**9, spent=spent_ledger()
        )
    with pytest.raises(BudgetSpentError, match="take fewer steps"):
        calibrate.noise_multiplier(1e-9, 1e-20, 1.0, 10**7)


def test_steps_are_the_largest_count_within_the_target() -> None:
    for relation in NeighboringRelation:
        for event in (sampled(0.01, 1.1), GaussianEvent(50.0), sampled(1e-4, 0.6)):
            count = calibrate.steps(3.0, 1e-5, event, relation=relation)
            assert count > 0
            assert epsilon(event, count, 1e-5, relation) <= 3.0
            more = math.floor(count * (1 + 1e-4)) + 1
            assert epsilon(event, more, 1e-5, relation) > 3.0


def test_steps_count_what_was_spent() -> None:
    event, ledger = sampled(0.01, 1.0), spent_ledger()
    fresh = calibrate.steps(3.0, 1e-5, event)
    assert calibrate.steps(3.0, 1e-5, event, spent=ledger) == fresh - 1000


def test_no_step_fits_where_one_exceeds_the_target_or_it_is_spent() -> None:
    assert calibrate.steps(0.1, 1e-5, GaussianEvent(1.0)) == 0
    assert calibrate.steps(0.1, 1e-5, GaussianEvent(0.0)) == 0
    assert calibrate.steps(1.5, 1e-5, sampled(0.01, 1.0), spent=spent_ledger()) == 0


def test_steps_that_cost_nothing_answer_the_documented_cap() -> None:
    assert calibrate.steps(1.0, 1e-5, sampled(0.0, 1.0)) == calibrate.MOST_STEPS


def test_steps_of_an_unsupported_event_are_refused() -> None:
    event = UnverifiedSamplingEvent(GaussianEvent(1.0))
    with pytest.raises(UnsupportedEventError, match="Pass arrays to fit"):
        calibrate.steps(1.0, 1e-5, event)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_target_epsilon_out_of_range_is_refused(target) -> None:
    with pytest.raises(ValueError, match=r"Pass for example 3\.0"):
        calibrate.noise_multiplier(target, 1e-5, 0.01, 10)
    with pytest.raises(ValueError, match=r"Pass for example 3\.0"):
        calibrate.steps(target, 1e-5, GaussianEvent(1.0))


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, math.nan])
def test_sampling_probability_out_of_range_is_refused(probability) -> None:
    with pytest.raises(ValueError, match="Pass expected batch size"):
        calibrate.noise_multiplier(1.0, 1e-5, probability, 10)


def test_delta_and_steps_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="Pass for example 1e-6"):
        calibrate.noise_multiplier(1.0, 0.0, 0.1, 10)
    with pytest.raises(ValueError, match="Pass the number of releases"):
        calibrate.noise_multiplier(1.0, 1e-5, 0.1, 0)
    with pytest.raises(ValueError, match="Pass for example 1e-6"):
        calibrate.steps(1.0, 1.0, GaussianEvent(1.0))


@pytest.mark.parametrize(
    ("target", "delta", "q", "count", "best"),
    [
        # The noise at which the true epsilon is the target, by contour integration.
        (1.0, 1e-6, 0.01, 10_000, 4.302106),
        (3.0, 1e-5, 256 / 60_000, 14_062, 0.9684079),
        (8.0, 1e-9, 0.001, 20_000, 0.5482217),
    ],
)
def test_noise_by_the_law_of_the_loss_is_safe_and_near_the_best(
    target, delta, q, count, best
) -> None:
    noise = calibrate.noise_multiplier(target, delta, q, count)
    assert epsilon(sampled(q, noise), count, delta) <= target
    # The best is known to seven digits.
    assert best * (1 - 2e-7) <= noise <= best * (1 + 1e-4)


def test_steps_by_the_law_of_the_loss_are_more_than_by_renyi() -> None:
    event = sampled(0.01, 1.1)
    for make in (
        functools.partial(PldAccountant, relative_width=1e-3),
        DefaultAccountant,
    ):
        count = calibrate.steps(3.0, 1e-5, event, accountant=make)
        assert make().compose(event, count).epsilon(1e-5).upper <= 3.0
        assert make().compose(event, count + 1).epsilon(1e-5).upper > 3.0
    renyi = calibrate.steps(3.0, 1e-5, event, accountant=RdpAccountant)
    assert count > 1.1 * renyi


def test_every_unknown_of_a_plan_is_found_from_the_others() -> None:
    target, delta, q, count = 3.0, 1e-6, 0.02, 2000
    noise = calibrate.noise_multiplier(target, delta, q, count)
    event = sampled(q, noise)
    assert calibrate.steps(target, delta, event) == count
    assert calibrate.epochs(target, delta, event, 50) == 40
    probability = calibrate.sampling_probability(target, delta, noise, count)
    assert probability == pytest.approx(q, rel=1e-4)
    assert epsilon(sampled(probability, noise), count, delta) <= target
    assert calibrate.batch_size(target, delta, noise, 5000, count) == 100
    assert calibrate.epsilon(delta, event, count) == epsilon(event, count, delta)
    smallest = calibrate.delta(target, event, count)
    assert smallest == pytest.approx(delta, rel=1e-2)
    bounds = DefaultAccountant().compose(event, count).delta(target)
    assert smallest == bounds.upper


@pytest.mark.parametrize("relation", list(NeighboringRelation), ids=lambda r: r.value)
@pytest.mark.parametrize(
    ("target", "delta", "noise", "count"),
    [(1.0, 1e-6, 2.0, 1000), (8.0, 1e-9, 0.6, 50), (0.05, 1e-5, 5.0, 10**5)],
)
def test_probability_is_safe_and_within_1e_4_of_the_largest(
    relation, target, delta, noise, count
) -> None:
    q = calibrate.sampling_probability(target, delta, noise, count, relation=relation)
    assert epsilon(sampled(q, noise), count, delta, relation) <= target
    assert epsilon(sampled(q * (1 + 1e-4), noise), count, delta, relation) > target


def test_probability_is_one_where_sampling_is_not_needed() -> None:
    assert calibrate.sampling_probability(3.0, 1e-5, 100.0, 10) == 1.0
    assert calibrate.batch_size(3.0, 1e-5, 100.0, 500, 10) == 500


def test_batch_size_is_the_largest_for_a_number_of_epochs() -> None:
    def steps_of(size: int) -> int:
        return -(-20 * 10_000 // size)

    size = calibrate.batch_size(2.0, 1e-6, 1.0, 10_000, steps_of)
    assert 1 < size < 10_000

    def epsilon_of(size: int) -> float:
        return epsilon(sampled(size / 10_000, 1.0), steps_of(size), 1e-6)

    assert epsilon_of(size) <= 2.0
    assert all(epsilon_of(size + more) > 2.0 for more in (2, 5, 20))


def test_sampling_that_no_size_makes_private_enough_is_refused() -> None:
    with pytest.raises(BudgetSpentError, match="No batch size keeps epsilon within"):
        calibrate.batch_size(0.1, 1e-9, 0.5, 100, 10**4)
    full = Ledger()
    full.charge(GaussianEvent(2.0), l2_norm_clip=1.0, noise_source="secure")
    spent = epsilon(GaussianEvent(2.0), 1, 1e-5)
    with pytest.raises(BudgetSpentError, match="Raise target_epsilon"):
        calibrate.sampling_probability(spent * 0.9, 1e-5, 1.0, 10, spent=full)


def test_assert_that_the_search_looks_away_from_both_ends() -> None:
    """No probability near 1 and no noise near 0 is ever asked for."""
    seen = []

    class Watching:
        def __init__(self, relation) -> None:
            self._inner = PldAccountant(relation, relative_width=1e-3)

        def compose(self, event, count):
            seen.append(event.sampling_probability)
            self._inner.compose(event, count)
            return self

        def epsilon(self, delta):
            return self._inner.epsilon(delta)

    q = calibrate.sampling_probability(1.0, 1e-6, 1.0, 1000, accountant=Watching)
    assert q / 20 < min(seen) <= max(seen) < 20 * q
    assert len(seen) < 30


@pytest.mark.parametrize("spent_before", [0, 1, 2])
def test_few_steps_are_counted_to_the_last_one(spent_before) -> None:
    event = sampled(0.1, 1.0)
    spent = Ledger()
    for _ in range(spent_before):
        spent.charge(event, l2_norm_clip=1.0, noise_source="test")
    for count in range(1, 14):
        accountant = DefaultAccountant(ADD)
        upper = accountant.compose(event, count).epsilon(1e-5).upper
        found = calibrate.steps(upper * (1 + 1e-9), 1e-5, event, spent=spent)
        assert found == max(0, count - spent_before)


@pytest.mark.parametrize(
    ("target", "delta", "q", "steps"),
    [(1.0, 1e-6, 0.01, 1000), (3.0, 1e-5, 0.2, 100), (0.1, 1e-8, 0.001, 10_000)],
)
def test_noise_by_renyi_divergences_is_within_1e_4_too(target, delta, q, steps) -> None:
    found = calibrate.noise_multiplier(
        target, delta, q, steps, accountant=RdpAccountant
    )

    def upper(noise: float) -> float:
        composed = RdpAccountant().compose(sampled(q, noise), steps)
        return composed.epsilon(delta).upper

    assert upper(found) <= target < upper(found * (1 - 1e-4))
