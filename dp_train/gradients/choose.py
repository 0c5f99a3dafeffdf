"""Which engine computes the clipped sum, and in chunks of how many rows.

A batch that fits in memory is one chunk of dynamic row count. Beyond that, chunks have
a fixed row count with a mask: clipped sums are accumulated, noise is added once. No
result depends on the choice, only memory and speed do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from dp_train.gradients import loop, vectorized
from dp_train.gradients.objective import Objective, Outputs, Rows
from dp_train.gradients.structures import accumulate, map_rows, row_count

ENGINES: dict[str, Callable[..., Any]] = {
    "vectorized": vectorized.clipped_sum,
    "loop": loop.clipped_sum,
}
MEMORY_BUDGET = 256 * 2**20
"""Bytes that the per-example gradients of one chunk may take."""


def engine_name(gradients: str) -> str:
    """The engine that `gradients` names; "auto" is the fastest general one.

    Raises:
        ValueError: unknown name.
    """
    if gradients == "auto":
        return "vectorized"
    if gradients not in ENGINES:
        raise ValueError(
            f"gradients must be one of 'auto', {', '.join(map(repr, ENGINES))}. "
            f"Received: gradients={gradients!r}. It names the engine that computes "
            "per-example gradients. Use 'auto'."
        )
    return gradients


def microbatch_rows(
    microbatch_size: int | str,
    variables: list[keras.Variable],
    expected_batch_size: float,
) -> int | None:
    """Rows of a chunk, or None where the whole batch is one chunk.

    Args:
        microbatch_size: rows, or "auto" to keep the per-example gradients of a chunk
            within MEMORY_BUDGET.
        variables: the trainable variables.
        expected_batch_size: B; a Poisson batch exceeds B + 6 sqrt(B) + 6 with
            probability below 1e-6, and then merely takes more memory.

    Raises:
        ValueError: not "auto" and not a positive integer.
    """
    if microbatch_size == "auto":
        bytes_per_row = sum(math.prod(v.shape) * 4 for v in variables)
        rows = max(1, MEMORY_BUDGET // max(1, bytes_per_row))
        largest = expected_batch_size + 6 * math.sqrt(expected_batch_size) + 6
        if largest <= rows:
            return None
        # Equal chunks: a last chunk of few rows would be padded to a full one.
        return math.ceil(largest / math.ceil(largest / rows))
    if (
        isinstance(microbatch_size, bool)
        or not isinstance(microbatch_size, int)
        or microbatch_size < 1
    ):
        raise ValueError(
            f"microbatch_size must be 'auto' or a positive integer. Received: "
            f"microbatch_size={microbatch_size!r}. It is the number of rows whose "
            "gradients are in memory at once and changes no result. Use 'auto'."
        )
    return microbatch_size


def clipped_sum(
    engine: str,
    objective: Objective,
    rows: Rows,
    l2_norm_clip: float,
    microbatch: int | None,
) -> tuple[list[tf.Tensor], Outputs]:
    """Sum over the rows of gradients clipped to l2 norm at most l2_norm_clip.

    Args:
        engine: a key of ENGINES.
        objective: the loss of one example.
        rows: (x, y, sample_weight), [n, ...]; n may be 0.
        l2_norm_clip: C > 0.
        microbatch: rows of a chunk, or None for one chunk.

    Returns:
        (sums, outputs): one tensor a variable; losses [n], predictions [n, ...].
    """
    compute = ENGINES[engine]
    count = row_count(rows)
    keys = objective.example_keys(count)
    if microbatch is None:
        return compute(objective, rows, keys, l2_norm_clip)
    chunks = -(-count // microbatch)
    padding = chunks * microbatch - count

    def in_chunks(t: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(t, [[0, padding]] + [[0, 0]] * (t.shape.rank - 1))
        shape = tf.concat([[chunks, microbatch], tf.shape(t)[1:]], 0)
        return tf.ensure_shape(
            tf.reshape(padded, shape), [None, microbatch, *t.shape[1:]]
        )

    all_rows, all_keys = map_rows(in_chunks, (rows, keys))
    is_real = tf.reshape(tf.range(chunks * microbatch) < count, [-1, microbatch])

    def chunk(i: tf.Tensor) -> tuple[list[tf.Tensor], Outputs]:
        chunk_rows, chunk_keys = map_rows(lambda t: t[i], (all_rows, all_keys))
        sums, outputs = compute(
            objective, chunk_rows, chunk_keys, l2_norm_clip, is_real[i]
        )
        return sums, map_rows(fixed, outputs)

    def fixed(t: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(t, [microbatch, *t.shape[1:]])

    def rejoined(t: tf.Tensor) -> tf.Tensor:
        return tf.reshape(t, tf.concat([[-1], tf.shape(t)[2:]], 0))[:count]

    sums, outputs = accumulate(chunk, chunks)
    return sums, map_rows(rejoined, outputs)
