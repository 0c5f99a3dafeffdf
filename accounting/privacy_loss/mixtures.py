"""Privacy losses of mixtures: of Gaussians with several sensitivities, and of pairs.

Where a release moves the sum by c_i with probability p_i (0 with the rest), with noise
s and unit largest sensitivity, the density over N(0, s^2) is

    w(x) = 1 - q + sum_i p_i g_i(x),   g_i = e^{c_i (2x - c_i) / 2 s^2},   q = sum p_i

and the pairs are those of base.py: remove l = ln w, add l = -ln w. At a boundary l,
C = sum_i p_i g_i = e^{+-l} - 1 + q; x follows by Newton's method for ln C, which is
convex in x and nearly a line. With n_i the mass of N(c_i, s^2) in a cell the excess is

    remove    sum_i p_i (n_i - g_i n_0)        each term >= 0
    add       e^l sum_i p_i (g_i n_0 - n_i)    g_i at the lower boundary

and where l is below all losses, C is negative and sum_i p_i n_i - C n_0 is the first.
The boundary is where x says it is: what w(x) misses of e^{+-l} is part of the slip.
"""

import dataclasses
import functools
import math
from typing import final

import numpy as np

from accounting.numerics import (
    PANEL,
    ROUNDOFF,
    Array,
    gauss_legendre,
    log_mixture_ratio,
    ndtri,
)
from accounting.privacy_loss.base import (
    Below,
    Cells,
    Loss,
    Nodes,
    NormalMasses,
    normal_tail,
)

_WIDTH = 9.0
_TURNS = 40


