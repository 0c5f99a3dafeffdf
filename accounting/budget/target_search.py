"""The largest dose of a release whose epsilon stays within a target.

A dose is whatever epsilon grows with: 1 / noise multiplier, number of steps, sampling
probability. Every decision is made by bounds: the upper one admits a dose, and away
from the target a wide bracket, which is quick, decides as well as a narrow one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import final

from accounting.accountant import Accountant, Bounds
from accounting.events import Event, Ledger, NeighboringRelation
from accounting.pld import DefaultAccountant, PldAccountant

MakeAccountant = Callable[[NeighboringRelation], Accountant]
Plan = Callable[[float], tuple[Event, int]]

# The search ends where epsilon is below the target by this share, or the bracket of
# doses is so narrow: the rounding of a grid makes epsilon uneven at that scale.
CLOSE = 1e-5
TOLERANCE = 2e-5
# Where no grid is fine enough, the upper bound is more uneven than that.
_WIDE = 2e-3
_UNEVEN = 100
_MOST_TURNS = 40
_WIDER = tuple(
    functools.partial(PldAccountant, relative_width=width) for width in (1e-2, 1e-3)
)


@final
class Crossing:
    """Compares the epsilon of a dose, with everything spent before, to a target.

    Args:
        plan: dose -> (event, count).
        target_epsilon: finite, > 0.
        target_delta: in (0, 1).
        relation: the neighboring relation.
        spent: releases already made.
        accountant: relation -> accountant.
    """

    def __init__(
        self,
        plan: Plan,
        target_epsilon: float,
        target_delta: float,
        relation: NeighboringRelation,
        spent: Ledger | None,
        accountant: MakeAccountant,
    ) -> None:
        self._plan, self._relation, self._spent = plan, relation, spent
        self.target, self._delta = target_epsilon, target_delta
        wider = _WIDER if accountant is DefaultAccountant else ()
        self._accountants: Sequence[MakeAccountant] = (*wider, accountant)
        self._is_uneven = False

    def already(self) -> float:
        """Upper epsilon of what was spent."""
        return self._composed(self._accountants[-1]).epsilon(self._delta).upper

    def bounds(self, dose: float) -> Bounds:
        """Epsilon at the dose, by the narrowest bracket."""
        return self._bounds(dose, self._accountants[-1])

    def ratio(self, dose: float) -> float:
        """Epsilon at the dose over the target; above 1 exactly if not within it."""
        for make in self._accountants[:-1]:
            bounds = self._bounds(dose, make)
            if not bounds.lower <= self.target < bounds.upper:
                if bounds.converged or bounds.lower > self.target:
                    return bounds.estimate / self.target
            if not bounds.converged:
                break
        bounds = self.bounds(dose)
        # An upper bound alone is one by Renyi divergences, which is even.
        is_wide = 0 < bounds.lower < (1 - _WIDE) * bounds.upper
        self._is_uneven |= is_wide and bounds.lower <= self.target
        return bounds.upper / self.target

    def largest(
        self,
        start: float,
        least: float,
        most: float,
        *,
        most_growth: float = 2.0,
        is_whole: bool = False,
    ) -> float | None:
        """The largest dose within the target, up to TOLERANCE or CLOSE.

        Args:
            start: where the search begins; it walks from there by factors.
            least: smallest dose considered.
            most: largest dose considered; both are evaluated only if walked to.
            most_growth: largest factor of one step upward.
            is_whole: True for doses that are whole numbers.

        Returns:
            The dose, `most` if that is within, None if `least` is not.
        """
        dose, ratio = start, self.ratio(start)
        is_within = ratio <= 1
        while True:
            previous, previous_ratio = dose, ratio
            if is_within:
                growth = most_growth if ratio <= 0 else 1.1 / ratio
                dose *= min(max(growth, 1.25), most_growth)
            else:
                dose /= min(max(ratio, 1.5), 16.0)
            if is_whole:
                # At least one, which a factor near 1 would round away.
                dose = float(math.ceil(dose) if is_within else math.floor(dose))
            dose = min(max(dose, least), most)
            if dose == previous:
                return dose if is_within else None
            ratio = self.ratio(dose)
            if (ratio <= 1) != is_within:
                break
        ends = sorted([(dose, ratio), (previous, previous_ratio)])
        low, high = self._narrowed(ends[0], ends[1], is_whole)
        return self._certified(low, high, is_whole)

    def _narrowed(
        self, low: tuple[float, float], high: tuple[float, float], is_whole: bool
    ) -> tuple[float, float]:
        """Both ends of a bracket, the lower within, narrowed until it is good enough.

        Secant in ln dose and ln epsilon, aimed below the target by half of CLOSE; every
        third step halves the bracket, come what may.
        """
        (a, fa), (b, fb) = ((x, _log(ratio)) for x, ratio in (low, high))
        turn = 0
        while turn < _MOST_TURNS and not (is_whole and b - a <= 1):
            scale = _UNEVEN if self._is_uneven else 1
            close, tolerance = scale * CLOSE, scale * TOLERANCE
            width = math.log(b / a)
            if fa >= -close or width <= tolerance:
                break
            turn += 1
            step = width / 2
            if turn % 3:
                root = width * (fa + close / 2) / (fa - fb)
                step = min(max(root, 0.1 * tolerance), width - 0.1 * tolerance)
            dose = a * math.exp(step)
            if is_whole:
                dose = float(min(max(round(dose), a + 1), b - 1))
            ratio = self.ratio(dose)
            if ratio <= 1:
                a, fa = dose, _log(ratio)
            else:
                b, fb = dose, _log(ratio)
        return a, b

    def _certified(self, dose: float, above: float, is_whole: bool) -> float:
        """The dose, lowered where a wide bracket had admitted it by luck."""
        while self.bounds(dose).upper > self.target:
            lower = max(dose - 2 * (above - dose), dose / 2)
            dose, above = float(math.floor(lower)) if is_whole else lower, dose
        return dose

    def _bounds(self, dose: float, make: MakeAccountant) -> Bounds:
        event, count = self._plan(dose)
        composed = self._composed(make)
        if count:
            composed.compose(event, count)
        return composed.epsilon(self._delta)

    def _composed(self, make: MakeAccountant) -> Accountant:
        """A new accountant that knows what was spent."""
        composed = make(self._relation)
        return composed if self._spent is None else composed.compose_ledger(self._spent)


def _log(ratio: float) -> float:
    """Its logarithm, kept within what the secant can use."""
    return math.log(min(max(ratio, 1e-3), 1e3))
