"""Which kernel reads which op; a new op family is one more line."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from dp_train.kernels.broadcast import broadcast
from dp_train.kernels.contribution import Contribution
from dp_train.kernels.convolution import convolution, depthwise, transposed
from dp_train.kernels.einsum import einsum
from dp_train.kernels.gather import gather
from dp_train.kernels.matmul import matmul

Kernel = Callable[[tf.Operation, int, tf.Tensor, tf.Tensor], Contribution]

ONE_ROW_AN_EXAMPLE = frozenset(
    """AddV2 BatchMatMulV2 BiasAdd BroadcastTo Conv2D Conv2DBackpropInput Conv3D
    Conv3DBackpropInputV2 DepthwiseConv2dNative Einsum MatMul Mul Sub""".split()
)
"""Ops whose kernel takes each row of the first axis for an example; where an example
has several, as in a dilated convolution or the MatMul of a Dense layer over positions,
their gradients are added."""

KERNELS: dict[str, Kernel] = {
    "MatMul": matmul,
    "BatchMatMulV2": matmul,
    "BiasAdd": broadcast,
    "AddV2": broadcast,
    "Sub": broadcast,
    "Mul": broadcast,
    "BroadcastTo": broadcast,
    "GatherV2": gather,
    "Conv2D": convolution,
    "Conv3D": convolution,
    "Conv2DBackpropInput": transposed,
    "Conv3DBackpropInputV2": transposed,
    "DepthwiseConv2dNative": depthwise,
    "Einsum": einsum,
}
