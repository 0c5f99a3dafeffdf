"""Per-example gradients by a vectorized map over examples: any layer, more memory.

Keeps one gradient an example, so B * P numbers at once; `microbatch` bounds B.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dp_train import clipping, host
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
        rows: (x, y, sample_weight), [b, ...]; b may be 0.
        keys: one [b, 2] tensor a seed state.
        l2_norm_clip: C > 0.
        is_real: [b] booleans, False for padding; None: all real.

    Returns:
        (sums, outputs): one tensor a variable; losses [b], predictions [b, ...].
    """
    weights = weight_values(objective.variables)
    leaves = tensors(rows)
    structure: list[Any] = []

    def one(elements: list[tf.Tensor]) -> list[tf.Tensor]:
        row = restored(rows, elements[: len(leaves)])
        result = objective.example(weights, row, elements[len(leaves) :])
        structure[:] = [result]
        return tensors(result)

    flat = host.vectorized_map(one, [*leaves, *keys])
    gradients, outputs = restored(structure[0], flat)
    return clipping.sum_clipped(gradients, l2_norm_clip, is_real), outputs
