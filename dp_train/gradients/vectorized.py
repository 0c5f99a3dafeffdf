"""Per-example gradients by a vectorized map over examples: any layer, more memory.

Keeps one gradient an example, so B * P numbers at once; `microbatch` bounds B.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dp_train import clipping, host
from dp_train.gradients.copies import by_example, flat, flat_rows, mean_of_copies
from dp_train.gradients.objective import Objective, Outputs, Rows, weight_values
from dp_train.gradients.structures import restored, tensors


def clipped_sum(
    objective: Objective,
    rows: Rows,
    keys: list[tf.Tensor],
    l2_norm_clip: float,
    is_real: tf.Tensor | None = None,
) -> tuple[list[tf.Tensor], Outputs]:
    """Sum of clipped gradients, and what the metrics need.

    Args:
        objective: the loss of one example.
        rows: (x, y, sample_weight), [b, ...]; b may be 0. With K > 1 copies x is
            [b, K, ...].
        keys: one [b, 2] tensor a seed state, or [b, K, 2].
        l2_norm_clip: C > 0.
        is_real: [b] booleans, False for padding; None: all real.

    Returns:
        (sums, outputs): one tensor a variable; losses [b], predictions [b, ...], or
            [b, K, ...].
    """
    weights = weight_values(objective.variables)
    copies = objective.copies
    rows, keys = flat_rows(rows, copies), flat(keys, copies)
    leaves = tensors(rows)
    structure: list[Any] = []

    def one(elements: list[tf.Tensor]) -> list[tf.Tensor]:
        row = restored(rows, elements[: len(leaves)])
        result = objective.example(weights, row, elements[len(leaves) :])
        structure[:] = [result]
        return tensors(result)

    found = host.vectorized_map(one, [*leaves, *keys])
    gradients, (losses, *predicted) = restored(structure[0], found)
    gradients, losses = mean_of_copies((gradients, losses), copies)
    outputs = (losses, *by_example(tuple(predicted), copies))
    return clipping.sum_clipped(gradients, l2_norm_clip, is_real), outputs
