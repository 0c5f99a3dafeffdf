"""Conv2D, its transpose and DepthwiseConv2dNative, channels last (Conv1D comes as 2D).

Index letters: b example, p position of the output, k entry of the window, c channel in,
o channel out, m depth multiplier.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from dp_train.kernels.contribution import Contribution, Kept, UnsupportedSiteError

_FEW_CHANNELS = 4
"""Below this an identity kernel builds patches faster than a gather does."""


def convolution(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """y = conv(x, W):   gradient_b[k c, o] = sum_p patch_b[p, k c] g_b[p, o].

    Args:
        op: the Conv2D.
        operand: which input is the weight (1).
        cotangent: of the op's output.
        batch: number of examples.
    """
    shape = op.inputs[1].shape
    if op.inputs[0].shape[3] != shape[2]:
        raise UnsupportedSiteError("Conv2D with groups")
    patches = _patches(op, op.inputs[0], shape, batch)
    outputs = tf.reshape(cotangent, tf.stack([batch, -1, shape[3]]))
    gradients = tf.matmul(patches, outputs, transpose_a=True)
    return _kept(gradients, patches, shape, batch)


def transposed(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """y = conv_transpose(x, W): input and cotangent change places.

    gradient_b[k o, c] = sum_p patch(g)_b[p, k o] x_b[p, c]
    """
    shape = op.inputs[1].shape
    patches = _patches(op, cotangent, shape, batch)
    inputs = tf.reshape(op.inputs[2], tf.stack([batch, -1, shape[3]]))
    gradients = tf.matmul(patches, inputs, transpose_a=True)
    return _kept(gradients, patches, shape, batch)


def depthwise(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """gradient_b[k, c, m] = sum_p patch_b[p, k, c] g_b[p, c, m]."""
    height, width, channels, multiplier = shape = op.inputs[1].shape
    patches = _patches(op, op.inputs[0], shape, batch)
    patches = tf.reshape(patches, tf.stack([batch, -1, height * width, channels]))
    outputs = tf.reshape(cotangent, tf.stack([batch, -1, channels, multiplier]))
    gradients = tf.einsum("bpkc,bpcm->bkcm", patches, outputs)
    return _kept(gradients, patches, shape, batch)


def _kept(
    gradients: tf.Tensor, patches: tf.Tensor, shape: tf.TensorShape, batch: tf.Tensor
) -> Kept:
    """Gradients in the weight's shape, with the patches as scratch."""
    gradients = tf.reshape(gradients, tf.stack([batch, *shape]))
    scratch = patches.shape[1:].num_elements() or 0
    return Kept("patches", tf.ensure_shape(gradients, [None, *shape]), scratch)


def _patches(
    op: tf.Operation, x: tf.Tensor, window: tf.TensorShape, batch: tf.Tensor
) -> tf.Tensor:
    """[b, p, height * width * channels] windows of x, where the op would look.

    Args:
        op: gives strides and padding.
        x: [b, rows, columns, channels], sizes known but for b.
        window: (height, width, ...).
        batch: number of examples.
    """
    height, width = window[0], window[1]
    channels = x.shape[3]
    strides, padding = op.get_attr("strides"), op.get_attr("padding")
    if op.get_attr("data_format") != b"NHWC" or set(op.get_attr("dilations")) != {1}:
        raise UnsupportedSiteError(f"{op.type} with channels first or dilation")
    if padding not in (b"SAME", b"VALID") or not x.shape[1:].is_fully_defined():
        raise UnsupportedSiteError(f"{op.type} with explicit padding or unknown sizes")
    if channels < _FEW_CHANNELS:
        identity = np.eye(height * width * channels, dtype=np.float32)
        kernel = identity.reshape(height, width, channels, -1)
        found = tf.nn.conv2d(x, tf.cast(kernel, x.dtype), strides, padding.decode())
        positions = math.prod(found.shape[1:3])
        size = height * width * channels
        return tf.reshape(found, tf.stack([batch, positions, size]))
    rows = _windows(x.shape[1], height, strides[1], padding)
    columns = _windows(x.shape[2], width, strides[2], padding)
    # Index size rows/columns stands for the padding: a row of zeros behind the data.
    flat = rows[:, None, :, None] * x.shape[2] + columns[None, :, None, :]
    is_outside = (rows < 0)[:, None, :, None] | (columns < 0)[None, :, None, :]
    indices = np.where(is_outside, x.shape[1] * x.shape[2], flat).reshape(-1)
    pixels = tf.reshape(x, tf.stack([batch, x.shape[1] * x.shape[2], channels]))
    if is_outside.any():
        pixels = tf.pad(pixels, [[0, 0], [0, 1], [0, 0]])
    found = tf.gather(pixels, indices.astype(np.int32), axis=1)
    positions = len(rows) * len(columns)
    return tf.reshape(found, tf.stack([batch, positions, height * width * channels]))


def _windows(size: int, window: int, stride: int, padding: bytes) -> np.ndarray:
    """[positions, window] indices along one axis; -1 lies in the padding."""
    if padding == b"VALID":
        positions, before = (size - window) // stride + 1, 0
    else:
        positions = -(-size // stride)
        before = max((positions - 1) * stride + window - size, 0) // 2
    indices = np.arange(positions)[:, None] * stride + np.arange(window) - before
    return np.where((indices >= 0) & (indices < size), indices, -1)
