"""Numerics that several rooms share: arrays, sums of exponentials, the normal law."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDOFF = 2.0**-53
# Nodes of one panel of Gauss-Legendre quadrature.
PANEL = 32
# e^{-690} instead of 0, so that underflow errs upward too.
LEAST_LOG_MOMENT = -690.0


def log_sums(terms: Array) -> Array:
    """[rows] ln of the sums of e^terms, never below LEAST_LOG_MOMENT.

    Where the terms are squares of probabilities too small for a number, they are
    -infinity all together.
    """
    peak = np.maximum(terms.max(axis=1, keepdims=True), LEAST_LOG_MOMENT)
    total = np.exp(terms - peak).sum(axis=1)
    return np.asarray(peak[:, 0] + np.log(np.maximum(total, 1.0)))


def log_mixture_ratio(
    x: Array, noise: float, shifts: tuple[float, ...], chances: tuple[float, ...]
) -> Array:
    """ln of 1 - q + sum_i p_i e^{c_i (2x - c_i) / 2 s^2}, with its relative digits."""
    change = np.zeros_like(x)
    largest = np.full_like(x, -np.inf)
    for c, p in zip(shifts, chances, strict=True):
        z = c * (x - 0.5 * c) / (noise * noise)
        change += p * np.expm1(np.minimum(z, 300.0))
        largest = np.maximum(largest, z)
    result = np.log1p(np.maximum(change, -0.5))
    other = (change < -0.5) | (largest > 300.0)
    if other.any():
        rest = max(0.0, 1 - math.fsum(chances))
        with np.errstate(divide="ignore"):
            logs = np.full(int(other.sum()), np.log(rest))
        for c, p in zip(shifts, chances, strict=True):
            z = c * (x[other] - 0.5 * c) / (noise * noise)
            logs = np.logaddexp(logs, math.log(p) + z)
        result[other] = logs
    return result


def log_phi(t: Array, loss: Array) -> Array:
    """ln of (e^{t L} - 1) + t (e^{-L} - 1), without cancellation and overflow."""
    result = np.empty_like(loss)
    growth = t * loss
    is_small = np.maximum(np.abs(growth), np.abs(loss)) < 0.3
    is_large = growth > 1
    rest = ~(is_small | is_large)

    y, order, small = growth[is_small], t[is_small], loss[is_small]
    # Terms k = 2.. of both series: (y^k + t (-L)^k) / k!; the 14th is below 1e-18.
    power_y, power_l = y * y, order * small * small
    total, factorial = (power_y + power_l) / 2, 2.0
    for k in range(3, 15):
        power_y, power_l, factorial = power_y * y, -power_l * small, factorial * k
        total += (power_y + power_l) / factorial
    with np.errstate(divide="ignore"):
        result[is_small] = np.log(total)

    y, order = growth[is_large], t[is_large]
    saved = 1 - order * np.expm1(-loss[is_large])
    result[is_large] = y + np.log1p(-np.exp(-y) * saved)

    fall = np.expm1(np.minimum(-loss[rest], 700.0))
    result[rest] = np.log(np.expm1(growth[rest]) + t[rest] * fall)
    return result


@functools.cache
def gauss_legendre() -> tuple[Array, Array]:
    """Nodes and weights of one panel on [-1, 1]."""
    return np.polynomial.legendre.leggauss(PANEL)


def ndtr(z: Array) -> Array:
    """Standard normal distribution function; SciPy is loaded when first needed."""
    from scipy import special

    return np.asarray(special.ndtr(z))


def ndtri(probability: float) -> float:
    from scipy import special

    return float(special.ndtri(probability))
