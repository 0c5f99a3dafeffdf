"""Digests of rows: which examples a batch holds, told by one number.

The digest adds up a number for each row, so that no order matters:

    digest = sum_b mix(high(o_1 + sum_k m_1k w_bk), high(o_2 + sum_k m_2k w_bk))

mod 2^64, over all words w of 32 bits that make up row b: for each array its dtype, its
rank and its sizes, and then the bits of its numbers. Multipliers m and offsets o have
64 bits and are secrets of the process, sums are taken mod 2^64, and high() keeps the
upper 32 bits; mix is a bijection that is not linear. That is multilinear hashing
(Lemire and Kaser 2014, arXiv:1202.4961, section 3).

Two rows that differ, in a number, a size or a dtype, have one digest with probability
2^-64: if they differ in word k by d = 2^t (odd), |d| < 2^32, then m_k d is uniform on
the multiples of 2^t, and for uniform o the upper halves of o and o + m_k d + ... are
equal with probability 2^-32; the two sums are independent. A word that only one of them
has counts as 0 in the other, which differs from it in the sizes. So an exchanged row is
missed with probability 2^-64; for several at once there is the mix, and no proof.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

IntArray = np.ndarray[Any, np.dtype[np.int64]]

_SEED = np.frombuffer(secrets.token_bytes(16), np.int64)
_OFFSETS = np.frombuffer(secrets.token_bytes(16), np.int64)
_FACTORS = [secrets.randbits(62) | 1 for _ in range(2)]
_SHIFTS = (32, 29)
_LOW = (1 << 32) - 1
_BLOCK = 1 << 23
"""Words that are read at once while the digests of all rows are made."""


def _multipliers(stream: int, words: Any) -> tf.Tensor:
    """[words, 2] int64; every stream has its own."""
    return tf.random.stateless_uniform(
        [words, 2],
        seed=_SEED ^ [0, stream],
        minval=None,
        maxval=None,
        dtype=tf.int64,
        alg="philox",
    )


@functools.lru_cache(maxsize=256)
def _known_multipliers(stream: int, words: int) -> Any:
    with tf.init_scope():
        return _multipliers(stream, words).numpy()


def _leaves(rows: Any) -> Iterator[tuple[int, int, Any]]:
    """(stream of its sizes, stream of its numbers, array) of each array."""
    for i, leaf in enumerate(keras.tree.flatten(rows)):
        if leaf is not None:
            yield 2 * i, 2 * i + 1, leaf


def digest_of(rows: Any) -> tf.Tensor:
    """int64 digest of the rows that a step was given.

    Args:
        rows: (x, y, sample_weight) of tensors [n, ...].
    """
    halves: Any = tf.constant(_OFFSETS)
    for of_sizes, of_numbers, t in _leaves(rows):
        words = _words(tf.reshape(t, [tf.shape(t)[0], -1]))
        halves += _kind(of_sizes, t) + tf.matmul(
            tf.cast(words, tf.int64),
            _multipliers(of_numbers, tf.shape(words)[1])
            if words.shape[1] is None
            else _known_multipliers(of_numbers, words.shape[1]),
        )
    shifted = tf.bitwise.right_shift(halves[:, 1], 32)
    total = (halves[:, 0] & ~_LOW) | (shifted & _LOW)
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        total = tf.bitwise.bitwise_xor(total, tf.bitwise.right_shift(total, shift))
        total *= factor
    return tf.reduce_sum(total)


def _kind(stream: int, t: tf.Tensor) -> Any:
    """[2] int64, what dtype, rank and sizes of a row add."""
    if t.shape.rank is not None and t.shape[1:].is_fully_defined():
        return _known_kind(stream, t.dtype, tuple(t.shape[1:]))
    sizes = tf.shape(t, tf.int64)[1:]
    words = tf.concat([[t.dtype.as_datatype_enum, tf.size(sizes, tf.int64)], sizes], 0)
    multipliers = _multipliers(stream, tf.size(words))
    return tf.reduce_sum(words[:, None] * multipliers, axis=0)


def _known_kind(stream: int, dtype: Any, sizes: tuple[int, ...]) -> IntArray:
    """The same of what is known."""
    words = np.array([tf.as_dtype(dtype).as_datatype_enum, len(sizes), *sizes])
    kind: IntArray = words @ _known_multipliers(stream, len(words))
    return kind


def _words(t: tf.Tensor) -> tf.Tensor:
    """[n, words] int32 of a matrix, numbers of 4 and more bytes by their bits."""
    if t.dtype == tf.string:
        t = tf.strings.to_hash_bucket_fast(t, 2**62)
    if t.dtype.size == 4:
        return tf.bitcast(t, tf.int32)
    if t.dtype.size > 4:
        parts = tf.bitcast(t, tf.int32)
        columns = tf.shape(t)[1] if t.shape[1] is None else t.shape[1]
        return tf.reshape(parts, [tf.shape(t)[0], t.dtype.size // 4 * columns])
    if t.dtype.is_floating:
        t = tf.bitcast(t, tf.int16)
    return tf.cast(t, tf.int32)


def _words_of_array(flat: Any) -> Any:
    """The same of a NumPy matrix."""
    if flat.dtype.itemsize >= 4:
        return np.ascontiguousarray(flat).view(np.int32)
    if flat.dtype.kind not in "biu":
        flat = flat.view(np.int16)
    return flat.astype(np.int32)


def digests_of_arrays(rows: Any) -> IntArray:
    """[N] what each row of arrays adds to the digest of its batch.

    Args:
        rows: (x, y, sample_weight) of arrays [N, ...].
    """
    leaves = list(_leaves(rows))
    halves = np.tile(_OFFSETS, (len(leaves[0][-1]), 1))
    for of_sizes, of_numbers, array in leaves:
        halves += _known_kind(of_sizes, array.dtype, array.shape[1:])
        flat = array.reshape(len(array), math.prod(array.shape[1:]))
        block = max(1, _BLOCK // max(1, flat.shape[1]))
        for start in range(0, len(flat), block):
            words = _words_of_array(flat[start : start + block]).astype(np.int64)
            multipliers = _known_multipliers(of_numbers, words.shape[1])
            halves[start : start + block] += words @ multipliers
    total: IntArray = (halves[:, 0] & ~_LOW) | ((halves[:, 1] >> 32) & _LOW)
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        total ^= total >> shift
        total *= factor
    return total
