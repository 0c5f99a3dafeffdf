"""A draw pays for one release, on the rows that were drawn, and when it is its turn.

Amplification holds for a release on a fresh Poisson sample. But what a loader draws
goes through hands that are not ours: pipelines that cache, filter or repeat it, models
with a fit or a train_function of their own, callbacks that take a step. So each draw
leaves a digest of its rows; the step takes the digest of the rows that it was given,
and the charge asks whether the oldest draw that is unused has that digest. A second
step on the same rows, rows of another origin and rows that were copied or changed find
none; and batches that were selected come before their turn.

Draws stand in one line, which a look at them does not move: whoever begins anew to
iterate gets those that are unused again, so that none is won by beginning often. What
repeats an iteration goes on behind it, since its draws may be on their way to a step.
"""

from __future__ import annotations

import collections
import dataclasses
import secrets
import threading
from collections.abc import Iterator
from typing import Any, final

import keras
import numpy as np
import tensorflow as tf

from accounting import Event
from dp_train import host
from dp_train.digests import IntArray, digest_of, digests_of_arrays
from dp_train.errors import NotPrivateError
from dp_train.noise.draw import keys_at_once
from dp_train.sampling import PoissonSampling


@final
@dataclasses.dataclass(eq=False)
class Draw:
    """Who was drawn.

    Attributes:
        indices: of the examples.
        keys: [n * copies, 2] int32 for their augmentation.
        source: digest of the examples as they were when the line began.
        digest: of the rows that pay; None while they are augmented.
        number: a name of its own.
        is_handed_out: to a loop, which may look at it.
    """

    indices: IntArray
    keys: np.ndarray[Any, np.dtype[np.int32]]
    source: int
    digest: int | None
    number: int
    is_handed_out: bool = False


_in_hand: collections.Counter[int] = collections.Counter()
"""By digest of all examples, how many draws loops were handed and did not release.

Whoever makes a loader for each look, or copies one, leaves them behind.
"""


