"""The values that pass between the rooms of dp_train.

Public facts are fields; secrets (examples, gradients before clipping) are arguments
of functions and never stored here, except in a Batch, which is the data itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import tensorflow as tf

from accounting import Event
from dp_train.batches import take_batch
from dp_train.errors import NotPrivateError


class Sampling(Protocol):
    """How batches are drawn: a public fact, and the event that it earns."""

    @property
    def expected_batch_size(self) -> float:
        """Public divisor of the noised sum, > 0, in examples."""

    def event(self, release: Event) -> Event:
        """`release` as seen through this sampling."""

    def pay(self, digest: int | None) -> None:
        """Uses up the draw of the rows with this digest, None where it is unknown.

        Raises:
            NotPrivateError: there is no such draw that is unused.
        """


@dataclass
class Batch:
    """One batch drawn by a loader of ours; it pays for exactly one release.

    Attributes:
        x, y, sample_weight: arrays or nested structures of arrays, [n, ...]; n may
            be 0. They are the private examples.
        sampling: how the batch was drawn.
        number: of the draw, which copies of the batch share.
        copies: augmented copies of each example, along the second axis of x if > 1.
    """

    x: Any = field(repr=False)
    y: Any = field(repr=False)
    sample_weight: Any = field(repr=False)
    sampling: Sampling
    number: int = field(repr=False)
    copies: int = 1

    def take(self) -> tuple[tuple[Any, Any, Any], Sampling]:
        """((x, y, sample_weight), how they were drawn), once.

        Raises:
            NotPrivateError: the batch, or a copy of it, was already used; a second
                release from the same draw is not a fresh Poisson sample. Or its rows
                are others than were drawn. Or a function is being traced, which would
                run on this one draw again and again.
        """
        if not tf.executing_eagerly():
            raise NotPrivateError(
                "A Batch of a PoissonLoader was used inside a tf.function. It would "
                "keep this one draw and release it at every call, accounted as fresh "
                "samples. Call clipped_gradients outside of tf.function: it is "
                "compiled by itself."
            )
        rows = self.x, self.y, self.sample_weight
        return rows, take_batch(self.number, rows)


class Debtor(Protocol):
    """Who draws the noise of one variable later, when it is read."""

    def owe(self, variance: tf.Tensor) -> None:
        """Every coordinate is due noise of so much more variance, float64."""


BeginRelease = Callable[..., float]
"""Charges one release for the named noise source, with values of the step that only its
run knows; returns the noise's stddev."""
