"""Poisson sampling of a pair: from its cells to those of the amplified pair.

If (P, Q) with loss m dominates a release about the batch, and an example enters the
batch with probability q by its own coin (Zhu, Dong and Wang 2022, arXiv:2106.08567,
Theorem 11), then the whole is dominated by

    remove    (1-q) Q + q P against Q      l = ln(1 - q + q e^m)       rises with m
    add       Q against (1-q) Q + q P      l = -ln(1 - q + q e^m)      falls with m

With c = e^m = (e^{+-l} - 1) / q + 1 at a boundary l, and P', Q' what the pair has in a
cell, the excess over the lower boundary is

    remove    q (P' - c Q')          = q times the excess of the pair over m
    add       q e^l (c Q' - P')      = q e^l c times that of the mirrored pair over -m

so the relative precision of the pair is kept. The pair must be its own mirror image:
(Q, P) has the same law of losses as (P, Q). Losses that no m gives have c < e^m for all
m, negative even; there the excess is q (P' - c Q') with both terms positive.

Rounding. c is off by 2 u (q + |e^l - 1|) / q, which makes the losses of a cell reach
over its ends by 2 u (q + |e^l - 1|) / w, w = 1 - q + q c, and m by 4 u of itself.
"""

import dataclasses
from typing import final

import numpy as np

from accounting.numerics import ROUNDOFF, Array
from accounting.privacy_loss.atoms import AtomicLoss
from accounting.privacy_loss.base import Below, Cells, Loss, Nodes, SymmetricLoss


