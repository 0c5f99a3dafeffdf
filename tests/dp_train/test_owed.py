"""Embedding tables under plain SGD owe their noise until a row is read."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import dp_train
from tests.batteries import owed

SGD = keras.optimizers.SGD


def test_all_rows_have_the_noise_of_every_step():
    owed.assert_all_rows_have_the_noise_of_every_step()


@pytest.mark.parametrize("after_batches", [False, True])
def test_whoever_looks_sees_settled_rows(after_batches):
    owed.assert_whoever_looks_sees_settled_rows(after_batches=after_batches)


def test_a_row_is_settled_once_when_it_is_read():
    owed.assert_a_row_is_settled_once_when_it_is_read()


class Twice(keras.Model):
    """One table for two inputs, of which the second counts ids from the end."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(50, 4, mask_zero=True)
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        first = keras.ops.mean(self.table(x[:, :3]), axis=1)
        return self.dense(first + keras.ops.max(self.table(-1 - x[:, 3:]), axis=1))


def fitted(make, epochs=3):
    """Weights after steps on all examples without noise."""
    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(3)
    x = generator.integers(0, 40, (30, 7)).astype("int32")
    y = generator.integers(0, 3, 30)
    model = dp_train.make_private(make())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.warns(dp_train.PrivacyWarning, match="no noise"):
        model.compile(
            dp_train.DPSGD(0.5, l2_norm_clip=0.3, noise_multiplier=0.0), loss=loss
        )
        model.fit(x, y, batch_size=30, epochs=epochs, verbose=0)
    return bool(model._privacy.owing.tables), model.get_weights()


def test_clipped_sums_of_a_table_that_owes_are_those_of_one_that_does_not():
    is_owing, expected = fitted(Twice)
    assert not is_owing
    with owed.small_tables_owe():
        is_owing, weights = fitted(Twice)
    assert is_owing
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def compiled(optimizer=None, **embedding):
    model = keras.Sequential(
        [
            keras.Input((owed.TOKENS,), dtype="int32"),
            keras.layers.Embedding(owed.ROWS, owed.WIDTH, **embedding),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )
    return with_optimizer(model, optimizer or SGD(0.1))


def with_optimizer(model, optimizer, **options):
    model = dp_train.make_private(model, **options)
    private = dp_train.DPOptimizer(optimizer, l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(private, loss="sparse_categorical_crossentropy")
    return model


class Tied(keras.Model):
    """The table is the output layer too: it is read as a whole."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(40, 8)

    def call(self, x):
        hidden = keras.ops.mean(self.table(x), axis=1)
        table = keras.ops.convert_to_tensor(self.table.embeddings)
        return keras.ops.softmax(hidden @ keras.ops.transpose(table))


def untied_with_lora():
    model = compiled()
    model.layers[0].enable_lora(2)
    return with_optimizer(model, SGD(0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: compiled(SGD(0.1, momentum=0.9)),
        lambda: compiled(SGD(0.1, weight_decay=1e-3)),
        lambda: compiled(SGD(0.1, use_ema=True)),
        lambda: compiled(keras.optimizers.Adam()),
        lambda: compiled(embeddings_regularizer="l2"),
        lambda: compiled(embeddings_constraint="unit_norm"),
        lambda: with_optimizer(Tied(), SGD(0.1)),
        lambda: with_optimizer(compiled(), SGD(0.1), microbatch_size=2),
        untied_with_lora,
    ],
    ids=[
        "momentum",
        "weight decay",
        "averages",
        "Adam",
        "regularizer",
        "constraint",
        "tied weights",
        "chunks",
        "LoRA",
    ],
)
def test_where_old_noise_is_more_than_a_sum_every_row_gets_it_at_every_step(make):
    with owed.small_tables_owe():
        model = make()
        model.fit(*owed.data(16), batch_size=8, verbose=0)
    assert not model._privacy.owing.tables


def test_a_generator_may_look_between_batches_so_nothing_is_owed():
    x, y = owed.data(16)
    with owed.small_tables_owe():
        model = owed.model()
        model.fit(x, y, batch_size=8, verbose=0)
        assert model._privacy.owing.tables
        before = model.layers[0].get_weights()[0]
        seen = []

        def batches():
            while True:
                yield x[:8], y[:8]
                seen.append(model.layers[0].get_weights()[0])

        shapes = ((None, owed.TOKENS), (None,))
        signature = tuple(
            tf.TensorSpec(s, t) for s, t in zip(shapes, (x.dtype, y.dtype), strict=True)
        )
        dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
        model.fit(dataset, steps_per_epoch=2, verbose=0)
    assert not model._privacy.owing.tables
    assert np.all(model.layers[0].get_weights()[0] != before)
    assert seen


class FailedError(Exception):
    """A callback stops the training."""


def test_a_fit_that_fails_leaves_nothing_owed():
    def fail(epoch, logs):
        del epoch, logs
        raise FailedError

    stop = keras.callbacks.LambdaCallback(on_epoch_begin=fail)
    with owed.small_tables_owe():
        model = owed.model()
        before = model.layers[0].get_weights()[0]
        with pytest.raises(FailedError):
            model.fit(
                *owed.data(),
                batch_size=8,
                epochs=2,
                initial_epoch=0,
                verbose=0,
                callbacks=[_SecondEpochOnly(stop)],
            )
    assert np.all(model.layers[0].get_weights()[0] != before)


class _SecondEpochOnly(keras.callbacks.Callback):
    """Fails in the middle of the first epoch, where nobody settles."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == 3:
            self.inner.on_epoch_begin(0, logs)


def test_validation_reads_settled_rows():
    """The unread rows of a table, shown by a model that predicts them."""
    cold = np.full((4, owed.TOKENS), owed.ROWS - 1, "int32")
    outputs = []
    with owed.small_tables_owe():
        model = owed.model()
        before = model.predict(cold, verbose=0)

        class Predicts(keras.callbacks.Callback):
            def on_test_begin(self, logs=None):
                outputs.append(self.model.layers[0].get_weights()[0][-1])

        row = model.layers[0].get_weights()[0][-1]
        x, y = owed.data(16)
        model.fit(
            x,
            y,
            batch_size=8,
            verbose=0,
            validation_data=(cold, y[:4]),
            callbacks=[Predicts()],
        )
        assert model._privacy.owing.tables
    assert np.all(outputs[0] != row)
    assert np.any(model.predict(cold, verbose=0) != before)


def test_large_tables_owe_and_the_trace_stays():
    x = np.random.default_rng(0).integers(0, 9000, (64, 4)).astype("int32")
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(9000, 64),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    model = with_optimizer(model, SGD(0.1))
    with owed.small_tables_owe():
        for _ in range(3):
            model.fit(x, x[:, 0] % 2, batch_size=8, epochs=2, verbose=0)
    assert model._privacy.owing.tables
    assert model._privacy.traces <= 2
    assert "embeddings owes its noise until a row is read" in str(model.privacy_plan())
