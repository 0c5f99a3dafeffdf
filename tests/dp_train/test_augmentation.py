"""Augmentation is drawn in secret, and several copies count as one example."""

from __future__ import annotations

from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data, sequential

import dp_train
from dp_train import owing
from tests.batteries import augmented
from tests.batteries.training import drawing, private

ENGINES = ("bookkeeping", "vectorized", "loop")


def noisy(x, seed):
    return x + tf.random.stateless_normal(x.shape, seed)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", ["dense", "images", "ids"])
def test_the_sum_is_of_averaged_gradients(case, engine):
    augmented.assert_the_sum_is_of_averaged_gradients(case, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_microbatches_hold_whole_examples(engine):
    augmented.assert_the_sum_is_of_averaged_gradients("dense", engine, 2)


@pytest.mark.parametrize("engine", ["bookkeeping", "loop"])
def test_recurrent_layers_and_masks_are_those_of_a_copy(engine):
    augmented.assert_the_sum_is_of_averaged_gradients("masked", engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_example_moves_the_sum_by_at_most_the_clip(engine):
    augmented.assert_one_example_moves_the_sum_by_at_most_the_clip(engine)


def test_no_seed_decides_what_examples_become():
    augmented.assert_no_seed_decides_what_examples_become()


class Rows(keras.metrics.Sum):
    """Adds up the weights of what it is given, 1 where it has none."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        weights = tf.ones_like(y_true[:, 0]) if sample_weight is None else sample_weight
        return super().update_state(weights)


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_see_every_copy_with_the_label_and_weight_of_its_example(engine):
    x, _ = data()
    y = np.arange(60, dtype="float32")[:, None]
    weights = np.arange(60, dtype="float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model = private(
        model,
        engine=engine,
        noise_multiplier=1.0,
        metrics=[Rows(name="rows"), keras.metrics.MeanSquaredError("mse")],
        weighted_metrics=[Rows(name="weights")],
    )
    with drawing(range(5, 11)):
        history = model.fit(
            x,
            y,
            sample_weight=weights,
            batch_size=6,
            steps_per_epoch=1,
            verbose=0,
            augment=lambda x, seed: 0 * x + 2.0,
            augmentation_multiplicity=4,
        ).history
    assert history["rows"] == [4 * 6]
    assert history["weights"] == [4 * sum(range(5, 11))]


def test_the_loss_that_is_shown_is_the_mean_over_examples_and_copies():
    y = np.arange(60, dtype="float32")[:, None]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model = private(model, noise_multiplier=1.0)
    model.set_weights([np.zeros((4, 1)), np.zeros(1)])
    with drawing([1, 3]):
        history = model.fit(
            data()[0],
            y,
            batch_size=6,
            steps_per_epoch=1,
            verbose=0,
            augment=noisy,
            augmentation_multiplicity=3,
        ).history
    assert history["loss"] == [pytest.approx((1 + 9) / 2)]


def test_rows_change_their_shape_dtype_and_structure():
    x, y = np.full((60, 8, 8, 3), 200, np.uint8), data()[1]

    def augment(x, seed):
        crop = tf.image.stateless_random_crop(x["image"], [4, 4, 3], seed)
        if x["id"] > 30:
            crop = tf.image.stateless_random_flip_left_right(crop, seed)
        return [tf.cast(crop, tf.float32) / 255.0, tf.cast(x["id"][None], tf.float32)]

    loader = dp_train.PoissonLoader(
        {"image": x, "id": np.arange(60)}, y, batch_size=10, augment=augment
    )
    image, number = next(iter(loader)).x
    assert image.shape[1:] == (4, 4, 3) and number.shape[1:] == (1,)
    assert image.dtype == number.dtype == np.float32
    images, numbers = keras.Input((4, 4, 3)), keras.Input((1,))
    parts = [keras.layers.Flatten()(images), numbers]
    joined = keras.layers.Concatenate()(parts)
    model = keras.Model([images, numbers], keras.layers.Dense(3)(joined))
    model = private(
        model,
        noise_multiplier=1.0,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(loader, epochs=2, verbose=0)
    assert model.privacy_ledger.total == 12


@pytest.mark.parametrize("copies", [1, 3])
def test_private_fits_and_custom_loops_go_on_over_empty_batches(copies):
    model = compiled()
    x, y = data()
    options = {"augment": noisy, "augmentation_multiplicity": copies}
    with drawing([], [1], range(9)):
        model.fit(x, y, batch_size=5, steps_per_epoch=3, verbose=0, **options)
        loader = dp_train.PoissonLoader(
            x, y, batch_size=5, steps_per_epoch=3, **options
        )
        for batch in loader:
            clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
            model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    assert model.privacy_ledger.total == 6
    assert model.privacy_plan().engine == "bookkeeping"


def test_random_layers_draw_for_every_copy():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for engine in ENGINES:
        model = private(model, engine=engine, noise_multiplier=1.0, loss=loss)
        model.fit(
            *data(),
            batch_size=9,
            verbose=0,
            augment=noisy,
            augmentation_multiplicity=2,
        )
        assert model.privacy_plan().engine == engine


def test_a_fit_with_copies_and_one_without_follow_each_other():
    model = compiled()
    for copies in (1, 2, 1, 3):
        model.fit(
            *data(),
            batch_size=20,
            verbose=0,
            augment=noisy,
            augmentation_multiplicity=copies,
        )
    model.fit(*data(), batch_size=20, verbose=0)
    assert model.privacy_ledger.total == 5 * 3


def test_the_function_is_traced_once():
    calls = []

    def augment(x, seed):
        calls.append(x)
        return x

    loader = dp_train.PoissonLoader(*data(), batch_size=20, augment=augment)
    compiled().fit(loader, epochs=2, verbose=0)
    assert len(calls) == 1


def test_a_plain_model_trains_on_augmented_rows():
    keras.utils.set_random_seed(0)
    model = sequential()
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="none"
    )
    model.compile(optimizer, loss=loss)
    loader = dp_train.PoissonLoader(*data(), batch_size=2, augment=noisy)
    drawn = loader.dataset_for(optimizer)
    with drawing([], [3], range(5)):
        model.fit(drawn, verbose=0, shuffle=False)
    assert optimizer.ledger.total == len(loader)
    rows = np.concatenate(
        [x for x, _, w in drawn.as_numpy_iterator() for x in x[w > 0]]
    )
    assert not np.isin(rows, data()[0]).any()


class Fourier(keras.layers.Layer):
    """An op that no rule reads."""

    def call(self, x):
        return tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64)))


def test_a_layer_that_runs_alone_leaves_copies_to_the_vectorized_engine():
    layers = [keras.Input((4,)), keras.layers.Dense(4), Fourier()]
    model = private(keras.Sequential(layers), noise_multiplier=1.0)
    x, _ = data()
    model.fit(x, x, batch_size=20, verbose=0)
    assert model.privacy_plan().alone
    model.fit(
        x,
        x,
        batch_size=20,
        verbose=0,
        augment=noisy,
        augmentation_multiplicity=2,
    )
    plan = model.privacy_plan()
    assert plan.engine == "vectorized"
    assert "several augmented copies" in str(plan)


def test_tables_owe_no_noise_where_examples_have_copies():
    layers = [
        keras.Input((4,), dtype="int32"),
        keras.layers.Embedding(5, 3),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    model = dp_train.make_private(keras.Sequential(layers))
    model.compile(
        dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0, lazy_noise=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = np.random.default_rng(0).integers(0, 5, (60, 4)).astype("int32")
    with mock.patch.object(owing, "FEWEST", 1):
        model.fit(
            x,
            data()[1],
            batch_size=20,
            verbose=0,
            augment=augmented.other_ids,
            augmentation_multiplicity=2,
        )
    assert "2 augmented copies" in str(model.privacy_plan())


def _counted():
    counter = tf.Variable(0.0)

    def augment(x, seed):
        return x + counter

    return augment


def _written():
    counter = tf.Variable(0.0)

    def augment(x, seed):
        counter.assign_add(1.0)
        return x

    return augment


def _of_keras():
    flip = keras.layers.RandomContrast(0.5)
    return lambda x, seed: flip(x[None, :, None, None], training=True)[0, :, 0, 0]


EFFECTS = {
    "random": ("RandomStandardNormal", lambda x, seed: x + tf.random.normal([4])),
    "layer of Keras": ("ReadVariableOp", _of_keras()),
    "Python": (
        "PyFunc",
        lambda x, seed: tf.ensure_shape(
            tf.numpy_function(lambda x: x, [x], tf.float32), [4]
        ),
    ),
    "variable": ("ReadVariableOp", _counted()),
    "assignment": ("AssignAddVariableOp", _written()),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_keeps_a_state_or_draws_by_itself_is_refused_by_name(name):
    op, augment = EFFECTS[name]
    with pytest.raises(dp_train.NotPrivateError, match=rf"{op}.*stateless") as error:
        dp_train.PoissonLoader(*data(), batch_size=20, augment=augment)
    assert "seed that augment is given" in str(error.value)


WRONG = {
    "nothing": ("returned None", lambda x, seed: None),
    "part of nothing": ("returned", lambda x, seed: (x, None)),
    "open shape": (
        r"shape \(None,\)",
        lambda x, seed: tf.boolean_mask(x, x > 0),
    ),
    "ragged": ("RaggedTensor", lambda x, seed: tf.RaggedTensor.from_tensor(x[None])),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_result_without_a_fixed_shape_is_refused_before_a_charge(name):
    message, augment = WRONG[name]
    model = compiled()
    with pytest.raises(ValueError, match=message):
        model.fit(*data(), batch_size=20, verbose=0, augment=augment)
    assert model.privacy_ledger.total == 0


@pytest.mark.parametrize("copies", [0, -1, 1.5, True, "2", None])
def test_the_number_of_copies_must_be_a_positive_integer(copies):
    with pytest.raises(ValueError, match=r"positive integer.*Received"):
        dp_train.PoissonLoader(
            *data(), batch_size=20, augment=noisy, augmentation_multiplicity=copies
        )


def test_several_copies_need_a_function_and_a_function_is_called():
    with pytest.raises(ValueError, match="without augment"):
        compiled().fit(*data(), augmentation_multiplicity=2)
    with pytest.raises(ValueError, match="must be a function"):
        dp_train.PoissonLoader(*data(), batch_size=20, augment="flip")


def test_a_plain_model_gets_no_copies():
    loader = dp_train.PoissonLoader(
        *data(), batch_size=20, augment=noisy, augmentation_multiplicity=2
    )
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="make_private"):
        loader.dataset_for(optimizer)
    with pytest.raises(ValueError, match="make_private"):
        loader[0]


@pytest.mark.parametrize(
    "arguments",
    [{"augment": noisy}, {"augmentation_multiplicity": 2}],
    ids=["augment", "augmentation_multiplicity"],
)
def test_fit_augments_arrays_only(arguments):
    ready_made = tf.data.Dataset.from_tensor_slices(data()).batch(20)
    with pytest.raises(ValueError, match=r"ready made.*PoissonLoader\(\.\.\., augment"):
        compiled().fit(ready_made, **arguments)
    loader = dp_train.PoissonLoader(*data(), batch_size=20)
    with pytest.raises(ValueError, match="to PoissonLoader instead"):
        compiled().fit(loader, **arguments)
