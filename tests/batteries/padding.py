"""Battery: an example's length moves no other example's gradient, however one trains.

Example 0 has weight 0, so its own gradient is 0 and the sum must not notice it; padding
to the longest of a batch would let it. Noise off, no false alarms. Refusing is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dp_train
from tests.batteries.training import without_noise

ROWS = 16
SHORT, LONG = 6, 400


def tokens(length: int) -> Any:
    """(x, y, sample_weight): 16 short sequences, padded to `length`."""
    x = np.zeros((ROWS, length), "int32")
    x[:, :SHORT] = np.random.default_rng(1).integers(1, 50, (ROWS, SHORT))
    weight = np.ones(ROWS, "float32")
    weight[0] = 0.0
    return x, np.ones((ROWS, 1), "float32"), weight


def model(*, is_private: bool = True) -> Any:
    """A mean of embeddings, which counts the padding too."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    made: Any = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(50, 8),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    if is_private:
        made = dp_train.make_private(made)
    optimizer = dp_train.DPSGD(
        1.0, l2_norm_clip=1.0, noise_multiplier=0.0, expected_batch_size=ROWS
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    made.compile(optimizer, loss=loss)
    return made


def _dataset(lengths: Any) -> Any:
    def batches() -> Iterator[Any]:
        yield from map(tokens, lengths)

    specs = (
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None, 1], tf.float32),
        tf.TensorSpec([None], tf.float32),
    )
    found = tf.data.Dataset.from_generator(batches, output_signature=specs)
    return found.apply(tf.data.experimental.assert_cardinality(len(lengths)))


def by_fit(trained: Any, lengths: Any) -> None:
    """fit on a dataset with an open axis."""
    trained.fit(_dataset(lengths), shuffle=False, verbose=0)


def by_batches(trained: Any, lengths: Any) -> None:
    """train_on_batch."""
    for length in lengths:
        trained.train_on_batch(*tokens(length))


def by_custom_loop(trained: Any, lengths: Any) -> None:
    """clipped_gradients on batches that somebody chose."""
    for length in lengths:
        clipped = dp_train.clipped_gradients(trained, *tokens(length), l2_norm_clip=1.0)
        trained.optimizer.apply_clipped_sum(clipped, trained.trainable_variables)


WAYS: dict[str, tuple[bool, Callable[[Any, Any], None]]] = {
    "private fit": (True, by_fit),
    "plain fit": (False, by_fit),
    "train_on_batch": (True, by_batches),
    "plain train_on_batch": (False, by_batches),
    "custom loop": (True, by_custom_loop),
}


def assert_a_long_example_moves_no_other(way: str) -> None:
    """Trains on two batches; in one world the second has a long example 0."""
    is_private, train = WAYS[way]
    ends = []
    for last in (SHORT, LONG):
        trained = model(is_private=is_private)
        with without_noise():
            try:
                train(trained, (SHORT, last))
            except dp_train.NotPrivateError as error:
                if "length of all others" not in str(error):
                    raise
                return
        ends.append(np.concatenate([w.ravel() for w in trained.get_weights()]))
    moved = ROWS * float(np.linalg.norm(ends[1] - ends[0]))
    assert moved <= 1e-3, f"One long example moved the sum of the others by {moved} C."
