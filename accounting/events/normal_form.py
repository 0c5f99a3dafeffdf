"""The simplest form of each event: what an accountant has to bound.

Different events may be the same mechanism, and equal mechanisms are counted together.
What costs nothing is a Gaussian that nobody was sampled for; what protects nobody is a
Gaussian without noise, whose sampling probability is the chance to be told. Every other
mechanism that is no Gaussian of one sensitivity is its event, with its parameters
inside the open range.
"""

import dataclasses
import itertools
import math
import sys

from accounting.events.base import Event, UnsupportedEventError, merge_counts
from accounting.events.mechanisms import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    GaussianEvent,
    LaplaceEvent,
    MixtureOfGaussiansEvent,
    PureEvent,
    RandomizedResponseEvent,
    ZeroConcentratedEvent,
)
from accounting.events.relations import NeighboringRelation
from accounting.events.sampling import (
    FixedSizeSampledEvent,
    PoissonSampledEvent,
    RandomAllocationEvent,
    TruncatedPoissonSampledEvent,
    UnverifiedSamplingEvent,
)


@dataclasses.dataclass(frozen=True, slots=True)
class SampledGaussian:
    """A Poisson-sampled Gaussian release; probability 1 is no sampling."""

    sampling_probability: float
    noise_multiplier: float


@dataclasses.dataclass(frozen=True, slots=True)
class FixedSizeGaussian:
    """A batch of fixed size without replacement, replace-one; probability below 1."""

    sampling_probability: float
    noise_multiplier: float


Mechanism = SampledGaussian | FixedSizeGaussian | Event
Composition = tuple[tuple[Mechanism, int], ...]

FREE = SampledGaussian(0.0, 0.0)
UNPROTECTED = SampledGaussian(1.0, 0.0)


def without_sampling(event: Event, relation: NeighboringRelation) -> Event:
    """The release if the adversary knows which examples are in which batch.

    Args:
        event: any; what has no sampling stays as it is.
        relation: neighbouring relation.
    """
    match event:
        case TruncatedPoissonSampledEvent(event=GaussianEvent(noise)):
            # An example that is added may take the place of one that points away.
            is_added = relation is NeighboringRelation.ADD_OR_REMOVE_ONE
            return GaussianEvent(noise / 2 if is_added else noise)
        case (
            PoissonSampledEvent(event=inner)
            | FixedSizeSampledEvent(event=inner)
            | TruncatedPoissonSampledEvent(event=inner)
            | RandomAllocationEvent(event=inner)
        ):
            return inner
    return event


def mechanism_of(
    event: Event, accountant: str, relation: NeighboringRelation
) -> Mechanism:
    """Reduces an event to its mechanism, or refuses it.

    Raises:
        UnsupportedEventError: no bound is known for the event and relation.
    """
    match event:
        case UnverifiedSamplingEvent(GaussianEvent() as inner):
            if relation is not NeighboringRelation.ADD_OR_REMOVE_ONE:
                return mechanism_of(inner, accountant, relation)
        case FixedSizeSampledEvent(population, size, GaussianEvent(noise)):
            if relation is NeighboringRelation.REPLACE_ONE:
                if size == population:
                    return _gaussian(1.0, noise)
                if noise == 0:
                    return _gaussian(size / population, noise)
                return FixedSizeGaussian(size / population, noise)
        case PoissonSampledEvent(probability, inner):
            return _sampled(event, probability, inner, accountant, relation)
        case TruncatedPoissonSampledEvent(
            probability, GaussianEvent(noise), dataset_size, max_batch_size
        ):
            if max_batch_size >= dataset_size:
                return _gaussian(probability, noise)
            if noise == 0:
                # A batch is cut to no less than this share of it.
                return _gaussian(probability * max_batch_size / dataset_size, noise)
            return _unless(event, free=probability == 0)
        case RandomAllocationEvent(bins, GaussianEvent(noise)):
            if bins == 1:
                return _gaussian(1.0, noise)
            if relation is not NeighboringRelation.REPLACE_ONE:
                return _unless(event, unprotected=noise == 0)
        case MixtureOfGaussiansEvent(noise, sensitivities, probabilities):
            return _mixture(event, noise, sensitivities, probabilities, relation)
        case RandomizedResponseEvent(noise, buckets):
            if relation is NeighboringRelation.REPLACE_ONE or buckets == 1:
                is_free = buckets == 1 or noise == 1
                return _unless(event, free=is_free, unprotected=noise == 0)
        case GaussianEvent(noise):
            return _gaussian(1.0, noise)
        case LaplaceEvent(noise) | DiscreteGaussianEvent(noise):
            return _unless(event, unprotected=noise == 0)
        case DiscreteLaplaceEvent(noise):
            return _unless(event, unprotected=noise == 0)
        case PureEvent(cost) | ZeroConcentratedEvent(cost):
            return _unless(event, free=cost == 0)
        case ApproximateEvent(cost, delta):
            if delta == 0:
                return _unless(PureEvent(cost), free=cost == 0)
            return _unless(event, unprotected=delta == 1)
    raise UnsupportedEventError(event, accountant, relation.value, *_refusal(event))


