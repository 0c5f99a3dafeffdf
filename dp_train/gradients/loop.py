"""Per-example gradients one example at a time: the obviously correct slow reference.

Memory of one example; time of B backward passes.
"""

from __future__ import annotations

import tensorflow as tf

from dp_train import clipping
from dp_train.gradients.objective import Objective, Outputs, Rows, weight_values
from dp_train.gradients.structures import accumulate, map_rows, row_count


def clipped_sum(
    objective: Objective,
    rows: Rows,
    keys: list[tf.Tensor],
    l2_norm_clip: float,
    is_real: tf.Tensor | None = None,
) -> tuple[list[tf.Tensor], Outputs]:
    """Sum of clipped gradients, and what the metrics need; as in `vectorized`."""
    weights = weight_values(objective.variables)

    def one(b: tf.Tensor) -> tuple[list[tf.Tensor], Outputs]:
        row, key, real = map_rows(lambda t: t[b], (rows, keys, is_real))
        gradients, outputs = _of_example(objective, weights, row, key)
        clipped = clipping.sum_clipped(
            [g[None] for g in gradients],
            l2_norm_clip,
            is_real=None if real is None else real[None],
        )
        return clipped, map_rows(lambda t: t[None], outputs)

    return accumulate(one, row_count(rows))


def _of_example(
    objective: Objective, weights: list[tf.Tensor], row: Rows, keys: list[tf.Tensor]
) -> tuple[list[tf.Tensor], Outputs]:
    """Gradient, loss and predictions of one example: means over its copies."""
    if objective.copies == 1:
        return objective.example(weights, row, keys)
    x, *others = row

    def copy(k: tf.Tensor) -> tuple[list[tf.Tensor], Outputs]:
        one, key = map_rows(lambda t: t[k], (x, keys))
        gradients, outputs = objective.example(weights, (one, *others), key)
        return gradients, map_rows(lambda t: t[None], outputs)

    sums, (losses, *predicted) = accumulate(copy, tf.constant(objective.copies))
    means = [s / tf.cast(objective.copies, s.dtype) for s in sums]
    # Predictions keep the axis of the copies.
    return means, (tf.reduce_mean(losses), *predicted)
