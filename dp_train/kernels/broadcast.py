"""BiasAdd, AddV2, Sub and Mul of a weight with data, and a copy for each example."""

from __future__ import annotations

import tensorflow as tf

from dp_train.kernels.contribution import Contribution, Kept, UnsupportedSiteError


def broadcast(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """y = x + w, x - w, w - x, x * w or w, where w lacks the batch axis or has size 1.

        gradient_b = sum over broadcast axes of (+-1 or x_b) * g_b

    Args:
        op: the BiasAdd, AddV2, Sub, Mul or BroadcastTo.
        operand: which input is the weight.
        cotangent: of the op's output.
        batch: number of examples (unused: the batch axis stays in front).
    """
    del batch
    weight, data = op.inputs[operand].shape, op.inputs[1 - operand]
    rank = cotangent.shape.rank
    if op.type == "BiasAdd" and op.get_attr("data_format") != b"NHWC":
        raise UnsupportedSiteError("BiasAdd with channels first")
    padded = [1] * (rank - weight.rank) + list(weight)
    is_copy = op.type == "BroadcastTo"
    if (data.shape.rank != rank and not is_copy) or padded[0] != 1:
        raise UnsupportedSiteError(f"{op.type} of a weight along the batch axis")
    values = cotangent * data if op.type == "Mul" else cotangent
    if op.type == "Sub" and operand == 1:
        values = -values
    summed = [a for a in range(1, rank) if padded[a] == 1]
    gradients = tf.reduce_sum(values, summed) if summed else values
    if gradients.shape[1:] != weight:
        gradients = tf.reshape(gradients, tf.stack([tf.shape(gradients)[0], *weight]))
        gradients = tf.ensure_shape(gradients, [None, *weight])
    return Kept("reduced", gradients)
