"""Correlated noise: tree aggregation and matrix mechanisms as one Gaussian release.

A matrix mechanism releases C x + noise, from which all running sums are computed; x
holds the clipped sum of every step (rows), C is the encoder. All of it is one Gaussian
mechanism. An example that takes part in the steps of a set S changes C x by
sum_{i in S} c_i g_i' with c_i the columns of C and g_i any vectors within the clip
norm, hence

    sensitivity^2 = max over S of sum_{i, j in S} |c_i . c_j|

at most, and exactly where no c_i . c_j is negative (Denisov et al. 2022,
arXiv:2202.08312; Choquette-Choo et al. 2023, arXiv:2211.06530, Theorem 2). Sets of at
most k steps that are at least b apart are bounded term by term (arXiv:2306.08153,
section 3): with s_i the most that sum_{j in S} |c_i . c_j| can be for sets S with i,

    sensitivity^2 <= the largest sum of s_i over such a set

and both by dynamic programming over the steps. It is tight where columns that are b
apart are orthogonal, as those of a banded C, and for one participation.

The steps of an example are fixed beforehand, so what is proved is about its gradients:
zeroing or replacing them. Adding or removing an example of a sequence of batches may
move others to other steps, and nothing is proved about that: the event says that its
batches were ready-made.

Tree aggregation (Kairouz et al. 2021, arXiv:2103.00039) has one row for each complete
node of a binary tree over the steps: c_i . c_j is the number of nodes above both.
"""

import math
from collections.abc import Sequence

import numpy as np

from accounting.events.base import checked_count, checked_noise
from accounting.events.mechanisms import GaussianEvent
from accounting.events.sampling import UnverifiedSamplingEvent
from accounting.numerics import Array

MOST_STEPS = 4096


def matrix_mechanism(
    noise_multiplier: float,
    encoder: Sequence[Sequence[float]] | Array,
    *,
    participations: int = 1,
    separation: int = 1,
) -> UnverifiedSamplingEvent:
    """The release of a whole training with correlated noise, as one event.

    Args:
        noise_multiplier: standard deviation of the noise on C x / clip norm.
        encoder: [rows, steps] C.
        participations: k, the most steps that any example takes part in.
        separation: b, the least distance between two of them.

    Returns:
        GaussianEvent(noise_multiplier / sensitivity) over ready-made batches; its count
        is 1, whatever the number of steps.

    >>> event = matrix_mechanism(4.0, [[1.0, 0.0], [1.0, 1.0]])
    >>> f"{event.event.noise_multiplier:.6f}"
    '2.828427'
    """
    columns = np.asarray(encoder, float)
    if columns.ndim != 2 or columns.size == 0 or not np.isfinite(columns).all():
        raise ValueError(
            f"encoder has the shape {columns.shape}, or numbers that are not finite."
            " Its columns decide how far one example moves the release. Pass a matrix"
            " of rows x steps."
        )
    _check_steps(columns.shape[1])
    gram = np.abs(columns.T @ columns)
    # Above the rounding of the products.
    gram *= 1 + 1e-14 * columns.shape[0]
    return _event(noise_multiplier, gram, participations, separation)


def tree_aggregation(
    noise_multiplier: float,
    steps: int,
    *,
    participations: int = 1,
    separation: int = 1,
) -> UnverifiedSamplingEvent:
    """The release of all complete nodes of a binary tree over the steps, as one event.

        sensitivity = sqrt(floor(log2 steps) + 1)      for one participation

    Args:
        noise_multiplier: standard deviation of the noise on each node / clip norm.
        steps: number of leaves, >= 1.
        participations: k, the most steps that any example takes part in.
        separation: b, the least distance between two of them.

    >>> tree_aggregation(6.0, 256)
    UnverifiedSamplingEvent(event=GaussianEvent(noise_multiplier=2.0))
    """
    steps = checked_count(steps, "steps", "the number of leaves of the tree")
    if _most_taken(steps, participations, separation) == 1:
        return _gaussian(noise_multiplier, steps.bit_length())
    _check_steps(steps)
    gram = np.zeros((steps, steps))
    for level in range(steps.bit_length()):
        node = np.arange(steps) >> level
        is_complete = node < steps >> level
        gram += np.equal.outer(node, node) & np.logical_and.outer(
            is_complete, is_complete
        )
    return _event(noise_multiplier, gram, participations, separation)


def _event(
    noise_multiplier: float, gram: Array, participations: int, separation: int
) -> UnverifiedSamplingEvent:
    count = _most_taken(len(gram), participations, separation)
    apart = min(separation, len(gram))
    largest = np.array([_best(gram[i], i, count, apart) for i in range(len(gram))])
    total = float(_best_of(largest, count, apart)[count]) * (1 + 1e-12)
    if total == 0:
        raise ValueError(
            "encoder is 0 everywhere. What is released then holds no data, and has no"
            " sensitivity to divide by. Pass the encoder that was used."
        )
    return _gaussian(noise_multiplier, total)


def _gaussian(noise_multiplier: float, square: float) -> UnverifiedSamplingEvent:
    """The event of noise over a sensitivity, given as its square."""
    noise = checked_noise(
        noise_multiplier,
        "the standard deviation of the noise in units of the clip norm",
    )
    return UnverifiedSamplingEvent(GaussianEvent(noise / math.sqrt(square)))


def _most_taken(steps: int, participations: int, separation: int) -> int:
    """How many steps an example takes part in: no more than fit so far apart."""
    count = checked_count(participations, "participations", "how often one takes part")
    apart = checked_count(separation, "separation", "how far apart one takes part")
    return min(count, -(-steps // apart))


def _best(row: Array, step: int, count: int, apart: int) -> float:
    """Largest sum of a row over at most count steps, one of them given, b apart."""
    left = _best_of(row[: max(step - apart + 1, 0)], count - 1, apart)
    right = _best_of(row[step + apart :][::-1], count - 1, apart)
    both = (left[k] + right[count - 1 - k] for k in range(count))
    return float(row[step] + max(both))


def _best_of(row: Array, most: int, apart: int) -> Array:
    """[0 .. most] the largest sums of at most that many entries, b apart."""
    best = np.zeros(most + 1)
    if most == 0 or len(row) == 0:
        return best
    # For each number of entries: the best that ends at or before each place.
    before = np.zeros(len(row) + 1)
    for k in range(1, most + 1):
        earlier = np.concatenate([np.zeros(apart - 1), before])[: len(row)]
        after = np.concatenate([[0.0], np.maximum.accumulate(row + earlier)])
        if not (after > before).any():
            best[k:] = before[-1]
            break
        best[k] = after[-1]
        before = after
    return best


def _check_steps(steps: int) -> None:
    if steps > MOST_STEPS:
        raise ValueError(
            f"There are {steps} steps, above {MOST_STEPS}. The products of all columns"
            " would fill the memory. Pass a shorter encoder, or the noise over the"
            " sensitivity that was proved for it as GaussianEvent."
        )