@final
@dataclasses.dataclass(frozen=True, slots=True)
class GaussianMixtureLoss(Loss):
    """One direction of a Gaussian release with several sensitivities.

    Attributes:
        noise: s over the largest sensitivity.
        shifts: c_i in (0, 1], ascending to 1.
        chances: p_i > 0, of sum at most 1.
        is_add: True for the add direction.
    """

    noise: float
    shifts: tuple[float, ...]
    chances: tuple[float, ...]
    is_add: bool

    @property
    def q(self) -> float:
        """The probability that the sum moves at all."""
        return min(math.fsum(self.chances), 1.0)

    def node_count(self, tail: float, frequency: float, order: float) -> int:
        low, high = self._span(tail)
        s = width = self.noise
        if self.is_add:
            width = s / math.sqrt(1 + min(self.q, 0.25) * order / (s * s))
        # As for one sensitivity: w has no zero within pi s^2 of the real line, for
        # until there all terms turn into the same half plane.
        half = 1 / (0.5 / width + (0.3 + frequency / 14) / (s * s))
        return PANEL * math.ceil((high - low) / (2 * half))

    def nodes(self, tail: float, frequency: float, order: float) -> Nodes:
        s = self.noise
        low, high = self._span(tail)
        panels = self.node_count(tail, frequency, order) // PANEL
        node, weight = gauss_legendre()
        half = (high - low) / (2 * panels)
        x = np.add.outer(low + half * (2 * np.arange(panels) + 1), half * node).ravel()
        log_w = self._log_w(x)
        log_density = -0.5 * (x / s) ** 2 - math.log(s * math.sqrt(2 * math.pi) / half)
        if not self.is_add:
            log_density += log_w
        loss = -log_w if self.is_add else log_w
        return Nodes(np.exp(log_density) * np.tile(weight, panels), loss)

    def cells(self, boundaries: Array) -> Cells:
        s, sign = self.noise, -1.0 if self.is_add else 1.0
        x, level, slips = self._boundaries(boundaries)
        base = NormalMasses(x / s)
        scale = np.exp(boundaries[:-1]) if self.is_add else 1.0
        start = x[:-1]
        # 1 - q - e^l where no x has the loss l, which is then below all of them.
        lost = np.where(level[:-1] > 0, 0.0, np.maximum(-level[:-1], 0.0))
        excess = scale * lost * base.mass
        excess_error = scale * lost * base.error
        rest = 1 - self.q
        mass, error = rest * base.mass, rest * base.error
        below, above = rest * base.left, rest * base.right
        for c, p in zip(self.shifts, self.chances, strict=True):
            shifted = NormalMasses((x - c) / s)
            growth, turn = self._growth(c, p, start, level[:-1])
            part = growth * base.mass
            excess += scale * sign * (p * shifted.mass - part)
            excess_error += scale * (p * shifted.error + growth * base.error)
            excess_error += scale * turn * ROUNDOFF * (p * shifted.mass + part)
            mass += p * shifted.mass
            error += p * shifted.error
            below, above = below + p * shifted.left, above + p * shifted.right
        excess_error += 4 * ROUNDOFF * (len(self.shifts) + 4) * np.abs(excess)
        if self.is_add:
            mass, error = base.mass, base.error
            below, above = base.right, base.left
        error += 4 * ROUNDOFF * (len(self.shifts) + 4) * mass
        excess_error += 4 * ROUNDOFF * np.abs(boundaries[:-1]) * mass
        slip = np.maximum(slips[1:], slips[:-1])
        return Cells(mass, excess, error, excess_error, slip, below, above)

    def below(self, losses: Array) -> Below:
        s, sign = self.noise, -1.0 if self.is_add else 1.0
        x, level, slip = self._boundaries(losses)
        base, base_error = normal_tail(sign * x / s)
        scale = np.exp(losses) if self.is_add else 1.0
        rest = 1 - self.q
        mass, error = rest * base, rest * base_error
        deficit, deficit_error = 0 * base, 0 * base
        for c, p in zip(self.shifts, self.chances, strict=True):
            shifted, shifted_error = normal_tail(sign * (x - c) / s)
            growth, turn = self._growth(c, p, x, level)
            part = growth * base
            deficit += scale * sign * (part - p * shifted)
            deficit_error += scale * (p * shifted_error + growth * base_error)
            deficit_error += scale * turn * ROUNDOFF * (p * shifted + part)
            mass += p * shifted
            error += p * shifted_error
        if self.is_add:
            mass, error = base, base_error
        # The deficit is for the loss at x; that at l differs by the slip.
        total = mass + np.abs(deficit)
        deficit_error += (slip + 4 * ROUNDOFF * (len(self.shifts) + 4)) * total
        deficit_error += 4 * ROUNDOFF * np.abs(losses) * total
        return Below(mass, deficit, error, deficit_error)

    def largest(self, tail: float) -> float:
        reach = self._reach(tail)
        log_w = float(self._log_w(np.array([-reach if self.is_add else reach]))[0])
        return abs(log_w) if self.is_add else log_w

    def _span(self, tail: float) -> tuple[float, float]:
        """Ends of the quadrature in x; beyond is nothing, or large losses of tail."""
        s, reach = self.noise, self._reach(tail)
        if self.is_add:
            return -reach, _WIDTH * s
        return -_WIDTH * s, reach

    def _reach(self, tail: float) -> float:
        """|x| beyond which P has at most the mass tail, on the side of large losses."""
        share = tail / (len(self.shifts) + 1)
        reach = -(1 + 1e-9) * self.noise * ndtri(share)
        if self.is_add:
            return reach
        for c, p in zip(self.shifts, self.chances, strict=True):
            if p > share:
                quantile = ndtri(min(0.5, share / p))
                reach = max(reach, c - (1 + 1e-9) * self.noise * quantile)
        return reach

    def _growth(
        self, c: float, p: float, x: Array, level: Array
    ) -> tuple[Array, Array]:
        """p_i g_i, which is at most C, or 0 off the support; its error in 2^-53."""
        inside = level > 0
        exponent = np.where(inside, self._exponent(c, x), 0.0)
        grown = np.where(inside, np.exp(np.minimum(math.log(p) + exponent, 700.0)), 0.0)
        return grown, 8 + 4 * np.abs(exponent) + 4 * abs(math.log(p))

    def _exponent(self, c: float, x: Array) -> Array:
        """ln g_i."""
        return np.asarray(c * (x - 0.5 * c) / (self.noise * self.noise))

    def _log_w(self, x: Array) -> Array:
        return log_mixture_ratio(x, self.noise, self.shifts, self.chances)

    def _log_level(self, x: Array) -> tuple[Array, Array]:
        """ln C and its derivative."""
        with np.errstate(divide="ignore"):
            terms = np.stack(
                [
                    math.log(p) + self._exponent(c, x)
                    for c, p in zip(self.shifts, self.chances, strict=True)
                ]
            )
        peak = terms.max(axis=0)
        parts = np.exp(terms - peak)
        total = parts.sum(axis=0)
        slopes = np.einsum("ij,i->j", parts, np.array(self.shifts))
        slopes /= self.noise * self.noise
        return peak + np.log(total), slopes / total

    def _boundaries(self, losses: Array) -> tuple[Array, Array, Array]:
        """x at each loss, C, negative off the support, and the slip."""
        s = self.noise
        grown = np.expm1(-losses if self.is_add else losses)
        level = grown + self.q
        x = np.full_like(losses, -np.inf)
        inside = level > 0
        # Where no loss lies, e^{-l} may round to 0.
        whole = np.maximum(1 + grown, 1e-30)
        slip = 4 * ROUNDOFF * (self.q + np.abs(grown)) / whole
        target = np.log(level[inside])
        if len(target) == 0:
            return x, level, slip
        # Where one term alone reaches the target: right of the root, for all of them.
        found = np.min(
            [
                s * s / c * (target - math.log(p)) + 0.5 * c
                for c, p in zip(self.shifts, self.chances, strict=True)
            ],
            axis=0,
        )
        for _ in range(_TURNS):
            value, slope = self._log_level(found)
            move = (value - target) / slope
            found = found - move
            if float(np.abs(move).max(initial=0.0)) <= 1e-14 * (
                1 + float(np.abs(found).max())
            ):
                break
        x[inside] = found
        value = self._log_level(found)[0]
        # dl / d ln C = C / w.
        share = level[inside] / whole[inside]
        reach = 2 + np.abs(target) + np.abs(found) / (s * s)
        missed = np.abs(value - target) + 16 * ROUNDOFF * reach
        slip[inside] += share * missed
        return x, level, slip


