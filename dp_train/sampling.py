"""Who is in a batch, and the sampling event that each way of drawing earns."""

from __future__ import annotations

import numbers
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from accounting import Event, PoissonSampledEvent, UnverifiedSamplingEvent
from dp_train.errors import NotPrivateError


def _fresh_generator() -> np.random.Generator:
    """A generator keyed by 256 bits of OS entropy; never seeded, saved or reused."""
    return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))


@dataclass(frozen=True, slots=True)
class PoissonSampling:
    """Each example enters each batch by its own coin of probability B / N.

    Drawn exactly, and cheaper than a shuffle: the size n ~ Binomial(N, B / N), then a
    uniform subset of n examples. Each draw takes fresh OS entropy, so batches do not
    depend on `keras.utils.set_random_seed`, on forks or on how often Keras peeks.

    Attributes:
        population: N > 0, the number of examples.
        expected_batch_size: B, 0 < B <= N; also the public divisor.

    Raises:
        ValueError: B is not in (0, N].
    """

    population: int
    expected_batch_size: float

    def __post_init__(self) -> None:
        if self.population < 1:
            raise ValueError(
                f"There must be at least one example to train on. Received: "
                f"{self.population} examples. Poisson sampling draws from a fixed "
                "population. Pass non-empty arrays."
            )
        size = self.expected_batch_size
        if isinstance(size, bool) or not isinstance(size, numbers.Real):
            raise ValueError(
                f"batch_size must be a number. Received: batch_size={size!r} "
                f"({type(size).__name__}). Poisson sampling includes each example with "
                "probability batch_size / examples. Pass the expected number of "
                "examples of a batch, as 256."
            )
        if not 0 < self.expected_batch_size <= self.population:
            raise ValueError(
                f"batch_size must be above 0 and at most {self.population}, the number "
                f"of examples. Received: batch_size={self.expected_batch_size!r}. "
                "Poisson sampling includes each example with probability "
                "batch_size / examples, which cannot exceed 1. Choose a smaller "
                "batch_size."
            )

    @property
    def sampling_probability(self) -> float:
        """q = B / N, in (0, 1]."""
        return self.expected_batch_size / self.population

    def event(self, release: Event) -> Event:
        """`release` on a Poisson sample."""
        return PoissonSampledEvent(self.sampling_probability, release)

    def pay(self, digest: int | None) -> None:
        """Refuses: that something is drawn so does not show what was drawn.

        Raises:
            NotPrivateError: always; Draws and UsedDraw know of draws.
        """
        raise NotPrivateError(
            "A release was about to be charged as Poisson sampled, and nothing shows "
            "that its rows were drawn so. Other rows would earn an epsilon that is "
            "not theirs. Pass the loader to fit, loader.dataset_for(optimizer) to the "
            "fit of a plain model, or a Batch of the loader to clipped_gradients."
        )

    def indices(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[n] distinct indices in [0, N), in random order; n may be 0."""
        generator = _fresh_generator()
        size = generator.binomial(self.population, self.sampling_probability)
        return generator.choice(self.population, size, replace=False, shuffle=False)


@dataclass(frozen=True, slots=True)
class UnverifiedSampling:
    """Batches that somebody else made: a stream, a dataset, one ready-made batch.

    No amplification is claimed, and the guarantee is that of one example being blanked
    out of its place (zero-out), since removing it would shift the batches behind it.

    Attributes:
        expected_batch_size: public divisor, > 0.
    """

    expected_batch_size: float

    def __post_init__(self) -> None:
        if not 0 < self.expected_batch_size < float("inf"):
            raise ValueError(
                f"expected_batch_size must be positive. Received: "
                f"{self.expected_batch_size!r}. The noised sum is divided by it. Pass "
                "the usual number of rows of a batch."
            )

    def event(self, release: Event) -> Event:
        """`release` without amplification."""
        return UnverifiedSamplingEvent(release)

    def pay(self, digest: int | None) -> None:
        """Nothing to do: every release is charged in full, whatever its rows."""
