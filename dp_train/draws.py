"""A draw pays for one release, on the rows that were drawn.

Amplification holds for a release on a fresh Poisson sample. But what a loader draws
goes through hands that are not ours: pipelines that cache or repeat it, models with a
fit or a train_function of their own, callbacks that take a step. So each draw leaves a
digest of its rows; the step takes the digest of the rows that it was given, and the
charge asks whether a draw with that digest is still unused. A second step on the same
rows, rows of another origin and rows that were copied or changed find none.
"""

from __future__ import annotations

import collections
import threading
from typing import Any, final

import keras
import numpy as np
import tensorflow as tf

from accounting import Event
from dp_train.digests import IntArray, digest_of, digests_of_arrays
from dp_train.errors import NotPrivateError
from dp_train.sampling import PoissonSampling


@final
class Draws:
    """Poisson sampling of given rows, of which every draw pays for one release.

    Args:
        poisson: how the rows are drawn.
        rows: (x, y, sample_weight) of all examples, arrays [N, ...].
        fewest: rows of a batch; with zeros it is filled up to that.
    """

    # No method can be set on a draw: the step asks each whether its rows were drawn.
    __slots__ = "_digests", "_fewest", "_lock", "_of_zeros", "_poisson", "_unused"

    def __init__(self, poisson: PoissonSampling, rows: Any, fewest: int = 0) -> None:
        self._poisson = _checked(poisson, rows)
        self._digests = digests_of_arrays(rows)
        zero = keras.tree.map_structure(
            lambda a: None if a is None else np.zeros_like(a[:1]),
            rows,
            none_is_leaf=True,
        )
        self._fewest, self._of_zeros = fewest, digests_of_arrays(zero)
        self._unused: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()

    @property
    def poisson(self) -> PoissonSampling:
        """How the rows are drawn, without a draw that pays."""
        return self._poisson

    @property
    def expected_batch_size(self) -> float:
        """B."""
        return self._poisson.expected_batch_size

    @property
    def population(self) -> int:
        """N."""
        return self._poisson.population

    def event(self, release: Event) -> Event:
        """`release` on a Poisson sample."""
        return self._poisson.event(release)

    def indices(self) -> IntArray:
        """As PoissonSampling.indices; the draw pays for a release."""
        indices = self._poisson.indices()
        missing = max(0, self._fewest - len(indices))
        zeros = int(self._of_zeros[0]) * missing
        self._pays_with(_wrapped(int(np.sum(self._digests[indices])) + zeros))
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


def _checked(poisson: PoissonSampling, rows: Any) -> PoissonSampling:
    """Refuses a sampling of other rows, or one that may draw in another way."""
    found = {len(a) for a in keras.tree.flatten(rows) if a is not None}
    if type(poisson) is not PoissonSampling or found != {poisson.population}:
        raise NotPrivateError(
            f"{type(poisson).__name__} was to draw from rows of which there are "
            f"{sorted(found)}. What its draws cost would not follow from how they are "
            "drawn. Use a PoissonLoader, which has a sampling of its own arrays."
        )
    return poisson


def _wrapped(number: int) -> int:
    """The number mod 2^64, as int64 has it."""
    return (number + 2**63) % 2**64 - 2**63
