"""Privacy loss of a batch of fixed size, drawn without replacement, when one example
of the data is replaced.

Whether the replaced example is drawn or not, the batch has the same size, so when it is
not drawn another example stands in its place on both sides. In the worst case that one
and one of the two replaced point the same way and the other the opposite way. Seen from
there, with q the batch size over the population and the distance 2 C,

    P = (1 - q) N(0) + q N(2C)    Q = N(0)        for e^eps >= 1, "remove"
    P = N(0)    Q = (1 - q) N(0) + q N(2C)        for e^eps < 1, "add"

Which of the two applies may change with every release, and an adversary who picks the
worse one each time is bounded by the curve that takes the larger at every epsilon. As
one pair of measures it has the losses l > 0 of the first with their mass p(l), the
losses -l with mass e^{-l} p(l), and the rest at 0. (The pair of Poisson sampling under
replace-one, q N(C) against q N(-C), is not an upper bound here: at q = 0.01, noise 1
and epsilon 0.5 its delta is 2.5e-7, while delta 7.2e-4 can be attained.)

The first pair alone is attained, and gives the lower bound.
"""

import dataclasses
import math
from typing import final

import numpy as np

from accounting.numerics import ROUNDOFF, Array
from accounting.privacy_loss.base import Below, Cells, Loss, Nodes, SampledGaussianLoss


@final
@dataclasses.dataclass(frozen=True, slots=True)
class FixedSizeLoss(Loss):
    """The symmetric pair that bounds one release of a batch of fixed size.

    Attributes:
        q: batch size / population, in (0, 1).
        noise: standard deviation over the clip norm.
    """

    q: float
    noise: float

    @property
    def attained(self) -> SampledGaussianLoss:
        """The pair that one choice of data attains; ours has its losses > 0."""
        return SampledGaussianLoss(self.q, self.noise / 2, "remove")

    @property
    def attained_exchanged(self) -> SampledGaussianLoss:
        """The same pair in the other order."""
        return SampledGaussianLoss(self.q, self.noise / 2, "add")

    def node_count(self, tail: float, frequency: float, order: float) -> int:
        return 2 * self.attained.node_count(tail, frequency, order) + 1

    def nodes(self, tail: float, frequency: float, order: float) -> Nodes:
        positive = self.attained.nodes(tail, frequency, order, positive=True)
        mirrored = positive.weight * np.exp(-positive.loss)
        return Nodes(
            np.concatenate([mirrored[::-1], [self._at_zero()], positive.weight]),
            np.concatenate([-positive.loss[::-1], [0.0], positive.loss]),
        )

    def cells(self, boundaries: Array) -> Cells:
        lower = boundaries[:-1]
        above = self.attained.cells(np.maximum(boundaries, 0.0))
        start = np.maximum(lower, 0.0)
        q_mass = (above.mass - above.excess) * np.exp(-start)
        # Excess over the cell's own lower end, which may lie below 0.
        raised = -np.expm1(np.minimum(lower, 0.0))
        is_positive = boundaries[1:] > 0
        excess = np.where(is_positive, above.excess + raised * q_mass, 0.0)
        excess_error = above.excess_error + raised * (
            above.mass_error + above.excess_error + 4 * ROUNDOFF * above.mass
        )

        # The mirror image of (a, b] is [-b, -a) with P and Q exchanged.
        source = np.maximum(-boundaries[::-1], 0.0)
        below = self.attained.cells(source)
        a, b = source[:-1], source[1:]
        rest = below.mass - below.excess
        mirrored = (rest * np.exp(-a))[::-1]
        width = b - a
        deficit = np.expm1(width) * below.mass - np.exp(width) * below.excess
        mirrored_excess = (deficit * np.exp(-b))[::-1]
        both = below.mass_error + below.excess_error + 8 * ROUNDOFF * below.mass
        mirrored_error = (both * np.exp(-a))[::-1]
        is_negative = lower < 0

        at_zero = np.where(is_negative & (boundaries[1:] >= 0), self._at_zero(), 0.0)
        mass = np.where(is_positive, above.mass, 0.0)
        mass += np.where(is_negative, mirrored, 0.0) + at_zero
        excess += np.where(is_negative, mirrored_excess, 0.0) + at_zero * raised
        error = np.where(is_positive, above.mass_error, 0.0)
        error += np.where(is_negative, mirrored_error, 0.0)
        error += 32 * ROUNDOFF * at_zero
        total_error = np.where(is_positive, excess_error, 0.0)
        total_error += np.where(is_negative, 2 * mirrored_error, 0.0)
        total_error += 32 * ROUNDOFF * at_zero
        lowest = float(boundaries[0])
        return Cells(
            mass,
            excess,
            error,
            total_error,
            np.maximum(above.slip, below.slip[::-1]),
            # Q-mass of losses above -l is at most e^l of their P-mass.
            below.above * math.exp(lowest) if lowest < 0 else 1.0,
            above.above,
        )

    def below(self, losses: Array) -> Below:
        """Nothing is claimed; the lower law of this pair leaves small losses out."""
        infinite = np.full_like(losses, np.inf)
        return Below(np.ones_like(losses), infinite, infinite, infinite)

    def largest(self, tail: float) -> float:
        return self.attained.largest(tail)

    def _at_zero(self) -> float:
        """Mass of the loss 0: (1 - q) (Phi(1/s) - Phi(-1/s)), s the noise."""
        return (1 - self.q) * math.erf(1 / (self.noise * math.sqrt(2)))
