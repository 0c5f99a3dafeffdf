"""How much noise, or how many steps, a privacy target allows; always on the safe side.

Everything is decided by the upper bound on epsilon that an accountant computes.
"""

import math
from collections.abc import Callable

from accounting.accountant import Accountant
from accounting.default import DefaultAccountant
from accounting.events import Event, GaussianEvent, PoissonSampledEvent, checked_count
from accounting.ledger import Ledger
from accounting.relations import NeighboringRelation

MakeAccountant = Callable[[NeighboringRelation], Accountant]

# `steps` answers this where no number of releases exceeds the target.
MOST_STEPS = 2**62
# The search for noise stays within these: less noise protects nobody, and more is
# never the answer to a target that can be reached.
LEAST_NOISE = 0.01
MOST_NOISE = 1e9
_TOLERANCE = 5e-5


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

    >>> f"{noise_multiplier(3.0, 1e-5, 256 / 60000, 14063):.3f}"
    '1.014'
    """
    _check_target(target_epsilon)
    steps = checked_count(steps)
    if make_event is None:
        if not 0 < sampling_probability <= 1:
            raise ValueError(
                f"sampling_probability is {sampling_probability!r}, outside (0, 1]. The"
                " noise needed depends on it, and 0 needs none. Pass expected batch"
                " size / number of examples."
            )

        def make_event(noise: float) -> Event:
            return PoissonSampledEvent(sampling_probability, GaussianEvent(noise))

    event_of = make_event

    def epsilon(noise: float) -> float:
        composed = _spent(spent, relation, accountant).compose(event_of(noise), steps)
        return composed.epsilon(target_delta).upper

    already = _spent(spent, relation, accountant).epsilon(target_delta).upper
    if already > target_epsilon:
        raise BudgetSpentError(
            f"Epsilon {already:.6g} is already spent at delta {target_delta:g}, above"
            f" the target of {target_epsilon:g}. No noise takes back what was released."
            " Raise target_epsilon, or train on data that was not used before."
        )
    return _smallest_noise(epsilon, target_epsilon, target_delta, already)


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

    Raises:
        ValueError: a target out of range.
        UnsupportedEventError: the accountant has no bound for an event.

    >>> steps(3.0, 1e-5, PoissonSampledEvent(0.01, GaussianEvent(1.1)))
    3132
    """
    _check_target(target_epsilon)

    def is_within(count: int) -> bool:
        composed = _spent(spent, relation, accountant)
        if count:
            composed.compose(event, count)
        return composed.epsilon(target_delta).upper <= target_epsilon

    if not is_within(1):
        return 0
    low, high = 1, 2
    while high <= MOST_STEPS and is_within(high):
        low, high = high, 2 * high
    if low == MOST_STEPS:
        return MOST_STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_within(middle) else (low, middle)
    return low


def _spent(
    spent: Ledger | None, relation: NeighboringRelation, accountant: MakeAccountant
) -> Accountant:
    """A new accountant that knows what was spent."""
    composed = accountant(relation)
    return composed if spent is None else composed.compose_ledger(spent)


def _check_target(target_epsilon: float) -> None:
    if not 0 < target_epsilon < math.inf:
        raise ValueError(
            f"target_epsilon is {target_epsilon!r}, not a finite number above 0. Only"
            " infinite noise gives 0, and none is needed for infinity. Pass for"
            " example 3.0."
        )


def _smallest_noise(
    epsilon: Callable[[float], float], target: float, delta: float, already: float
) -> float:
    """Root of the decreasing function epsilon(noise) = target, from the safe side."""
    noise, value = 1.0, epsilon(1.0)
    is_safe = value <= target
    # Walk by what epsilon ~ 1 / noise suggests until the target lies in between.
    while True:
        previous, previous_value = noise, value
        factor = min(max(value / target, 1.5), 16.0) if not is_safe else 0.5
        noise = min(max(noise * factor, LEAST_NOISE), MOST_NOISE)
        if noise == previous:
            break
        value = epsilon(noise)
        if (value <= target) != is_safe:
            break
    if noise == previous:
        if is_safe:
            return noise
        raise BudgetSpentError(
            f"Epsilon is {value:.6g} at delta {delta:g} even with a noise multiplier of"
            f" {MOST_NOISE:g}, above the target of {target:g} ({already:.6g} of it was"
            " already spent). No noise reaches such a target. Raise target_epsilon, or"
            " take fewer steps."
        )
    ends = sorted([(noise, value), (previous, previous_value)])
    return _bisect_log(epsilon, target, *ends)


def _bisect_log(
    epsilon: Callable[[float], float],
    target: float,
    low: tuple[float, float],
    high: tuple[float, float],
) -> float:
    """Safe end of a bracket narrowed to the tolerance.

    Secant in ln noise and ln epsilon, pushed half a tolerance towards the wider side
    so that both ends close in; every third step halves the bracket, come what may.
    """
    tolerance = math.log1p(_TOLERANCE)
    (a, fa), (b, fb) = ((math.log(x), _log_ratio(f, target)) for x, f in (low, high))
    best, turn = high[0], 0
    while b - a > tolerance:
        turn += 1
        middle = (a + b) / 2
        if turn % 3:
            root = a + (b - a) * fa / (fa - fb)
            push = 0.4 * tolerance
            root += push if root < middle else -push
            middle = min(max(root, a + 0.1 * tolerance), b - 0.1 * tolerance)
        noise = math.exp(middle)
        value = epsilon(noise)
        if value <= target:
            b, fb, best = middle, _log_ratio(value, target), noise
        else:
            a, fa = middle, _log_ratio(value, target)
    return best


def _log_ratio(value: float, target: float) -> float:
    """ln(value / target), kept within what the secant can use."""
    return math.log(min(max(value / target, 1e-3), 1e3))
