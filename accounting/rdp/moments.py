"""Log-moments of every mechanism for the Renyi accountant.

    K(t) = ln E_P[e^{t L}],  t the order less 1, the larger of both directions

    Gaussian             gaussian_moments.py, by quadrature
    several sensitivities the same quadrature for their mixture
    Laplace, sampled or not, randomized response, discrete Laplace, pure
                         sums over the nodes of the pair; without sampling these are
                         the closed forms of Mironov 2017 (arXiv:1702.07476), Table II
    discrete Gaussian, zCDP
                         t (1 + t) rho, rho = 1 / 2 s^2 for the discrete Gaussian
                         (Canonne, Kamath and Steinke 2020, arXiv:2004.00010)
    truncated Poisson    ln of the mean of e^K of a batch that was cut and of one that
                         was not (privacy_loss/dominating_pairs.py)

Sums over nodes are those of e^K - 1 = E_P[phi(L)], phi >= 0 (gaussian_moments.py).
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from accounting.events import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    GaussianEvent,
    MixtureOfGaussiansEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    RandomAllocationEvent,
    TruncatedPoissonSampledEvent,
    ZeroConcentratedEvent,
)
from accounting.events.normal_form import FixedSizeGaussian, Mechanism, SampledGaussian
from accounting.numerics import Array, log_phi, log_sums
from accounting.privacy_loss import dominating_losses, is_on_grid
from accounting.privacy_loss.dominating_pairs import (
    BINOMIAL_ERROR,
    largest_loss,
    truncation,
)
from accounting.rdp import gaussian_moments

# Order less 1 beyond which bounded losses tell nothing new.
_MOST_ORDER = 2.0**40
# Above the error of panels of 32 nodes and the rounding of sums over them.
_ROUND_UP = 1 + 1e-11


@dataclasses.dataclass(frozen=True, slots=True)
class Moments:
    """K of one mechanism.

    Attributes:
        log_moments: [orders] t, ascending -> [orders] K(t), never below the truth.
        largest_order: t above which no optimum lies.
        beyond: t -> a bound on K(t) at any order, cruder.
        largest_loss: a loss that is never exceeded, or infinity.
    """

    log_moments: Callable[[Array], Array]
    largest_order: float
    beyond: Callable[[float], float]
    largest_loss: float = math.inf

    def at(self, t: Array) -> Array:
        """K at any orders, ascending; never below the truth."""
        near = t <= self.largest_order
        result = np.array([self.beyond(float(order)) * _ROUND_UP for order in t])
        if near.any():
            result[near] = self.log_moments(t[near])
        return result


def refusal(
    mechanism: Mechanism, relation: NeighboringRelation
) -> tuple[str, str] | None:
    """Why there are no moments of a mechanism, and what to do instead."""
    if isinstance(mechanism, ApproximateEvent):
        return (
            "It may fail altogether, at which no Renyi divergence is finite.",
            "Compose it with an accountant, which counts the chance of that apart.",
        )
    is_far = isinstance(mechanism, FixedSizeGaussian | RandomAllocationEvent)
    if isinstance(mechanism, TruncatedPoissonSampledEvent):
        is_far = relation is not NeighboringRelation.ADD_OR_REMOVE_ONE
    if not is_far:
        return None
    return (
        "Its Renyi divergences have no formula here that is near the truth.",
        "Use PldAccountant.",
    )


def moments_of(mechanism: Mechanism, relation: NeighboringRelation) -> Moments:
    """The moments of a mechanism that `refusal` lets pass."""
    distance = relation.sensitivity(1.0)
    match mechanism:
        case SampledGaussian(q, noise):
            return _gaussian(q, noise, relation)
        case ZeroConcentratedEvent(rho):
            return _concentrated(rho)
        case DiscreteGaussianEvent(noise):
            return _concentrated(0.5 * (distance / noise) ** 2)
        case MixtureOfGaussiansEvent(noise, shifts, chances):
            return _mixture(noise, shifts[1:], chances[1:])
        case TruncatedPoissonSampledEvent(q, GaussianEvent(noise), size, most):
            return _truncated(q, noise, size, most)
    return _bounded(mechanism, relation)


def _gaussian(q: float, noise: float, relation: NeighboringRelation) -> Moments:
    distance = relation.sensitivity(1.0) / noise

    def beyond(t: float) -> float:
        # Joint convexity of e^K in the pair.
        whole = t * (1 + t) * 0.5 * distance * distance
        if q == 1:
            return whole
        return float(np.logaddexp(math.log1p(-q), math.log(q) + whole))

    # Without sampling the closed form holds at every order.
    return Moments(
        lambda t: gaussian_moments.log_moments(q, noise, relation, t),
        gaussian_moments.largest_order(q, noise),
        beyond,
    )


def _concentrated(rho: float) -> Moments:
    return Moments(
        lambda t: t * (1 + t) * rho * _ROUND_UP,
        gaussian_moments.largest_order(1.0, math.sqrt(0.5 / rho)),
        lambda t: t * (1 + t) * rho,
    )


def _mixture(
    noise: float, shifts: tuple[float, ...], chances: tuple[float, ...]
) -> Moments:
    return Moments(
        lambda t: gaussian_moments.mixture_log_moments(noise, shifts, chances, t),
        gaussian_moments.largest_order(chances[-1], noise),
        lambda t: t * (1 + t) * 0.5 / (noise * noise),
    )


def _truncated(q: float, noise: float, size: int, most: int) -> Moments:
    """Adding or removing only: a cut batch is a Poisson batch at distance two."""
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    uncut, cut, kept = truncation(q, size, most)
    near = _gaussian(q, noise, relation)
    if cut == 0:
        return near
    far = _gaussian(min(kept * (1 + 2 * BINOMIAL_ERROR), 1.0), noise / 2, relation)
    rounded = 1 + 2 * BINOMIAL_ERROR

    def log_moments(t: Array) -> Array:
        # e^K - 1 is averaged, so that a small K keeps its digits.
        parts = ((uncut, near.log_moments(t)), (cut, far.log_moments(t)))
        small = np.log1p(sum(p * np.expm1(np.minimum(k, 300.0)) for p, k in parts))
        large = np.logaddexp(
            *(k + math.log(p) if p > 0 else np.full_like(k, -np.inf) for p, k in parts)
        )
        is_small = np.maximum(parts[0][1], parts[1][1]) < 300
        return np.asarray(np.where(is_small, small, large) * rounded + 1e-300)

    return Moments(
        log_moments,
        min(near.largest_order, far.largest_order),
        lambda t: t * (1 + t) * 2 / (noise * noise),
    )


def _bounded(mechanism: Mechanism, relation: NeighboringRelation) -> Moments:
    """From the nodes of losses that have a largest value."""
    most = largest_loss(mechanism, relation)
    largest_order, missing = _MOST_ORDER, 0.0
    beyond: Callable[[float], float] = functools.partial(float.__mul__, most)
    if isinstance(mechanism, PoissonSampledEvent) and isinstance(
        mechanism.event, DiscreteGaussianEvent
    ):
        # Up to this order the integers left out have no weight: tilted by it, their
        # masses are below e^{-37^2 / 2 + 37 (14 + 4)}.
        largest_order = 14 * mechanism.event.noise_multiplier + 1
        missing = 1e-30
        beyond = moments_of(mechanism.event, relation).beyond
        if not is_on_grid(mechanism, relation):
            return moments_of(mechanism.event, relation)
    if not is_on_grid(mechanism, relation):
        # The worst of all releases with this largest loss.
        cost = min(most, 1e300)
        return Moments(lambda t: _pure(cost, t), _MOST_ORDER, lambda t: t * cost, most)
    nodes = [
        loss.nodes(0.0, 0.0, 0.0)
        for loss in dict.fromkeys(dominating_losses(mechanism, relation))
    ]

    def log_moments(t: Array) -> Array:
        columns = t[:, None]
        results = []
        for each in nodes:
            kept = each.weight > 0
            with np.errstate(divide="ignore"):
                terms = np.log(each.weight[kept]) + log_phi(
                    np.broadcast_to(columns, (len(t), int(kept.sum()))),
                    np.broadcast_to(each.loss[kept], (len(t), int(kept.sum()))),
                )
            results.append(np.logaddexp(0.0, log_sums(terms)))
        return np.asarray(np.max(results, axis=0) * _ROUND_UP + missing)

    return Moments(log_moments, largest_order, beyond, most)


def _pure(epsilon: float, t: Array) -> Array:
    """K of an epsilon-DP release, from above: min(t eps, t (1 + t) eps^2 / 2)."""
    return np.minimum(t * epsilon, t * (1 + t) * epsilon * epsilon / 2) * _ROUND_UP
