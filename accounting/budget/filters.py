"""A privacy filter and an odometer: they hold although what is released next, and when
to stop, may depend on what was released before.

An accountant answers for a composition that was fixed in advance. Where the noise or
the sampling of a step is chosen after looking at earlier results, bounds of different
orders must not be mixed. Feldman and Zrnic 2021 (arXiv:2008.11193): for an order 1 + t
fixed in advance, stopping before the sum of the Renyi divergences of the steps exceeds
rho makes the whole (1 + t, rho)-Renyi private. With K(t) = t rho and the conversion of
rdp/accountant.py, epsilon at delta is within a target as long as

    sum K(t) <= t epsilon + ln delta - slack(t),    slack(t) = t ln t - (1+t) ln(1+t)

The filter needs its target beforehand. The odometer has none: it shows an epsilon after
every release, and all that it ever shows hold together (Rogers, Roth, Ullman and Vadhan
2016, arXiv:1605.08294). With L_n the privacy loss after n releases and K_n(t) the
divergences of the same, each chosen from the results before it,

    M_n = exp(t L_n - K_n(t)),    E[M_n | results before n] <= M_{n-1},    M_0 = 1

so that by Ville's inequality, with probability 1 - delta, no M_n ever reaches 1 / delta
(as in Whitehouse, Ramdas, Rogers and Wu 2023, arXiv:2203.05481, for other bounds on the
losses). Then L_n <= (K_n(t) + ln(1 / delta)) / t for all n at once; of several fixed
orders each has its share of delta, and the smallest bound counts.
"""

import math
from typing import final

import numpy as np

from accounting.budget.calibrate import MOST_STEPS, BudgetSpentError
from accounting.events import (
    Event,
    NeighboringRelation,
    UnsupportedEventError,
    checked_count,
)
from accounting.events.normal_form import FREE, is_unprotected, mechanism_of
from accounting.numerics import Array
from accounting.rdp import moments_of, refusal

# Sums of costs are rounded upward by more than their rounding error.
_ROUND_UP = 1 + 1e-12
# Orders of the odometer less 1; twelve of them cost ln 12 beside ln(1 / delta).
_ODOMETER_ORDERS = np.exp2(np.arange(-2.0, 10.0))


