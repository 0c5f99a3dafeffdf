"""A draw pays for one release, on the rows that were drawn."""

from __future__ import annotations

import dataclasses
import pickle

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data

import dp_train
from dp_train.digests import digest_of
from dp_train.draws import Draws
from dp_train.sampling import PoissonSampling
from tests.batteries.draws import (
    COPIES,
    WAYS,
    assert_copies_of_a_batch_do_not_pay_again,
    assert_rows_that_were_not_drawn_make_no_step,
)
from tests.batteries.training import drawing


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_were_not_drawn_make_no_step(way):
    assert_rows_that_were_not_drawn_make_no_step(way)


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_batch_do_not_pay_again(way):
    assert_copies_of_a_batch_do_not_pay_again(way)


def test_a_batch_that_crossed_to_another_process_pays_once_at_most():
    (batch,) = dp_train.PoissonLoader(*data(), batch_size=60, steps_per_epoch=1)
    model = compiled()
    dp_train.clipped_gradients(
        model, pickle.loads(pickle.dumps(batch)), l2_norm_clip=1.0
    )
    with pytest.raises(dp_train.NotPrivateError, match="another copy"):
        dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)


DTYPES = (
    "bool",
    "uint8",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    ml_dtypes.bfloat16,
)


def rows(dtype, structure):
    generator = np.random.default_rng(0)
    x = (10 * generator.standard_normal((50, 3, 2))).astype(dtype)
    y = generator.integers(0, 3, 50)
    weights = generator.integers(0, 2, 50).astype("float32")
    return {"x, y": (x, y, None), "dict": ({"a": x, "b": y}, None, weights)}[structure]


def taken(rows, indices):
    return keras.tree.map_structure(
        lambda a: None if a is None else tf.constant(a[indices]),
        rows,
        none_is_leaf=True,
    )


@pytest.mark.parametrize("structure", ["x, y", "dict"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_step_and_the_draw_make_the_same_digest(dtype, structure):
    every = rows(dtype, structure)
    draws = Draws(PoissonSampling(50, 20), every)
    for _ in range(3):
        batch = taken(every, draws.indices())
        shuffled = keras.tree.map_structure(
            lambda t: None if t is None else tf.reverse(t, [0]),
            batch,
            none_is_leaf=True,
        )
        assert int(digest_of(batch)) == int(digest_of(shuffled))
        draws.pay(int(digest_of(shuffled)))
        with pytest.raises(dp_train.NotPrivateError, match="no unused draw"):
            draws.pay(int(digest_of(batch)))


def test_every_word_of_every_row_is_in_the_digest():
    x, y = np.zeros((2, 30), "float32"), np.zeros(2)
    before = int(digest_of(taken((x, y, None), [0, 1])))
    for column in range(30):
        changed = x.copy()
        changed[1, column] = 1e-3
        assert int(digest_of(taken((changed, y, None), [0, 1]))) != before


def test_copies_of_rows_of_weight_0_are_noticed_too():
    rows = np.ones((2, 3), "float32"), np.ones(2), np.array([1.0, 0.0], "float32")
    once, twice = (int(digest_of(taken(rows, i))) for i in ([0, 1], [0, 1, 1]))
    assert once != twice


def test_sizes_that_are_known_late_give_the_same_digest():
    rows = taken((np.arange(12.0).reshape(3, 4), np.arange(3), None), [0, 1, 2])
    like = [tf.TensorSpec([None, None], tf.float64), tf.TensorSpec([None], tf.int64)]
    late = tf.function(lambda x, y: digest_of((x, y, None)), input_signature=like)
    assert int(late(*rows[:2])) == int(digest_of(rows))


@pytest.mark.parametrize("size", [0, 1, 3])
def test_batches_that_are_filled_up_for_keras_pay_as_they_are(size):
    x, y, w = np.ones((4, 2), "float32"), np.ones(4), np.ones(4, "float32")
    draws = Draws(PoissonSampling(4, 2), (x, y, w), fewest=2)
    with drawing(np.arange(size)):
        indices = draws.indices()
    missing = max(0, 2 - size)
    padded = [
        np.concatenate([a[indices], np.zeros_like(a[:missing])]) for a in (x, y, w)
    ]
    draws.pay(int(digest_of(tuple(map(tf.constant, padded)))))


def test_arrays_of_another_byte_order_train():
    x, y = data()
    model = compiled()
    model.fit(x.astype(">f4"), y.astype(">i4"), batch_size=20, verbose=0)
    assert model.privacy_ledger.total == 3


def test_the_sampling_of_a_batch_is_that_of_its_draw():
    x, y = data()
    model = compiled()
    loaders = [dp_train.PoissonLoader(x, y, batch_size=b) for b in (30, 1)]
    batch = next(iter(loaders[0]))
    other = dataclasses.replace(batch, sampling=loaders[1].sampling)
    clipped = dp_train.clipped_gradients(model, other, l2_norm_clip=1.0)
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    (release,) = model.privacy_ledger.releases
    assert release.event.sampling_probability == 0.5


def test_a_sampling_alone_pays_for_nothing():
    x, y = data()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    optimizer._sample_by(dp_train.PoissonLoader(x, y, batch_size=1).sampling)
    with pytest.raises(tf.errors.UnknownError, match="nothing\\s+shows"):
        model.fit(x, y, batch_size=60, shuffle=False, verbose=0)
    assert optimizer.ledger.total == 0


def test_each_fit_draws_anew_and_the_step_is_not_traced_again():
    model = compiled()
    x, y = data()
    for _ in range(2):
        model.fit(x, y, batch_size=20, epochs=2, verbose=0)
    model.fit(x + 1, y, batch_size=20, verbose=0)
    assert model.privacy_ledger.total == 2 * 6 + 3
    assert model._privacy.traces == 1


def test_a_refusal_inside_fit_is_raised_in_plain_words_and_charges_nothing():
    class Steps(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            x, y = map(tf.constant, data())
            tf.function(self.model.train_step, autograph=False)((x, y))

    model = compiled()
    before = model.get_weights()
    with pytest.raises(dp_train.NotPrivateError, match="^A step was about"):
        model.fit(*data(), batch_size=20, verbose=0, callbacks=[Steps()])
    assert model.privacy_ledger.total == 0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
