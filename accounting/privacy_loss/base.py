"""Privacy losses of the sampled Gaussian: on nodes for sums, in cells for bounds.

With unit sensitivity and noise s, w(x) = 1 - q + q e^{(2x-1)/2s^2} is the density of a
release that may hold the example over N(0, s^2). The ordered pairs (P, Q) are those of
rdp/gaussian_moments.py, and the privacy loss is L = ln P/Q under P:

    remove    L = ln w(x)               rises with x
    add       L = -ln w(x)              falls with x
    replace   L = ln w(x) - ln w(-x)    rises with x

An engine needs two views of a pair. `nodes` are points and weights whose sums are the
integrals E_P[f(L)] of analytic f. `cells` are the P-mass of each interval of losses
and its excess P - e^l Q over the lower end l: both of relative precision, since no
delta is ever subtracted from a delta.

Rounding. u = 2^-53. The normal distribution function is taken on the side of its
smaller tail, where SciPy's error is below 8 u (1 + z^2 / 2) of the value (checked
against mpmath by the tests); the errors given with the cells follow from it. The
boundary x of a loss l is computed with an error too, so its true loss is off by a
`slip`: from c = (e^l - 1) / q + 1 by 2 u (q + |e^l - 1|) / w, and from x = s^2 ln c +
1/2 and x / s by 8 u r (2 + |ln c| + 1/s^2) with r = q c / w the slope dl / d ln c.
"""

import abc
import dataclasses
import math
from typing import final

import numpy as np
from numpy.typing import NDArray

from accounting.events import NeighboringRelation
from accounting.events.normal_form import SampledGaussian
from accounting.numerics import PANEL, ROUNDOFF, Array, gauss_legendre, ndtr, ndtri

# Below it the tails of the pair leave the range of floating-point numbers.
LEAST_NOISE = 0.05
# Beyond it the losses of one step leave hardly a digit in e^l - 1.
LARGEST_NOISE = 1e8

# Standard deviations beyond the outermost mode; e^{-9^2 / 2} = 3e-18.
_WIDTH = 9.0
_SMALL_SIDE = 37.0
# Where no loss lies, e^{-l} may round to 0.
_LEAST_RATIO = 1e-30


@dataclasses.dataclass(frozen=True, slots=True)
class Nodes:
    """Points of a quadrature rule: sum of weight f(loss) is E_P[f(L)]."""

    weight: Array
    loss: Array


@dataclasses.dataclass(frozen=True, slots=True)
class Cells:
    """Intervals of losses between consecutive boundaries l_0 < l_1 < ...

    Attributes:
        mass: [cells] P-mass.
        excess: [cells] P-mass - e^l Q-mass, l the lower boundary of the cell.
        mass_error, excess_error: [cells] bounds on their rounding errors.
        slip: [cells] how far the losses of a cell may reach over its boundaries.
        below, above: P-mass outside, rounded up.
    """

    mass: Array
    excess: Array
    mass_error: Array
    excess_error: Array
    slip: Array
    below: float
    above: float


@dataclasses.dataclass(frozen=True, slots=True)
class Below:
    """What lies at or below given losses l.

    Attributes:
        mass: P-mass.
        deficit: e^l Q-mass - P-mass, >= 0.
        mass_error, deficit_error: bounds on their rounding errors.
    """

    mass: Array
    deficit: Array
    mass_error: Array
    deficit_error: Array


@dataclasses.dataclass(frozen=True, slots=True)
class Points:
    """A law on points of a grid.

    Attributes:
        index: [points] whole numbers of steps, ascending.
        mass: [points] P-masses, rounded down.
        slip: how far the losses are below their points at most.
    """

    index: NDArray[np.intp]
    mass: Array
    slip: float


