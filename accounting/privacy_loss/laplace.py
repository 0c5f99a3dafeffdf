"""Privacy loss of Laplace noise, without sampling.

Laplace noise of scale b around 1 against the same around 0, with a = 1 / b: the loss
under P runs over [-a, a], with the laws

    P    1/2 at a,           e^{-a} / 2 at -a,    density e^{(l - a) / 2} / 4 between
    Q    e^{-a} / 2 at a,    1/2 at -a,           density e^{-(l + a) / 2} / 4 between

Over a cell (y, z] within [-a, a], with d = (z - y) / 2, the density holds

    P-mass    e^{(y - a) / 2} (e^d - 1) / 2
    excess    2 e^{(y - a) / 2} sinh^2(d / 2)

without cancellation. For sums of several numbers this is the worst case of a given
l1 sensitivity, where all of it falls on one of them (Koskela et al. 2020,
arXiv:1906.03049, for one number; Dong, Roth and Su 2022, arXiv:1905.02383, Theorem 10
for the way in which the curve of the sum follows from it).
"""

import dataclasses
import math
from typing import final

import numpy as np

from accounting.numerics import PANEL, ROUNDOFF, Array, gauss_legendre
from accounting.privacy_loss.base import Below, Cells, Nodes, SymmetricLoss

# Panels halve towards both ends this often: what is left holds no mass.
_HALVINGS = 48


@final
@dataclasses.dataclass(frozen=True, slots=True)
class LaplaceLoss(SymmetricLoss):
    """The loss of one release.

    Attributes:
        reach: a, the distance over the scale of the noise, in (0, 600].
    """

    reach: float

    def node_count(self, tail: float, frequency: float, order: float) -> int:
        return 2 + PANEL * (len(self._edges(frequency)) - 1)

    def nodes(self, tail: float, frequency: float, order: float) -> Nodes:
        a = self.reach
        edges = self._edges(frequency)
        node, weight = gauss_legendre()
        half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        loss = np.add.outer(middle, 0 * node) + np.outer(half, node)
        mass = np.outer(half, weight) * (np.exp((loss - a) / 2) / 4)
        ends = np.array([-a, a])
        return Nodes(
            np.concatenate([[math.exp(-a) / 2], mass.ravel(), [0.5]]),
            np.concatenate([ends[:1], loss.ravel(), ends[1:]]),
        )

    def _edges(self, frequency: float) -> Array:
        """Ends of panels, finer towards both ends and for high frequencies."""
        a = self.reach
        near = a * np.exp2(-np.arange(_HALVINGS + 1.0))
        even = np.linspace(-a, a, 2 + math.ceil(2 * a * (0.1 + frequency / 28)))
        return np.unique(np.concatenate([near - a, a - near, even]))

    def cells(self, boundaries: Array) -> Cells:
        return self.both(boundaries)[0]

    def both(self, boundaries: Array) -> tuple[Cells, Array, Array]:
        a = self.reach
        lower, upper = boundaries[:-1], boundaries[1:]
        inner = np.clip(boundaries, -a, a)
        y, d = inner[:-1], np.diff(inner) / 2
        start = np.exp((y - a) / 2) / 2
        mass = start * np.expm1(d)
        other = np.exp(-(y + a) / 2) / 2 * -np.expm1(-d)
        excess = 4 * start * np.square(np.sinh(d / 2))
        # Where the cell starts below -a.
        excess += np.exp(y) * -np.expm1(np.minimum(lower - y, 0.0)) * other
        for at, p, q in ((a, 0.5, math.exp(-a) / 2), (-a, math.exp(-a) / 2, 0.5)):
            holds = (lower < at) & (at <= upper)
            mass += np.where(holds, p, 0.0)
            other += np.where(holds, q, 0.0)
            rise = -np.expm1(np.minimum(lower - at, 0.0))
            excess += np.where(holds, p * rise, 0.0)
        reach = np.abs(np.where(np.isfinite(boundaries), boundaries, 0.0))
        reach = np.maximum(reach[1:], reach[:-1]) + a
        # Ends are rounded by 2 u of the loss, which each side loses or gains.
        rounding = 4 * ROUNDOFF * (4 + reach)
        slope = 2 * ROUNDOFF * reach * np.where(d > 0, 1.0, 0.0)
        edge = slope * start * np.exp(d)
        other_edge = slope * np.exp(-(y + a) / 2) / 2
        return (
            Cells(
                mass,
                excess,
                rounding * mass + edge,
                rounding * (excess + mass) + edge,
                8 * ROUNDOFF * reach,
                float(self.below(boundaries[:1]).mass[0]) * (1 + 1e-12),
                self._above(float(boundaries[-1])) * (1 + 1e-12),
            ),
            other,
            rounding * other + other_edge,
        )

    def below(self, losses: Array) -> Below:
        a, losses = self.reach, np.clip(losses, -700.0, 700.0)
        inner = np.clip(losses, -a, a)
        start = np.exp((inner - a) / 2)
        mass = np.where(losses < -a, 0.0, np.where(losses >= a, 1.0, start / 2))
        grown = np.exp(losses)
        deficit = np.where(
            losses < -a,
            0.0,
            np.where(losses >= a, grown - 1, start * np.expm1((inner + a) / 2)),
        )
        rounding = 4 * ROUNDOFF * (4 + np.abs(losses) + a)
        return Below(mass, deficit, rounding * mass, rounding * (mass + deficit))

    def largest(self, tail: float) -> float:
        return self.reach

    @property
    def lattice(self) -> tuple[float, float]:
        return -self.reach, 2 * self.reach

    def _above(self, loss: float) -> float:
        """P-mass of losses above one."""
        a = self.reach
        if loss >= a:
            return 0.0
        return 1.0 if loss < -a else 1 - math.exp((loss - a) / 2) / 2
