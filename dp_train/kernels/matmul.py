"""MatMul and BatchMatMulV2 with a weight as the right operand.

Index letters: b example, t position, i in, o out.
"""

from __future__ import annotations

import math

import tensorflow as tf

from dp_train.kernels.contribution import Contribution, UnsupportedSiteError
from dp_train.kernels.product import Product


def matmul(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """y = x W, with x [b, i] or [b, t..., i].

        gradient_b = sum_t x_bt^T g_bt

    Args:
        op: the MatMul.
        operand: which input is the weight; only the right one is known.
        cotangent: of the op's output.
        batch: number of examples.
    """
    names = ("transpose_a", "adj_x"), ("transpose_b", "adj_y")
    is_flipped = [any(_flag(op, name) for name in pair) for pair in names]
    if operand != 1 or is_flipped[0] or op.inputs[1].shape.rank != 2:
        raise UnsupportedSiteError(f"{op.type} with a weight on the left")
    inputs, weight = op.inputs
    width_out, width_in = weight.shape if is_flipped[1] else reversed(weight.shape)
    middle = inputs.shape[1:-1]
    positions = math.prod(middle) if middle.is_fully_defined() else None
    rows = [batch, -1 if positions is None else positions]
    inputs = tf.reshape(inputs, tf.stack([*rows, width_in]))
    cotangent = tf.reshape(cotangent, tf.stack([*rows, width_out]))
    left, right = (cotangent, inputs) if is_flipped[1] else (inputs, cotangent)
    return Product(left, right, positions)


def _flag(op: tf.Operation, name: str) -> bool:
    return name in op.node_def.attr and bool(op.get_attr(name))
