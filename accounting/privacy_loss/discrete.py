"""Pairs with finitely many losses: integer noise, randomized response, pure privacy.

discrete Gaussian   p(x) ~ e^{-x^2 / 2 s^2} on the integers, worst at distance d:
                    l(x) = d (d - 2x) / 2 s^2   (Canonne, Kamath and Steinke 2020,
                    arXiv:2004.00010); log-concave, so the largest d is the worst
discrete Laplace    p(x) ~ r^|x|, r = e^{-1/b}: l = d / b for x <= 0, -d / b for
                    x >= d, (d - 2x) / b between   (Ghosh et al. 2009,
                    arXiv:0811.2841)
randomized response k categories, random with probability n: the true one is told
                    with probability 1 - n + n / k, any other with n / k
pure                e^eps / (1 + e^eps) at eps, the rest at -eps: the worst of all
                    epsilon-DP releases (Kairouz, Oh and Viswanath 2015,
                    arXiv:1311.0776)
"""

import math

import numpy as np

from accounting.numerics import ROUNDOFF
from accounting.privacy_loss.atoms import AtomicLoss

# Integers beyond this many standard deviations have no mass: e^{-37^2 / 2} = 5e-298.
REACH = 37.0
_NOTHING = 1e-290


def pure(epsilon: float) -> AtomicLoss:
    """The worst epsilon-DP release, epsilon in (0, 600]."""
    other = math.exp(-epsilon)
    masses = np.array([other, 1.0]) / (1 + other)
    losses = np.array([-epsilon, epsilon])
    return AtomicLoss(losses, masses, error=8 * ROUNDOFF, spacing=2 * epsilon)


def randomized_response(noise: float, buckets: int) -> AtomicLoss:
    """One answer, the true category replaced by another; noise in (0, 1)."""
    rest = noise / buckets
    truth = (1 - noise) + rest
    loss = math.log1p((1 - noise) / rest)
    masses = np.array([rest, (buckets - 2) * rest, truth])
    losses = np.array([-loss, 0.0, loss])
    spacing = loss if buckets > 2 else 2 * loss
    return AtomicLoss(losses, masses, error=8 * ROUNDOFF, spacing=spacing)


def discrete_laplace(scale: float, distance: int) -> AtomicLoss:
    """Integer noise of scale b against the same at an integer distance."""
    fall = -math.expm1(-1 / scale)
    ratio = math.exp(-1 / scale)
    inner = np.arange(distance - 1, 0, -1.0)
    center = fall / (1 + ratio)
    masses = np.concatenate(
        [
            [math.exp(-distance / scale) / (1 + ratio)],
            center * np.exp(-inner / scale),
            [1 / (1 + ratio)],
        ]
    )
    losses = np.concatenate([[-distance], distance - 2 * inner, [distance]]) / scale
    # e^{-x/b} is off by u x / b relatively, where it is not negligible.
    error = ROUNDOFF * (16 + 2 * min(distance / scale, 700.0))
    return AtomicLoss(losses, masses, error=error, spacing=2 / scale)


def discrete_gaussian(deviation: float, distance: int) -> AtomicLoss:
    """Integer noise of parameter s against the same at an integer distance."""
    most = math.floor(REACH * deviation) + 1
    x = np.arange(most, -most - 1, -1.0)
    square = np.square(x / deviation) / 2
    masses = np.exp(-square)
    masses /= masses.sum()
    losses = distance * (distance - 2 * x) / (2 * deviation * deviation)
    # A mass e^{-y} is off by 4 u y; those that count have y below 700.
    error = ROUNDOFF * (16 + 4 * REACH**2 / 2 + len(x))
    spacing = distance / (deviation * deviation)
    return AtomicLoss(losses, masses, error=error, outside=_NOTHING, spacing=spacing)
