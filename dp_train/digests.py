"""Digests of rows: which examples a batch holds, told by one number.

The digest adds up a number for each row, so that no order matters:

    digest = sum_b mix(o + sum_k m_k bits(row_b)_k)   mod 2^64

over all words of 32 bits of a row, with two multipliers m for each word and an offset o
that are secrets of the process.
"""

from __future__ import annotations

import functools
import math
import secrets
from typing import Any

import keras
import numpy as np
import tensorflow as tf

IntArray = np.ndarray[Any, np.dtype[np.int64]]

_SEEDS = np.frombuffer(secrets.token_bytes(1024), np.int32).reshape(-1, 2)
_OFFSET, *_FACTORS = (secrets.randbits(62) | 1 for _ in range(3))
_SHIFTS = (32, 29)
_BLOCK = 1 << 24
"""Words that are read at once while the digests of all rows are made."""


def _multipliers(leaf: int, words: Any) -> tf.Tensor:
    """[words, 2] int32 for the words of a row of a leaf of the batch."""
    return tf.random.stateless_uniform(
        [words, 2],
        seed=_SEEDS[leaf % len(_SEEDS)],
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )


@functools.lru_cache(maxsize=64)
def _known_multipliers(leaf: int, words: int) -> Any:
    with tf.init_scope():
        return _multipliers(leaf, words).numpy()


def _leaves(rows: Any) -> list[Any]:
    return [t for t in keras.tree.flatten(rows) if t is not None]


def digest_of(rows: Any) -> tf.Tensor:
    """int64 digest of the rows that a step was given.

    Args:
        rows: (x, y, sample_weight) of tensors [n, ...].
    """
    total: Any = 0
    for leaf, t in enumerate(_leaves(rows)):
        words = _words(tf.reshape(t, [tf.shape(t)[0], -1]))
        count = words.shape[1]
        multipliers = (
            _multipliers(leaf, tf.shape(words)[1])
            if count is None
            else _known_multipliers(leaf, count)
        )
        total += _joined(tf.cast(tf.matmul(words, multipliers), tf.int64))
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        total = tf.bitwise.bitwise_xor(total, tf.bitwise.right_shift(total, shift))
        total *= factor
    return tf.reduce_sum(total)


def _words(t: tf.Tensor) -> tf.Tensor:
    """[n, words] int32 of a matrix, numbers of 4 and 8 bytes by their bits."""
    if t.dtype == tf.string:
        t = tf.strings.to_hash_bucket_fast(t, 2**62)
    if t.dtype.size == 8:
        pairs = tf.bitcast(t, tf.int32)
        return tf.reshape(pairs, [tf.shape(t)[0], 2 * (t.shape[1] or tf.shape(t)[1])])
    if t.dtype.size == 4:
        return tf.bitcast(t, tf.int32)
    if t.dtype.is_floating:
        t = tf.bitcast(t, tf.int16)
    return tf.cast(t, tf.int32)


def _words_of_array(flat: Any) -> Any:
    """The same of a NumPy matrix."""
    if flat.dtype.itemsize in (4, 8):
        return np.ascontiguousarray(flat).view(np.int32)
    if flat.dtype.kind not in "biu":
        flat = flat.view(np.int16)
    return flat.astype(np.int32)


def _joined(halves: Any) -> Any:
    """[n] of [n, 2] int64, each of which holds 32 bits."""
    return halves[:, 0] * (1 << 32) + halves[:, 1] + _OFFSET


def digests_of_arrays(rows: Any) -> IntArray:
    """[N] what each row of arrays adds to the digest of its batch.

    Args:
        rows: (x, y, sample_weight) of arrays [N, ...].
    """
    leaves = _leaves(rows)
    total = np.zeros(len(leaves[0]), np.int64)
    for leaf, array in enumerate(leaves):
        flat = array.reshape(len(array), math.prod(array.shape[1:]))
        block = max(1, _BLOCK // max(1, flat.shape[1]))
        for start in range(0, len(flat), block):
            words = _words_of_array(flat[start : start + block])
            multipliers = _known_multipliers(leaf, words.shape[1])
            halves = (words @ multipliers).astype(np.int64)
            total[start : start + block] += _joined(halves)
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        total ^= total >> shift
        total *= factor
    return total
