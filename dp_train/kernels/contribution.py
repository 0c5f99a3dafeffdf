"""What a kernel returns: per-example gradients of one operand, kept or factored.

Index letters: b example, t position, o out, k entry of the operand.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any, final

import keras
import tensorflow as tf

_RESHAPING = frozenset(["EnsureShape", "ExpandDims", "Reshape"])


class UnsupportedSiteError(Exception):
    """An op mixes a weight with data in a way that no kernel knows.

    Attributes:
        op: the op, where there is one.
        layer: the layer that made it, where known.
    """

    def __init__(self, reason: str, op: tf.Operation | None = None) -> None:
        super().__init__(reason)
        self.op = op
        self.layer: keras.layers.Layer | None = None


class Contribution(abc.ABC):
    """Gradients of one operand (a weight as an op sees it), one an example.

    Attributes:
        rule: short name for the plan.
        kept_per_row: numbers that are in memory for each example until the sum.
        scratch_per_row: numbers that are in memory only while they are computed.
    """

    rule: str
    kept_per_row: int
    scratch_per_row: int = 0

    @abc.abstractmethod
    def squared_norms(self, is_wide: bool) -> tf.Tensor:
        """[b] float64 squared l2 norms; see the function of this name."""

    @abc.abstractmethod
    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor | None) -> tf.Tensor:
        """sum_b factors_b * gradient_b.

        Args:
            factors: [b] finite factors, 0 for examples that do not count.
            keeps: [b] booleans; what an example holds is not read where False. None:
                all gradients are finite, and the quickest way will do.

        Returns:
            A tensor in the operand's shape.
        """

    @abc.abstractmethod
    def kept(self) -> tf.Tensor:
        """[b, k...] the gradients themselves."""

    def added(self, batch: tf.Tensor, several: int) -> Contribution:
        """Gradients of examples, where these are those of their rows.

        Args:
            batch: b; the rows of an example follow each other in [b several].
            several: rows of an example.
        """
        rows = self.kept()
        shape = rows.shape[1:]
        gradients = tf.reduce_sum(tf.reshape(rows, [batch, several, *shape]), axis=1)
        scratch = several * ((shape.num_elements() or 0) + self.scratch_per_row)
        return Kept(self.rule, tf.ensure_shape(gradients, [None, *shape]), scratch)

    @abc.abstractmethod
    def plus(self, others: Sequence[Any]) -> Contribution:
        """Gradients of an operand that is used several times: norms need cross terms.

        Args:
            others: of the same class.
        """


def together(contributions: Sequence[Contribution]) -> Contribution:
    """One contribution for several uses of an operand, all of one class."""
    first, *others = contributions
    return first.plus(others) if others else first


def wide(values: tf.Tensor) -> tf.Tensor:
    """float32 where it is narrower: rounding a bfloat16 sum would exceed the bound."""
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values


def select(values: tf.Tensor, factors: tf.Tensor, keeps: tf.Tensor | None) -> tf.Tensor:
    """factors_b * values_b, and exactly 0 where not keeps_b (0 * NaN is NaN)."""
    shape = [-1] + [1] * (values.shape.rank - 1)
    scaled = values * tf.reshape(tf.cast(factors, values.dtype), shape)
    if keeps is None:
        return scaled
    return tf.where(tf.reshape(keeps, shape), scaled, tf.zeros_like(values))


def weighted_sum_of(
    gradients: tf.Tensor, factors: tf.Tensor, keeps: tf.Tensor | None
) -> tf.Tensor:
    """sum_b factors_b * gradients_b over the first axis of [b, k...]."""
    if keeps is not None:
        return tf.reduce_sum(select(gradients, factors, keeps), axis=0)
    # A matmul reads the gradients once and writes nothing of their size.
    shape = gradients.shape[1:]
    numbers = shape.num_elements()
    flat = tf.reshape(gradients, [-1, numbers] if numbers else [tf.size(factors), -1])
    total = tf.matmul(tf.cast(factors, flat.dtype)[None], flat)
    return tf.reshape(total, shape if numbers else tf.shape(gradients)[1:])


def squared_norms(values: tf.Tensor, is_wide: bool) -> tf.Tensor:
    """[b] float64 squared l2 norm of each row of [b, ...].

    Args:
        values: [b, ...], any float dtype.
        is_wide: squares in float64, right for any float32. Otherwise squares in
            float32: above 1e19 they overflow to inf, and what underflows (each square
            loses less than 2^-126) is added back, so that no norm is too small.
    """
    values = _as_made(values)
    axes = list(range(1, values.shape.rank))
    if is_wide or values.dtype == tf.float64:
        return tf.reduce_sum(tf.square(tf.cast(values, tf.float64)), axes)
    norms = tf.math.reduce_euclidean_norm(tf.cast(values, tf.float32), axes)
    numbers: Any = values.shape[1:].num_elements()
    if numbers is None:
        numbers = tf.cast(tf.size(values[:1]), tf.float64)
    return tf.square(tf.cast(norms, tf.float64)) + numbers * 2.0**-126


def _as_made(values: tf.Tensor) -> tf.Tensor:
    """The same rows before they were reshaped.

    A weight and its bias see one cotangent, in two shapes: its norms, written in the
    same way for both, are computed once.
    """
    numbers = values.shape[1:].num_elements()
    while not tf.executing_eagerly() and values.op.type in _RESHAPING and numbers:
        (made, *_) = values.op.inputs
        # As many numbers a row, hence as many rows.
        is_rows = (made.shape.rank or 0) > 1
        if not is_rows or made.shape[1:].num_elements() != numbers:
            break
        values = made
    return values


@final
class Kept(Contribution):
    """Gradients that are in memory: they replace the weight's backward pass."""

    def __init__(
        self, rule: str, gradients: tf.Tensor, scratch_per_row: int = 0
    ) -> None:
        """`gradients`: [b, k...] in the operand's shape."""
        self.rule = rule
        self.scratch_per_row = scratch_per_row
        self._gradients = wide(gradients)
        self.kept_per_row = gradients.shape[1:].num_elements() or 0

    def squared_norms(self, is_wide: bool) -> tf.Tensor:
        return squared_norms(self._gradients, is_wide)

    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor | None) -> tf.Tensor:
        return weighted_sum_of(self._gradients, factors, keeps)

    def kept(self) -> tf.Tensor:
        return self._gradients

    def plus(self, others: Sequence[Kept]) -> Contribution:
        return Kept(self.rule, tf.add_n([k._gradients for k in [self, *others]]))