@final
class RenyiFilter:
    """Admits releases, chosen one after the other, while they fit in a budget.

    Args:
        target_epsilon: finite, > 0.
        target_delta: in (0, 1).
        relation: the neighboring relation.
        order: t > 0, the Renyi order less 1; by default the one that admits the most
            unsampled Gaussian releases.

    Guarantees:
        Everything admitted together is (target_epsilon, target_delta)-DP, however each
        event was chosen from the results of those before. A release that is refused
        costs nothing, and a smaller one may still fit.

    Raises:
        ValueError: an argument out of range, or an order that admits nothing.

    >>> from accounting.events import GaussianEvent
    >>> budget = RenyiFilter(2.0, 1e-6)
    >>> budget.spend(GaussianEvent(10.0), 5)
    >>> budget.remaining(GaussianEvent(10.0))
    12
    """

    def __init__(
        self,
        target_epsilon: float,
        target_delta: float,
        *,
        relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
        order: float | None = None,
    ) -> None:
        if not 0 < target_epsilon < math.inf:
            raise ValueError(
                f"target_epsilon is {target_epsilon!r}, not a finite number above 0."
                " Only infinite noise gives 0. Pass for example 3.0."
            )
        if not 0 < target_delta < 1:
            raise ValueError(
                f"target_delta is {target_delta!r}, outside (0, 1). It is the"
                " probability with which the promise may fail. Pass for example 1e-6."
            )
        if order is None:
            order = _best_order(target_epsilon, target_delta)
        if not 0 < order < math.inf:
            raise ValueError(
                f"order is {order!r}, not a finite number above 0. The budget is kept"
                " at this one Renyi order. Leave it out for a good one."
            )
        self._relation, self._order = relation, float(order)
        self._budget = _budget(self._order, target_epsilon, target_delta)
        if self._budget <= 0:
            raise ValueError(
                f"order is {order!r}, at which the target admits no release at all."
                " The conversion to epsilon alone exceeds it. Pass a larger order, or"
                " leave it out."
            )
        self._spent = 0.0

    @property
    def order(self) -> float:
        """t, the Renyi order less 1, at which the budget is kept."""
        return self._order

    @property
    def share_spent(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        return self._spent / self._budget

    def spend(self, event: Event, count: int = 1) -> None:
        """Admits count releases. Call it before the first of them is made.

        Raises:
            BudgetSpentError: they do not fit; nothing is spent.
            UnsupportedEventError: no bound is known for the event and relation.
            ValueError: count is not a whole number >= 1.
        """
        count = checked_count(count)
        spent = (self._spent + count * self._cost(event)) * _ROUND_UP
        if spent > self._budget:
            raise BudgetSpentError(
                f"{count} x {event.describe()} would bring the budget to"
                f" {spent / self._budget:.4g} of what was set. Results that are already"
                " out cannot be taken back. Add noise, or stop."
            )
        self._spent = spent

    def remaining(self, event: Event) -> int:
        """How many more releases of this event fit; at most 2**62."""
        cost = self._cost(event)
        left = self._budget / _ROUND_UP - self._spent
        if cost * MOST_STEPS <= left:
            return MOST_STEPS
        count = max(0, math.floor(left / cost))
        while count and (self._spent + count * cost) * _ROUND_UP > self._budget:
            count -= 1
        return count

    def _cost(self, event: Event) -> float:
        """K(t) of one release."""
        return float(_costs(event, self._relation, np.array([self._order]))[0])


@final
class RenyiOdometer:
    """Shows an epsilon after every release; all that are shown hold at once.

    Args:
        delta: in (0, 1), the probability with which any epsilon shown may fail.
        relation: the neighboring relation.

    Guarantees:
        With probability 1 - delta the privacy loss never exceeds `epsilon`, however
        events were chosen from earlier results. Whoever stops when they like, on what
        they have seen, and has `epsilon` at most e then, made an (e, delta)-DP release.
        A target known beforehand costs less with RenyiFilter.

    Raises:
        ValueError: delta outside (0, 1).

    >>> from accounting.events import GaussianEvent
    >>> odometer = RenyiOdometer(1e-6)
    >>> odometer.record(GaussianEvent(10.0), 5)
    >>> f"{odometer.epsilon:.3f}"
    '1.334'
    """

    def __init__(
        self,
        delta: float,
        *,
        relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
    ) -> None:
        if not 0 < delta < 1:
            raise ValueError(
                f"delta is {delta!r}, outside (0, 1). It is the probability with which"
                " an epsilon may fail. Pass for example 1e-6."
            )
        self._relation = relation
        self._log_share = math.log(len(_ODOMETER_ORDERS)) - math.log(delta)
        self._spent = np.zeros(len(_ODOMETER_ORDERS))

    @property
    def epsilon(self) -> float:
        """Bound on the privacy loss so far; 0 where nothing was released."""
        if not self._spent.any():
            return 0.0
        return float(((self._spent + self._log_share) / _ODOMETER_ORDERS).min())

    def record(self, event: Event, count: int = 1) -> None:
        """Adds count releases. Call it before the first of them is made.

        Raises:
            UnsupportedEventError: no bound is known for the event and relation.
            ValueError: count is not a whole number >= 1.
        """
        count = checked_count(count)
        costs = _costs(event, self._relation, _ODOMETER_ORDERS)
        self._spent = (self._spent + count * costs) * _ROUND_UP


def _costs(event: Event, relation: NeighboringRelation, orders: Array) -> Array:
    """K(t) of one release at each order."""
    mechanism = mechanism_of(event, "filter", relation)
    if mechanism == FREE:
        return np.zeros_like(orders)
    if is_unprotected(mechanism):
        return np.full_like(orders, math.inf)
    found = refusal(mechanism, relation)
    if found is not None:
        advice = "Use Poisson sampling, or state what was proved in another way."
        raise UnsupportedEventError(event, "filter", relation.value, found[0], advice)
    return moments_of(mechanism, relation).at(orders)


def _budget(t: float, epsilon: float, delta: float) -> float:
    """Largest sum of K(t) that stays within the target."""
    slack = -math.log1p(t) - t * math.log1p(1 / t)
    return t * epsilon + math.log(delta) - slack


def _best_order(epsilon: float, delta: float) -> float:
    """t with the largest budget over t (1 + t), the cost of a Gaussian."""
    orders = [2 ** (k / 8) for k in range(-160, 400)]
    return max(orders, key=lambda t: _budget(t, epsilon, delta) / (t * (1 + t)))
