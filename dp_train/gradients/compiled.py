"""An engine as one XLA program, for chunks of a fixed number of rows.

XLA compiles anew for every shape, and Poisson batches have a new size at each draw. So
the rows of a batch, however many, go through a program for `rows` rows, and rows that
are no examples fill up what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from dp_train.gradients.objective import Objective, Outputs, Rows, weight_values
from dp_train.gradients.structures import map_rows
from dp_train.made_up import ROWS


def fixed_rows(most: int | None, expected_batch_size: float) -> int:
    """Rows that most Poisson batches of expected size B fit into.

    B + 2 sqrt(B): about one batch in 50 is larger and takes a second run. At B = 256
    that is 15 % more rows than were drawn, and a larger or smaller margin costs more.

    Args:
        most: rows that memory allows; None: any.
        expected_batch_size: B.
    """
    usual = math.ceil(expected_batch_size + 2 * math.sqrt(expected_batch_size))
    # The certificate compares ROWS of them.
    return max(ROWS, usual if most is None else min(most, usual))


class Program:
    """An engine that XLA has compiled, or will when it is first called.

    Attributes:
        rows: of a chunk.
    """

    def __init__(self, compute: Callable[..., Any], rows: int) -> None:
        """`compute`: clipped_sum of an engine."""
        self.rows = rows
        self._compute = compute
        self._functions: dict[tuple[bool, bool], Any] = {}

    def __call__(
        self,
        objective: Objective,
        rows: Rows,
        keys: list[tf.Tensor],
        l2_norm_clip: float | tf.Tensor,
        is_real: tf.Tensor,
    ) -> tuple[list[tf.Tensor], Outputs]:
        """As the engine itself, on at most `rows` rows; outputs have `rows` rows."""
        given = map_rows(self._filled_up, (rows, keys, is_real))
        # Weights are arguments: a certificate shakes them.
        weights = weight_values(objective.variables)
        clip = tf.convert_to_tensor(l2_norm_clip, tf.float64)
        return self._function(objective)(weights, *given, clip)

    def _function(self, objective: Objective) -> Any:
        """One program with random layers switched on, and one with them off."""
        kind = objective.training, bool(objective.seed_states)
        if kind not in self._functions:

            @tf.function(jit_compile=True, autograph=False)
            def function(
                weights: Any, rows: Rows, keys: Any, is_real: tf.Tensor, clip: tf.Tensor
            ) -> Any:
                mapping = list(zip(objective.variables, weights, strict=True))
                with keras.StatelessScope(mapping):
                    return self._compute(objective, rows, keys, clip, is_real)

            self._functions[kind] = function
        return self._functions[kind]

    def _filled_up(self, t: tf.Tensor) -> tf.Tensor:
        """Zeros, False in a mask, behind the rows."""
        missing = self.rows - tf.shape(t)[0]
        padded = tf.pad(t, [[0, missing]] + [[0, 0]] * (t.shape.rank - 1))
        return tf.ensure_shape(padded, [self.rows, *t.shape[1:]])
