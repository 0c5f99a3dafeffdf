"""Battery: every example enters every batch by its own fresh coin.

Loaders are tried on x = 0, 1, 2, ..., so that a batch shows who is in it. False alarm
1e-9 for each assertion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from scipy import stats

import dp_train
from tests import statistics

LoaderMaker = Callable[[int, float, int], Any]
"""(population, batch_size, steps_per_epoch) to a loader of arange(population)."""

POPULATION = 2_000
BATCH_SIZE = 60
STEPS = 25
EPOCHS = 16


def poisson_loader(population: int, batch_size: float, steps: int) -> Any:
    """The loader that `fit` makes from arrays."""
    x = np.arange(population, dtype="float32")
    return dp_train.PoissonLoader(x, batch_size=batch_size, steps_per_epoch=steps)


def by_keras(loader: Any) -> list[np.ndarray[Any, Any]]:
    """One epoch of drawn indices, the way that fit asks for them."""
    batches = [loader[i] for i in range(len(loader))]
    loader.on_epoch_end()
    return [np.asarray(batch[0], np.int64) for batch in batches]


def by_iteration(loader: Any) -> list[np.ndarray[Any, Any]]:
    """One epoch of drawn indices, the way that a custom loop asks for them."""
    return [np.asarray(batch.x, np.int64) for batch in loader]


WAYS = {"keras": by_keras, "iteration": by_iteration}


def drawn(make: LoaderMaker, way: str, epochs: int = EPOCHS) -> Any:
    """Index arrays of every step of several epochs."""
    loader = make(POPULATION, BATCH_SIZE, STEPS)
    return [indices for _ in range(epochs) for indices in WAYS[way](loader)]


def assert_poisson(make: LoaderMaker = poisson_loader, way: str = "keras") -> None:
    """Sizes are Binomial(N, q), examples equally likely, and no two draws alike.

    Over 400 steps of 60 expected: the mean size is seen when off by 2 %, the scatter of
    sizes by a factor of 1.5 (fixed sizes have 0), one example's rate by a factor of 3,
    the overlap of two draws when they share 20 examples instead of the expected 1.8.
    """
    draws = drawn(make, way)
    sampling = BATCH_SIZE / POPULATION
    for indices in draws:
        assert len(np.unique(indices)) == len(indices), (
            "An example is in a batch twice."
        )
        assert np.all((indices >= 0) & (indices < POPULATION)), "An unknown example."
    sizes = np.array([len(indices) for indices in draws])
    total = int(np.sum(sizes))
    statistics.assert_binomial(
        total, POPULATION * len(draws), sampling, what="draws altogether"
    )
    statistics.assert_binomial_dispersion(sizes, POPULATION, sampling)
    is_in = np.zeros((len(draws), POPULATION), np.float32)
    for step, indices in enumerate(draws):
        is_in[step, indices] = 1
    _assert_rates(is_in, sampling)
    _assert_overlaps(is_in, is_in, sampling)


def _assert_rates(is_in: Any, sampling: float) -> None:
    """Each example's number of draws is Binomial(steps, q), and so is their scatter."""
    counts = np.sum(is_in, axis=0)
    each = statistics.FALSE_ALARM / counts.size
    for count in (np.min(counts), np.max(counts)):
        statistics.assert_binomial(
            int(count), len(is_in), sampling, each, what="draws of one example"
        )
    statistics.assert_binomial_dispersion(counts, len(is_in), sampling)


def _assert_overlaps(first: Any, second: Any, sampling: float) -> None:
    """Two different draws share Binomial(N, q^2) examples; their sum is as expected."""
    overlaps = first @ second.T
    if first is second:
        overlaps = overlaps[np.triu_indices(len(first), 1)]
    overlaps = overlaps.ravel()
    bound = stats.binom.isf(
        statistics.FALSE_ALARM / overlaps.size, first.shape[1], sampling**2
    )
    largest = np.max(overlaps)
    assert largest <= bound, (
        f"Two draws share {largest:.0f} examples, more than {bound:.0f}: they are not "
        "independent."
    )


def assert_consecutive_draws_are_independent(
    make: LoaderMaker = poisson_loader, way: str = "keras"
) -> None:
    """The number of examples shared by neighbouring steps is neither high nor low.

    Shuffled batches of an epoch share none; independent ones share N q^2 = 1.8 on
    average. Pairs (0, 1), (2, 3), ... share independent counts.
    """
    draws = drawn(make, way)
    shared = sum(
        len(np.intersect1d(a, b)) for a, b in zip(draws[::2], draws[1::2], strict=True)
    )
    sampling = BATCH_SIZE / POPULATION
    statistics.assert_binomial(
        shared,
        POPULATION * (len(draws) // 2),
        sampling**2,
        what="examples shared by neighbouring steps",
    )


def assert_draws_ignore_the_random_seed(
    make: LoaderMaker = poisson_loader, way: str = "keras"
) -> None:
    """Equal keras.utils.set_random_seed (NumPy's and Python's too), other draws."""
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        is_in = np.zeros((STEPS, POPULATION), np.float32)
        for step, indices in enumerate(drawn(make, way, epochs=1)):
            is_in[step, indices] = 1
        runs.append(is_in)
    _assert_overlaps(runs[0], runs[1], BATCH_SIZE / POPULATION)
