"""GatherV2 from a weight: embeddings, exact for ids that occur twice."""

from __future__ import annotations

import tensorflow as tf

from dp_train.kernels.contribution import Contribution, RowsRead, UnsupportedSiteError


def gather(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """y = table[ids] along axis 0, with ids [b, ...].

    Args:
        op: the GatherV2.
        operand: which input is the weight; only the table is one.
        cotangent: of the op's output, [b, ..., o].
        batch: number of examples.
    """
    table, ids, axis = op.inputs
    is_along_rows = tf.get_static_value(axis) == 0 and op.get_attr("batch_dims") == 0
    if operand != 0 or not is_along_rows or table.shape.rank != 2:
        raise UnsupportedSiteError("GatherV2 other than rows of a table")
    if not ids.shape.rank:
        raise UnsupportedSiteError("GatherV2 whose ids have no batch axis")
    rows, width = table.shape
    return RowsRead(
        tf.reshape(ids, tf.stack([batch, -1])),
        tf.reshape(cotangent, tf.stack([batch, -1, width])),
        rows,
    )
