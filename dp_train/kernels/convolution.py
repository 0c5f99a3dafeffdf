"""Convolutions in two and three dimensions, channels last (Conv1D comes as Conv2D).

Index letters: b example, p position of the output, k entry of the window, g group of
channels, c channel in, o channel out, m depth multiplier.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from dp_train.kernels.contribution import Contribution, Kept, UnsupportedSiteError
from dp_train.kernels.product import Product

_FEW_CHANNELS = 4
"""Below this a gather of single pixels would move too few numbers at a time."""
_MOST_ENTRIES = 64
"""Channels of an identity convolution, whose work is their square."""


def convolution(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """y = conv(x, W):   gradient_b[k c, o] = sum_p patch_b[p, k c] g_b[p, o].

    With groups of channels, the same within each group.

    Args:
        op: the Conv2D or Conv3D.
        operand: which input is the weight (1).
        cotangent: of the op's output.
        batch: number of examples.
    """
    *window, width, outputs = shape = op.inputs[1].shape
    if len(window) == 2 and op.inputs[0].shape[-1] == width < _FEW_CHANNELS:
        return _of_few_channels(op, cotangent, batch)
    patches = _patches(op, op.inputs[0], shape, batch)
    groups = op.inputs[0].shape[-1] // width
    if groups == 1:
        return _product(patches, cotangent, shape, batch)
    size = math.prod(window)
    grouped = tf.reshape(patches, tf.stack([batch, -1, size, groups, width]))
    cotangent = tf.reshape(cotangent, tf.stack([batch, -1, groups, outputs // groups]))
    gradients = tf.einsum("bpkgc,bpgo->bkcgo", grouped, cotangent)
    return _kept(gradients, patches, shape, batch)


def _of_few_channels(op: tf.Operation, cotangent: tf.Tensor, batch: tf.Tensor) -> Kept:
    """The same for Conv2D, patches in two moves.

    A convolution by an identity of the window's height makes its rows channels, blocks
    of columns at a time, then a gather puts the blocks of each window side by side. At
    250 x 28 x 28 x 1, window 8, stride 2, blocks of 2 columns took 3.3 CPU ms with the
    product, single columns 4.1, an identity of the whole window 3.6.
    """
    height, width, channels, outputs = shape = op.inputs[1].shape
    x, (strides, padding) = op.inputs[0], _checked(op, op.inputs[0])
    _, down, across, _ = strides
    is_block = across <= width and height * across * channels <= _MOST_ENTRIES
    block = across if is_block else 1
    blocks = -(-width // block)
    rows, above = _positions(x.shape[1], height, down, padding)
    columns, before = _positions(x.shape[2], width, across, padding)
    # What no window reads is cut off: of its NaN the identity would make more.
    x = _extended(x, 1, above, (rows - 1) * down + height)
    x = _extended(x, 2, before, (columns - 1) * across + width)
    x = _extended(x, 2, 0, (columns - 1) * across + blocks * block)
    high, wide = x.shape[1], x.shape[2] // block
    x = tf.reshape(x, tf.stack([batch, high, wide, block * channels]))
    entries = height * block * channels
    identity = tf.reshape(
        tf.eye(entries, dtype=x.dtype), [height, 1, block * channels, entries]
    )
    tall = tf.nn.conv2d(x, identity, [1, down, 1, 1], "VALID")
    places = np.arange(columns)[:, None] * (across // block) + np.arange(blocks)
    patches = tf.gather(tall, places.reshape(-1).astype(np.int32), axis=2)
    patches = tf.reshape(patches, tf.stack([batch, rows * columns, blocks * entries]))
    cotangent = tf.reshape(cotangent, tf.stack([batch, rows * columns, outputs]))
    gradients = tf.matmul(cotangent, patches, transpose_a=True)
    sizes = [outputs, blocks, height, block, channels]
    gradients = tf.reshape(gradients, tf.stack([batch, *sizes]))
    gradients = tf.transpose(gradients, [0, 3, 2, 4, 5, 1])
    sizes = [height, blocks * block, channels, outputs]
    gradients = tf.reshape(gradients, tf.stack([batch, *sizes]))[:, :, :width]
    return _kept(gradients, patches, shape, batch)


def _extended(x: tf.Tensor, axis: int, before: int, size: int) -> tf.Tensor:
    """x with zeros in front along an axis, and zeros behind or less, of that size."""
    behind = size - before - x.shape[axis]
    if behind < 0:
        x = tf.gather(x, tf.range(x.shape[axis] + behind), axis=axis)
    padding = [[0, 0]] * x.shape.rank
    padding[axis] = [before, max(behind, 0)]
    return tf.pad(x, padding) if any(padding[axis]) else x


def transposed(
    op: tf.Operation, operand: int, cotangent: tf.Tensor, batch: tf.Tensor
) -> Contribution:
    """y = conv_transpose(x, W): input and cotangent change places.

    gradient_b[k o, c] = sum_p patch(g)_b[p, k o] x_b[p, c]
    """
    shape = op.inputs[1].shape
    return _product(_patches(op, cotangent, shape, batch), op.inputs[2], shape, batch)


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


def _product(
    patches: tf.Tensor, others: tf.Tensor, shape: tf.TensorShape, batch: tf.Tensor
) -> Product:
    """gradient_b[k, o] = sum_p patch_b[p, k] other_b[p, o], in the weight's shape."""
    others = tf.reshape(others, tf.stack([batch, -1, shape[-1]]))
    made = patches.shape[1:].num_elements()
    return Product(patches, others, patches.shape[1], shape, made)


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
    """[b, p, window * channels] windows of x, where the op would look.

    Args:
        op: gives strides and padding.
        x: [b, spatial..., channels], sizes known but for b.
        window: (spatial..., ...).
        batch: number of examples.
    """
    spatial = x.shape.rank - 2
    window, sizes, channels = list(window)[:spatial], x.shape[1:-1], x.shape[-1]
    strides, padding = _checked(op, x)
    entries = math.prod(window) * channels
    # [positions..., window...] places in the flattened spatial axes; behind the last
    # stands the padding: a row of zeros.
    places: np.ndarray = np.zeros((1,) * (2 * spatial), np.int64)
    is_outside = np.zeros_like(places, bool)
    for axis in range(spatial):
        indices = _windows(sizes[axis], window[axis], strides[1 + axis], padding)
        shape = [1] * (2 * spatial)
        shape[axis], shape[spatial + axis] = indices.shape
        places = places * sizes[axis] + indices.reshape(shape)
        is_outside = is_outside | (indices < 0).reshape(shape)
    behind = math.prod(sizes)
    places = np.where(is_outside, behind, places)
    pixels = tf.reshape(x, tf.stack([batch, behind, channels]))
    if is_outside.any():
        pixels = tf.pad(pixels, [[0, 0], [0, 1], [0, 0]])
    found = tf.gather(pixels, places.reshape(-1).astype(np.int32), axis=1)
    positions = math.prod(places.shape[:spatial])
    return tf.reshape(found, tf.stack([batch, positions, entries]))


