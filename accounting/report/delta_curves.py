"""One delta curve between bounds at a ladder of epsilons, for each order of datasets.

Delta is convex in x = e^eps, so that between two steps it lies below their chord and
above the chords of their neighbors, extrapolated.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from accounting.accountant import Accountant, Bounds
from accounting.numerics import Array
from accounting.pld import PldAccountant

# Steps of the ladder; a test that lies between two of them loses about 1 % of TPR.
STEPS = 40


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """One delta curve at a ladder of x = e^eps >= 1: bounds, not yet convex.

    Attributes:
        x: [steps] ascending, first 1.
        lower: [steps] never above delta.
        upper: [steps] never below delta.
        rest: a lower bound on delta at every x, also beyond the last step.
    """

    x: Array
    lower: Array
    upper: Array
    rest: float = 0.0

    def joined(self, epsilon: float, bounds: Bounds) -> "Curve":
        """The curve with one more step."""
        at = int(np.searchsorted(self.x, math.exp(epsilon)))
        return _falling(
            np.insert(self.x, at, math.exp(epsilon)),
            np.insert(self.lower, at, bounds.lower),
            np.insert(self.upper, at, bounds.upper),
            self.rest,
        )

    def vertices(self) -> tuple[Array, Array]:
        """Points (x, y) of a broken line that no convex curve within bounds is below.

        On [x_j, x_{j+1}] the curve lies above the chord from x_{j-1} through x_j and
        above the chord back from x_{j+2} through x_{j+1}. It may fall below 0, and
        beyond the last step nothing but `rest` is known.
        """
        x, low, high = self.x, self.lower, self.upper
        points_x, points_y = [float(x[0])], [float(low[0])]
        for j in range(len(x) - 1):
            from_left = (low[j] - high[j - 1]) / (x[j] - x[j - 1]) if j else -np.inf
            from_right = -np.inf
            if j + 2 < len(x):
                from_right = (high[j + 2] - low[j + 1]) / (x[j + 2] - x[j + 1])
            corner = _corner(
                (float(x[j]), float(low[j]), float(from_left)),
                (float(x[j + 1]), float(low[j + 1]), float(min(from_right, 0.0))),
            )
            points_x += [corner[0], float(x[j + 1])]
            points_y += [corner[1], float(low[j + 1])]
        return np.array(points_x), np.array(points_y)


def deltas(accountant: Accountant, epsilon: float) -> tuple[Bounds, ...]:
    """Delta in each direction; from above only where the larger is all that is known.

    That one is attained says nothing of the other, so as a lower bound for both the
    larger delta would claim a test that nobody has.
    """
    if isinstance(accountant, PldAccountant):
        return accountant.deltas(epsilon)
    bounds = accountant.delta(epsilon)
    return (Bounds(0.0, bounds.estimate, bounds.upper, bounds.converged),)


def curve_of_largest(accountant: Accountant, end: float) -> Curve:
    """The larger delta of both directions on a ladder up to end."""
    return ladder(lambda epsilon: (accountant.delta(epsilon),), end)[0]


def ladder(
    deltas: Callable[[float], tuple[Bounds, ...]],
    end: float,
    rests: tuple[float, float] = (0.0, 0.0),
) -> list[Curve]:
    """Curves on equal steps of eps from 0 to end."""
    epsilons = np.linspace(0.0, max(end, 1e-9), STEPS)
    rows = [deltas(float(epsilon)) for epsilon in epsilons]
    width = 2 if rests[0] != rests[1] else max(len(row) for row in rows)
    rows = [row * width if len(row) < width else row for row in rows]
    return [
        _curve(np.exp(epsilons), [row[place] for row in rows], rests[place])
        for place in range(width)
    ]


def _curve(x: Array, bounds: Sequence[Bounds], rest: float) -> Curve:
    lower = np.array([max(b.lower, min(rest, b.upper)) for b in bounds])
    return _falling(x, lower, np.array([b.upper for b in bounds]), rest)


def _falling(x: Array, lower: Array, upper: Array, rest: float) -> Curve:
    """Delta falls, so that a later lower bound holds before and an upper after."""
    lower = np.maximum.accumulate(lower[::-1])[::-1]
    return Curve(x, lower, np.minimum.accumulate(upper), rest)


def _corner(
    left: tuple[float, float, float], right: tuple[float, float, float]
) -> tuple[float, float]:
    """Where the line from the left meets the line from the right, between them."""
    (x, y, rise), (end_x, end_y, end_rise) = left, right
    if rise == -math.inf:
        return x, end_y + end_rise * (x - end_x) if end_rise > -math.inf else 0.0
    if end_rise == -math.inf:
        return end_x, y + rise * (end_x - x)
    if rise >= end_rise:
        # No valley: the curve is convex, so both bounds are loose; the lower end holds.
        return (end_x, min(y, end_y))
    at = (end_y - y + rise * x - end_rise * end_x) / (rise - end_rise)
    at = min(max(at, x), end_x)
    return at, min(y + rise * (at - x), end_y + end_rise * (at - end_x))
