"""Noise that a table of rows owes until somebody looks: exact, and as good as free.

A step of plain SGD moves every row of an embedding table by noise, and reads few of
them. Noise that nobody has seen yet can be drawn later. Row i owes the variance

    owed_i = sum over the steps t since it was settled of (lr_t s_t C_t / B_t)^2

with lr the learning rate, s the noise multiplier, C the clip norm and B the divisor. It
gets N(0, owed_i) when it is next read: a sum of independent normal samples is one with
the sum of their variances. So whatever is computed from settled rows has the same joint
law as if every row had got its own sample at every step. Momentum and weight decay make
of old noise more than a sum, and need a sample at every step.

Between steps the values of rows that owe hide less than was promised. Whoever hands the
table to anybody calls `settle` first (owing.py).
"""

from __future__ import annotations

import math
from typing import Any, final

import keras
import numpy as np
import tensorflow as tf

from dp_train.noise import draw


@final
class OwedNoise:
    """What each row of one table owes.

    Args:
        variable: [rows, width] float32, built.

    Attributes:
        variable, rows, width: as given.
    """

    SCOPE = "dp_train_owed_noise/"
    """Names of the ops of `read` begin so."""

    def __init__(self, variable: keras.Variable) -> None:
        self.variable = variable
        self._table: tf.Variable = variable.value
        self.rows, self.width = map(int, variable.shape)
        self._due = tf.Variable(0.0, trainable=False, dtype=tf.float64)
        # What was due when the row was last settled.
        zeros = np.zeros(self.rows)
        self._settled = tf.Variable(zeros, trainable=False, dtype=tf.float64)
        self._reader = tf.Variable(zeros, trainable=False, dtype=tf.int32)

    @property
    def state(self) -> list[tf.Variable]:
        """What a step writes to: the table, and what each row owes."""
        return [self._table, self._due, self._settled, self._reader]

    def owe(self, variance: tf.Tensor) -> None:
        """Every row owes that much more; the release must have been charged.

        Args:
            variance: float64, of one coordinate.
        """
        # Up, so that a small variance next to a large one is not lost.
        due = tf.math.nextafter(self._due + variance, tf.constant(math.inf, tf.float64))
        self._due.assign(due)

    def read(self, ids: tf.Tensor) -> tf.Tensor:
        """[n, width] rows of the table, settled first.

        Args:
            ids: [n] integers in [0, rows), any of them several times.
        """
        with tf.name_scope(self.SCOPE):
            return self._read(ids)

    def _read(self, ids: tf.Tensor) -> tf.Tensor:
        due = tf.identity(self._due)
        places = tf.range(tf.shape(ids)[0])
        # One of several equal ids gets the noise: the one that wrote last.
        self._reader.scatter_update(tf.IndexedSlices(places, ids))
        is_one = tf.equal(tf.gather(self._reader, ids), places)
        owed = tf.where(is_one, due - tf.gather(self._settled, ids), 0.0)
        stddev = tf.cast(tf.sqrt(tf.maximum(owed, 0.0)), tf.float32)
        noise = stddev[:, None] * draw.paid_later(tf.shape(ids)[0], self.width)
        self._table.scatter_add(tf.IndexedSlices(noise, ids))
        rows = tf.gather(self._table, ids)
        # After the noise: a row whose noise could not be drawn goes on owing.
        with tf.control_dependencies([rows]):
            self._settled.scatter_update(tf.IndexedSlices(0.0 * owed + due, ids))
        return rows

    def settle(self) -> None:
        """Draws what every row owes; eagerly, between steps."""
        due = float(self._due)
        if not due:
            return
        owed: Any = np.maximum(due - self._settled.numpy(), 0.0)
        if not owed.any():
            return
        noise = draw.paid_now(self.rows, self.width)
        noise *= np.sqrt(owed).astype(np.float32)[:, None]
        self._table.assign_add(noise)
        # From 0 again, so that a small variance is not lost next to old ones; in this
        # order, so that an interruption costs noise twice, never once too few.
        self._settled.assign(np.zeros(self.rows))
        self._due.assign(0.0)