class Loss(abc.ABC):
    """The privacy loss of one ordered pair of neighboring outputs."""

    __slots__ = ()

    @abc.abstractmethod
    def node_count(self, tail: float, frequency: float, order: float) -> int:
        """How many nodes the same arguments give."""

    @abc.abstractmethod
    def nodes(self, tail: float, frequency: float, order: float) -> Nodes:
        """Quadrature of E_P[e^{(t + iu) L}] for t <= order and |u| <= frequency.

        Args:
            tail: P-mass of large losses that may be left out.
            frequency: largest u.
            order: largest t.
        """

    @abc.abstractmethod
    def cells(self, boundaries: Array) -> Cells:
        """Masses of the cells between ascending losses."""

    @abc.abstractmethod
    def below(self, losses: Array) -> Below:
        """What lies at or below each of some losses."""

    @abc.abstractmethod
    def largest(self, tail: float) -> float:
        """A loss that is exceeded with probability at most tail."""

    @property
    def is_smooth(self) -> bool:
        """False where all values are points, whose transform does not decay."""
        return True

    @property
    def lattice(self) -> tuple[float, float] | None:
        """A value and a distance so that all heavy values lie on this lattice."""
        return None

    def heaviest(self, order: float) -> tuple[float, float] | None:
        """The heaviest value once tilted and its distance to the next, if far apart."""
        return None

    def on_points(self, step: float, offset: float) -> "Points | None":
        """All values as whole numbers of steps, if that is where they are."""
        return None

    def variation(self) -> float:
        """Total variation of the pair, from above: its excess over a loss of 0."""
        cells = self.cells(np.array([0.0, 1.0 + max(self.largest(1e-18), 0.0)]))
        mass = float(cells.mass[0] + cells.mass_error[0])
        excess = float(cells.excess[0] + cells.excess_error[0])
        return excess + 4 * float(cells.slip[0]) * mass + cells.above

    @property
    def infinite(self) -> float:
        """P-mass of infinite losses, which no node has; bounded from above."""
        return 0.0

    @property
    def attained(self) -> "Loss | None":
        """The loss of a pair that is no worse than the worst of the release.

        Itself where this pair is attained. Else this one bounds from above only, and
        None says that no pair below the worst is known in this direction.
        """
        return self

    @property
    def attained_exchanged(self) -> "Loss | None":
        """The loss of the attained pair with its two datasets exchanged.

        It matters where this one loss bounds both orders of the datasets.
        """
        return self.attained


class SymmetricLoss(Loss):
    """The loss of a pair whose two laws are mirror images: (Q, P) has the same one."""

    __slots__ = ()

    @abc.abstractmethod
    def both(self, boundaries: Array) -> tuple[Cells, Array, Array]:
        """Cells, their Q-masses, and bounds on the errors of these.

        Boundaries may be infinite and repeat.
        """


