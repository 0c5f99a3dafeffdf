"""Einsum of data with a weight, as EinsumDense has where no matmul does."""

from __future__ import annotations

import tensorflow as tf

from dp_train.kernels.contribution import Kept, UnsupportedSiteError


def einsum(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Kept:
    """y = einsum("x,w->y", x, W):   gradient = einsum("x,y->bw", x, g).

    The first letter of x is that of the examples.

    Args:
        op: the Einsum.
        operand: which input is the weight.
        cotangent: of the op's output.
        batch: number of examples.
    """
    terms, result = op.get_attr("equation").decode().split("->")
    weight, *others = terms.split(",")[::-1] if operand else terms.split(",")
    known = {*"".join(others), *result}
    is_plain = len(others) == 1 and "." not in terms and set(weight) <= known
    if not is_plain or any(len({*t}) < len(t) for t in (weight, *others)):
        raise UnsupportedSiteError(f"Einsum {terms}->{result} of a weight")
    (data,) = others
    inputs = op.inputs[1 - operand]
    gradients = tf.einsum(f"{data},{result}->{data[0]}{weight}", inputs, cotangent)
    shape = [None, *op.inputs[operand].shape]
    return Kept("einsum", tf.ensure_shape(gradients, shape))
