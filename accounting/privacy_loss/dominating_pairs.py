"""The dominating pairs of every mechanism, and where the grid has the digits for them.

A truncated Poisson batch (arXiv:2508.15089). With n examples, probability q and at most
B kept, let R be the number of others drawn. If R < B nothing is cut, whether the
example is drawn or not: the pair of Poisson sampling. If R >= B, the example is kept
with probability q B / (R + 1), and else another one u stands in its place; the other
B - 1 that are kept are the same. By symmetry they and u do not depend on R, so that

    cut with probability      t = P(Bin(n - 1, q) >= B)
    kept, if it was cut, with p = (B / n) P(Bin(n, q) > B) / t

and the pair, given all others, is (1-p) N(u) + p N(x) against N(u) for adding and
removing, |x - u| <= 2: the pair of Poisson sampling at distance two. Against
(1-p) N(u) + p N(x') for zeroing and replacing it is that of batches of a fixed size
(fixed_size.py). Whether a batch was cut is told to the adversary here, who in truth
does not see it: the bound is from above, and near the truth where t is small. All other
examples at 0 attain the Poisson pair of the overall probability q (1 - t) + t p.
"""

import functools
import math

from accounting.events import (
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    MixtureOfGaussiansEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    PureEvent,
    RandomAllocationEvent,
    RandomizedResponseEvent,
    TruncatedPoissonSampledEvent,
)
from accounting.events.normal_form import FixedSizeGaussian, Mechanism, SampledGaussian
from accounting.privacy_loss import discrete
from accounting.privacy_loss.base import (
    LARGEST_NOISE,
    LEAST_NOISE,
    Loss,
    SymmetricLoss,
    losses_of,
)
from accounting.privacy_loss.fixed_size import FixedSizeLoss
from accounting.privacy_loss.laplace import LaplaceLoss
from accounting.privacy_loss.mixtures import GaussianMixtureLoss, WeightedLoss
from accounting.privacy_loss.poisson_sampled import SampledLoss
from accounting.privacy_loss.random_allocation import (
    LEAST_ALLOCATED_NOISE,
    LEAST_POINTS,
    allocation_losses,
)

# Bound on the relative error of the binomial tails of SciPy.
BINOMIAL_ERROR = 1e-10
# Losses beyond it leave no digits to their exponentials.
_MOST_LOSS = 300.0
_MOST_POINTS = 1_000_000
# Below it the ratio of a loss to a sampling probability may leave the range of numbers.
_LEAST_PROBABILITY = 1e-290


@functools.lru_cache(maxsize=256)
def dominating_losses(
    mechanism: Mechanism,
    relation: NeighboringRelation,
    tail: float = 1e-15,
    points: int = LEAST_POINTS,
) -> tuple[Loss, ...]:
    """The losses of a mechanism in every direction.

    The same place in the tuple is the same pair of datasets for all mechanisms.

    Args:
        mechanism: what is_on_grid.
        relation: the neighboring relation.
        tail: mass that a law found by convolution may send to infinite losses.
        points: how many points such a law has.
    """
    match mechanism:
        case SampledGaussian():
            return losses_of(mechanism, relation)
        case FixedSizeGaussian(q, noise):
            return (FixedSizeLoss(q, noise),)
        case PoissonSampledEvent(q, inner):
            pair = _symmetric(inner, relation)
            return SampledLoss(pair, q, False), SampledLoss(pair, q, True)
        case TruncatedPoissonSampledEvent():
            return _truncated(mechanism, relation)
        case MixtureOfGaussiansEvent(noise, shifts, chances):
            parts = noise, shifts[1:], chances[1:]
            return GaussianMixtureLoss(*parts, False), GaussianMixtureLoss(*parts, True)
        case RandomAllocationEvent(bins, GaussianEvent(noise)):
            return allocation_losses(bins, noise, tail, points)
        case Event():
            pair = _symmetric(mechanism, relation)
            if relation is NeighboringRelation.REPLACE_ONE:
                return (pair,)
            return pair, pair


