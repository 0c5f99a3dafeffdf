"""Whether weights are as the last release, fit or file left them.

What else moves a weight, a training without noise or values set by hand, is in no
ledger. So each weight keeps two prints of its value. A digest of (nearly) all numbers
is taken in Python, where a fit ends or a file was read. A sample of a few numbers, at
places that nobody can guess, is compared and taken anew in the graph of each release:
what callbacks, pipelines or other models do between two steps shows there.
"""

from __future__ import annotations

import functools
import hashlib
import math
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dp_train import host

NUMBERS = 1 << 18
"""So many numbers of a weight are in its digest: all, except of large ones."""
SAMPLED = 32
"""So many numbers of a weight are in its sample. A change of a share s of all numbers
stays unseen with probability (1 - s)^32 until the next digest."""
DIGEST_BYTES = 32
_DIGEST, _SAMPLE = "_dp_train_digest", "_dp_train_sample"


class _Sample:
    """Some numbers of a weight, and the places where they were read."""

    def __init__(self, weight: keras.Variable) -> None:
        size = math.prod(weight.shape)
        is_whole = size <= SAMPLED
        drawn = [secrets.randbelow(size) for _ in range(0 if is_whole else SAMPLED)]
        self.places = None if is_whole else np.array(sorted(drawn), np.int64)
        # A function that makes a variable when it is traced is traced again.
        self.kept = host.outside_of_tracing(
            lambda: tf.Variable(_numbers(weight, self.places), trainable=False)
        )

    def leave(self, weight: keras.Variable) -> None:
        self.kept.assign(_numbers(weight, self.places))


def _numbers(weight: keras.Variable, places: Any) -> tf.Tensor:
    if places is not None and len(weight.shape) == 2:
        # Of a table that is read whole its update would make a copy.
        rows, columns = np.divmod(places, weight.shape[1])
        found = host.stored_rows(weight, rows)
        return tf.gather_nd(found, np.stack([np.arange(len(rows)), columns], 1))
    flat = tf.reshape(host.stored_value(weight), [-1])
    return flat if places is None else tf.gather(flat, places)


def _sample_of(weight: keras.Variable) -> _Sample:
    if _SAMPLE not in vars(weight):
        vars(weight)[_SAMPLE] = _Sample(weight)
    sample: _Sample = vars(weight)[_SAMPLE]
    return sample