@final
@dataclasses.dataclass(frozen=True, slots=True)
class SampledGaussianLoss(Loss):
    """One direction of the sampled Gaussian.

    Attributes:
        q: sampling probability in (0, 1].
        noise: s in [LEAST_NOISE, LARGEST_NOISE].
        direction: "remove", "add" or "replace".
    """

    q: float
    noise: float
    direction: str

    def node_count(self, tail: float, frequency: float, order: float) -> int:
        low, high = self._span(tail)
        s = width = self.noise
        if self.direction != "remove":
            # w^{-t} narrows the peak: curvature 1/s^2 + t r (1-r) / s^4.
            width = s / math.sqrt(1 + min(self.q, 0.25) * order / (s * s))
        twist = 2 if self.direction == "replace" else 1
        # Half a panel: what the Gaussian, the zeros of w at distance pi s^2 and the
        # oscillation e^{iuL} each allow to 32 nodes.
        half = 1 / (0.5 / width + (0.3 + twist * frequency / 14) / (s * s))
        return PANEL * math.ceil((high - low) / (2 * half))

    def nodes(
        self, tail: float, frequency: float, order: float, *, positive: bool = False
    ) -> Nodes:
        """As in Loss; with positive, only losses above 0 (remove)."""
        s = self.noise
        low, high = self._span(tail)
        if positive:
            low = min(0.5, high)
        panels = self.node_count(tail, frequency, order) // PANEL
        node, weight = gauss_legendre()
        half = (high - low) / (2 * panels)
        middles = low + half * (2 * np.arange(panels) + 1)
        x = np.add.outer(middles, half * node).ravel()
        z = x / s
        log_w = self._log_w(x)
        log_density = -0.5 * z * z - math.log(s * math.sqrt(2 * math.pi) / half)
        if self.direction == "add":
            loss = -log_w
        else:
            loss = log_w - self._log_w(-x) if self.direction == "replace" else log_w
            log_density += log_w
        return Nodes(np.exp(log_density) * np.tile(weight, panels), loss)

    def cells(self, boundaries: Array) -> Cells:
        cells = self._cells(boundaries)
        # A point offset + h j of the grid is itself rounded, by 2 u of the loss.
        rounded = 4 * ROUNDOFF * np.abs(boundaries[:-1]) * cells.mass
        return dataclasses.replace(cells, excess_error=cells.excess_error + rounded)

    def _cells(self, boundaries: Array) -> Cells:
        q, s = self.q, self.noise
        x, lower, slips = self._boundaries(boundaries)
        slip = np.maximum(slips[1:], slips[:-1])
        base = NormalMasses(x / s)
        shifted = NormalMasses((x - 1) / s)
        if self.direction == "add":
            # P = N(0), Q = w N(0), so P - e^l Q = e^l q (c N(0) - N(1)).
            scale = q * np.exp(boundaries[:-1])
            c = np.abs(lower[:-1])
            return Cells(
                base.mass,
                scale * (lower[:-1] * base.mass - shifted.mass),
                base.error,
                scale * (c * base.error + shifted.error)
                + 8 * ROUNDOFF * scale * ((c + 2 / q) * base.mass + shifted.mass),
                slip,
                base.right,
                base.left,
            )
        rest = 1 - q
        mass = rest * base.mass + q * shifted.mass
        error = rest * base.error + q * shifted.error + 4 * ROUNDOFF * mass
        below = rest * base.left + q * shifted.left
        above = rest * base.right + q * shifted.right
        if self.direction == "remove":
            # P = w N(0), Q = N(0), so P - e^l Q = q (N(1) - c N(0)).
            c = np.abs(lower[:-1])
            excess = q * (shifted.mass - lower[:-1] * base.mass)
            excess_error = q * (shifted.error + c * base.error)
            excess_error += 8 * ROUNDOFF * q * ((c + 2) * base.mass + shifted.mass)
        else:
            mirrored = NormalMasses((x + 1) / s)
            level = boundaries[:-1]
            with np.errstate(over="ignore", invalid="ignore"):
                growth = np.exp(level)
                part = np.where(mirrored.mass > 0, growth * mirrored.mass, 0.0)
                wobble = np.where(mirrored.error > 0, growth * mirrored.error, 0.0)
                fixed = rest * -np.expm1(level) if rest > 0 else 0 * level
            excess = fixed * base.mass + q * (shifted.mass - part)
            excess_error = q * (shifted.error + wobble) + np.abs(fixed) * base.error
            excess_error += (
                (8 + np.abs(level))
                * ROUNDOFF
                * (np.abs(fixed) * base.mass + q * (shifted.mass + part))
            )
        return Cells(mass, excess, error, excess_error, slip, below, above)

    def below(self, losses: Array) -> Below:
        below = self._below(losses)
        rounded = 4 * ROUNDOFF * np.abs(losses) * (below.mass + below.deficit)
        return dataclasses.replace(below, deficit_error=below.deficit_error + rounded)

    def _below(self, losses: Array) -> Below:
        q, s = self.q, self.noise
        x, c, _ = self._boundaries(losses)
        sign = -1 if self.direction == "add" else 1
        base, base_error = normal_tail(sign * x / s)
        shifted, shifted_error = normal_tail(sign * (x - 1) / s)
        c = np.maximum(c, 0.0)
        if self.direction == "add":
            scale = q * np.exp(losses)
            deficit = scale * (shifted - c * base)
            error = scale * (shifted_error + c * base_error)
            error += 8 * ROUNDOFF * scale * ((c + 2 / q) * base + shifted)
            return Below(base, deficit, base_error, error)
        mass = (1 - q) * base + q * shifted
        mass_error = (1 - q) * base_error + q * shifted_error + 4 * ROUNDOFF * mass
        if self.direction == "remove":
            deficit = q * (c * base - shifted)
            error = q * (c * base_error + shifted_error)
            error += 8 * ROUNDOFF * q * ((c + 2) * base + shifted)
            return Below(mass, deficit, mass_error, error)
        mirrored, mirrored_error = normal_tail((x + 1) / s)
        growth, fixed = np.exp(losses), (1 - q) * np.expm1(losses)
        deficit = fixed * base + q * (growth * mirrored - shifted)
        error = np.abs(fixed) * base_error + q * (
            growth * mirrored_error + shifted_error
        )
        total = np.abs(fixed) * base + q * (growth * mirrored + shifted)
        error += (8 + np.abs(losses)) * ROUNDOFF * total
        return Below(mass, deficit, mass_error, error)

    def largest(self, tail: float) -> float:
        reach = self._reach(tail)
        x = np.array([-reach if self.direction == "add" else reach])
        log_w = self._log_w(x)
        if self.direction == "replace":
            log_w = log_w - self._log_w(-x)
        return float(abs(log_w[0]) if self.direction != "remove" else log_w[0])

    def _span(self, tail: float) -> tuple[float, float]:
        """Ends of the quadrature in x; beyond is nothing, or large losses of tail."""
        s, reach = self.noise, self._reach(tail)
        if self.direction == "add":
            return -reach, _WIDTH * s
        return (1.0 if self.q == 1 else 0.0) - _WIDTH * s, reach

    def _reach(self, tail: float) -> float:
        """|x| beyond which P has at most the mass tail, on the side of large losses."""
        # On a quantile, SciPy's error is far below 1e-9 of it.
        reach = -(1 + 1e-9) * self.noise * ndtri(tail / 2)
        if self.direction == "add":
            return reach
        if self.q > tail:
            quantile = ndtri(min(0.5, tail / (2 * self.q)))
            reach = max(reach, 1 - (1 + 1e-9) * self.noise * quantile)
        return reach

    def _log_w(self, x: Array) -> Array:
        """ln w(x) to full relative precision."""
        z = (x - 0.5) / (self.noise * self.noise)
        if self.q == 1:
            return z
        change = self.q * np.expm1(np.minimum(z, 600.0))
        result = np.log1p(np.maximum(change, -0.5))
        # Elsewhere 1 + change cancels (q near 1, z < 0) or overflows.
        other = (change < -0.5) | (z > 600.0)
        if other.any():
            log_rest, log_q = math.log1p(-self.q), math.log(self.q)
            result[other] = np.logaddexp(log_rest, log_q + z[other])
        return np.asarray(result)

    def _boundaries(self, losses: Array) -> tuple[Array, Array, Array]:
        """x at each loss, c = (e^{+-L} - 1) / q + 1, negative off the support, slip."""
        q, s = self.q, self.noise
        if self.direction == "replace":
            half = losses / 2
            scale = (1 - q) / q * math.exp(0.5 / (s * s))
            x = s * s * (half + np.arcsinh(scale * np.sinh(half)))
            a = (np.abs(x) + 0.5) / (s * s)
            share: Array = np.ones_like(a)
            if q < 1:
                share = np.minimum(1, q / (1 - q) * np.exp(np.minimum(a, 50)))
            slip = 16 * ROUNDOFF * share * (np.abs(losses) + 2 * a)
            return x, half, slip + 4 * ROUNDOFF * np.abs(losses)
        signed = -losses if self.direction == "add" else losses
        grown = np.expm1(signed)
        c = grown / q + 1
        with np.errstate(divide="ignore"):
            log_c = np.log(np.maximum(c, 0.0))
        # Losses that the pair cannot have are beyond every x.
        x = s * s * log_c + 0.5
        whole = np.maximum(1 + grown, _LEAST_RATIO)
        share = q * np.maximum(c, 0) / whole
        slip = 2 * ROUNDOFF * (q + np.abs(grown)) / whole
        reach = 2 + np.abs(np.maximum(log_c, -50.0)) + 1 / (s * s)
        return x, c, slip + 8 * ROUNDOFF * share * reach