def is_on_grid(mechanism: Mechanism, relation: NeighboringRelation) -> bool:
    """False where the numbers of a mechanism leave the grid too few digits."""
    distance = relation.sensitivity(1.0)
    match mechanism:
        case (
            SampledGaussian(q, noise)
            | FixedSizeGaussian(q, noise)
            | TruncatedPoissonSampledEvent(q, GaussianEvent(noise))
        ):
            is_likely = q >= _LEAST_PROBABILITY
            return is_likely and 2 * LEAST_NOISE <= noise <= LARGEST_NOISE
        case MixtureOfGaussiansEvent(noise, _, chances):
            is_likely = math.fsum(chances[1:]) >= _LEAST_PROBABILITY
            return is_likely and 2 * LEAST_NOISE <= noise <= LARGEST_NOISE
        case RandomAllocationEvent(_, GaussianEvent(noise)):
            return LEAST_ALLOCATED_NOISE <= noise <= 1e4
        case PoissonSampledEvent(q, inner):
            return q >= _LEAST_PROBABILITY and is_on_grid(inner, relation)
        case LaplaceEvent(noise):
            return distance / noise <= _MOST_LOSS and noise <= LARGEST_NOISE
        case DiscreteLaplaceEvent(noise, sensitivity):
            if distance * sensitivity > _MOST_POINTS or noise > LARGEST_NOISE:
                return False
            return distance / noise <= _MOST_LOSS
        case DiscreteGaussianEvent(noise, sensitivity):
            reach = discrete.REACH / noise + distance / (2 * noise * noise)
            is_short = noise * sensitivity * 2 * discrete.REACH <= _MOST_POINTS
            return is_short and distance * reach <= _MOST_LOSS
        case PureEvent(epsilon):
            return 1 / LARGEST_NOISE <= epsilon <= _MOST_LOSS
        case RandomizedResponseEvent(noise):
            return 1e-100 <= noise <= 1 - 1e-8
    return False


def largest_loss(mechanism: Mechanism, relation: NeighboringRelation) -> float:
    """A loss that is never exceeded, rounded up; infinite where there is none."""
    distance = relation.sensitivity(1.0) * (1 + 1e-14)
    match mechanism:
        case LaplaceEvent(noise) | DiscreteLaplaceEvent(noise):
            return distance / noise
        case PureEvent(epsilon):
            return epsilon
        case RandomizedResponseEvent(noise, buckets):
            return math.log1p((1 - noise) * buckets / noise) * (1 + 1e-14)
        case PoissonSampledEvent(q, inner):
            loss = largest_loss(inner, relation)
            if loss > 30:
                return loss
            return math.log1p(q * math.expm1(loss)) * (1 + 1e-14)
    return math.inf


def _symmetric(event: Event, relation: NeighboringRelation) -> SymmetricLoss:
    """The loss of additive noise or of a proved bound, its own mirror image."""
    distance = relation.sensitivity(1.0)
    match event:
        case LaplaceEvent(noise):
            return LaplaceLoss(distance / noise)
        case DiscreteLaplaceEvent(noise, sensitivity):
            return discrete.discrete_laplace(
                noise * sensitivity, round(distance) * sensitivity
            )
        case DiscreteGaussianEvent(noise, sensitivity):
            return discrete.discrete_gaussian(
                noise * sensitivity, round(distance) * sensitivity
            )
        case RandomizedResponseEvent(noise, buckets):
            return discrete.randomized_response(noise, buckets)
        case PureEvent(epsilon):
            return discrete.pure(epsilon)
    raise TypeError(
        f"{event!r} has no pair of its own. A bound for another one would be wrong."
        " This is a fault of accounting.privacy_loss.dominating_pairs; please report"
        " it."
    )


def _truncated(
    event: TruncatedPoissonSampledEvent, relation: NeighboringRelation
) -> tuple[Loss, ...]:
    """Pairs of a batch that was cut, and of one that was not, with their chances."""
    assert isinstance(event.event, GaussianEvent)
    noise, q = event.event.noise_multiplier, event.sampling_probability
    uncut, cut, kept = truncation(q, event.dataset_size, event.max_batch_size)
    whole = losses_of(SampledGaussian(q, noise), relation)
    if cut == 0:
        return whole
    overall = (q * uncut + cut * kept) * (1 - 4 * BINOMIAL_ERROR)
    reached = losses_of(SampledGaussian(overall, noise), relation)
    kept = min(kept * (1 + 2 * BINOMIAL_ERROR), 1.0)
    if relation is NeighboringRelation.ADD_OR_REMOVE_ONE:
        far: tuple[Loss, ...] = losses_of(SampledGaussian(kept, noise / 2), relation)
    else:
        far = (FixedSizeLoss(kept, noise),) * len(whole)
    return tuple(
        WeightedLoss(
            tuple(part for part in ((uncut, near), (cut, other)) if part[0] > 0),
            2 * BINOMIAL_ERROR,
            pair,
        )
        for near, other, pair in zip(whole, far, reached, strict=True)
    )


def truncation(
    sampling_probability: float, dataset_size: int, max_batch_size: int
) -> tuple[float, float, float]:
    """Chances that a batch is not cut, that it is, and that the example is kept then.

    Returns:
        1 - t, t = P(Bin(n - 1, q) >= B) and p = (B / n) P(Bin(n, q) > B) / t;
        (1, 0, 0) where t is below 1e-290.
    """
    from scipy import special

    q, n, most = sampling_probability, dataset_size, max_batch_size
    if q == 1:
        return 0.0, 1.0, most / n
    cut = float(special.betainc(most, n - most, q))
    if cut < 1e-290:
        return 1.0, 0.0, 0.0
    longer = float(special.betainc(most + 1, n - most, q))
    uncut = float(special.betaincc(most, n - most, q))
    return uncut, cut, min(most / n * longer / cut, q)
