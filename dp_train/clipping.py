"""Norms to factors: how far one example may move the sum.

Index letters: b example.

    norm                factor          contribution of the example
    0                   1               0
    0 < norm <= C       1               its gradient
    C < norm < inf      C / norm        its gradient, scaled to norm C
    inf or NaN          0               exactly 0 (dropped by `where`: 0 * NaN is NaN)
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def check_l2_norm_clip(l2_norm_clip: float) -> float:
    """`l2_norm_clip` as a float.

    Raises:
        ValueError: not a positive, finite number.
    """
    try:
        value = float(l2_norm_clip)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0.0 < value < float("inf"):
        raise ValueError(
            f"l2_norm_clip must be a positive, finite number. Received: "
            f"l2_norm_clip={l2_norm_clip!r}. It is the most that one example may move "
            "the summed gradient, and the noise is scaled by it. Start from 1.0, or "
            "from the median norm of the per-example gradients on public data."
        )
    return value


def check_is_real(gradient: tf.Tensor | tf.IndexedSlices) -> None:
    """Refuses a gradient of which a norm or noise would see a part only.

    Raises:
        TypeError: it is complex, or no floating-point number.
    """
    if not gradient.dtype.is_floating:
        raise TypeError(
            f"A gradient is {gradient.dtype.name}. Its norm, and the noise added to "
            "it, would be those of its real part only. Use real floating-point weights."
        )


def per_example_norms(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """l2 norm of each example's gradient over all variables together.

        norm_b = sqrt(sum_variables ||g_b||^2)

    Args:
        gradients: one [b, ...] tensor a variable, any float dtype.

    Returns:
        [b] float64 norms. Accumulating in float64 keeps float16 from overflowing
        above 255 and float32 above 1e19, and small gradients from vanishing.

    Guarantees:
        A non-finite entry gives inf or NaN, never a finite norm.

    Raises:
        TypeError: a gradient is complex, or no floating-point number.
    """
    for gradient in gradients:
        check_is_real(gradient)
    squares = [
        tf.reduce_sum(tf.square(tf.cast(g, tf.float64)), list(range(1, g.shape.rank)))
        for g in gradients
    ]
    return tf.sqrt(tf.add_n(squares))


def clip_factors(norms: tf.Tensor, l2_norm_clip: float | tf.Tensor) -> tf.Tensor:
    """Factor that brings each example's gradient to norm at most l2_norm_clip.

        factor_b = min(1, C / ||g_b||)      Abadi et al. 2016 (arXiv:1607.00133), Alg. 1

    Args:
        norms: [b] l2 norms, >= 0, any float dtype.
        l2_norm_clip: C > 0, in units of the gradient; a scalar tensor is not checked.

    Returns:
        [b] factors in [0, 1], dtype of norms.

    Guarantees:
        factor_b * norm_b <= C * (1 + 1 ulp). Norm 0 -> 1. Norm inf or NaN -> 0, and the
        caller drops that example with `where`, since 0 * NaN is NaN.

    Raises:
        ValueError: l2_norm_clip is not positive and finite.
    """
    clip = (
        tf.cast(l2_norm_clip, norms.dtype)
        if tf.is_tensor(l2_norm_clip)
        else tf.constant(check_l2_norm_clip(l2_norm_clip), norms.dtype)
    )
    is_small = norms <= clip
    safe_norms = tf.where(is_small, clip, norms)
    factors = tf.where(is_small, tf.ones_like(norms), clip / safe_norms)
    # Denormal in float32: some devices flush such a factor, others round it.
    is_usable = tf.math.is_finite(norms) & (factors >= 2.0**-126)
    return tf.where(is_usable, factors, tf.zeros_like(norms))


def sum_clipped(
    gradients: Sequence[tf.Tensor],
    l2_norm_clip: float,
    is_real: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """Sum over examples of gradients clipped to l2 norm at most l2_norm_clip.

    Args:
        gradients: one [b, ...] tensor a variable.
        l2_norm_clip: C > 0.
        is_real: [b] booleans; padding rows are False. None: all rows are real.

    Returns:
        One tensor a variable, without the batch axis, in that gradient's dtype or
        float32 where it is narrower.

    Guarantees:
        Adding or removing one example moves the result, over all variables together,
        by at most C * (1 + 1e-6) in l2 norm, whatever the example holds, and by what
        the sum over the others then rounds in another way: 7e-5 C for 8,192 equal
        rows in float32.
    """
    norms = per_example_norms(gradients)
    factors = clip_factors(norms, l2_norm_clip)
    keeps = tf.math.is_finite(norms)
    if is_real is not None:
        keeps = tf.logical_and(keeps, is_real)
    sums = []
    for gradient in gradients:
        if gradient.dtype.size < 4:
            gradient = tf.cast(gradient, tf.float32)
        rows = [-1] + [1] * (gradient.shape.rank - 1)
        clipped = gradient * tf.reshape(tf.cast(factors, gradient.dtype), rows)
        kept = tf.where(tf.reshape(keeps, rows), clipped, tf.zeros_like(gradient))
        sums.append(tf.reduce_sum(kept, axis=0))
    return sums
