"""What leaves the examples of a batch: one sum of clipped gradients, sealed.

What a release is made of (sum, bound, account) is not believed of an object that
anybody can write to: it is kept here, and a ClippedSum is only the key to it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, NoReturn, final

import keras
import tensorflow as tf

from dp_train.account import Account
from dp_train.errors import NotPrivateError
from dp_train.values import Debtor


@dataclass(frozen=True)
class Contents:
    """What one release is made of.

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
        fixed: other variables that the sum depends on: frozen weights.
        are_tables_as_left: whether the tables of debtors were as the last release left
            them, when the step began; None where there are none.
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
    fixed: tuple[keras.Variable, ...] = ()
    are_tables_as_left: tf.Tensor | None = None


@final
class ClippedSum:
    """Sum over a batch of gradients, each clipped: the only value that leaves it.

    It comes from `clipped_gradients` and pays for exactly one release. Its facts can be
    read, and not be changed: they decide about the noise that is enough.
    """

    __slots__ = ("__weakref__",)

    def __new__(cls, *args: Any, **kwargs: Any) -> ClippedSum:
        """Refuses: also what copies and unpickles.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A ClippedSum is not made or copied by hand. It vouches for what was "
            "clipped, and pays for one release. Call dp_train.clipped_gradients."
        )

    def __repr__(self) -> str:
        """The public facts."""
        return (
            f"ClippedSum(l2_norm_bound={self.l2_norm_bound}, "
            f"expected_batch_size={self.expected_batch_size})"
        )

    @property
    def gradients(self) -> tuple[tf.Tensor | tf.IndexedSlices, ...]:
        """One tensor a trainable variable, in the model's order and shapes: a copy."""
        return tuple(map(_copy, contents(self).gradients))

    @property
    def data_free_gradients(self) -> tuple[tf.Tensor | None, ...]:
        """Gradients of the regularisers, which are added after the noise: a copy."""
        return tuple(map(_copy, contents(self).data_free_gradients))

    @property
    def l2_norm_bound(self) -> float:
        """C; adding or removing one example moves the sum by at most C in l2 norm."""
        return contents(self).l2_norm_bound

    @property
    def expected_batch_size(self) -> Any:
        """Public divisor of the noised sum."""
        return contents(self).expected_batch_size

    def __add__(self, other: object) -> NoReturn:
        raise TypeError(
            f"A ClippedSum cannot be added to {type(other).__name__}. It pays for one "
            "release of one batch, and an example in both parts would count with twice "
            "its clip. Pass the whole batch to clipped_gradients; "
            "make_private(..., microbatch_size=...) bounds the memory that it takes."
        )

    __radd__ = __add__


_contents: weakref.WeakKeyDictionary[ClippedSum, Contents] = weakref.WeakKeyDictionary()
_unused: weakref.WeakSet[ClippedSum] = weakref.WeakSet()


def seal(release: Contents) -> ClippedSum:
    """A clipped sum that vouches for what a release is made of, once."""
    clipped_sum: ClippedSum = object.__new__(ClippedSum)
    _contents[clipped_sum] = release
    _unused.add(clipped_sum)
    return clipped_sum


def contents(clipped_sum: ClippedSum) -> Contents:
    """What the release is made of.

    Raises:
        TypeError: not a clipped sum of the library.
    """
    is_ours = type(clipped_sum) is ClippedSum
    found = _contents.get(clipped_sum) if is_ours else None
    if found is None:
        raise TypeError(
            f"A ClippedSum was expected. Received: {type(clipped_sum).__name__}. Only "
            "what the library clipped is known to be bounded. Pass what "
            "dp_train.clipped_gradients returns."
        )
    return found


def take(clipped_sum: ClippedSum) -> Contents:
    """What the release is made of, once.

    Raises:
        NotPrivateError: it was already released; noise on the same sum twice is not two
            releases from independent samples.
    """
    try:
        _unused.remove(clipped_sum)
    except KeyError:
        raise NotPrivateError(
            "This clipped sum was already released. A second release from the same "
            "draw is not an independent sample, so the accounted epsilon would be "
            "too small. Call clipped_gradients on the next batch."
        ) from None
    return contents(clipped_sum)


def _copy(value: Any) -> Any:
    """Of a tensor that has a memory; one in a graph has none."""
    return tf.constant(value.numpy()) if hasattr(value, "numpy") else value
