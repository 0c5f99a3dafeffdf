"""Battery: several augmented copies of an example count as one example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dp_train
from dp_train.noise.draw import replaced_host_source
from tests.batteries.cases import precision
from tests.batteries.gradient import assert_close
from tests.batteries.training import (
    LEARNING_RATE,
    drawing,
    private,
    weight_change,
    without_noise,
)

COPIES = 3
EXAMPLES = 7
TOLERANCE = 1e-10
"""Relative, in float64."""
SLACK = 1e-5


def moved(x: Any, seed: Any) -> Any:
    """A copy with numbers of its own."""
    return x * (1.5 + tf.random.stateless_normal(x.shape, seed, dtype=x.dtype))


def other_ids(x: Any, seed: Any) -> Any:
    """Some ids are exchanged."""
    other = tf.random.stateless_uniform(x.shape, seed, 0, 5, x.dtype)
    is_kept = tf.random.stateless_uniform(x.shape, seed) < 0.5
    return tf.where(is_kept, x, other)


def _dense() -> list[Any]:
    return [
        keras.Input((4,)),
        keras.layers.Dense(5, "tanh"),
        keras.layers.Dense(3, "softmax"),
    ]


def _images() -> list[Any]:
    return [
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(4, 3, activation="tanh"),
        keras.layers.DepthwiseConv2D(2),
        keras.layers.GroupNormalization(2),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax"),
    ]


def _ids() -> list[Any]:
    return [
        keras.Input((4,), dtype="int32"),
        keras.layers.Embedding(5, 3),
        keras.layers.LayerNormalization(),
        keras.layers.Dense(4, "tanh"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(3, "softmax"),
    ]


def _masked() -> list[Any]:
    """Each copy has a mask of its own, and with it another loss."""
    return [
        keras.Input((4,), dtype="int32"),
        keras.layers.Embedding(5, 3, mask_zero=True),
        keras.layers.LSTM(4),
        keras.layers.Dense(3, "softmax"),
    ]


CASES: dict[str, tuple[Callable[[], list[Any]], Any, Any]] = {
    "dense": (_dense, (4,), moved),
    "images": (_images, (6, 6, 2), moved),
    "ids": (_ids, (4,), other_ids),
    "masked": (_masked, (4,), other_ids),
}
"""(layers, shape of x, augment)."""


def _case(name: str) -> tuple[keras.Model, Any, Any, Any, Any]:
    layers, shape, augment = CASES[name]
    keras.utils.set_random_seed(3)
    generator = np.random.default_rng(4)
    x = generator.standard_normal((EXAMPLES, *shape))
    if augment is other_ids:
        x = generator.integers(0, 5, (EXAMPLES, *shape)).astype("int32")
    y = generator.integers(0, 3, EXAMPLES)
    weight = generator.uniform(0.1, 3.0, EXAMPLES)
    return keras.Sequential(layers()), x, y, weight, augment


def assert_the_sum_is_of_averaged_gradients(
    name: str, engine: str, microbatch_size: int | str = "auto"
) -> None:
    """`clipped_gradients` on a Batch, against a loop over examples and copies.

    Args:
        name: key of CASES.
        engine, microbatch_size: as in make_private.
    """
    with precision("float64"):
        model, x, y, weight, augment = _case(name)
        loader = dp_train.PoissonLoader(
            x,
            y,
            weight,
            batch_size=EXAMPLES,
            steps_per_epoch=1,
            augment=augment,
            augmentation_multiplicity=COPIES,
        )
        model = private(
            model,
            engine=engine,
            microbatch_size=microbatch_size,
            loss="sparse_categorical_crossentropy",
        )
        (batch,) = loader
        rows = batch.x, batch.y, batch.sample_weight
        gradients = [_averaged(model, *row) for row in zip(*rows, strict=True)]
        norms = [np.sqrt(sum(np.sum(g**2) for g in one)) for one in gradients]
        clip = float(np.median(norms))
        factors = [min(1.0, clip / norm) for norm in norms]
        expected = [
            sum(f * g for f, g in zip(factors, of_weight, strict=True))
            for of_weight in zip(*gradients, strict=True)
        ]
        clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=clip)
        assert_close(clipped.gradients, expected, TOLERANCE, f"{name}, {engine}")


def _averaged(model: Any, x: Any, y: Any, weight: Any) -> list[Any]:
    """Mean over the copies of the gradient of each alone."""
    found = []
    for copy in x:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(
                y=y[None], y_pred=model(copy[None]), sample_weight=weight[None]
            )
        of_copy = tape.gradient(loss, [v.value for v in model.trainable_variables])
        found.append([tf.convert_to_tensor(g).numpy() for g in of_copy])
    return [np.mean(of_weight, axis=0) for of_weight in zip(*found, strict=True)]


class _Counting:
    """A host source in which a row keeps its numbers, whoever comes behind it."""

    name = "counting"

    def normals(self, count: int, stddev: float, dtype: Any) -> Any:
        return np.zeros(count, dtype)

    def words(self, count: int) -> Any:
        return np.arange(count, dtype=np.int64)


@contextmanager
def _fixed_seeds() -> Iterator[None]:
    with replaced_host_source(_Counting()):
        yield


def assert_one_example_moves_the_sum_by_at_most_the_clip(
    engine: str, l2_norm_clip: float = 0.5
) -> None:
    """Adds an example of several copies to some others, in the public fit."""
    generator = np.random.default_rng(5)
    x = generator.standard_normal((EXAMPLES, 4)).astype("float32")
    y = 100 * generator.standard_normal((EXAMPLES, 2)).astype("float32")
    layers = [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)]
    keras.utils.set_random_seed(7)
    largest = 0.0
    with without_noise(), _fixed_seeds():
        model = private(
            keras.Sequential(layers),
            l2_norm_clip=l2_norm_clip,
            learning_rate=LEARNING_RATE,
            engine=engine,
        )

        def released(count: int) -> list[Any]:
            def step() -> None:
                with drawing(range(count)):
                    model.fit(
                        x,
                        y,
                        batch_size=4,
                        steps_per_epoch=1,
                        verbose=0,
                        augment=moved,
                        augmentation_multiplicity=COPIES,
                    )

            return [4 * d / LEARNING_RATE for d in weight_change(model, step)]

        for count in (0, 1, 5):
            pairs = zip(released(count + 1), released(count), strict=True)
            norm = float(np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)))
            assert norm <= l2_norm_clip * (1 + SLACK), (
                f"An example of {COPIES} copies moved the sum of {count} others by "
                f"{norm:.6g}, more than l2_norm_clip={l2_norm_clip}."
            )
            largest = max(largest, norm)
    assert largest >= 0.9 * l2_norm_clip, f"Nothing was put to the test: {largest:.3g}."


def assert_no_seed_decides_what_examples_become() -> None:
    """Equal random seeds and equal draws; other rows. Every copy differs, too."""
    x = np.ones((4, 3), np.float32)
    batches = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        loader = dp_train.PoissonLoader(
            x,
            batch_size=4,
            steps_per_epoch=2,
            augment=moved,
            augmentation_multiplicity=COPIES,
        )
        batches += [batch.x.reshape(-1, 3) for batch in loader]
        draws = loader.draws()
        batches += [
            t.numpy().reshape(-1, 3) for t in map(_inputs, loader.dataset(draws))
        ]
    every = np.concatenate(batches)
    different = len(np.unique(every, axis=0))
    assert different == len(every) == 8 * 4 * COPIES, (
        f"Of {len(every)} augmented copies of one row {different} are different: "
        "their seeds repeat."
    )


def _inputs(data: Any) -> Any:
    return keras.utils.unpack_x_y_sample_weight(data)[0]
