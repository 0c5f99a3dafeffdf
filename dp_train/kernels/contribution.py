"""What a kernel returns: per-example gradients of one operand, kept or factored.

Index letters: b example, t position, i in, o out, k entry of the operand.
"""

from __future__ import annotations

import abc
import functools
from typing import final

import keras
import tensorflow as tf


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
    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor) -> tf.Tensor:
        """sum_b factors_b * gradient_b over the examples with keeps_b.

        Args:
            factors: [b] finite factors.
            keeps: [b] booleans; what an example holds is not read where False.

        Returns:
            A tensor in the operand's shape.
        """

    @abc.abstractmethod
    def kept(self) -> tf.Tensor:
        """[b, k...] the gradients themselves."""

    def plus(self, other: Contribution) -> Contribution:
        """Gradients of an operand that is used twice: norms need the cross term.

        Raises:
            UnsupportedSiteError: the two uses are of different kinds.
        """
        raise UnsupportedSiteError(
            f"a weight is used in two ways ({self.rule} and {other.rule})"
        )


def wide(values: tf.Tensor) -> tf.Tensor:
    """float32 where it is narrower: rounding a bfloat16 sum would exceed the bound."""
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values


def select(values: tf.Tensor, factors: tf.Tensor, keeps: tf.Tensor) -> tf.Tensor:
    """factors_b * values_b, and exactly 0 where not keeps_b (0 * NaN is NaN)."""
    shape = [-1] + [1] * (values.shape.rank - 1)
    scaled = values * tf.reshape(tf.cast(factors, values.dtype), shape)
    return tf.where(tf.reshape(keeps, shape), scaled, tf.zeros_like(values))


def squared_norms(values: tf.Tensor, is_wide: bool) -> tf.Tensor:
    """[b] float64 squared l2 norm of each row of [b, ...].

    Args:
        values: [b, ...], any float dtype.
        is_wide: squares in float64, right for any float32. Otherwise squares in
            float32: above 1e19 they overflow to inf, and what underflows (each square
            loses less than 2^-126) is added back, so that no norm is too small.
    """
    axes = list(range(1, values.shape.rank))
    if is_wide or values.dtype == tf.float64:
        return tf.reduce_sum(tf.square(tf.cast(values, tf.float64)), axes)
    norms = tf.math.reduce_euclidean_norm(tf.cast(values, tf.float32), axes)
    lost = tf.cast(tf.size(values[:1]), tf.float64) * 2.0**-126
    return tf.square(tf.cast(norms, tf.float64)) + lost


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

    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(select(self._gradients, factors, keeps), axis=0)

    def kept(self) -> tf.Tensor:
        return self._gradients

    def plus(self, other: Contribution) -> Contribution:
        if not isinstance(other, Kept):
            return super().plus(other)
        return Kept(self.rule, self._gradients + other._gradients)


@final
class Product(Contribution):
    """gradient_b = sum_t a_bt g_bt^T; with one row an example it is never formed.

    ||a g^T||^2 = ||a||^2 ||g||^2               Goodfellow 2015 (arXiv:1510.01799)
    """

    def __init__(
        self, inputs: tf.Tensor, cotangents: tf.Tensor, positions: int | None
    ) -> None:
        """`inputs`: [b, t, i]; `cotangents`: [b, t, o]; `positions`: t if known."""
        self._inputs = wide(inputs)
        self._cotangents = wide(cotangents)
        self._positions = positions
        self._is_outer = positions == 1
        self.rule = "outer product" if self._is_outer else "kept product"
        size = (inputs.shape[-1] or 0) * (cotangents.shape[-1] or 0)
        self.kept_per_row = 0 if self._is_outer else size

    @functools.cached_property
    def _gradients(self) -> tf.Tensor:
        """[b, i, o], computed once: it replaces the weight's backward pass."""
        return tf.matmul(self._inputs, self._cotangents, transpose_a=True)

    def squared_norms(self, is_wide: bool) -> tf.Tensor:
        if not self._is_outer:
            return squared_norms(self._gradients, is_wide)
        inputs = squared_norms(self._inputs, is_wide)
        return inputs * squared_norms(self._cotangents, is_wide)

    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor) -> tf.Tensor:
        if not self._is_outer:
            return tf.reduce_sum(select(self._gradients, factors, keeps), axis=0)
        inputs = select(self._inputs[:, 0], factors, keeps)
        cotangents = select(self._cotangents[:, 0], tf.ones_like(factors), keeps)
        return tf.matmul(inputs, cotangents, transpose_a=True)

    def kept(self) -> tf.Tensor:
        return self._gradients

    def plus(self, other: Contribution) -> Contribution:
        if not isinstance(other, Product):
            return super().plus(other)
        count = None
        if self._positions is not None and other._positions is not None:
            count = self._positions + other._positions
        return Product(
            tf.concat([self._inputs, other._inputs], axis=1),
            tf.concat([self._cotangents, other._cotangents], axis=1),
            count,
        )


@final
class Rows(Contribution):
    """Gradient of a table of which each example reads some rows, ids may repeat.

    ||gradient_b||^2 = sum_{t, t'} [id_t = id_t'] <g_t, g_t'>
    """

    rule = "rows read"
    kept_per_row = 0

    def __init__(self, ids: tf.Tensor, cotangents: tf.Tensor, rows: int) -> None:
        """`ids`: [b, t]; `cotangents`: [b, t, o]; `rows`: of the table."""
        self._ids = ids
        self._cotangents = wide(cotangents)
        self._rows = rows

    def squared_norms(self, is_wide: bool) -> tf.Tensor:
        # Sum the cotangents of equal ids at the first place where the id stands, so
        # that nothing is subtracted: a norm by cancellation can be driven to 0.
        equal = tf.equal(self._ids[:, :, None], self._ids[:, None, :])
        merged = tf.matmul(
            tf.cast(equal, tf.float64), tf.cast(self._cotangents, tf.float64)
        )
        times = tf.reduce_sum(tf.cast(equal, tf.float64), axis=2)
        return tf.reduce_sum(tf.reduce_sum(tf.square(merged), axis=2) / times, axis=1)

    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor) -> tf.Tensor:
        values = select(self._cotangents, factors, keeps)
        width = values.shape[-1]
        return tf.math.unsorted_segment_sum(
            tf.reshape(values, [-1, width]), tf.reshape(self._ids, [-1]), self._rows
        )

    def kept(self) -> tf.Tensor:
        is_row = tf.one_hot(self._ids, self._rows, dtype=self._cotangents.dtype)
        return tf.matmul(is_row, self._cotangents, transpose_a=True)

    def plus(self, other: Contribution) -> Contribution:
        if not isinstance(other, Rows):
            return super().plus(other)
        return Rows(
            tf.concat([self._ids, other._ids], axis=1),
            tf.concat([self._cotangents, other._cotangents], axis=1),
            self._rows,
        )
