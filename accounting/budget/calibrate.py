"""What a privacy target allows: noise, steps, epochs, sampling, or epsilon and delta.

Everything is decided by the upper bound on epsilon that an accountant computes, so an
answer is always on the safe side of the truth. With the default accountant it is within
1e-4 (relative) of the best: 4e-5 of the search and what the bracket is wide.
"""

import math
from collections.abc import Callable
from typing import Any

from accounting.budget.target_search import Crossing, MakeAccountant
from accounting.events import (
    Event,
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    PoissonSampledEvent,
    checked_count,
)
from accounting.pld import DefaultAccountant

# `steps` answers this where no number of releases exceeds the target.
MOST_STEPS = 2**62
# The search for noise stays within these: less noise protects nobody, and more is
# never the answer to a target that can be reached.
LEAST_NOISE = 0.01
MOST_NOISE = 1e9
# Beyond it an accountant is asked only where fewer steps cost nothing at all.
_LEAST_PROBABILITY = 1e-300


class BudgetSpentError(ValueError):
    """What was spent, or the releases asked for, cannot fit in the target."""


def noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    *,
    relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
    spent: Ledger | None = None,
    make_event: Callable[[float], Event] | None = None,
    accountant: MakeAccountant = DefaultAccountant,
) -> float:
    """Smallest noise multiplier for which steps more releases stay within the target.

    Args:
        target_epsilon: finite, > 0.
        target_delta: in (0, 1).
        sampling_probability: in (0, 1], chance of each example per step.
        steps: number of releases, >= 1.
        relation: the neighboring relation of the target.
        spent: releases already made on the same data, counted in full.
        make_event: noise multiplier -> event of one step; Poisson sampling with
            sampling_probability by default. More noise must mean less epsilon.
        accountant: relation -> accountant.

    Returns:
        The noise multiplier, in [0.01, 1e9].

    Guarantees:
        The accountant's upper epsilon at the result was computed and is within the
        target; at a noise 1e-4 (relative) smaller it is not, or the result is 0.01.

    Raises:
        BudgetSpentError: spent alone exceeds the target, or no noise reaches it.
        ValueError: an argument out of range.

    >>> f"{noise_multiplier(3.0, 1e-5, 256 / 60000, 14063):.4f}"
    '0.9685'
    """
    steps = checked_count(steps)
    if make_event is None:
        q = _checked_probability(sampling_probability)

        def make_event(noise: float) -> Event:
            return PoissonSampledEvent(q, GaussianEvent(noise))

    event_of = make_event
    crossing = _crossing(
        lambda dose: (event_of(1 / dose), steps),
        target_epsilon,
        target_delta,
        relation,
        spent,
        accountant,
    )
    dose = crossing.largest(1.0, 1 / MOST_NOISE, 1 / LEAST_NOISE)
    if dose is None:
        raise BudgetSpentError(
            f"Epsilon is {crossing.bounds(1 / MOST_NOISE).upper:.6g} at delta"
            f" {target_delta:g} even with a noise multiplier of {MOST_NOISE:g}, above"
            f" the target of {target_epsilon:g} ({crossing.already():.6g} of it was"
            " already spent). No noise reaches such a target. Raise target_epsilon, or"
            " take fewer steps."
        )
    return 1 / dose


def steps(
    target_epsilon: float,
    target_delta: float,
    event: Event,
    *,
    relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
    spent: Ledger | None = None,
    accountant: MakeAccountant = DefaultAccountant,
) -> int:
    """Largest number of releases of the event that stays within the target.

    Args:
        target_epsilon: finite, > 0.
        target_delta: in (0, 1).
        event: one further release.
        relation: the neighboring relation of the target.
        spent: releases already made on the same data, counted in full.
        accountant: relation -> accountant.

    Returns:
        The count; 0 if not even one fits; at most 2**62, the answer for an event that
        never exceeds the target, as with sampling probability 0.

    Guarantees:
        The accountant's upper epsilon at the result was computed and is within the
        target. Beyond 25,000 the count may be short by 4e-5 of it.

    Raises:
        ValueError: a target out of range.
        UnsupportedEventError: the accountant has no bound for an event.

    >>> steps(3.0, 1e-5, PoissonSampledEvent(0.01, GaussianEvent(1.1)))
    3712
    """
    return _most_steps(
        lambda count: (event, count),
        (target_epsilon, target_delta, relation, spent, accountant),
    )


