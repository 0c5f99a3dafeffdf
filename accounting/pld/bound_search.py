"""The search for a bracket: which grid, how fine, and which directions.

The gap between the upper and the lower law is about T h^2 (1 + theta) / 8 in epsilon,
from which the first grid step h follows; where the gap is wider, h shrinks by what was
measured. Both directions of a relation are covered. One whose Chernoff bound is below
the lower bound of the other is left out.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import final

import numpy as np

from accounting.accountant import Bounds
from accounting.pld import contour_integral, discretization
from accounting.pld.composition import MOST_POINTS, Curve, Tilted, Window
from accounting.pld.contour_integral import Point, Terms
from accounting.pld.discretization import Grid, GridLaw
from accounting.privacy_loss import Loss

RELATIVE_WIDTH = 1e-4
# A delta is held to the width that this is of ln delta.
LOG_DELTA_WIDTH = 5e-3
_MOST_CELLS = 1 << 18
_PASSES = 6
# Tilted mass of small losses that is left out.
_BELOW = 1e-9
# Tilt of the largest loss of one release, in nats.
_MOST_TILT = 300.0
# Room for the rounding of a Chernoff bound that was found by quadrature.
QUADRATURE = 1e-6


class Question(abc.ABC):
    """Epsilon at a delta, or delta at an epsilon."""

    @abc.abstractmethod
    def point(self, terms: Terms) -> Point:
        """The spectral value and the tilt that belongs to it."""

    @abc.abstractmethod
    def answer(self, curve: Curve, guess: float) -> float:
        """The bound that a curve gives."""

    @abc.abstractmethod
    def chernoff(self, point: Point) -> float:
        """Upper bound on the answer, up to the rounding of a quadrature."""

    @abc.abstractmethod
    def delta(self, answer: float) -> float:
        """The delta at which the curve was read for an answer."""

    @abc.abstractmethod
    def epsilon(self, answer: float) -> float:
        """The epsilon at which the curve was read for an answer."""

    @abc.abstractmethod
    def tolerance(self, answer: float, point: Point) -> float:
        """Width of the bracket asked for around an answer, in epsilon."""

    @abc.abstractmethod
    def excess(self, lower: float, upper: float, point: Point) -> float:
        """Width of a bracket over the width asked for."""

    def narrower(self) -> "Question":
        """The same question for each of two brackets, of which one end each counts."""
        return self

    @abc.abstractmethod
    def is_narrow(self, lower: float, upper: float) -> bool:
        """True if a bracket is as narrow as asked for, whatever the scale of losses."""


@final
@dataclasses.dataclass(frozen=True, slots=True)
class EpsilonAt(Question):
    """Epsilon at delta; width is that of the bracket asked for over epsilon."""

    at: float
    width: float = RELATIVE_WIDTH

    def point(self, terms: Terms) -> Point:
        return contour_integral.epsilon_at(terms, self.at)

    def answer(self, curve: Curve, guess: float) -> float:
        return curve.epsilon(self.at, guess)

    def chernoff(self, point: Point) -> float:
        return point.chernoff

    def delta(self, answer: float) -> float:
        return self.at

    def epsilon(self, answer: float) -> float:
        return answer

    def tolerance(self, answer: float, point: Point) -> float:
        return self.width * max(answer, _least(point))

    def excess(self, lower: float, upper: float, point: Point) -> float:
        return (upper - lower) / max(self.tolerance(upper, point), 1e-300)

    def narrower(self) -> "EpsilonAt":
        return dataclasses.replace(self, width=0.4 * self.width)

    def is_narrow(self, lower: float, upper: float) -> bool:
        return upper - lower <= self.width * upper


@final
@dataclasses.dataclass(frozen=True, slots=True)
class DeltaAt(Question):
    """Delta at epsilon."""

    at: float

    def point(self, terms: Terms) -> Point:
        return contour_integral.delta_at(terms, self.at)

    def answer(self, curve: Curve, guess: float) -> float:
        return curve.delta(self.at)

    def chernoff(self, point: Point) -> float:
        return math.exp(min(point.chernoff, 0.0))

    def delta(self, answer: float) -> float:
        return max(answer, 1e-290)

    def epsilon(self, answer: float) -> float:
        return self.at

    def tolerance(self, answer: float, point: Point) -> float:
        return LOG_DELTA_WIDTH / point.order

    def excess(self, lower: float, upper: float, point: Point) -> float:
        if upper < 1e-290:
            return 0.0
        gap = math.log(upper / lower) if lower > 0 else 1e3
        return gap / LOG_DELTA_WIDTH

    def is_narrow(self, lower: float, upper: float) -> bool:
        return lower > 0 and math.log(upper / lower) <= LOG_DELTA_WIDTH


def bracket(question: Question, directions: Sequence[Terms], most: float) -> Bounds:
    """Bounds on the answer over all directions; most is an upper bound already known.

    Args:
        question: what is asked.
        directions: (loss, count) terms of each ordered pair of datasets.
        most: a proved upper bound.
    """
    searches = [_Search(question, terms) for terms in directions]
    searches.sort(key=lambda search: question.chernoff(search.point), reverse=True)
    searches.sort(key=lambda search: search.guess, reverse=True)
    first, *others = searches
    first.narrow()
    estimates = [first.estimate()]
    for other in others:
        # The Chernoff bound knows nothing of infinite losses.
        is_finite = all(loss.infinite == 0 for loss, _ in other.terms)
        bound = question.chernoff(other.point) * (1 + QUADRATURE)
        if is_finite and bound <= first.lower:
            continue
        if not other.is_at_most(first.upper, first.step):
            other.narrow()
        estimates.append(other.estimate())
    lower = min(max(search.lower for search in searches), most)
    upper = min(max(search.upper for search in searches), most)
    upper = max(lower, upper)
    estimate = min(max(max(estimates), lower), upper)
    is_narrow = question.excess(lower, upper, first.point) <= 1
    return Bounds(lower, estimate, upper, is_narrow)


# Losses on such a grid say nothing, and e^step must stay a number: delta is near 1.
_LONGEST = 4.0


class _Search:
    """Bounds on the answer for one ordered pair of datasets, narrowed step by step."""

    def __init__(self, question: Question, terms: Terms) -> None:
        self.question, self.terms = question, terms
        self.total = sum(count for _, count in terms)
        self.point = question.point(terms)
        self.guess = self.point.value
        self.lower, self.upper = 0.0, 0.0
        self.step = 0.0
        self.order = self.point.order
        self.infinite = self._mass_at_infinity()
        if not self.point.converged:
            # The largest losses may be too rare to matter and yet rule the tilt.
            delta = question.delta(self.guess)
            self.order = contour_integral.order_for_delta(terms, delta, self.infinite)
        self._bound_order()
        self.ranges = [self._range(loss) for loss, _ in terms]

    def _bound_order(self) -> None:
        """Keeps the tilt within the digits where the answer is near the largest sum."""
        tail = self.infinite * self.question.delta(self.guess) / self.total
        largest = max(loss.largest(tail) for loss, _ in self.terms)
        self.order = min(self.order, _MOST_TILT / max(largest, 1e-300))

    def _mass_at_infinity(self) -> float:
        """Share of delta that may go to infinite losses: a twentieth of the width."""
        share = 0.05 * self.question.tolerance(self.guess, self.point) * self.order
        return min(max(share, 1e-7), 1e-2)

    def _range(self, loss: Loss) -> tuple[float, float]:
        """Losses between which the cells lie."""
        tail = self.infinite * self.question.delta(self.guess) / self.total
        nodes = loss.nodes(tail, 0.0, self.order)
        order = np.argsort(nodes.loss)
        grown = np.cumsum(contour_integral.tilted(nodes, self.order)[order])
        index = int(np.searchsorted(grown, _BELOW / self.total))
        return float(nodes.loss[order[max(index - 1, 0)]]), loss.largest(tail)

    def narrow(self) -> None:
        """Builds grids until the bracket is narrow enough or the grid full."""
        question, point = self.question, self.point
        share = 0.7 if point.converged else 0.4
        tolerance = share * question.tolerance(self.guess, point)
        step = math.sqrt(8 * tolerance / (self.total * (1 + self.order)))
        self.lower, self.upper = 0.0, math.inf
        before, is_slow = math.inf, False
        for turn in range(_PASSES):
            lower, upper, used = self._bounds(step)
            self.lower = max(self.lower, lower)
            self.upper = min(self.upper, upper)
            self.step = used
            excess = question.excess(self.lower, self.upper, point)
            is_slow, was_slow = excess > 0.8 * before, turn > 1 and is_slow
            if excess <= 1 or used > step * (1 + 1e-9) or (is_slow and was_slow):
                return
            before = excess
            if turn > 0 or point.converged or self.lower > 0:
                step *= 0.2 if is_slow else max(0.2, 0.9 / math.sqrt(excess))
            if not point.converged and self.upper < math.inf:
                self._tilt_at(self.upper)

    def _tilt_at(self, upper: float) -> None:
        """Tilts for an answer near upper, where the Chernoff bound is far above it."""
        self.guess = upper
        epsilon, delta = self.question.epsilon(upper), self.question.delta(upper)
        self.infinite = self._mass_at_infinity()
        self.order = contour_integral.order_for_epsilon(
            self.terms, epsilon, delta, self.infinite
        )
        self._bound_order()
        self.ranges = [self._range(loss) for loss, _ in self.terms]

    def is_at_most(self, bound: float, step: float) -> bool:
        """True if an upper law on a grid of this step stays below the bound."""
        factors = [
            (discretization.upper_law(loss, self._grid(loss, ends, step)), count)
            for (loss, count), ends in zip(self.terms, self.ranges, strict=True)
        ]
        tilted = Tilted(factors, self.order)
        first, last = self._extent(tilted)
        if last - first + 2 > MOST_POINTS:
            return False
        window = Window(first, _power_of_two(last - first + 2))
        self.upper = self.question.answer(Curve(tilted, window, tilted), self.guess)
        return self.upper <= bound

    def estimate(self) -> float:
        """The spectral value, or what the errors of both bounds suggest."""
        if self.point.converged or self.upper == math.inf:
            return self.point.value
        # The upper law errs by T h^2 / 12, the lower one by T h^2 / 24.
        return (self.upper + 2 * self.lower) / 3

    def _grid(self, loss: Loss, ends: tuple[float, float], step: float) -> Grid:
        for lattice in (loss.lattice, loss.heaviest(self.order)):
            if lattice is not None and _divides(step, lattice[1]):
                return discretization.aligned(step, lattice[0], *ends)
        return discretization.place(loss, step, *ends)

    def _fitted(self, step: float) -> float:
        """A step, not longer, that divides the distance of heavy losses."""
        lattices = [loss.lattice for loss, _ in self.terms]
        lattices += [loss.heaviest(self.order) for loss, _ in self.terms]
        for lattice in lattices:
            if lattice is not None and lattice[1] >= step:
                return lattice[1] / math.ceil(lattice[1] / step)
        return step

    def _bounds(self, step: float) -> tuple[float, float, float]:
        """Lower and upper bound on a grid of this step or the finest that fits."""
        widest = max(high - low for low, high in self.ranges)
        step = max(step, widest / _MOST_CELLS)
        step = self._fitted(step)
        while True:
            if step > _LONGEST:
                return 0.0, math.inf, step
            pairs = [
                discretization.laws(loss, self._grid(loss, ends, step))
                for (loss, _), ends in zip(self.terms, self.ranges, strict=True)
            ]
            upper = self._tilted([law for _, law in pairs])
            first, last = self._extent(upper)
            if last - first + 2 <= MOST_POINTS:
                break
            step *= 1.1 * (last - first + 2) / MOST_POINTS
        window = Window(first, _power_of_two(last - first + 2))
        low = 0.0
        if all(law.masses.any() for law, _ in pairs):
            lower = self._tilted([law for law, _ in pairs])
            low = self.question.answer(Curve(lower, window, upper), self.guess)
            del lower
        del pairs
        high = self.question.answer(Curve(upper, window, upper), self.guess)
        return low, high, step

    def _extent(self, tilted: Tilted) -> tuple[int, int]:
        """First and last point of the sum that matter here."""
        question = self.question
        return tilted.range(question.epsilon(self.guess), question.delta(self.guess))

    def _tilted(self, laws: Sequence[GridLaw]) -> Tilted:
        counts = [count for _, count in self.terms]
        return Tilted(list(zip(laws, counts, strict=True)), self.order)


def _divides(step: float, distance: float) -> bool:
    """True if the distance is a whole number of steps but for rounding."""
    number = distance / step
    return number > 0.5 and abs(number - round(number)) < 1e-12 * number


def _least(point: Point) -> float:
    """An epsilon that is as good as 0 next to the scale of the losses."""
    return max(0.05 * point.chernoff, 1e-3 * point.spread)


def _power_of_two(count: int) -> int:
    return 1 << max(4, (count - 1).bit_length())