@final
class RowsRead(Contribution):
    """Gradient of a table of which each example reads some rows, ids may repeat.

    Cotangents of equal ids are added, within the example, where the id stands first;
    what is measured there is what is summed, so that no rounding separates the two:

        ||gradient_b||^2 = sum over ids i of || sum_{t: id_t = i} g_t ||^2
    """

    rule = "rows read"
    kept_per_row = 0

    def __init__(self, ids: tf.Tensor, cotangents: tf.Tensor, rows: int) -> None:
        """`ids`: [b, t]; `cotangents`: [b, t, o]; `rows`: of the table."""
        self._ids = ids
        self._cotangents = wide(cotangents)
        self._rows = rows
        self.scratch_per_row = cotangents.shape[1:].num_elements() or 0

    @functools.cached_property
    def _merged(self) -> tf.Tensor:
        """[b, t, o]: sums of equal ids where the id stands first, else 0."""
        batch, length, width = tf.unstack(tf.shape(self._cotangents))
        equal = tf.equal(self._ids[:, :, None], self._ids[:, None, :])
        first = tf.argmax(equal, axis=2, output_type=tf.int32)
        places = first + length * tf.range(batch)[:, None]
        merged = tf.math.unsorted_segment_sum(
            tf.reshape(self._cotangents, [-1, width]),
            tf.reshape(places, [-1]),
            batch * length,
        )
        return tf.reshape(merged, tf.shape(self._cotangents))

    def squared_norms(self, is_wide: bool) -> tf.Tensor:
        return squared_norms(self._merged, is_wide)

    @property
    def flat_ids(self) -> tf.Tensor:
        """[b t] the row of each of `weighted_rows`."""
        return tf.reshape(self._ids, [-1])

    def weighted_rows(self, factors: tf.Tensor, keeps: tf.Tensor | None) -> tf.Tensor:
        """[b t, o] what the weighted sum adds to each row that was read."""
        values = select(self._merged, factors, keeps)
        return tf.reshape(values, [-1, self._cotangents.shape[-1]])

    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor | None) -> tf.Tensor:
        values = self.weighted_rows(factors, keeps)
        total = tf.math.unsorted_segment_sum(values, self.flat_ids, self._rows)
        return tf.ensure_shape(total, [self._rows, self._cotangents.shape[-1]])

    def kept(self) -> tf.Tensor:
        is_row = tf.one_hot(self._ids, self._rows, dtype=self._cotangents.dtype)
        return tf.matmul(is_row, self._cotangents, transpose_a=True)

    def plus(self, others: Sequence[RowsRead]) -> Contribution:
        every = [self, *others]
        ids = tf.concat([tf.cast(r._ids, tf.int64) for r in every], axis=1)
        cotangents = tf.concat([r._cotangents for r in every], axis=1)
        return RowsRead(ids, cotangents, self._rows)