def epochs(
    target_epsilon: float,
    target_delta: float,
    event: Event,
    steps_per_epoch: int,
    **options: Any,
) -> int:
    """Largest number of whole epochs that stays within the target.

    Args:
        target_epsilon: finite, > 0.
        target_delta: in (0, 1).
        event: one step.
        steps_per_epoch: of fit, ceil(examples / batch size).
        **options: relation, spent and accountant, as for `steps`.

    Returns:
        The count; 0 if not even one fits; at most 2**62 // steps_per_epoch.

    >>> epochs(3.0, 1e-5, PoissonSampledEvent(0.01, GaussianEvent(1.1)), 100)
    37
    """
    return steps(target_epsilon, target_delta, event, **options) // checked_count(
        steps_per_epoch
    )


def sampling_probability(
    target_epsilon: float,
    target_delta: float,
    noise_multiplier: float,
    steps: int,
    *,
    relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
    spent: Ledger | None = None,
    accountant: MakeAccountant = DefaultAccountant,
) -> float:
    """Largest sampling probability for which steps releases stay within the target.

    Args:
        target_epsilon: finite, > 0.
        target_delta: in (0, 1).
        noise_multiplier: of every step, > 0.
        steps: number of releases, >= 1.
        relation: the neighboring relation of the target.
        spent: releases already made on the same data, counted in full.
        accountant: relation -> accountant.

    Returns:
        The probability, in (0, 1].

    Raises:
        BudgetSpentError: spent leaves nothing of the target.
        ValueError: an argument out of range.

    >>> f"{sampling_probability(3.0, 1e-5, 1.1, 3712):.4f}"
    '0.0100'
    """
    steps = checked_count(steps)
    gaussian = GaussianEvent(noise_multiplier)
    crossing = _crossing(
        lambda q: (PoissonSampledEvent(q, gaussian), steps),
        target_epsilon,
        target_delta,
        relation,
        spent,
        accountant,
    )
    result = crossing.largest(0.01, _LEAST_PROBABILITY, 1.0, most_growth=4.0)
    if result is None:
        raise _nothing_is_left(crossing, "sampling probability")
    return result


