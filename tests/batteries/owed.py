"""Noise that is drawn when a row is read: as much of it, and before anybody looks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import dp_train
from dp_train import owing
from dp_train.noise.owed import OwedNoise
from tests import statistics

ROWS, WIDTH, TOKENS, HOT = 3000, 64, 6, 40
RATE, NOISE_MULTIPLIER, L2_NORM_CLIP, BATCH = 0.5, 1000.0, 0.1, 8
"""Noise so large that gradients, at most the clip, are lost in it."""


@contextlib.contextmanager
def small_tables_owe() -> Iterator[None]:
    """Tables of any size owe their noise."""
    with mock.patch.object(owing, "FEWEST", 1):
        yield


def model(noise_multiplier: float = NOISE_MULTIPLIER) -> keras.Model:
    """A private classifier of rows of ids, compiled with plain SGD."""
    found = keras.Sequential(
        [
            keras.Input((TOKENS,), dtype="int32"),
            keras.layers.Embedding(ROWS, WIDTH),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )
    found = dp_train.make_private(found)
    optimizer = dp_train.DPSGD(
        RATE,
        l2_norm_clip=L2_NORM_CLIP,
        noise_multiplier=noise_multiplier,
        lazy_noise=True,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found.compile(optimizer, loss=loss)
    return found


def data(examples: int = 64) -> tuple[Any, Any]:
    """Ids below HOT, most of them read at every step, and labels."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, HOT, (examples, TOKENS)).astype("int32")
    return x, generator.integers(0, 2, examples)


def assert_all_rows_have_the_noise_of_every_step(epochs: int = 2) -> None:
    """Read or not, after fit each row moved by noise of the sum of all variances.

    The false alarm rate is 1e-9 for each of four checks; a deficit of 1 % of the cold
    rows, or of 8 % of the hot ones, is seen.
    """
    with small_tables_owe():
        trained = model()
        x, y = data()
        before = trained.layers[0].get_weights()[0]
        trained.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
        assert trained._privacy.owing.tables, "the table did not owe"
    change = trained.layers[0].get_weights()[0] - before
    steps = epochs * len(x) // BATCH
    assert trained.privacy_ledger.total == steps
    stddev = np.sqrt(steps) * RATE * NOISE_MULTIPLIER * L2_NORM_CLIP / BATCH
    for rows in (change[:HOT], change[HOT:]):
        statistics.assert_stddev(rows, stddev)
    statistics.assert_uncorrelated(change[HOT:1500], change[1500:2960])
    statistics.assert_uncorrelated(change[HOT::2, ::2], change[HOT::2, 1::2])


class Looks(keras.callbacks.Callback):
    """Keeps a copy of the table whenever it may look."""

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__()
        self.read = read
        self.seen: list[Any] = [read()]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(self.read())


class LooksAfterBatches(Looks):
    """Looks after each batch, and does not say so before fit has begun."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.on_train_batch_end = lambda batch, logs=None: self.seen.append(self.read())


class SaysItIsBlind(Looks):
    """Nobody settles for this one, which is taken for a callback of the library."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(self.read())


SaysItIsBlind.__module__ = "dp_train.of_test"
CALLBACKS = {
    "epochs": (Looks, False),
    "batches": (LooksAfterBatches, False),
    "Python": (SaysItIsBlind, True),
}
"""Name -> (callback, whether it reads in Python rather than in a traced function)."""


def assert_whoever_looks_sees_settled_rows(who: str) -> None:
    """A callback finds every row moved since it looked last.

    Args:
        who: a key of CALLBACKS.
    """
    callback, is_python = CALLBACKS[who]
    x, y = data(24)
    with small_tables_owe():
        trained = model()
        table = trained.layers[0].embeddings
        traced = tf.function(table.value.read_value)
        looks = callback(table.numpy if is_python else lambda: traced().numpy())
        trained.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[looks])
        assert trained._privacy.owing.tables, "the table did not owe"
    steps = 3 if who == "epochs" else 1
    stddev = np.sqrt(steps) * RATE * NOISE_MULTIPLIER * L2_NORM_CLIP / BATCH
    changes = [b - a for a, b in zip(looks.seen, looks.seen[1:], strict=False)]
    # After the last batch of an epoch there are two looks.
    changes = [c for c in changes if c.any()]
    for change in changes:
        statistics.assert_stddev(change, stddev)
    assert len(changes) == 6 // steps, "a look found nothing new"


def assert_a_row_is_settled_once_when_it_is_read() -> None:
    """Equal ids get the same noise, once; rows that are not read keep owing."""
    table = keras.Variable(np.zeros((ROWS, WIDTH), "float32"))
    noise = OwedNoise(table)
    noise.owe(tf.constant(4.0, tf.float64))
    noise.owe(tf.constant(5.0, tf.float64))
    ids = np.repeat(np.arange(1000), 3)
    read = noise.read(tf.constant(ids)).numpy()
    np.testing.assert_array_equal(read[0::3], read[1::3])
    np.testing.assert_array_equal(read[0::3], table.numpy()[:1000])
    statistics.assert_stddev(read[0::3], 3.0)
    assert not table.numpy()[1000:].any()
    np.testing.assert_array_equal(noise.read(tf.constant(ids)).numpy(), read)
    noise.settle()
    np.testing.assert_array_equal(table.numpy()[:1000], read[0::3])
    statistics.assert_stddev(table.numpy()[1000:], 3.0)
