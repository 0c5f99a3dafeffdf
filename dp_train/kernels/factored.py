"""Products that stay factored: norms safe against cancellation, and the sum.

The gradient of one example, G = sum_t a_t g_t^T, is never formed. Its norm is measured
in one way and the sum of all examples computed in another, so roundings stand between
the two. The norms here are N with N >= || what the example adds / its factor ||, and
depend on that example alone. With u the unit roundoff (2^-24 in float32, 2^-53 in
float64), gamma_n = n u / (1 - n u), and Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.1 (a term that passes n roundings, in whatever order
they are summed, is off by a factor within 1 +- gamma_n), write

    S = sum_t |a_t| |g_t|   (l2 norms),    ||G|| = || sum_t a_t g_t^T ||_F  <=  S

1. The sum. Each entry a_ti c g_to passes one rounding of the factor c, one of the
   scaling, one of the product, fewer than R of the additions in a matmul of R rows, and
   one for each such matmul. With at most R - 18 of those the example adds c G' with
   || G' - G ||_F <= gamma_2R S, for || |A|^T |G| ||_F <= S by the triangle inequality.
2. Gram. m = sum_{t,s} (a_t . a_s) (g_t . g_s) = ||G||^2 is computed in float64. Its
   terms pass at most n = i + o + t^2 roundings, so the computed m' has

       |m' - m| <= gamma_n sum_{t,s} |a_t| |a_s| |g_t| |g_s| = gamma_n S^2
       ||G||    <= sqrt(max(m', 0) + gamma_n S^2)

   Without this term, rows that nearly cancel have a computed norm of 0, whatever they
   add. In float32 it would be as large as the norm itself.
3. Blocks. G is computed by a matmul of t rows: ||G|| <= ||G''|| + gamma_t S.

So with k = 2 R + t (16 of them pay for the roundings of S and N themselves)

    N = max(M + gamma_k S, 64 gamma_k S),  M = sqrt(max(m', 0) + gamma_n S^2) or ||G''||

What remains is what any sum in floating point has: the roundings of the other examples'
parts depend on what the partial sums are. The 64 keeps that below C / 64 for each, also
where its rows cancel. Rows that do not have S <= sqrt(t) ||G||: N exceeds ||G|| by at
most 0.2 % at 64 positions. R does not depend on the batch: N would, and one example
more or less would move the factors of the others.

Flushed subnormal products are off by up to 2^-126 times the other operand, so examples
with |a_t| or |g_t| above 2^60 get N = inf and are left out.

Index letters: b example, t and s position, i in, o out.
"""

from __future__ import annotations

import math

import tensorflow as tf

from dp_train.kernels.contribution import squared_norms

_BLOCK_NUMBERS = 2**17
"""Numbers of a block of one example's gradient: 16 MiB for 32 examples."""
_ROWS = 2**11
"""R, of a matmul whose result is added to the sum."""
_LARGEST = 2.0**60
_TENSOR_FLOAT_32 = 2.0**-7
"""Both operands of two matmuls lose up to 2^-10 each where a GPU rounds them; this
does not depend on partial sums."""


def gram(inputs: tf.Tensor, cotangents: tf.Tensor) -> tf.Tensor:
    """[b] float64 squared N from the Gram matrices of [b, t, i] and [b, t, o].

    t^2 (i + o) multiplications and t^2 numbers.
    """
    wide = [tf.cast(v, tf.float64) for v in (inputs, cotangents)]
    first, second = (tf.matmul(v, v, transpose_b=True) for v in wide)
    lengths = tf.sqrt(tf.linalg.diag_part([first, second]))
    terms = inputs.shape[1] ** 2 + inputs.shape[2] + cotangents.shape[2]
    spread = tf.reduce_sum(lengths[0] * lengths[1], axis=1)
    error = gamma(terms, tf.float64) * tf.square(spread)
    squares = tf.maximum(tf.reduce_sum(first * second, axis=[1, 2]), 0) + error
    return _bounded(squares, inputs, lengths)


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
    return _bounded(squares, inputs, lengths)


def block_size(width_in: int, width_out: int) -> int:
    """Numbers of a block of one example's gradient: whole rows of its shorter axis."""
    shorter, longer = sorted([width_in, width_out])
    return shorter * min(max(1, _BLOCK_NUMBERS // shorter), longer)


def total(inputs: tf.Tensor, cotangents: tf.Tensor) -> tf.Tensor:
    """[i, o] sum over examples and positions, in matmuls of at most R rows each.

    Args:
        inputs: [b, t, i].
        cotangents: [b, t, o]; one of the two holds the factors.
    """
    first, second = (tf.reshape(v, [-1, v.shape[-1]]) for v in (inputs, cotangents))
    count = tf.shape(first)[0]
    rows = tf.minimum(count, _ROWS)

    def add(start: tf.Tensor, summed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # All pieces have one size, as XLA wants: the last one reaches back.
        begin = tf.minimum(start, count - rows)
        left, right = (
            tf.slice(v, tf.stack([begin, 0]), tf.stack([rows, v.shape[-1]]))
            for v in (first, second)
        )
        is_new = begin + tf.range(rows) >= start
        left = tf.where(is_new[:, None], left, tf.zeros_like(left))
        return start + rows, summed + tf.matmul(left, right, transpose_a=True)

    _, summed = tf.while_loop(
        lambda start, _: start < count,
        add,
        [tf.constant(0), tf.zeros([first.shape[-1], second.shape[-1]], first.dtype)],
        parallel_iterations=1,
    )
    return summed


def gamma(roundings: int, dtype: tf.DType) -> float:
    """gamma_n; inf where there are too many roundings for a bound."""
    share = roundings * (2.0**-53 if dtype == tf.float64 else 2.0**-24)
    return share / (1 - share) if share < 0.5 else math.inf


def _is_tensor_float_32() -> bool:
    """Whether matmuls may round float32 operands to 10 bits."""
    is_on: bool = tf.config.experimental.tensor_float_32_execution_enabled()
    return is_on and bool(tf.config.list_physical_devices("GPU"))


def _bounded(squares: tf.Tensor, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """[b] squared N; inf where an example is too large or not finite.

    Args:
        squares: [b] float64 squared M.
        inputs: [b, t, i].
        lengths: [2, b, t] |a_t| and |g_t|.
    """
    bound = gamma(2 * _ROWS + inputs.shape[1], inputs.dtype)
    is_rounded = inputs.dtype != tf.float64 and _is_tensor_float_32()
    own = bound + (_TENSOR_FLOAT_32 if is_rounded else 0.0)
    spread = tf.reduce_sum(lengths[0] * lengths[1], axis=1)
    norms = tf.maximum(tf.sqrt(squares) + own * spread, 64 * bound * spread)
    is_in_range = tf.reduce_all(lengths < _LARGEST, axis=[0, 2])
    return tf.square(tf.where(is_in_range, norms, math.inf))
