"""Embedding tables under plain SGD owe their noise until a row is read."""

from __future__ import annotations

import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import dp_train
from dp_train.noise import draw
from tests.batteries import owed

SGD = keras.optimizers.SGD


def test_all_rows_have_the_noise_of_every_step():
    owed.assert_all_rows_have_the_noise_of_every_step()


@pytest.mark.parametrize("who", owed.CALLBACKS)
def test_whoever_looks_sees_settled_rows(who):
    owed.assert_whoever_looks_sees_settled_rows(who)


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


def fitted(make, lazy_noise, epochs=3):
    """Weights after steps on all examples without noise."""
    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(3)
    x = generator.integers(0, 40, (30, 7)).astype("int32")
    y = generator.integers(0, 3, 30)
    model = dp_train.make_private(make())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.warns(dp_train.PrivacyWarning, match="no noise"):
        model.compile(
            dp_train.DPSGD(
                0.5, l2_norm_clip=0.3, noise_multiplier=0.0, lazy_noise=lazy_noise
            ),
            loss=loss,
        )
        model.fit(x, y, batch_size=30, epochs=epochs, verbose=0)
    return bool(model._privacy.owing.tables), model.get_weights()


def test_clipped_sums_of_a_table_that_owes_are_those_of_one_that_does_not():
    with owed.small_tables_owe():
        is_owing, expected = fitted(Twice, lazy_noise=False)
        assert not is_owing
        is_owing, weights = fitted(Twice, lazy_noise=True)
    assert is_owing
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def compiled(optimizer=None, **embedding):
    model = keras.Sequential(
        [
            keras.Input((owed.TOKENS,), dtype="int32"),
            keras.layers.Embedding(owed.ROWS, owed.WIDTH, **embedding),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    return with_optimizer(model, optimizer or SGD(0.1))


def with_optimizer(model, optimizer, **options):
    model = dp_train.make_private(model, **options)
    private = dp_train.DPOptimizer(
        optimizer, l2_norm_clip=1.0, noise_multiplier=1.0, lazy_noise=True
    )
    model.compile(private, loss="sparse_categorical_crossentropy")
    return model


class Positions(keras.Model):
    """The ids of the positions are of no example."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(owed.TOKENS, 8)
        self.dense = keras.layers.Dense(2, activation="softmax")

    def call(self, x):
        positions = self.table(
            keras.ops.reshape(keras.ops.arange(owed.TOKENS), (1, -1))
        )
        tokens = keras.ops.expand_dims(keras.ops.cast(x, "float32"), -1) / owed.HOT
        return self.dense(keras.ops.mean(positions * tokens, axis=1))


class Prints(keras.Model):
    """A consumer of the table that no gradient tells of."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(owed.HOT, 8)
        self.dense = keras.layers.Dense(2, activation="softmax")

    def call(self, x):
        rows = self.table(x)
        tf.print(self.table.embeddings.value, output_stream=sys.stderr)
        return self.dense(keras.ops.mean(rows, axis=1))


def with_table_of_regularized_variable():
    model = compiled()
    model.layers[0].embeddings.regularizer = keras.regularizers.L2(0.1)
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


class OwnEmbedding(keras.layers.Embedding):
    """A class of the user's."""


def with_call_of_its_own():
    model = compiled()
    layer = model.layers[0]
    object.__setattr__(layer, "call", type(layer).call.__get__(layer))
    return model


def with_own_class():
    return with_optimizer(
        keras.Sequential(
            [
                keras.Input((owed.TOKENS,), dtype="int32"),
                OwnEmbedding(owed.ROWS, 4),
                keras.layers.Flatten(),
                keras.layers.Dense(2, activation="softmax"),
            ]
        ),
        SGD(0.1),
    )


def with_regularizer_elsewhere():
    model = compiled()
    table = model.layers[0].embeddings
    model.layers[2].kernel.regularizer = lambda w: 1e-6 * keras.ops.sum(table**2)
    return model


def with_shared_variable():
    inputs = keras.Input((owed.TOKENS,), dtype="int32")
    first, second = (keras.layers.Embedding(owed.ROWS, 4) for _ in range(2))
    x = first(inputs)
    second.build()
    object.__setattr__(second, "_embeddings", first.embeddings)
    x = keras.layers.Flatten()(x + second(inputs))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return with_optimizer(keras.Model(inputs, outputs), SGD(0.1))


def untied_with_lora():
    model = compiled()
    model.layers[0].enable_lora(2)
    return with_optimizer(model, SGD(0.1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: compiled(embeddings_regularizer="l2"), "regularizer or constraint"),
        (lambda: compiled(embeddings_constraint="unit_norm"), "or constraint reads"),
        (with_table_of_regularized_variable, "regularizer or constraint reads"),
        (lambda: with_optimizer(Positions(), SGD(0.1)), "reads ids of no example"),
        (lambda: with_optimizer(Prints(), SGD(0.1)), "more than its layer reads"),
        (lambda: with_optimizer(Tied(), SGD(0.1)), "more than its layer reads"),
        (
            lambda: with_optimizer(compiled(), SGD(0.1), microbatch_size=2),
            "no noise is owed: gradients are summed in chunks",
        ),
        (untied_with_lora, "engine 'bookkeeping'"),
        (with_call_of_its_own, "a call of its own"),
        (with_own_class, "a call of its own"),
        (with_shared_variable, "it shares the table of another layer"),
        (with_regularizer_elsewhere, ") reads the table too"),
    ],
    ids=[
        "regularizer",
        "constraint",
        "regularizer of the variable",
        "positions",
        "print",
        "tied weights",
        "chunks",
        "LoRA",
        "own call",
        "own class",
        "shared variable",
        "regularizer of another weight",
    ],
)
def test_where_old_noise_is_more_than_a_sum_every_row_gets_it_at_every_step(
    make, reason
):
    with owed.small_tables_owe():
        model = make()
        model.fit(*owed.data(16), batch_size=8, verbose=0)
    assert not model._privacy.owing.tables
    assert reason in str(model.privacy_plan())


def patched():
    optimizer = SGD(0.1)
    optimizer.update_step = lambda *a, **k: None
    return optimizer


class Halved(SGD):
    """Somebody's own optimizer."""


@pytest.mark.parametrize(
    "inner",
    [
        SGD(0.1, momentum=0.9),
        SGD(0.1, weight_decay=1e-3),
        SGD(0.1, use_ema=True),
        SGD(lambda: 0.1),
        keras.optimizers.Adam(),
        patched(),
        Halved(0.1),
    ],
    ids=["momentum", "decay", "averages", "callable", "Adam", "patched", "subclass"],
)
def test_lazy_noise_is_refused_where_old_noise_is_more_than_a_sum(inner):
    with pytest.raises(ValueError, match="can be drawn at once where an update only"):
        dp_train.DPOptimizer(
            inner, l2_norm_clip=1.0, noise_multiplier=1.0, lazy_noise=True
        )


def test_lazy_noise_is_refused_for_noise_of_the_device():
    with pytest.raises(ValueError, match="the ledger names one source"):
        dp_train.DPSGD(
            0.1,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            noise_source="philox",
            lazy_noise=True,
        )


def test_an_optimizer_made_other_than_plain_afterwards_releases_nothing():
    with owed.small_tables_owe():
        model = owed.model()
        model.optimizer.inner_optimizer.momentum = 0.9
        with pytest.raises(dp_train.NotPrivateError, match="more of old noise than"):
            model.fit(*owed.data(), batch_size=8, verbose=0)
    assert not model.privacy_ledger.total


def test_the_option_is_saved_and_off_unless_asked_for(tmp_path):
    model = owed.model()
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").optimizer.lazy_noise
    plain = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    assert not plain.lazy_noise


def changed_rows(read, steps=3):
    """Shares of the rows that moved, as found after each batch by one who reads.

    The callback says that it is blind, so nobody settles for it.
    """
    shares = []
    with owed.small_tables_owe():
        model = owed.model()
        table = model.layers[0].embeddings.value
        before = table.numpy()

        class Reads(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                read(self.model)
                shares.append(np.any(table.numpy() != before, axis=1).mean())

        Reads.__module__ = "dp_train.of_test"
        model.fit(*owed.data(8 * steps), batch_size=8, verbose=0, callbacks=[Reads()])
        assert model._privacy.owing.tables
        assert np.all(table.numpy() != before)
    return shares


def test_without_a_reader_most_rows_owe_between_batches():
    assert max(changed_rows(lambda model: None)) < 0.05


READERS = {
    "get_weights": lambda model: model.get_weights(),
    "repr": lambda model: repr(model.layers[0].embeddings),
    "array": lambda model: np.asarray(model.layers[0].embeddings),
    "assign": lambda model: model.layers[0].embeddings.assign_add(
        np.ones((owed.ROWS, owed.WIDTH), "float32")
    ),
    "call": lambda model: model(owed.data(4)[0]),
    "predict": lambda model: model.predict(owed.data(4)[0], verbose=0),
    "predict_on_batch": lambda model: model.predict_on_batch(owed.data(4)[0]),
    "evaluate": lambda model: model.evaluate(*owed.data(4), verbose=0),
    "test_on_batch": lambda model: model.test_on_batch(*owed.data(4)),
    "clipped_gradients": lambda model: dp_train.clipped_gradients(
        model, *owed.data(4), l2_norm_clip=1.0
    ),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_whoever_reads_between_batches_settles(read):
    assert changed_rows(read) == [1.0, 1.0, 1.0]


FILES = {
    "save": lambda model, path: model.save(path / "m.keras"),
    "save_weights": lambda model, path: model.save_weights(path / "m.weights.h5"),
    "export": lambda model, path: model.export(path / "m", verbose=False),
    "checkpoint": lambda model, path: tf.train.Checkpoint(model=model).save(path / "m"),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES.keys())
def test_whoever_writes_a_file_between_batches_settles(write, tmp_path):
    assert changed_rows(lambda model: write(model, tmp_path), steps=1) == [1.0]


def in_a_thread(function):
    errors = []

    def catches():
        try:
            function()
        except dp_train.NotPrivateError as error:
            errors.append(error)

    thread = threading.Thread(target=catches)
    thread.start()
    thread.join()
    raise errors[0]


REFUSED = {
    "thread": (
        lambda model: in_a_thread(model.get_weights),
        "another thread than fit's while its noise is owed",
    ),
    "compile": (
        lambda model: model.compile(model.optimizer, loss="mse"),
        "inside a fit whose tables owe their noise",
    ),
    "train_on_batch": (
        lambda model: model.train_on_batch(*owed.data(4)),
        "inside a fit whose tables owe their noise",
    ),
}


@pytest.mark.parametrize(("act", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_lose_noise_is_refused_between_batches(act, message):
    with pytest.raises(dp_train.NotPrivateError, match=message):
        changed_rows(act)


class Largest(keras.metrics.Metric):
    """A metric that reads the table: in the graph, or in Python, now or at the end."""

    def __init__(self, table, how):
        super().__init__()
        self.table, self.how, self.handle = table, how, table.value
        self.seen = self.add_weight(initializer="zeros")
        self.shown = []

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.how == "variable":
            self.seen.assign(keras.ops.max(self.table))
        elif self.how == "handle":
            self.seen.assign(tf.reduce_max(self.handle))
        elif self.how == "Python":
            found = tf.py_function(lambda: np.max(self.table), [], tf.float32)
            self.seen.assign(tf.ensure_shape(found, []))

    def result(self):
        if tf.executing_eagerly() and self.how == "result":
            self.shown.append(self.handle.numpy())
        return self.seen


def measured(how):
    model = owed.model()
    metric = Largest(model.layers[0].embeddings, how)
    model.compile(model.optimizer, loss=model.loss, metrics=[metric])
    return model, metric


@pytest.mark.parametrize("how", ["variable", "handle"])
def test_a_table_that_a_metric_reads_in_the_step_owes_nothing(how):
    with owed.small_tables_owe():
        model, _ = measured(how)
        model.fit(*owed.data(), batch_size=8, verbose=0)
    assert not model._privacy.owing.tables
    assert ") reads the table too" in str(model.privacy_plan())


def test_a_metric_may_not_read_the_table_in_python_inside_a_step():
    with owed.small_tables_owe():
        model, _ = measured("Python")
        with pytest.raises(dp_train.NotPrivateError, match="A metric|runs Python code"):
            model.fit(*owed.data(), batch_size=8, verbose=0)
        table = model.layers[0].embeddings.value
        assert np.all(table.numpy() == model.get_weights()[0])


def test_a_result_at_the_end_of_an_epoch_sees_settled_rows():
    with owed.small_tables_owe():
        model, metric = measured("result")
        before = model.layers[0].get_weights()[0]
        model.fit(*owed.data(), batch_size=8, verbose=0)
        assert model._privacy.owing.tables
    assert np.all(metric.shown[-1] != before)


class OfItsOwn(keras.Model):
    """Reads or runs by code of its own, as `how` says."""

    def __init__(self, how):
        super().__init__()
        self.table = keras.layers.Embedding(owed.ROWS, owed.WIDTH)
        self.dense = keras.layers.Dense(2)
        self.how, self.seen, self.raw = how, [], None

    def call(self, x):
        hidden = keras.ops.mean(self.table(x), axis=1)
        if self.how == "raw" and self.raw is not None:
            hidden = hidden + 0.0 * tf.reduce_mean(self.raw[0], axis=0)
        return self.dense(hidden)

    def evaluate(self, *args, **kwargs):
        if self.how == "evaluate":
            self.seen.append(self.look().numpy())
            return {"loss": 0.0}
        return super().evaluate(*args, **kwargs)

    def look(self):
        return self.raw[1]()


class OfItsOwnStep(OfItsOwn):
    def make_train_function(self, force=False):
        super().make_train_function(force)
        step = self.train_function

        def train_function(iterator):
            self.seen.append(self.look().numpy())
            return step(iterator)

        self.train_function = train_function
        return train_function


def of_its_own(how, kind=OfItsOwn):
    model = kind(how)
    x, y = owed.data(24)
    model(x)
    value = model.table.embeddings.value
    model.raw = [value, tf.function(value.read_value)]
    model = dp_train.make_private(model)
    optimizer = dp_train.DPSGD(
        owed.RATE, l2_norm_clip=0.1, noise_multiplier=1000.0, lazy_noise=True
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss)
    before = value.numpy()
    with owed.small_tables_owe():
        model.fit(x, y, batch_size=8, verbose=0, validation_data=(x, y))
    return model, before


def test_an_evaluate_of_its_own_sees_settled_rows():
    model, before = of_its_own("evaluate")
    assert model._privacy.owing.tables
    assert np.all(model.seen[-1] != before)


@pytest.mark.parametrize("how", ["raw", "step"])
def test_code_of_its_own_in_a_step_owes_nothing(how):
    model, before = of_its_own(how, OfItsOwnStep if how == "step" else OfItsOwn)
    assert not model._privacy.owing.tables
    assert np.all(model.table.embeddings.value.numpy() != before)
    assert "owe" in str(model.privacy_plan())


class BatchHook(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        pass


def test_nothing_is_owed_beside_a_callback_that_runs_between_batches():
    with owed.small_tables_owe():
        model = owed.model()
        model.fit(*owed.data(), batch_size=8, verbose=0, callbacks=[BatchHook()])
    assert not model._privacy.owing.tables
    assert "BatchHook could look between batches" in str(model.privacy_plan())


def test_checkpoints_between_batches_hold_settled_rows(tmp_path):
    with owed.small_tables_owe():
        model = owed.model()
        before = model.layers[0].get_weights()[0]
        path = str(tmp_path / "{batch}.weights.h5")
        checkpoint = keras.callbacks.ModelCheckpoint(
            path, save_weights_only=True, save_freq=2
        )
        model.fit(*owed.data(24), batch_size=8, verbose=0, callbacks=[checkpoint])
        assert model._privacy.owing.tables
        saved = owed.model()
        (file,) = tmp_path.iterdir()
        saved.load_weights(file)
        assert np.all(saved.layers[0].get_weights()[0] != before)


def test_a_shared_table_is_guarded_for_each_of_its_models():
    with owed.small_tables_owe():
        first = owed.model()
        second = dp_train.make_private(
            keras.Sequential([*first.layers[:2], keras.layers.Dense(2)])
        )
        second.build((None, owed.TOKENS))
        second.compile(first.optimizer.from_config(first.optimizer.get_config()), "mse")
        second.compile(owed.model().optimizer, loss=first.loss)
        for model in (first, second):
            model.fit(*owed.data(), batch_size=8, verbose=0)
            assert model._privacy.owing.tables
        first.compile(first.optimizer, loss=first.loss)
        table, seen = second.layers[0].embeddings, []

        class Reads(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                before = table._value.numpy()
                table.numpy()
                seen.append(np.mean(table._value.numpy() != before))

        Reads.__module__ = "dp_train.of_test"
        second.fit(*owed.data(24), batch_size=8, verbose=0, callbacks=[Reads()])
    assert min(seen) > 0.9


class DrawError(Exception):
    """No memory, say."""


def test_where_the_noise_cannot_be_charged_no_row_moves():
    with owed.small_tables_owe():
        model = owed.model()
        model.fit(*owed.data(), batch_size=8, verbose=0)
        before, ledger = model.get_weights()[0], model.privacy_ledger.total

        def fail(*args):
            raise DrawError

        model._privacy.account.charge = fail
        with pytest.raises(tf.errors.OpError, match="DrawError"):
            model.fit(*owed.data(), batch_size=8, verbose=0)
        assert model.privacy_ledger.total == ledger
        np.testing.assert_array_equal(model.get_weights()[0], before)


def test_a_row_whose_noise_could_not_be_drawn_goes_on_owing(monkeypatch):
    table = keras.Variable(np.zeros((owed.ROWS, owed.WIDTH), "float32"))
    noise = owed.OwedNoise(table)
    noise.owe(tf.constant(4.0, tf.float64))
    paid_later = draw.paid_later

    def fail(count, width):
        def call(count):
            raise DrawError

        return tf.ensure_shape(
            tf.numpy_function(call, [count], tf.float32), [None, width]
        )

    ids = tf.range(100)
    monkeypatch.setattr(draw, "paid_later", fail)
    with pytest.raises(tf.errors.OpError, match="DrawError"):
        tf.function(noise.read)(ids)
    monkeypatch.setattr(draw, "paid_later", paid_later)
    assert np.all(tf.function(noise.read)(ids).numpy() != 0)


class InterruptedError(Exception):
    """Ctrl-C, say."""


def test_an_interrupted_settlement_is_made_up_by_the_next_reader(monkeypatch):
    with owed.small_tables_owe():
        model = owed.model()
        before = model.layers[0].get_weights()[0]
        paid_now = owed.OwedNoise.settle

        def interrupted(self):
            monkeypatch.setattr(owed.OwedNoise, "settle", paid_now)
            raise InterruptedError

        monkeypatch.setattr(owed.OwedNoise, "settle", interrupted)
        with pytest.raises(InterruptedError):
            model.fit(*owed.data(), batch_size=8, verbose=0)
        assert np.all(model.layers[0].get_weights()[0] != before)


def test_small_rates_after_large_ones_owe_no_less():
    noise = owed.OwedNoise(keras.Variable(np.zeros((4, 2), "float32")))
    noise.owe(tf.constant(1e9, tf.float64))
    noise.read(tf.constant([0]))
    for _ in range(5):
        noise.owe(tf.constant(1e-12, tf.float64))
    assert float(noise._due - noise._settled[0]) >= 5e-12


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
    assert "Dataset could look between batches" in str(model.privacy_plan())
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
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model = with_optimizer(model, SGD(0.1))
    with owed.small_tables_owe():
        for _ in range(3):
            model.fit(x, x[:, 0] % 2, batch_size=8, epochs=2, verbose=0)
    assert model._privacy.owing.tables
    assert model._privacy.traces <= 2
    assert "' owes its noise until a row is read" in str(model.privacy_plan())
