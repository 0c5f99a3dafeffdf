"""A draw pays for one release, on the rows that were drawn."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data

import dp_train
from dp_train.batches import batch_digest
from dp_train.digests import digest_of, digests_of_arrays
from dp_train.draws import Draws
from dp_train.sampling import PoissonSampling
from tests.batteries.draws import (
    COPIES,
    SELECTIONS,
    WAYS,
    assert_copies_of_a_batch_do_not_pay_again,
    assert_no_batch_is_left_out,
    assert_rows_that_were_not_drawn_make_no_step,
    assert_signs_are_seen,
)
from tests.batteries.training import drawing


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_were_not_drawn_make_no_step(way):
    assert_rows_that_were_not_drawn_make_no_step(way)


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_batch_do_not_pay_again(way):
    assert_copies_of_a_batch_do_not_pay_again(way)


@pytest.mark.parametrize("way", SELECTIONS)
def test_no_batch_is_left_out(way):
    assert_no_batch_is_left_out(way)


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
    "complex64",
    "complex128",
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
        batch = taken(every, next(draws.iteration(1)).indices)
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


def test_signs_are_seen():
    assert_signs_are_seen()


@pytest.mark.parametrize("dtype", ["int8", "int32", "float32", "float64"])
def test_no_two_rows_of_small_integers_have_one_digest(dtype):
    generator = np.random.default_rng(1)
    x = generator.integers(-2, 3, (20_000, 12)).astype(dtype)
    different = len(np.unique(x, axis=0))
    assert len(np.unique(digests_of_arrays((x, None, None)))) == different
    assert different > 19_000


@pytest.mark.parametrize("length", [0, 1, 3, 4])
@pytest.mark.parametrize("is_known", [True, False])
def test_trimmed_rows_have_another_digest(length, is_known):
    x = np.ones((5, 6), "int32")
    x[:, 3:] = 0
    like = tf.TensorSpec([None, 6] if is_known else None, tf.int32)
    of_rows = tf.function(lambda t: digest_of((t, None, None)), input_signature=[like])
    whole, flat = int(of_rows(x)), x[:, :length]
    assert whole == batch_digest((x, None, None))
    of_flat = digest_of if is_known else lambda rows: of_rows(rows[0])
    assert int(of_flat((tf.constant(flat), None, None))) != whole
    assert batch_digest((flat, None, None)) != whole


def test_shapes_dtypes_and_places_are_in_the_digest():
    x = np.zeros((4, 6), "float32")
    rows = [
        (x, None, None),
        (None, x, None),
        (x.reshape(4, 3, 2), None, None),
        (x.reshape(4, 2, 3), None, None),
        (x.reshape(4, 6, 1), None, None),
        (x.astype("int32"), None, None),
        (x.view("float64"), None, None),
        (x.astype("complex128"), None, None),
        (x, x, None),
    ]
    found = [batch_digest(r) for r in rows]
    assert len(set(found)) == len(rows)
    assert found == [int(digest_of(taken(r, np.arange(4)))) for r in rows]


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
        indices = next(draws.iteration(1)).indices
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


def plain(steps_per_execution=1):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, steps_per_execution=steps_per_execution)
    loader = dp_train.PoissonLoader(*data(), batch_size=6)
    return model, loader.dataset_for(optimizer)


def twice(model, drawn, **kwargs):
    for _ in range(2):
        model.fit(drawn, shuffle=False, verbose=0, **kwargs)


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 3


def looked_at(model, drawn):
    kept = iter(drawn)
    next(kept)
    next(iter(drawn))
    twice(model, drawn)


def evaluated(model, drawn):
    for _ in range(2):
        model.evaluate(drawn, verbose=0)
        model.fit(drawn, shuffle=False, verbose=0)


def again(model, drawn):
    repeated = drawn.repeat().prefetch(7)
    twice(model, repeated, epochs=3, steps_per_epoch=8)


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        (lambda model, drawn: twice(model, drawn, epochs=2), 40),
        (looked_at, 20),
        (again, 48),
        (evaluated, 20),
        (lambda model, drawn: twice(model, drawn.repeat(3).prefetch(2)), 60),
        (lambda model, drawn: twice(model, drawn.take(4), epochs=2), 16),
        (lambda model, drawn: twice(model, drawn, steps_per_epoch=4, epochs=2), 16),
        (lambda model, drawn: twice(model, drawn, callbacks=[Stop()]), 8),
        (
            lambda model, drawn: twice(
                model, drawn.map(lambda *rows: rows, num_parallel_calls=4)
            ),
            20,
        ),
    ],
    ids=[
        "epochs",
        "looked at",
        "repeated",
        "evaluated",
        "repeated in a fit",
        "some of each",
        "shorter epochs",
        "interrupted",
        "mapped in parallel",
    ],
)
@pytest.mark.parametrize("steps_per_execution", [1, 4])
@pytest.mark.filterwarnings("ignore:A fit ended after 4 of 10")
def test_pipelines_in_order_are_released(train, steps, steps_per_execution):
    model, drawn = plain(steps_per_execution)
    assert int(drawn.cardinality()) == 10
    train(model, drawn)
    assert model.optimizer.ledger.total == steps


def loop(steps=5):
    loader = dp_train.PoissonLoader(*data(), batch_size=6, steps_per_epoch=steps)
    model = compiled()

    def release(batch):
        clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
        model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)

    return loader, model, release


def test_a_look_at_batches_does_not_move_the_loader():
    loader, model, release = loop()
    looked_at = next(iter(loader))
    dp_train.clipped_gradients(model, next(iter(loader)), l2_norm_clip=1.0)
    for i, batch in enumerate(loader):
        if i == 0:
            np.testing.assert_array_equal(batch.x, looked_at.x)
        release(batch)
        if i == 2:
            break
    for batch in loader:
        release(batch)
    assert model.privacy_ledger.total == 8
    with pytest.raises(dp_train.NotPrivateError, match="made a step before|already"):
        release(looked_at)


@pytest.mark.parametrize("steps", [1, 2])
def test_looks_at_pipelines_of_few_steps_do_not_move_them(steps):
    model, _ = plain()
    loader = dp_train.PoissonLoader(*data(), batch_size=6, steps_per_epoch=steps)
    drawn = loader.dataset_for(model.optimizer)
    looks = [next(iter(drawn)) for _ in range(3)]
    for x, *_ in looks[1:]:
        np.testing.assert_array_equal(x, looks[0][0])
    model.fit(drawn, epochs=3, shuffle=False, verbose=0)
    assert model.optimizer.ledger.total == 3 * steps


def test_batches_are_the_same_when_they_are_augmented_again():
    loader = dp_train.PoissonLoader(
        *data(),
        batch_size=6,
        augment=lambda x, seed: x + tf.random.stateless_normal(x.shape, seed),
    )
    first, second = next(iter(loader)), next(iter(loader))
    np.testing.assert_array_equal(first.x, second.x)


def test_loops_in_loops_and_batches_made_ahead_are_released():
    loader, model, release = loop(3)
    for batch in loader:
        release(batch)
        for inner in loader:
            release(inner)
    for batch in list(loader):
        release(batch)
    assert model.privacy_ledger.total == 3 + 9 + 3


def test_copies_of_a_loader_draw_their_own():
    loader, model, release = loop()
    first = next(iter(loader))
    for other in (copy.copy(loader), copy.deepcopy(loader)):
        release(next(iter(other)))
    release(first)
    assert model.privacy_ledger.total == 3


@pytest.mark.parametrize("is_augmented", [False, True])
def test_arrays_that_change_after_a_look_make_no_release(is_augmented):
    x, y = data()
    augment = (lambda x, seed: 2 * x) if is_augmented else None
    loader = dp_train.PoissonLoader(x, y, batch_size=30, augment=augment)
    model = compiled()
    next(iter(loader))
    x *= -1
    with pytest.raises(dp_train.NotPrivateError, match="changed in place"):
        dp_train.clipped_gradients(model, next(iter(loader)), l2_norm_clip=1.0)


@pytest.mark.parametrize("is_private", [False, True])
def test_arrays_that_change_in_a_fit_are_not_trained_on(is_private):
    """TensorFlow may have a copy of them, or else the step is refused."""
    x, y = aligned(*data())

    class Changes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            x[:] = 1e9

    arguments = {"verbose": 0, "callbacks": [Changes()]}
    try:
        if is_private:
            model = compiled()
            model.fit(x, y, batch_size=6, **arguments)
        else:
            model = plain()[0]
            loader = dp_train.PoissonLoader(x, y, batch_size=6)
            drawn = loader.dataset_for(model.optimizer)
            model.fit(drawn, shuffle=False, **arguments)
    except (dp_train.NotPrivateError, tf.errors.UnknownError) as error:
        assert "changed, copied" in str(error)
    else:
        assert np.max(np.abs(model.get_weights()[0])) < 1e3


def aligned(*arrays):
    """At multiples of 64 bytes, where TensorFlow takes an array as it is."""
    for a in arrays:
        space = np.zeros(a.nbytes + 64, np.uint8)
        start = -space.ctypes.data % 64
        found = space[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
        found[:] = a
        yield found


@pytest.mark.parametrize("way", ["new loader", "copy", "sums"])
def test_batches_left_behind_with_their_loader_are_reported(way):
    model = compiled()
    x, y = data()
    loader = dp_train.PoissonLoader(x, y, batch_size=20, steps_per_epoch=1)
    for i in range(3):
        (batch,) = loader
        if i < 2 and way != "sums":
            loader = (
                copy.copy(loader)
                if way == "copy"
                else dp_train.PoissonLoader(x, y, batch_size=20, steps_per_epoch=1)
            )
            continue
        clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
        if i < 2:
            loader = dp_train.PoissonLoader(x, y, batch_size=20, steps_per_epoch=1)
    model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    (remark,) = model.privacy_ledger.remarks
    assert remark.caveat == "chosen_by_looking"
    assert "another loader" in remark.detail


def test_batches_of_a_loader_that_are_all_released_are_not_reported():
    model = compiled()
    x, y = data()
    # Not the examples that other tests left behind.
    loaders = [dp_train.PoissonLoader(x + 2, y, batch_size=20) for _ in range(2)]
    for loader in loaders:
        next(iter(loader))
        for batch in loader:
            clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
            model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    assert model.privacy_ledger.remarks == ()