@final
@dataclasses.dataclass(frozen=True, slots=True)
class SampledLoss(Loss):
    """One direction of a Poisson-sampled pair.

    Attributes:
        pair: the loss of the pair, its own mirror image.
        q: sampling probability in (0, 1).
        is_add: True for the add direction.
    """

    pair: SymmetricLoss
    q: float
    is_add: bool

    def node_count(self, tail: float, frequency: float, order: float) -> int:
        return self.pair.node_count(tail, frequency, order)

    def nodes(self, tail: float, frequency: float, order: float) -> Nodes:
        return self._amplified(self.pair.nodes(tail, frequency, order))

    def _amplified(self, nodes: Nodes) -> Nodes:
        """Weights and losses of the sampled pair from those of the pair."""
        with np.errstate(divide="ignore"):
            other = np.exp(np.minimum(np.log(nodes.weight) - nodes.loss, 700.0))
        loss = self._loss(nodes.loss)
        if self.is_add:
            return Nodes(other[::-1], -loss[::-1])
        return Nodes((1 - self.q) * other + self.q * nodes.weight, loss)

    def cells(self, boundaries: Array) -> Cells:
        q = self.q
        m, c, slips = self._inverse(boundaries)
        pair, other, other_error = self.pair.both(-m if self.is_add else m)
        lower, level = boundaries[:-1], np.maximum(c[:-1], 0.0)
        change = 4 * ROUNDOFF * (q + np.abs(np.expm1(-lower if self.is_add else lower)))
        share = np.maximum(level, np.maximum(c[1:], 0.0)) * q
        if self.is_add:
            # The mirrored pair: its P-mass is that of our P.
            scale = np.exp(lower)
            mass, mass_error = pair.mass, pair.mass_error
            excess = q * scale * level * pair.excess
            excess_error = q * scale * level * pair.excess_error
            excess_error += scale * change * pair.excess
            share *= np.exp(boundaries[1:])
        else:
            lost = np.maximum(-c[:-1], 0.0)
            mass = (1 - q) * other + q * pair.mass
            mass_error = (1 - q) * other_error + q * pair.mass_error
            mass_error += 4 * ROUNDOFF * mass
            excess = q * (pair.excess + lost * other)
            excess_error = q * (pair.excess_error + lost * other_error)
            excess_error += change * other
            share /= np.maximum(np.exp(boundaries[1:]), 1e-30)
        slip = np.maximum(slips[1:], slips[:-1])
        slip += np.minimum(share, 1.0) * pair.slip
        # The points of the grid are themselves rounded, by 2 u of the loss.
        excess_error += 8 * ROUNDOFF * ((1 + np.abs(lower)) * mass + excess)
        below, above = pair.below, pair.above
        if not self.is_add:
            below, above = self._outside(boundaries)
        return Cells(mass, excess, mass_error, excess_error, slip, below, above)

    def _outside(self, boundaries: Array) -> tuple[float, float]:
        """P-mass below and above the cells, where P is the mixture, from above."""
        m = self._inverse(boundaries[[0, -1]])[0]
        outer, other, other_error = self.pair.both(np.array([-np.inf, *m, np.inf]))
        whole = (1 - self.q) * (other + other_error)
        whole += self.q * (outer.mass + outer.mass_error)
        # What the pair itself leaves out may have any share of either law.
        rest = outer.below + outer.above
        below, above = (float(whole[k]) * (1 + 1e-12) + rest for k in (0, 2))
        return below, above

    def below(self, losses: Array) -> Below:
        q = self.q
        m, c, _ = self._inverse(losses)
        has_all = (c <= 0) & self.is_add
        level = np.maximum(c, 0.0)
        pair = self.pair.below(np.clip(-m if self.is_add else m, -600.0, 600.0))
        both = pair.mass_error + pair.deficit_error
        rounding = 16 * ROUNDOFF * (1 + np.abs(losses))
        if self.is_add:
            grown = np.exp(np.minimum(losses, 600.0))
            mass = np.where(has_all, 1.0, pair.mass)
            mass_error = np.where(has_all, 0.0, pair.mass_error)
            deficit = np.where(has_all, grown - 1, q * grown * level * pair.deficit)
            error = np.where(has_all, 0.0, q * grown * level * both)
            change = q + np.abs(np.expm1(-losses))
            error += rounding * (mass + deficit + grown * change * pair.deficit)
            return Below(mass, deficit, mass_error + rounding * mass, error)
        with np.errstate(divide="ignore", invalid="ignore"):
            other = np.where(level > 0, (pair.mass + pair.deficit) / level, 0.0)
            other_error = np.where(level > 0, both / level, 0.0)
        mass = (1 - q) * other + q * pair.mass
        mass_error = (1 - q) * other_error + q * pair.mass_error + rounding * mass
        deficit = q * pair.deficit
        error = q * both + rounding * (mass + deficit)
        return Below(mass, deficit, mass_error, error)

    def heaviest(self, order: float) -> tuple[float, float] | None:
        lattice = self.pair.lattice
        if lattice is None:
            return None
        if not isinstance(self.pair, AtomicLoss):
            ends = self._loss(np.array([lattice[0], lattice[0] + lattice[1]]))
            return float(-ends[1] if self.is_add else ends[0]), float(np.ptp(ends))
        nodes = self._amplified(self.pair.points)
        with np.errstate(divide="ignore"):
            tilted = np.log(nodes.weight) + order * nodes.loss
        first, second = nodes.loss[np.argsort(tilted)[:-3:-1]]
        return float(first), abs(float(second - first))

    def largest(self, tail: float) -> float:
        if self.is_add:
            # The mirrored pair has its largest losses where m is smallest.
            return float(-self._loss(np.array([-self.pair.largest(tail)]))[0])
        return float(self._loss(np.array([self.pair.largest(tail)]))[0])

    def _loss(self, m: Array) -> Array:
        """ln(1 - q + q e^m), which is linear where e^m overflows."""
        small = np.log1p(self.q * np.expm1(np.minimum(m, 30.0)))
        large = np.logaddexp(np.log1p(-self.q), np.log(self.q) + m)
        return np.where(m > 30, large, small)

    def _inverse(self, losses: Array) -> tuple[Array, Array, Array]:
        """m and c = e^m at each loss, m = -inf where there is none, and the slip."""
        grown = np.expm1(-losses if self.is_add else losses)
        c = grown / self.q + 1
        with np.errstate(divide="ignore"):
            m = np.log(np.maximum(c, 0.0))
        # Where no loss lies, e^{-l} may round to 0.
        whole = np.maximum(1 + grown, 1e-30)
        slip = 2 * ROUNDOFF * (self.q + np.abs(grown)) / whole
        share = self.q * np.maximum(c, 0.0) / whole
        reach = np.abs(np.where(np.isfinite(m), m, 0.0))
        return m, c, slip + 8 * ROUNDOFF * share * (1 + reach)