def _is_same(pairs: Iterable[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
    """Whether all tensors are those beside them, bit for bit."""
    by_type: dict[Any, tuple[list[Any], list[Any]]] = {}
    for one, other in pairs:
        for found, t in zip(
            by_type.setdefault(one.dtype, ([], [])), (one, other), strict=True
        ):
            found.append(t)
    same = tf.constant(True)
    for dtype, columns in by_type.items():
        one, other = (tf.concat(column, 0) for column in columns)
        if dtype.is_floating:
            bits = {2: tf.int16, 4: tf.int32, 8: tf.int64}[dtype.size]
            one, other = tf.bitcast(one, bits), tf.bitcast(other, bits)
        same = tf.logical_and(same, tf.reduce_all(tf.equal(one, other)))
    return same


class Samples:
    """The samples of some weights, for the release that moves them.

    Args:
        weights: that it moves; built.
        fixed: weights that it reads, and nothing moves.

    Attributes:
        weights, fixed: as given.
    """

    def __init__(
        self, weights: Sequence[keras.Variable], fixed: Sequence[keras.Variable] = ()
    ) -> None:
        self.weights, self.fixed = tuple(weights), tuple(fixed)
        for weight in (*weights, *fixed):
            _sample_of(weight)

    def are_as_left(self) -> tf.Tensor:
        """Whether nothing but releases moved the weights since `leave`; a bool."""
        return self._compared() if tf.executing_eagerly() else self._compare()

    def leave(self) -> None:
        """Takes the samples anew, of what the release has made of the weights."""
        if tf.executing_eagerly():
            self._taken()
        else:
            self._take()

    @functools.cached_property
    def _compared(self) -> Any:
        return tf.function(self._compare, autograph=False).get_concrete_function()

    @functools.cached_property
    def _taken(self) -> Any:
        return tf.function(self._take, autograph=False).get_concrete_function()

    def _compare(self) -> tf.Tensor:
        samples = [(w, _sample_of(w)) for w in (*self.weights, *self.fixed)]
        return _is_same((_numbers(w, s.places), s.kept.value()) for w, s in samples)

    def _take(self) -> None:
        for weight in self.weights:
            _sample_of(weight).leave(weight)


def kept_of(weights: Iterable[keras.Variable]) -> list[tf.Variable]:
    """What `Samples.leave` writes to."""
    return [vars(w)[_SAMPLE].kept for w in weights if _SAMPLE in vars(w)]


def record(weights: Iterable[keras.Variable]) -> None:
    """Keeps what a fit, or a file, left in the weights."""
    for weight in weights:
        vars(weight)[_DIGEST] = digest(weight)
        if _SAMPLE in vars(weight):
            _sample_of(weight).leave(weight)


def record_unknown(weights: Iterable[keras.Variable]) -> None:
    """Keeps the values of weights of which nothing is known; with samples for steps."""
    for weight in weights:
        if _DIGEST not in vars(weight):
            record([weight])
        _sample_of(weight)


def leave(weights: Iterable[keras.Variable]) -> None:
    """Keeps what was put back into weights that are being trained: earlier values."""
    for weight in weights:
        if _DIGEST in vars(weight):
            record([weight])
        elif _SAMPLE in vars(weight):
            _sample_of(weight).leave(weight)


def expect(weight: keras.Variable, known: bytes) -> None:
    """A file is about to be read into the weight, or was; it had this digest."""
    vars(weight)[_DIGEST] = known
    was_read(weight)


def was_read(weight: keras.Variable) -> None:
    """A file may have been read into the weight, as it was expected."""
    known = vars(weight)
    if _DIGEST in known and _SAMPLE in known and known[_DIGEST] == digest(weight):
        _sample_of(weight).leave(weight)


def forget(weights: Iterable[keras.Variable]) -> None:
    """A release moves the weights: digests are those of the time before."""
    for weight in weights:
        vars(weight).pop(_DIGEST, None)


def are_as_left(weights: Iterable[keras.Variable], with_samples: bool = True) -> bool:
    """Whether the weights are as was kept; also where nothing is known of them.

    Args:
        weights: any.
        with_samples: also those of which only a sample is known; the next release
            looks at these by itself.
    """
    for weight in weights:
        known = vars(weight)
        if _DIGEST in known:
            if known[_DIGEST] != digest(weight):
                return False
        elif _SAMPLE in known and with_samples:
            sample = _sample_of(weight)
            now = _numbers(weight, sample.places)
            if not bool(_is_same([(now, sample.kept.value())])):
                return False
    return True


def digest(weight: keras.Variable) -> bytes:
    """SHA-256 of about NUMBERS numbers, evenly spread, or of all."""
    value = host.stored_value(weight)
    size = math.prod(value.shape)
    if size > NUMBERS:
        # Odd, so that every column of a table has its turn.
        value = tf.reshape(value, [-1])[:: size // NUMBERS | 1]
    return hashlib.sha256(value.numpy().tobytes()).digest()


class Outside:
    """Variables and tables that a step reads and no release writes.

    What a callback or a pipeline puts into them while a fit runs may be made of the
    data. Nothing else would show it: they are no weights of the model.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[host.State, bytes]] = {}

    def add(
        self,
        operations: Iterable[tf.Operation],
        graph: Any,
        others: Iterable[keras.Variable | tf.Variable],
    ) -> None:
        """Keeps what a traced step reads.

        Args:
            operations: of the step.
            graph: of these.
            others: variables that do not matter, or are looked at by name.
        """
        named = {id(host.handle_of(variable)) for variable in others}
        for state in host.states_read(operations, graph):
            key = id(state.handle)
            if key not in named and key not in self._known:
                self._known[key] = state, _digest_of_state(state)

    def begin(self) -> None:
        """What was done to them until now does not matter."""
        for key, (state, _) in self._known.items():
            self._known[key] = state, _digest_of_state(state)

    def are_as_left(self) -> bool:
        """Whether they are as they were when the fit began."""
        return all(_digest_of_state(s) == known for s, known in self._known.values())


def _digest_of_state(state: host.State) -> bytes:
    parts = (hashlib.sha256(content).digest() for content in state.content())
    return b"".join(parts)