@final
@dataclasses.dataclass(frozen=True, slots=True)
class WeightedLoss(Loss):
    """A pair that is drawn in the open from several, with fixed chances.

    Attributes:
        parts: (chance, pair), chances of sum 1.
        error: bound on the relative error of every chance.
        attained_pair: a pair that the release attains.
    """

    parts: tuple[tuple[float, Loss], ...]
    error: float
    attained_pair: Loss

    @property
    def attained(self) -> Loss:
        return self.attained_pair

    def node_count(self, tail: float, frequency: float, order: float) -> int:
        return sum(loss.node_count(tail, frequency, order) for _, loss in self.parts)

    def nodes(self, tail: float, frequency: float, order: float) -> Nodes:
        all_nodes = [(p, loss.nodes(tail, frequency, order)) for p, loss in self.parts]
        weight = np.concatenate([p * nodes.weight for p, nodes in all_nodes])
        loss = np.concatenate([nodes.loss for _, nodes in all_nodes])
        return Nodes(weight[weight > 0], loss[weight > 0])

    def cells(self, boundaries: Array) -> Cells:
        all_cells = [(p, loss.cells(boundaries)) for p, loss in self.parts]
        rounding = self.error + 4 * ROUNDOFF
        sums = {
            name: sum(p * getattr(cells, name) for p, cells in all_cells)
            for name in ("mass", "excess", "mass_error", "excess_error")
        }
        return Cells(
            sums["mass"],
            sums["excess"],
            sums["mass_error"] * (1 + rounding) + rounding * sums["mass"],
            sums["excess_error"] * (1 + rounding)
            + rounding * sum(p * np.abs(cells.excess) for p, cells in all_cells),
            functools.reduce(np.maximum, (cells.slip for _, cells in all_cells)),
            sum(p * cells.below for p, cells in all_cells) * (1 + rounding),
            sum(p * cells.above for p, cells in all_cells) * (1 + rounding),
        )

    def below(self, losses: Array) -> Below:
        """Nothing is claimed; the lower law of this pair leaves small losses out."""
        infinite = np.full_like(losses, np.inf)
        return Below(np.ones_like(losses), infinite, infinite, infinite)

    def largest(self, tail: float) -> float:
        return max(loss.largest(tail) for _, loss in self.parts)