class NormalMasses:
    """Masses of a standard normal between consecutive ascending or descending z."""

    def __init__(self, z: Array) -> None:
        left, right = ndtr(z), ndtr(-z)
        # inf^2 x 0 at the ends of the line.
        square = np.minimum(z * z, _SMALL_SIDE**2)
        error = 8 * ROUNDOFF * (1 + square / 2) * np.minimum(left, right)
        is_left = z[1:] + z[:-1] < 0
        self.mass = np.abs(np.where(is_left, np.diff(left), np.diff(right)))
        crosses = (z[1:] > 0) != (z[:-1] > 0)
        self.error = (
            error[1:]
            + error[:-1]
            + 2 * ROUNDOFF * (self.mass + np.where(crosses, 1.0, 0.0))
        )
        # Each end's own side, first boundary and last boundary.
        first, last = (0, -1) if z[-1] >= z[0] else (-1, 0)
        self.left = float(left[first] + error[first])
        self.right = float(right[last] + error[last])


def normal_tail(z: Array) -> tuple[Array, Array]:
    """Phi(z) and a bound on its error."""
    value = ndtr(z)
    square = np.minimum(z * z, _SMALL_SIDE**2)
    small = 8 * ROUNDOFF * (1 + square / 2) * np.minimum(value, ndtr(-z))
    return value, small + 2 * ROUNDOFF * value


def losses_of(
    mechanism: SampledGaussian, relation: NeighboringRelation
) -> tuple[SampledGaussianLoss, ...]:
    """Every direction that a bound has to cover, for one mechanism.

    The same place in the tuple is the same pair of datasets for all mechanisms, so a
    composition takes the same place from each.
    """
    q, noise = mechanism.sampling_probability, mechanism.noise_multiplier
    if relation is NeighboringRelation.REPLACE_ONE:
        return (SampledGaussianLoss(q, noise, "replace"),)
    # Without sampling both directions have the same law of losses.
    second = "add" if q < 1 else "remove"
    return (
        SampledGaussianLoss(q, noise, "remove"),
        SampledGaussianLoss(q, noise, second),
    )
