"""The values that pass between the rooms of dp_train.

Public facts are fields; secrets (examples, gradients before clipping) are arguments
of functions and never stored here, except in a Batch, which is the data itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import keras
import tensorflow as tf

from accounting import Event, GaussianEvent, Ledger
from dp_train.batches import take_batch
from dp_train.errors import NotPrivateError
from dp_train.owner import Owner


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
class Account:
    """Where a release is charged: the weights' owner, and how its batch was drawn.

    `sampling` may be exchanged between fits; the compiled step asks at run time.
    `least_noise_multiplier` is what a budget counts on: with less, fewer steps fit.
    `refusal` is why the last charge was refused: TensorFlow tells it in its own words.
    """

    owner: Owner
    sampling: Sampling | None = None
    least_noise_multiplier: float = 0.0
    refusal: NotPrivateError | None = None

    @property
    def ledger(self) -> Ledger:
        """Every release that the owner knows."""
        return self.owner.ledger

    def charge(
        self,
        noise_multiplier: float,
        l2_norm_clip: float,
        noise_source: str,
        digest: int | None = None,
    ) -> None:
        """Records one release; called before its noise leaves the generator.

        Args:
            noise_multiplier, l2_norm_clip, noise_source: of the release.
            digest: of its rows.

        Raises:
            NotPrivateError: no sampling was declared for this release, its rows are no
                draw that is unused, or it has less noise than a budget counts on.
        """
        try:
            self._charge(noise_multiplier, l2_norm_clip, noise_source, digest)
        except NotPrivateError as error:
            self.refusal = error
            raise

    def _charge(
        self,
        noise_multiplier: float,
        l2_norm_clip: float,
        noise_source: str,
        digest: int | None,
    ) -> None:
        if self.sampling is None:
            raise NotPrivateError(
                "A release was about to be made outside fit, train_on_batch and "
                "apply_clipped_sum. It cannot be accounted, since nothing says how "
                "its batch was drawn. Call one of those three instead."
            )
        if noise_multiplier < self.least_noise_multiplier:
            raise NotPrivateError(
                f"A release was about to be made with noise_multiplier="
                f"{noise_multiplier:g}, and BudgetStop counts on at least "
                f"{self.least_noise_multiplier:g} until fit ends. Its steps would "
                "exceed the budget. Lower the noise between two fits."
            )
        self.sampling.pay(digest)
        self.owner.charge(
            self.sampling.event(GaussianEvent(noise_multiplier)),
            l2_norm_clip=l2_norm_clip,
            noise_source=noise_source,
        )


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


@dataclass
class ClippedSum:
    """Sum over a batch of gradients, each clipped: the only value that leaves it.

    It pays for exactly one release.

    Attributes:
        gradients: one tensor a trainable variable, in the model's order and shapes.
        l2_norm_bound: C > 0; adding or removing one example moves the sum (all
            variables together) by at most C in l2 norm.
        expected_batch_size: public divisor of the noised sum (float or scalar tensor).
        account: where the release is charged.
        variables: the weights that the gradients belong to.
        data_free_gradients: gradients of the regularisers, which read weights only;
            added after the noise. None where a variable has none.
        digest: of the rows, int64, by which the charge finds their draw; None where the
            draw was used up before.
        is_reached: for each variable, whether an example's gradient can be other than
            0 there; a fact of the traced step, never of the data. Others are no part of
            the release: they get no noise either. () for all.
        debtors: for each variable whose noise is drawn only when it is read, who does
            that; the gradient then is an IndexedSlices. None elsewhere, () for nowhere.
    """

    gradients: tuple[tf.Tensor | tf.IndexedSlices, ...]
    l2_norm_bound: float
    expected_batch_size: Any
    account: Account
    variables: tuple[keras.Variable, ...]
    data_free_gradients: tuple[tf.Tensor | None, ...]
    debtors: tuple[Debtor | None, ...] = ()
    digest: tf.Tensor | None = None
    is_reached: tuple[bool, ...] = ()
    _is_used: bool = field(default=False, repr=False)

    def __add__(self, other: object) -> NoReturn:
        raise TypeError(
            f"A ClippedSum cannot be added to {type(other).__name__}. It pays for one "
            "release of one batch, and an example in both parts would count with twice "
            "its clip. Pass the whole batch to clipped_gradients; "
            "make_private(..., microbatch_size=...) bounds the memory that it takes."
        )

    __radd__ = __add__

    def take(self) -> tuple[tf.Tensor | tf.IndexedSlices, ...]:
        """The gradients, once.

        Raises:
            NotPrivateError: they were already released; noise on the same sum twice is
                not two releases from independent samples.
        """
        if self._is_used:
            raise NotPrivateError(
                "This clipped sum was already released. A second release from the same "
                "draw is not an independent sample, so the accounted epsilon would be "
                "too small. Call clipped_gradients on the next batch."
            )
        self._is_used = True
        return self.gradients


BeginRelease = Callable[..., float]
"""Charges one release for the named noise source, with values of the step that only its
run knows; returns the noise's stddev."""
