"""A draw pays for one release, on the rows that were drawn.

Amplification holds for a release on a fresh Poisson sample. But what a loader draws
goes through hands that are not ours: pipelines that cache or repeat it, models with a
fit or a train_function of their own, callbacks that take a step. So each draw leaves a
digest of its rows; the step takes the digest of the rows that it was given, and the
charge asks whether a draw with that digest is still unused. A second step on the same
rows, rows of another origin and rows that were copied or changed find none.

The digest adds up a number for each row, so that no order and no padding matters:

    digest = sum_b mix(o + sum_k m_k bits(row_b[p_k]))   mod 2^64

with a few places p of each array, odd multipliers m and an offset o that are secrets of
the process. Rows of weight 0 are no examples and are left out.
"""

from __future__ import annotations

import collections
import functools
import secrets
import threading
from typing import Any, final

import keras
import numpy as np
import tensorflow as tf

from accounting import Event
from dp_train.errors import NotPrivateError
from dp_train.sampling import PoissonSampling

_PLACES = 4
"""Entries of an array that are looked at, for each row."""
_SHIFTS = (32, 29)

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@functools.cache
def _secrets(leaf: int) -> tuple[Any, IntArray, IntArray]:
    """Places as shares of a row, multipliers and an offset for the leaf of a batch."""
    generator = np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))
    words = generator.integers(-(2**63), 2**63 - 1, _PLACES + 1, np.int64)
    return generator.random(_PLACES), words[:-1] | 1, words[-1:]


def _leaves(rows: Any) -> list[Any]:
    return [t for t in keras.tree.flatten(rows) if t is not None]


def digest_of(rows: Any) -> tf.Tensor:
    """int64 digest of the rows that a step was given.

    Args:
        rows: (x, y, sample_weight) of tensors [n, ...].
    """
    total: Any = 0
    for leaf, t in enumerate(_leaves(rows)):
        shares, multipliers, offset = _secrets(leaf)
        flat = tf.reshape(t, [tf.shape(t)[0], -1])
        width = tf.cast(tf.shape(flat)[1], tf.float64)
        bits = _bits(tf.gather(flat, tf.cast(shares * width, tf.int32), axis=1))
        total += tf.reduce_sum(bits * multipliers, 1) + offset
    for i, shift in enumerate(_SHIFTS):
        total = tf.bitwise.bitwise_xor(total, tf.bitwise.right_shift(total, shift))
        total *= _secrets(0)[1][i]
    weights = [tf.reshape(w, [tf.shape(w)[0], -1]) for w in _leaves(rows[2])]
    if weights:
        is_real = tf.reduce_any(tf.not_equal(tf.concat(weights, 1), 0), 1)
        total = tf.where(is_real, total, tf.zeros_like(total))
    return tf.reduce_sum(total)


def _bits(t: tf.Tensor) -> tf.Tensor:
    """The numbers as int64, floats by their bits."""
    if t.dtype == tf.string:
        return tf.strings.to_hash_bucket_fast(t, 2**62)
    if t.dtype.is_floating:
        t = tf.bitcast(t, {2: tf.int16, 4: tf.int32, 8: tf.int64}[t.dtype.size])
    return tf.cast(t, tf.int64)


@final
class Draws:
    """Poisson sampling of given rows, of which every draw pays for one release.

    Args:
        poisson: how the rows are drawn.
        rows: (x, y, sample_weight) of all examples, arrays [N, ...].
    """

    def __init__(self, poisson: PoissonSampling, rows: Any) -> None:
        self.poisson = poisson
        self._weights = [w.reshape(len(w), -1) for w in _leaves(rows[2])]
        self._columns = []
        for leaf, array in enumerate(_leaves(rows)):
            shares, multipliers, offset = _secrets(leaf)
            flat = array.reshape(len(array), -1)
            if flat.dtype.kind not in "biu":
                flat = flat.view(f"int{8 * flat.dtype.itemsize}")
            places = (shares * np.float64(flat.shape[1])).astype(np.int32)
            self._columns.append((flat, places, multipliers, offset))
        self._unused: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()

    @property
    def expected_batch_size(self) -> float:
        """B."""
        return self.poisson.expected_batch_size

    @property
    def population(self) -> int:
        """N."""
        return self.poisson.population

    def event(self, release: Event) -> Event:
        """`release` on a Poisson sample."""
        return self.poisson.event(release)

    def indices(self) -> IntArray:
        """As PoissonSampling.indices; the draw pays for a release."""
        indices = self.poisson.indices()
        self._pays_with(self._digest(indices))
        return indices

    def handed_out(self, rows: Any) -> Any:
        """Rows that a pipeline made of drawn ones: with these the draw pays.

        Args:
            rows: (x, y, sample_weight), made of the rows at `poisson.indices()`.
        """
        known = tf.numpy_function(self._pays_with, [digest_of(rows)], [])
        with tf.control_dependencies([known]):
            return keras.tree.map_structure(
                lambda t: None if t is None else tf.identity(t), rows, none_is_leaf=True
            )

    def _pays_with(self, digest: Any) -> None:
        with self._lock:
            self._unused[int(digest)] += 1

    def pay(self, digest: int | None) -> None:
        """Uses up the draw of the rows with this digest.

        Raises:
            NotPrivateError: there is none that is unused.
        """
        with self._lock:
            if digest is None or self._unused[digest] < 1:
                raise NotPrivateError(
                    "A step was about to be released on rows that are no unused draw "
                    "of its loader: they made a step before, or they were changed, "
                    "copied or exchanged since they were drawn, or come from somewhere "
                    "else. They are no fresh Poisson sample, and would be accounted as "
                    "one. Let every batch of the loader make one step, as it is; "
                    "change examples before they are drawn, or by `augment`; and train "
                    "on other rows with a model and an optimizer of their own."
                )
            self._unused[digest] -= 1

    def _digest(self, indices: IntArray) -> int:
        """What digest_of finds on these rows."""
        total = np.zeros(len(indices), np.int64)
        for flat, places, multipliers, offset in self._columns:
            entries = flat[indices[:, None], places]
            total += entries.astype(np.int64) @ multipliers + offset
        for i, shift in enumerate(_SHIFTS):
            total ^= total >> shift
            total *= _secrets(0)[1][i]
        if self._weights:
            are_real = [np.any(w[indices] != 0, axis=1) for w in self._weights]
            total[~np.any(are_real, axis=0)] = 0
        return int(np.sum(total))
