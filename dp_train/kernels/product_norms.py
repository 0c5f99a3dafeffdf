"""Norms of sum_t a_t g_t^T without the gradient itself, safe against cancellation.

Each function returns N with N >= || what the example adds to the sum / its factor ||.
The sum is one matmul over all positions of all examples, so three roundings stand
between a measured norm and the sum. With u the unit roundoff (2^-24 in float32, 2^-53
in float64), gamma_n = n u / (1 - n u), and Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.1 (a term that passes n roundings, in whatever order
they are summed, is off by a factor within 1 +- gamma_n), write

    S = sum_t |a_t| |g_t|   (l2 norms),    ||G|| = || sum_t a_t g_t^T ||_F  <=  S

1. The sum. Each entry a_ti c g_to passes one rounding of the factor c, one of the
   scaling, one of the product and at most K of the additions, K the positions of all
   examples. The example adds c G' with || G' - G ||_F <= gamma_(K+3) S, for
   || |A|^T |G| ||_F <= S by the triangle inequality.
2. Gram. m = sum_{t,s} (a_t . a_s) (g_t . g_s) = ||G||^2 is computed in float64. Its
   terms pass at most n = i + o + t^2 roundings, so the computed m' has

       |m' - m| <= gamma_n sum_{t,s} |a_t| |a_s| |g_t| |g_s| = gamma_n S^2
       ||G||    <= sqrt(max(m', 0) + gamma_n S^2)

   Without this term, rows that nearly cancel have a computed norm of 0, whatever they
   add. In float32 it would be as large as the norm itself.
3. Blocks. G is computed as in point 1 with t positions: ||G|| <= ||G''|| + gamma_t S.

Hence N = sqrt(max(m', 0) + gamma_n S^2) + gamma_k S, or ||G''|| + gamma_k S, with
k = K + t + 16; the last number pays for the roundings of S and N themselves. Rows that
do not cancel have S <= sqrt(t) ||G||: 2,048 positions of 64 for each example clip at
most 0.1 % more than exact norms would.

Flushed subnormal products are off by up to 2^-126 times the other operand, so examples
with |a_t| or |g_t| above 2^60 get N = inf and are left out. What remains is what any
sum in floating point has: roundings of the other examples' part depend on what the
partial sums are.

Index letters: b example, t and s position, i in, o out.
"""

from __future__ import annotations

import math

import tensorflow as tf

from dp_train.kernels.contribution import squared_norms

_BLOCK_NUMBERS = 2**17
"""Numbers of a block of one example's gradient: 16 MiB for 32 examples."""
_LARGEST = 2.0**60
_TENSOR_FLOAT_32 = 2.0**-7
"""Both operands of two matmuls lose up to 2^-10 each where a GPU rounds them."""


def gram(inputs: tf.Tensor, cotangents: tf.Tensor) -> tf.Tensor:
    """[b] float64 squared N from the Gram matrices of [b, t, i] and [b, t, o].

    t^2 (i + o) multiplications and t^2 numbers.
    """
    wide = [tf.cast(v, tf.float64) for v in (inputs, cotangents)]
    first, second = (tf.matmul(v, v, transpose_b=True) for v in wide)
    lengths = tf.sqrt(tf.linalg.diag_part([first, second]))
    size = tf.shape(first, tf.int64)[1] ** 2 + wide[0].shape[-1] + wide[1].shape[-1]
    spread = tf.reduce_sum(lengths[0] * lengths[1], axis=1)
    error = gamma(size, tf.float64) * tf.square(spread)
    squares = tf.maximum(tf.reduce_sum(first * second, axis=[1, 2]), 0) + error
    return tf.square(tf.sqrt(squares) + _error_of_sum(inputs, lengths))


def blocks(inputs: tf.Tensor, cotangents: tf.Tensor, is_wide: bool) -> tf.Tensor:
    """[b] float64 squared N from the gradient itself, some of its rows at a time.

    t i o multiplications and `block_size` numbers.

    Args:
        inputs: [b, t, i].
        cotangents: [b, t, o].
        is_wide: see `squared_norms`.
    """
    lengths = tf.stack(
        [
            tf.sqrt(tf.reduce_sum(tf.square(tf.cast(v, tf.float64)), axis=2))
            for v in (inputs, cotangents)
        ]
    )
    longer, shorter = inputs, cotangents
    if longer.shape[-1] < shorter.shape[-1]:
        longer, shorter = shorter, longer
    width = block_size(longer.shape[-1], shorter.shape[-1]) // shorter.shape[-1]
    count = math.ceil(longer.shape[-1] / width)
    longer = tf.pad(longer, [[0, 0], [0, 0], [0, count * width - longer.shape[-1]]])
    batch, positions = tf.unstack(tf.shape(longer)[:2])
    longer = tf.reshape(longer, tf.stack([batch, positions, count, width]))

    def add(block: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        gradients = tf.matmul(longer[:, :, block], shorter, transpose_a=True)
        return block + 1, total + squared_norms(gradients, is_wide)

    _, squares = tf.while_loop(
        lambda block, _: block < count,
        add,
        [tf.constant(0), tf.zeros_like(lengths[0][:, 0])],
        parallel_iterations=1,
    )
    return tf.square(tf.sqrt(squares) + _error_of_sum(inputs, lengths))


def block_size(width_in: int, width_out: int) -> int:
    """Numbers of a block of one example's gradient: whole rows of its shorter axis."""
    shorter, longer = sorted([width_in, width_out])
    return shorter * min(max(1, _BLOCK_NUMBERS // shorter), longer)


def gamma(roundings: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """gamma_n as float64; inf where there are too many roundings for a bound."""
    unit = 2.0**-53 if dtype == tf.float64 else 2.0**-24
    share = tf.cast(roundings, tf.float64) * unit
    if dtype != tf.float64 and _is_tensor_float_32():
        share += _TENSOR_FLOAT_32
    return tf.where(share < 0.5, share / (1 - share), math.inf)


def _is_tensor_float_32() -> bool:
    """Whether matmuls may round float32 operands to 10 bits."""
    is_on: bool = tf.config.experimental.tensor_float_32_execution_enabled()
    return is_on and bool(tf.config.list_physical_devices("GPU"))


def _error_of_sum(inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """[b] gamma_k S, inf where an example is too large or not finite.

    Args:
        inputs: [b, t, i].
        lengths: [2, b, t] |a_t| and |g_t|.
    """
    batch, positions = tf.unstack(tf.shape(inputs, tf.int64)[:2])
    bound = gamma(batch * positions + positions + 16, inputs.dtype)
    spread = tf.reduce_sum(lengths[0] * lengths[1], axis=1)
    is_in_range = tf.reduce_all(lengths < _LARGEST, axis=[0, 2])
    return tf.where(is_in_range, bound * spread, math.inf)