def _checked(op: tf.Operation, x: tf.Tensor) -> tuple[list[int], bytes]:
    """Strides and padding of a convolution that looks at x, if a kernel knows it."""
    strides, padding = op.get_attr("strides"), op.get_attr("padding")
    is_channels_last = op.get_attr("data_format") in (b"NHWC", b"NDHWC")
    if not is_channels_last or set(op.get_attr("dilations")) != {1}:
        raise UnsupportedSiteError(f"{op.type} with channels first or dilation")
    if padding not in (b"SAME", b"VALID") or not x.shape[1:].is_fully_defined():
        raise UnsupportedSiteError(f"{op.type} with explicit padding or unknown sizes")
    return strides, padding


def _windows(size: int, window: int, stride: int, padding: bytes) -> np.ndarray:
    """[positions, window] indices along one axis; -1 lies in the padding."""
    positions, before = _positions(size, window, stride, padding)
    indices = np.arange(positions)[:, None] * stride + np.arange(window) - before
    return np.where((indices >= 0) & (indices < size), indices, -1)


def _positions(size: int, window: int, stride: int, padding: bytes) -> tuple[int, int]:
    """Windows along one axis, and zeros in front of it."""
    if padding == b"VALID":
        return (size - window) // stride + 1, 0
    positions = -(-size // stride)
    return positions, max((positions - 1) * stride + window - size, 0) // 2
