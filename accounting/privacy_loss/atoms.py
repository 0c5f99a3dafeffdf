"""Privacy losses of pairs that live on points: randomized response, integer noise.

Each point has a loss l, a P-mass p and the Q-mass e^{-l} p. What a cell holds is summed
over its points, with its excess p (1 - e^{lower - l}) taken point by point, so that no
sign changes.

Rounding. A loss l is off by at most 8 u (1 + |l|), which `slip` and the excess carry; a
mass is off relatively by `error`, and a sum over n points by n u more.
"""

from typing import final

import numpy as np

from accounting.numerics import ROUNDOFF, Array
from accounting.privacy_loss.base import Below, Cells, Nodes, Points, SymmetricLoss

_MOST_NODES = 2048


@final
class AtomicLoss(SymmetricLoss):
    """A privacy loss with finitely many values.

    Args:
        loss: [points] finite, ascending.
        mass: [points] P-masses, >= 0.
        error: bound on the relative error of the masses.
        outside: P-mass that may lie above the last point, and as much below the first.
        is_attained: False where this pair is only a bound.
        attained: the pair that is attained then, if one is known.
        spacing: all losses are whole multiples of it above the first, if given.
    """

    __slots__ = (
        "_attained",
        "_error",
        "_loss",
        "_mass",
        "_other",
        "_outside",
        "_spacing",
    )

    def __init__(
        self,
        loss: Array,
        mass: Array,
        *,
        error: float = 4 * ROUNDOFF,
        outside: float = 0.0,
        is_attained: bool = True,
        attained: "AtomicLoss | None" = None,
        spacing: float | None = None,
    ) -> None:
        kept = mass > 0
        self._loss, self._mass = loss[kept], mass[kept]
        # Q-masses through logarithms: e^{-l} alone may overflow.
        self._other = np.exp(np.minimum(np.log(self._mass) - self._loss, 700.0))
        self._error, self._outside = error, outside
        self._attained = self if is_attained else attained
        self._spacing = spacing

    @property
    def attained(self) -> "AtomicLoss | None":
        return self._attained

    @property
    def infinite(self) -> float:
        return self._outside

    @property
    def is_smooth(self) -> bool:
        # Points without a spacing stand for a law that has a density.
        return self._spacing is None

    @property
    def lattice(self) -> tuple[float, float] | None:
        return None if self._spacing is None else (float(self._loss[0]), self._spacing)

    @property
    def points(self) -> Nodes:
        """All points and their masses."""
        return Nodes(self._mass, self._loss)

    def node_count(self, tail: float, frequency: float, order: float) -> int:
        return min(len(self._loss), 2 * _MOST_NODES)

    def nodes(self, tail: float, frequency: float, order: float) -> Nodes:
        if len(self._loss) <= 2 * _MOST_NODES:
            return self.points
        # Dots connected over wide cells: a bound from above, near the truth.
        ends = np.linspace(self._loss[0], self._loss[-1], _MOST_NODES)
        ends[0] -= ends[1] - ends[0]
        cells = self.cells(ends)
        rise = np.minimum(cells.excess / -np.expm1(-np.diff(ends)), cells.mass)
        weight = np.zeros(len(ends))
        weight[1:] += rise
        weight[:-1] += cells.mass - rise
        return Nodes(weight, ends)

    def cells(self, boundaries: Array) -> Cells:
        return self.both(boundaries)[0]

    def both(self, boundaries: Array) -> tuple[Cells, Array, Array]:
        count = len(boundaries) - 1
        index = np.searchsorted(boundaries, self._loss) - 1
        first, last = np.searchsorted(index, [0, count])
        inside = slice(first, last)
        index, loss, mass = index[inside], self._loss[inside], self._mass[inside]
        lower = boundaries[index]
        part = mass * -np.expm1(lower - loss)

        def summed(values: Array) -> Array:
            return np.bincount(index, values, count)[:count].astype(float)

        total, excess = summed(mass), summed(part)
        rounding = self._error + ROUNDOFF * np.bincount(index, minlength=count)[:count]
        reach = 1 + np.abs(np.where(np.isfinite(boundaries), boundaries, 0.0))
        wobble = 12 * ROUNDOFF * mass * (np.abs(loss) + reach[index])
        other = self._other[inside]
        strayed = 12 * ROUNDOFF * summed(other * np.abs(loss))
        return (
            Cells(
                total,
                excess,
                total * rounding,
                excess * rounding + summed(wobble),
                8 * ROUNDOFF * np.maximum(reach[1:], reach[:-1]),
                self._rounded(self._mass[:first]),
                self._rounded(self._mass[last:]),
            ),
            summed(other),
            summed(other) * rounding + strayed,
        )

    def below(self, losses: Array) -> Below:
        index = np.searchsorted(self._loss, losses, side="right")
        mass, other = (
            np.concatenate([[0.0], np.cumsum(values)])[index]
            for values in (self._mass, self._other)
        )
        grown = np.exp(np.minimum(losses, 700.0)) * other
        error = (self._error + ROUNDOFF * (8 + len(self._loss))) * (mass + grown)
        error += 16 * ROUNDOFF * np.abs(losses) * grown
        return Below(mass, np.maximum(grown - mass, 0.0), error, error)

    def on_points(self, step: float, offset: float) -> Points | None:
        if self._spacing is None:
            return None
        index = np.rint((self._loss - offset) / step)
        strayed = np.abs(self._loss - offset - step * index)
        slip = float(strayed.max()) + 16 * ROUNDOFF * (
            1 + float(np.abs(self._loss).max())
        )
        if slip > 1e-9 * step:
            return None
        return Points(index.astype(np.intp), self._mass * (1 - 2 * self._error), slip)

    def largest(self, tail: float) -> float:
        beyond = np.cumsum(self._mass[::-1])
        return float(self._loss[::-1][np.searchsorted(beyond, tail)])

    def _rounded(self, masses: Array) -> float:
        """Sum of masses that lie outside, from above."""
        rounding = self._error + ROUNDOFF * len(masses)
        return float(masses.sum()) * (1 + rounding) + self._outside