@final
class Draws:
    """Poisson sampling of given rows, of which every draw pays for one release.

    Args:
        poisson: how the rows are drawn.
        rows: (x, y, sample_weight) of all examples, arrays [N, ...].
        fewest: rows of a batch; with zeros it is filled up to that.
        copies: augmented copies of each example; 0 if they stay as they are.
    """

    # No method can be set on a draw: the step asks each whether its rows were drawn.
    __slots__ = (
        "_copies",
        "_digests",
        "_fewest",
        "_has_ended",
        "_in_hand",
        "_key",
        "_lock",
        "_next",
        "_of_zeros",
        "_poisson",
        "_released",
        "_unused",
    )

    def __init__(
        self, poisson: PoissonSampling, rows: Any, fewest: int = 0, copies: int = 0
    ) -> None:
        self._poisson = _checked(poisson, rows)
        self._digests = digests_of_arrays(rows)
        zero = keras.tree.map_structure(
            lambda a: None if a is None else np.zeros_like(a[:1]),
            rows,
            none_is_leaf=True,
        )
        self._fewest, self._of_zeros = fewest, digests_of_arrays(zero)
        self._copies = copies
        self._unused: collections.deque[Draw] = collections.deque()
        self._released = self._next = 0
        self._has_ended, self._in_hand = False, 0
        self._key = _wrapped(int(np.sum(self._digests)))
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

    # ----------------------------------------------------------------- handing out

    def iteration(self, steps: int) -> Iterator[Draw]:
        """So many draws in their order, behind the last iteration if that ended."""
        start, self._has_ended = self._begin(self._has_ended), False
        for i in range(steps):
            draw = self._at(start + i)[1]
            if not draw.is_handed_out:
                draw.is_handed_out = True
                self._count(1)
            yield draw
        self._has_ended = True

    def dataset(self, steps: int) -> tf.data.Dataset:
        """The same as a pipeline of (place in the line, indices, keys).

        A new iterator begins anew, and `repeat` in a pipeline goes on.
        """
        first: list[int] = []

        def begin(number: Any) -> np.int64:
            if not first:
                first.append(int(number))
            return np.int64(self._begin(goes_on=int(number) != first[0]))

        def at(place: Any) -> tuple[Any, ...]:
            found, draw = self._at(int(place))
            return np.int64(found), draw.indices, draw.keys

        def begun(_: tf.Tensor) -> tf.data.Dataset:
            start = tf.numpy_function(begin, [host.number_of_call()], tf.int64)

            def draw(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                place, indices, keys = tf.numpy_function(
                    at,
                    [start + i],
                    [tf.int64, tf.int64, tf.int32],
                )
                return (
                    tf.ensure_shape(place, []),
                    tf.ensure_shape(indices, [None]),
                    tf.ensure_shape(keys, [None, 2]),
                )

            return tf.data.Dataset.range(steps).map(draw)

        whole = tf.data.Dataset.range(1).flat_map(begun)
        return whole.apply(tf.data.experimental.assert_cardinality(steps))

    def _begin(self, goes_on: bool) -> int:
        """The place where an iteration begins."""
        with self._lock:
            return self._next if goes_on else self._released

    def _at(self, place: int) -> tuple[int, Draw]:
        """The draw at a place, or the oldest if that was released, and its place."""
        with self._lock:
            ahead = max(0, place - self._released)
            if ahead >= len(self._unused):
                self._unused.append(self._drawn())
                ahead = len(self._unused) - 1
            self._next = self._released + ahead + 1
            return self._next - 1, self._unused[ahead]

    def _drawn(self) -> Draw:
        indices = self._poisson.indices()
        source = int(np.sum(self._digests[indices]))
        missing = max(0, self._fewest - len(indices))
        filled_up = _wrapped(source + int(self._of_zeros[0]) * missing)
        return Draw(
            indices,
            keys_at_once(len(indices) * self._copies),
            source,
            None if self._copies else filled_up,
            secrets.randbits(62),
        )

    # --------------------------------------------------------------------- paying

    def handed_out(self, place: tf.Tensor, rows: Any, source: Any) -> Any:
        """Rows that a pipeline made of drawn ones: with these the draw pays.

        Args:
            place: of the draw.
            rows: (x, y, sample_weight), made of `source`.
            source: the rows at its indices.
        """
        known = tf.numpy_function(
            self._pays_with, [place, digest_of(rows), digest_of(source)], []
        )
        with tf.control_dependencies([known]):
            return keras.tree.map_structure(
                lambda t: None if t is None else tf.identity(t), rows, none_is_leaf=True
            )

    def _pays_with(self, place: Any, digest: Any, source: Any) -> None:
        with self._lock:
            ahead = int(place) - self._released
            if 0 <= ahead < len(self._unused):
                settle(self._unused[ahead], int(digest), int(source))

    def pay(self, digest: int | None) -> None:
        """Uses up the oldest draw, if its rows have this digest.

        Raises:
            NotPrivateError: they have another one.
        """
        with self._lock:
            waiting = [draw.digest for draw in self._unused]
            if digest is None or digest not in waiting:
                raise NotPrivateError(
                    "A step was about to be released on rows that are no unused draw "
                    "of its loader: they made a step before, or they were changed, "
                    "copied or exchanged since the arrays were given, or come from "
                    "somewhere else. They are no fresh Poisson sample, and would be "
                    "accounted as one. Let every batch of the loader make one step, as "
                    "it is; change examples before they are drawn, or by `augment`; "
                    "and train on other rows with a model and an optimizer of their "
                    "own."
                )
            if digest != waiting[0]:
                raise NotPrivateError(
                    "A batch was about to be released while an older one of its loader "
                    "is unused: that was left out, as by `filter`, `continue` or a "
                    "look at all batches, or they come in another order. A batch that "
                    "is selected after a look at it is no Poisson sample, and what it "
                    "shows of its examples would be accounted too small. Release every "
                    "batch in the loader's order, an empty one too; to end earlier, "
                    "leave the loop or pass steps_per_epoch; and after an evaluation "
                    "on the loader's batches begin with a new loader, or with "
                    "loader.dataset_for(optimizer)."
                )
            if self._unused.popleft().is_handed_out:
                self._count(-1)
            self._released += 1

    def _count(self, more: int) -> None:
        self._in_hand += more
        _in_hand[self._key] += more

    @property
    def are_others_left_out(self) -> bool:
        """Whether loops hold unreleased draws of the same examples by other loaders."""
        return _in_hand[self._key] > self._in_hand


def settle(draw: Draw, digest: int, source: int) -> None:
    """The draw pays with rows that were made of its examples, if these are unchanged.

    Args:
        draw: whose rows were augmented.
        digest: of the rows.
        source: of the examples that they were made of.
    """
    if draw.digest is None and source == draw.source:
        draw.digest = digest


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