def without_failures(composition: Composition) -> tuple[Composition, float]:
    """The composition if no (epsilon, delta) release fails, and the chance of one.

    An (epsilon, delta)-DP release is at worst an epsilon-DP one that tells everything
    with probability delta (Kairouz, Oh and Viswanath 2015, arXiv:1311.0776), so with D
    the chance that any of them does, delta is D + (1 - D) delta of the rest. D is
    rounded upward.
    """
    log_kept = 0.0
    pairs: list[tuple[Mechanism, int]] = []
    for mechanism, count in composition:
        if isinstance(mechanism, ApproximateEvent):
            log_kept += count * math.log1p(-mechanism.delta)
            if mechanism.epsilon > 0:
                pairs.append((PureEvent(mechanism.epsilon), count))
        else:
            pairs.append((mechanism, count))
    failure = -math.expm1(log_kept) * (1 + 32 * sys.float_info.epsilon)
    return merge_counts(pairs), min(failure, 1.0)


def is_unprotected(mechanism: Mechanism) -> bool:
    """True if what was released held no noise."""
    return (
        isinstance(mechanism, SampledGaussian)
        and mechanism.noise_multiplier == 0
        and mechanism != FREE
    )


def exposure(composition: Composition) -> float:
    """Chance that an example was in a release without noise, from below; 0 if none."""
    log_kept = 0.0
    for mechanism, count in composition:
        if isinstance(mechanism, SampledGaussian) and mechanism.noise_multiplier == 0:
            if mechanism.sampling_probability == 1:
                return 1.0
            log_kept += count * math.log1p(-mechanism.sampling_probability)
    return -math.expm1(log_kept) * (1 - 32 * sys.float_info.epsilon)


def _gaussian(probability: float, noise: float) -> SampledGaussian:
    return FREE if probability == 0 else SampledGaussian(probability, noise)


def _unless(
    event: Event, *, free: bool = False, unprotected: bool = False
) -> Mechanism:
    """The event as its own mechanism, or a degenerate one."""
    return FREE if free else UNPROTECTED if unprotected else event


def _sampled(
    event: Event,
    probability: float,
    inner: Event,
    accountant: str,
    relation: NeighboringRelation,
) -> Mechanism:
    """Poisson sampling of one mechanism of additive noise."""
    if isinstance(inner, GaussianEvent):
        return _gaussian(probability, inner.noise_multiplier)
    if isinstance(inner, LaplaceEvent | DiscreteGaussianEvent | DiscreteLaplaceEvent):
        if probability == 0 or inner.noise_multiplier == 0:
            return _gaussian(probability, 0.0)
        if probability == 1:
            return mechanism_of(inner, accountant, relation)
        if relation is not NeighboringRelation.REPLACE_ONE:
            return event
        raise UnsupportedEventError(
            event,
            accountant,
            relation.value,
            "No worst pair is proved here for replacing an example that was sampled"
            " into such noise.",
            "State the guarantee under add_or_remove_one or zero_out, or compose the"
            " inner event, without amplification.",
        )
    raise UnsupportedEventError(event, accountant, relation.value, *_refusal(event))


def _mixture(
    event: Event,
    noise: float,
    sensitivities: tuple[float, ...],
    probabilities: tuple[float, ...],
    relation: NeighboringRelation,
) -> Mechanism:
    """Distinct positive sensitivities in order, the largest 1; the rest is none."""
    chances: dict[float, list[float]] = {}
    for c, p in sorted(zip(sensitivities, probabilities, strict=True)):
        if c > 0 and p > 0:
            chances.setdefault(c, []).append(p)
    if not chances:
        return FREE
    if noise == 0:
        return _gaussian(min(math.fsum(itertools.chain(*chances.values())), 1.0), 0.0)
    largest = max(chances)
    total = {c: math.fsum(p) for c, p in chances.items()}
    if len(total) == 1:
        return _gaussian(min(total[largest], 1.0), noise / largest)
    if relation is NeighboringRelation.REPLACE_ONE:
        raise UnsupportedEventError(
            event,
            "mixture",
            relation.value,
            "No worst pair is proved here for replacing what moves the sum by a random"
            " amount.",
            "State the guarantee under add_or_remove_one or zero_out.",
        )
    rest = max(0.0, 1 - math.fsum(total.values()))
    return MixtureOfGaussiansEvent(
        noise / largest,
        (0.0, *(c / largest for c in total)),
        (rest, *total.values()),
    )


def _refusal(event: Event) -> tuple[str, str]:
    """Why no bound is known, and what to do instead."""
    match event:
        case UnverifiedSamplingEvent(GaussianEvent()):
            return (
                "Adding or removing one example of a ready-made sequence of batches"
                " shifts every later batch, so no bound holds.",
                "Pass arrays to fit or use PoissonLoader, so that the library draws the"
                " batches; or state the guarantee under zero_out.",
            )
        case FixedSizeSampledEvent(_, _, GaussianEvent()):
            return (
                "A batch of fixed size has no neighbor with one example more or less,"
                " and zeroing is bounded by replacing only.",
                "State the guarantee under replace_one.",
            )
        case RandomAllocationEvent(_, GaussianEvent()):
            return (
                "What replacing an example does to all steps of an epoch is no function"
                " of one sum, so no amplified bound is known.",
                "State the guarantee under add_or_remove_one or zero_out, or compose"
                " UnverifiedSamplingEvent once an epoch, without amplification.",
            )
        case RandomizedResponseEvent():
            return (
                "Every owner gives an answer, so there is none to add, remove or zero.",
                "State the guarantee under replace_one.",
            )
    return (
        "It is none of the events that accounting.events lists, or it samples one for"
        " which no amplification is known, and a guess could understate epsilon.",
        "State the release as one of these; for nested Poisson sampling multiply the"
        " probabilities.",
    )
