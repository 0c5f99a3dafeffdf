"""Inputs that are made up from shapes and dtypes alone: checks read no private data."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROWS = 3


def made_up(like: Any, *, changed_rows: bool = False, is_positive: bool = False) -> Any:
    """A batch of ROWS rows, the same at every call.

    Args:
        like: structure of arrays, tensors or specs, [n, ...]; None stays None.
        changed_rows: other values in all rows but the first.
        is_positive: floats in [0, 1), as labels and weights are, instead of normal.

    Returns:
        The structure with made-up tensors; None if it holds anything but numbers.
        Integers are 0 or 1, which are valid ids and classes almost anywhere.
    """
    generator, other = (np.random.default_rng(seed) for seed in (1, 2))
    leaves = [t for t in keras.tree.flatten(like) if t is not None]
    dtypes = [tf.as_dtype(t.dtype) for t in leaves]
    if not all(d.is_floating or d.is_integer or d.is_bool for d in dtypes):
        return None

    def values(source: np.random.Generator, t: Any) -> Any:
        shape = (ROWS, *t.shape[1:])
        if not tf.as_dtype(t.dtype).is_floating:
            return source.integers(0, 2, shape)
        return source.random(shape) if is_positive else source.standard_normal(shape)

    def one(t: Any) -> Any:
        if t is None:
            return None
        rows, new = values(generator, t), values(other, t)
        if changed_rows:
            is_number = tf.as_dtype(t.dtype).is_floating
            rows[1:] = new[1:] if is_number else 1 - rows[1:]
        return tf.cast(rows, t.dtype)  # 0 and 1 are False and True

    return keras.tree.map_structure(one, like, none_is_leaf=True)