def batch_size(
    target_epsilon: float,
    target_delta: float,
    noise_multiplier: float,
    population: int,
    steps: int | Callable[[int], int],
    *,
    relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
    spent: Ledger | None = None,
    make_event: Callable[[int], Event] | None = None,
    accountant: MakeAccountant = DefaultAccountant,
) -> int:
    """Largest expected batch size that stays within the target.

    Args:
        target_epsilon: finite, > 0.
        target_delta: in (0, 1).
        noise_multiplier: of every step, > 0.
        population: number of examples, >= 1.
        steps: number of releases, or what it is for a batch size, such as
            `lambda size: math.ceil(epochs * population / size)`.
        relation: the neighboring relation of the target.
        spent: releases already made on the same data, counted in full.
        make_event: batch size -> event of one step; Poisson sampling with batch size /
            population by default. A larger batch must mean more epsilon.
        accountant: relation -> accountant.

    Returns:
        The batch size, from 1 to population.

    Guarantees:
        The accountant's upper epsilon at the result was computed and is within the
        target. Where steps depend on the size, rounding them up leaves epsilon with
        small dents, and one of the neighboring sizes may do as well.

    Raises:
        BudgetSpentError: not even batches of one example are within the target.
        ValueError: an argument out of range.

    >>> batch_size(3.0, 1e-5, 1.1, 60_000, 14_063)
    314
    """
    population = checked_count(population, "population")
    gaussian = GaussianEvent(noise_multiplier)
    if make_event is None:

        def make_event(size: int) -> Event:
            return PoissonSampledEvent(size / population, gaussian)

    event_of = make_event
    count_of = steps if callable(steps) else lambda _: checked_count(steps)
    crossing = _crossing(
        lambda size: (event_of(int(size)), count_of(int(size))),
        target_epsilon,
        target_delta,
        relation,
        spent,
        accountant,
    )
    start = float(max(1, population // 100))
    result = crossing.largest(
        start, 1.0, float(population), most_growth=4.0, is_whole=True
    )
    if result is None:
        raise _nothing_is_left(crossing, "batch size")
    return int(result)


def epsilon(
    target_delta: float,
    event: Event,
    steps: int,
    *,
    relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
    spent: Ledger | None = None,
    accountant: MakeAccountant = DefaultAccountant,
) -> float:
    """Smallest epsilon that may be promised at a delta: the upper bound.

    >>> f"{epsilon(1e-5, PoissonSampledEvent(0.01, GaussianEvent(1.0)), 1000):.3f}"
    '1.828'
    """
    composed = accountant(relation).compose(event, steps)
    if spent is not None:
        composed.compose_ledger(spent)
    return composed.epsilon(target_delta).upper


def delta(
    target_epsilon: float,
    event: Event,
    steps: int,
    *,
    relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
    spent: Ledger | None = None,
    accountant: MakeAccountant = DefaultAccountant,
) -> float:
    """Smallest delta that may be promised at an epsilon: the upper bound.

    The bracket is 0.5 % of delta wide, which is worth about 1e-4 of epsilon.

    >>> f"{delta(2.0, PoissonSampledEvent(0.01, GaussianEvent(1.0)), 1000):.1e}"
    '2.7e-06'
    """
    composed = accountant(relation).compose(event, steps)
    if spent is not None:
        composed.compose_ledger(spent)
    return composed.delta(target_epsilon).upper


def _most_steps(
    plan: Callable[[int], tuple[Event, int]], target: tuple[Any, ...]
) -> int:
    """Largest whole count whose releases are within the target; 0 if there is none."""
    target_epsilon, target_delta, relation, spent, accountant = target
    _check_target(target_epsilon)
    crossing = Crossing(
        lambda count: plan(int(count)),
        target_epsilon,
        target_delta,
        relation,
        spent,
        accountant,
    )
    most = float(MOST_STEPS)
    count = crossing.largest(1.0, 1.0, most, most_growth=64.0, is_whole=True)
    return 0 if count is None else int(count)


def _crossing(
    plan: Callable[[float], tuple[Event, int]],
    target_epsilon: float,
    target_delta: float,
    relation: NeighboringRelation,
    spent: Ledger | None,
    accountant: MakeAccountant,
) -> Crossing:
    """The comparison with a target that is not spent yet."""
    _check_target(target_epsilon)
    crossing = Crossing(plan, target_epsilon, target_delta, relation, spent, accountant)
    already = crossing.already()
    if already > target_epsilon:
        raise BudgetSpentError(
            f"Epsilon {already:.6g} is already spent at delta {target_delta:g}, above"
            f" the target of {target_epsilon:g}. No noise takes back what was released."
            " Raise target_epsilon, or train on data that was not used before."
        )
    return crossing


def _nothing_is_left(crossing: Crossing, what: str) -> BudgetSpentError:
    return BudgetSpentError(
        f"No {what} keeps epsilon within the target of {crossing.target:g}"
        f" ({crossing.already():.6g} of it was already spent). Even the smallest one"
        " exceeds it. Raise target_epsilon or the noise, or take fewer steps."
    )


def _checked_probability(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(
            f"sampling_probability is {value!r}, outside (0, 1]. The noise needed"
            " depends on it, and 0 needs none. Pass expected batch size / number of"
            " examples."
        )
    return value


def _check_target(target_epsilon: float) -> None:
    if not 0 < target_epsilon < math.inf:
        raise ValueError(
            f"target_epsilon is {target_epsilon!r}, not a finite number above 0. Only"
            " infinite noise gives 0, and none is needed for infinity. Pass for"
            " example 3.0."
        )
