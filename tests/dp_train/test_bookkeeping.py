"""The book-keeping engine, its kernels and the certificate that stands before it."""

import collections
import dataclasses
import threading
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import compiled, data, sequential

import dp_train
from dp_train import host
from dp_train.gradients import bookkeeping, certificate, choose, loop, vectorized
from dp_train.gradients.objective import Objective
from dp_train.kernels.contribution import RowsRead, UnsupportedSiteError
from dp_train.kernels.product import Product
from tests.batteries import training


def images(*stack, shape=(7, 6, 3)):
    return keras.Sequential(
        [keras.Input(shape), *stack, layers.Flatten(), layers.Dense(2)]
    )


def series(*stack):
    return keras.Sequential(
        [keras.Input((4, 3)), *stack, layers.Flatten(), layers.Dense(2)]
    )


def embedded_twice():
    inputs = keras.Input((4,), dtype="int32")
    table = layers.Embedding(3, 2)
    read = layers.Concatenate(axis=1)([table(inputs), table(inputs[:, :3] * 0 + 1)])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(read)))


def shared_convolution(**options):
    inputs = keras.Input((7, 6, 3))
    shared = layers.Conv2D(3, 3, padding="same", activation="tanh", **options)
    return keras.Model(
        inputs, layers.Dense(2)(layers.Flatten()(shared(shared(inputs))))
    )


class Softplus(keras.layers.Layer):
    """Scales by a positive function of a weight."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, x):
        return x * keras.ops.softplus(self.w) + keras.ops.sum(self.w**2)


class Cumulated(keras.layers.Layer):
    """A weight in an op without a kernel, and a number besides the tensors."""

    def __init__(self, weight=None):
        super().__init__()
        self.w = weight

    def build(self, shape):
        if self.w is None:
            self.w = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, x, power=2):
        return keras.ops.maximum(x, self.w) ** power


class Wrapping(keras.layers.Layer):
    """Holds a layer that has to run alone beside one that has not."""

    def __init__(self):
        super().__init__()
        self.dense, self.odd = layers.Dense(3), Cumulated()

    def call(self, x):
        return self.odd(self.dense(x), power=1) + x

    def build(self, shape):
        self.dense.build(shape)
        self.odd.build(shape)


class Borrowing(keras.layers.Layer):
    """Uses the weight of another layer in a way that a kernel knows."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def call(self, x):
        return x * self.other.w


class TimeMajorProduct(keras.layers.Layer):
    """A matmul of rows that lie time first, along an axis that no kernel looks at."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 2), name="w")

    def call(self, x):
        y = tf.matmul(keras.ops.transpose(x, (1, 0, 2)), self.w)
        return keras.ops.transpose(y, (1, 0, 2))


def _shared_alone():
    inputs = keras.Input((4, 3))
    odd = Cumulated()
    hidden = Borrowing(odd)(odd(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(hidden)))


class Positions(keras.layers.Layer):
    """Adds an embedding of the position, which is the same in every example."""

    def build(self, shape):
        self.table = layers.Embedding(9, shape[-1])

    def call(self, x):
        return x + self.table(keras.ops.arange(x.shape[1]))


class Tied(keras.Model):
    """An embedding whose transpose makes the logits."""

    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(5, 3)

    def call(self, ids):
        hidden = keras.ops.tanh(self.table(ids))
        weights = keras.ops.transpose(self.table.embeddings)
        return keras.ops.sum(keras.ops.matmul(hidden, weights), axis=1)


def tied():
    inputs = keras.Input((4,), dtype="int32")
    return keras.Model(inputs, Tied()(inputs))


class RawWeights(keras.layers.Layer):
    """Weights that meet data in ways of their own."""

    def build(self, shape):
        self.left = self.add_weight(shape=(1, 1, shape[-1]), name="left")
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.table = self.add_weight(shape=(2, shape[-1]), name="table")

    def call(self, x):
        return (self.left - x) * self.scale + keras.ops.transpose(
            keras.ops.transpose(self.table)
        )[0]


class Made(keras.layers.Layer):
    """Multiplies by what is made of a weight, which gets there in several ways."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3), name="w")

    def call(self, x):
        return x @ self.make(self.w)


def straight_through(w):
    return w + keras.ops.stop_gradient(keras.ops.sign(w) - w)


MADE = {
    "normed": lambda w: w / keras.ops.norm(w, axis=0, keepdims=True),
    "centred": lambda w: w - keras.ops.mean(w, axis=0, keepdims=True),
    "of sum one": lambda w: w / keras.ops.sum(w),
    "straight through": straight_through,
    "times itself": lambda w: w @ keras.ops.transpose(w) @ w,
}


class BehindAStop(keras.layers.Layer):
    """Reads its weight with and without a gradient."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, x):
        rounded = keras.ops.cast(keras.ops.cast(self.w, "int32"), x.dtype)
        return x * self.w + keras.ops.stop_gradient(self.w) * x + rounded * x


COVERED = {
    **{f"weight, {how}": lambda m=m: series(Made(m)) for how, m in MADE.items()},
    "weight behind a stop": lambda: series(BehindAStop()),
    "depthwise": lambda: images(
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.DepthwiseConv2D(2, padding="same", strides=2),
    ),
    "convolution with groups": lambda: images(
        layers.Conv2D(6, 3, padding="same"), layers.Conv2D(4, 2, strides=2, groups=2)
    ),
    "convolution, three dimensions": lambda: images(
        layers.Conv3D(4, 2, padding="same"),
        layers.Conv3D(2, (2, 1, 3), strides=2, padding="same"),
        shape=(3, 4, 3, 2),
    ),
    "grouped query attention": lambda: _attended(),
    "repeated vector": lambda: keras.Sequential(
        [
            keras.Input((3,)),
            layers.RepeatVector(4),
            layers.Dense(2),
            layers.Flatten(),
            layers.Dense(2),
        ]
    ),
    "separable": lambda: images(layers.SeparableConv2D(4, 3, padding="same")),
    "transposed": lambda: images(
        layers.Conv2DTranspose(5, 3), layers.Conv2DTranspose(2, 3, 2, padding="same")
    ),
    "convolution, few channels": lambda: images(
        layers.Conv2D(3, (3, 2), strides=2, padding="same")
    ),
    "convolution, few channels, strides that do not fit": lambda: images(
        layers.Conv2D(2, (2, 5), strides=3, padding="same"),
        layers.Conv2D(3, (1, 2), strides=3),
        shape=(14, 13, 1),
    ),
    "convolution, many channels": lambda: images(
        layers.Conv2D(5, 3, padding="same"), layers.Conv2D(4, (2, 3), strides=2)
    ),
    "convolution, one dimension": lambda: series(
        layers.Conv1D(4, 2), layers.Conv1D(5, 3, padding="same")
    ),
    "shared convolution": shared_convolution,
    "embedding read twice": embedded_twice,
    "dilated convolution": lambda: images(
        layers.Conv2D(3, 2, dilation_rate=(2, 1)),
        layers.Conv2D(2, 2, dilation_rate=2, padding="same"),
    ),
    "dilated causal convolution": lambda: series(
        layers.Conv1D(3, 2, dilation_rate=3, padding="causal"), layers.Dense(2)
    ),
    "dilated convolution in three dimensions": lambda: images(
        layers.Conv3D(2, 2, dilation_rate=2), shape=(3, 4, 3, 2)
    ),
    "dilated depthwise": lambda: images(
        layers.DepthwiseConv2D(2, dilation_rate=2), layers.Conv2D(2, 2)
    ),
    "rows of several kinds": lambda: images(Rows(), shape=(12,)),
    "state of a recurrent cell": lambda: _state_only(),
    "convolutional lstm": lambda: images(layers.ConvLSTM1D(2, 2), shape=(3, 5, 2)),
    "time distributed": lambda: series(
        layers.TimeDistributed(layers.Dense(2)), layers.TimeDistributed(layers.PReLU())
    ),
    "time distributed convolution": lambda: images(
        layers.TimeDistributed(layers.Conv2D(2, 2)), shape=(2, 3, 3, 2)
    ),
    "transposed in three dimensions": lambda: images(
        layers.Conv3DTranspose(2, 2, strides=(1, 2, 1)),
        layers.Conv3DTranspose(3, 2, padding="same"),
        shape=(2, 3, 2, 2),
    ),
    "dilated shared convolution": lambda: shared_convolution(dilation_rate=2),
    "einsum": lambda: series(
        layers.EinsumDense("abc,cde->abde", output_shape=(4, 2, 3), bias_axes="de")
    ),
    "einsum with an axis of its own": lambda: series(
        layers.EinsumDense("abc,bcd->abd", output_shape=(4, 2)),
        layers.EinsumDense("abc,b->ac", output_shape=(2,)),
    ),
    "gru": lambda: series(layers.GRU(2)),
    "gru, reset before": lambda: series(layers.GRU(2, reset_after=False)),
    "lora": lambda: _lora(),
    "tied embedding": lambda: tied(),
    "positions": lambda: series(Positions()),
    "reparametrised": lambda: series(Softplus(), layers.Dense(3)),
    "simple rnn backwards": lambda: series(layers.SimpleRNN(2, go_backwards=True)),
    "bidirectional": lambda: series(
        layers.Bidirectional(layers.LSTM(2, return_sequences=True))
    ),
    "bidirectional under a mask": lambda: _masked_readers(),
    "prelu": lambda: series(layers.Dense(3), layers.PReLU(shared_axes=[1])),
    "rms norm": lambda: series(layers.RMSNormalization()),
    "raw weights": lambda: series(RawWeights()),
    "nested": lambda: series(
        keras.Sequential([layers.Dense(3), keras.Sequential([layers.Dense(2)])])
    ),
}


ALONE = {
    "weight outside of any axis": (
        lambda: series(layers.Dense(3), Cumulated(), Cumulated(), layers.Dense(3)),
        "Maximum",
    ),
    "time-major product": (lambda: series(TimeMajorProduct()), "another axis"),
    "inside another layer": (
        lambda: series(Wrapping(), layers.LSTM(2, return_sequences=True)),
        "Maximum",
    ),
    "one of two uses of a weight": (lambda: _shared_alone(), "Maximum"),
}
ALONE_MODELS = {name: build for name, (build, _) in ALONE.items()}


class Rows(keras.layers.Layer):
    """Works on thirds of an example, as rows of their own, and joins them."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(4,), name="scale")
        self.mix = self.add_weight(shape=(4, 4), name="mix")
        self.pair = self.add_weight(shape=(2, 2), name="pair")
        self.shift = self.add_weight(shape=(4,), name="shift")

    def call(self, x):
        rows = keras.ops.reshape(x, (-1, 4)) * self.scale
        rows = keras.ops.tanh(keras.ops.relu(rows + 1) @ self.mix)
        rows = rows + tf.broadcast_to(self.shift, tf.shape(rows))
        pairs = keras.ops.tanh(keras.ops.reshape(rows, (-1, 2, 2)) @ self.pair)
        return keras.ops.reshape(keras.ops.tanh(pairs), (-1, 12))


class StateCell(keras.layers.Layer):
    """A recurrent cell whose output has a weight of its own."""

    state_size, output_size = 4, 3

    def build(self, shape):
        self.into = self.add_weight(shape=(shape[-1], 4), name="into")
        self.out = self.add_weight(shape=(4, 3), name="out")

    def call(self, x, states):
        state = keras.ops.tanh(x @ self.into + states[0])
        return state @ self.out, [state]


def _state_only():
    inputs = keras.Input((4, 3))
    _, state = layers.RNN(StateCell(), return_state=True)(inputs)
    return keras.Model(inputs, layers.Dense(2)(state))


def _attended():
    inputs = keras.Input((4, 3))
    read = layers.GroupQueryAttention(2, 4, 2)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(read)))


def _masked_readers():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(3, 2, mask_zero=True),
            layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
            layers.GRU(2, go_backwards=True),
            layers.Dense(2),
        ]
    )


def _lora():
    model = series(layers.Dense(4), layers.Dense(3))
    model.layers[0].enable_lora(2)
    return model


def private(model, gradients="bookkeeping"):
    return compiled(model, gradients=gradients, loss=keras.losses.MeanSquaredError())


def rows_for(model, count=6):
    generator = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    is_ids = "int" in str(model.inputs[0].dtype)
    x = generator.integers(0, 3, shape) if is_ids else generator.standard_normal(shape)
    y = generator.standard_normal((count, *model.output_shape[1:]))
    return x.astype("int32" if is_ids else "float64"), y


@pytest.mark.parametrize(
    "builder", (COVERED | ALONE_MODELS).values(), ids=COVERED | ALONE_MODELS
)
def test_clipped_sum_equals_that_of_the_loop(builder):
    # TensorFlow 2.21 has no gradient of a float64 convolution with groups on CPU.
    floats = "float32" if builder is COVERED["convolution with groups"] else "float64"
    keras.config.set_dtype_policy(floats)
    keras.config.set_floatx(floats)
    try:
        model = private(builder())
        x, y = rows_for(model)
        shaking = np.random.default_rng(1)
        model.set_weights(
            [w + 0.1 * shaking.standard_normal(w.shape) for w in model.get_weights()]
        )
        objective = Objective(model, model.trainable_variables, [])
        rows, alone = choose.plan_rows(objective, (x, y, None))
        assert len(rows) == len(model.trainable_variables)
        objective = dataclasses.replace(objective, alone=[layer for layer, _ in alone])

        @tf.function(autograph=False)
        def both(x, y, is_real, clip=0.05):
            return [
                engine.clipped_sum(objective, (x, y, None), [], clip, is_real)[0]
                for engine in (bookkeeping, loop)
            ]

        is_real = np.array([True, True, False, True, True, True])
        sums, expected = both(tf.constant(x), tf.constant(y), tf.constant(is_real))
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_floatx("float32")
    scale = max(np.abs(e).max() for e in expected)
    # Keras 3.15.1 keeps the weights of LoRA in float32 whatever the policy.
    is_float64 = all(v.dtype == "float64" for v in model.trainable_variables)
    tolerance = (1e-10 if is_float64 else 1e-6) * scale
    for a, b in zip(sums, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "builder", (COVERED | ALONE_MODELS).values(), ids=COVERED | ALONE_MODELS
)
def test_fit_moves_any_layer_by_the_loops_sum_and_each_example_by_its_clip(builder):
    clip, sums = 0.05, []
    with training.without_noise():
        for engine in ("loop", "bookkeeping"):
            keras.utils.set_random_seed(0)
            model = training.private(
                builder(),
                l2_norm_clip=clip,
                learning_rate=training.LEARNING_RATE,
                engine=engine,
                loss=keras.losses.MeanSquaredError(),
            )
            rows = (*rows_for(model), None)
            sums.append(training.released_sum(model, rows, range(6), 4))
        expected, every = map(flattened, sums)
        largest = 0.0
        for left_out in (0, 5):
            others = [i for i in range(6) if i != left_out]
            without = flattened(training.released_sum(model, rows, others, 4))
            moved = np.linalg.norm(every - without)
            assert moved <= clip * (1 + 1e-5)
            largest = max(largest, moved)
    assert largest >= 0.99 * clip
    np.testing.assert_allclose(every, expected, rtol=0, atol=1e-5 * clip)


def flattened(arrays):
    return np.concatenate([np.ravel(a) for a in arrays])


@pytest.mark.parametrize("builder", COVERED.values(), ids=COVERED)
def test_layers_that_are_covered_train_by_bookkeeping(builder):
    model = private(builder())
    x, y = rows_for(model)
    model.train_on_batch(x, y)
    assert model.privacy_plan().engine == "bookkeeping"


@pytest.mark.parametrize(
    ("window", "strides", "pixel"),
    [((2, 2), 3, (0, 2)), ((2, 4), (1, 3), (0, 7)), ((1, 4), (2, 3), (1, 0))],
)
def test_pixel_that_no_window_reads_may_hold_anything(window, strides, pixel):
    sums = []
    for gradients in ("bookkeeping", "loop"):
        keras.utils.set_random_seed(0)
        stack = layers.Conv2D(2, window, strides=strides)
        model = private(images(stack, shape=(8, 8, 1)), gradients=gradients)
        x, y = rows_for(model)
        x[0, pixel[0], pixel[1]] = np.nan
        found = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1e3)
        sums.append([np.asarray(g) for g in found.gradients])
    for ours, theirs in zip(*sums, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_no_op_asks_whether_rows_were_broadcast():
    """TensorFlow puts six ops for it behind each product: a third of an LSTM's step."""
    objective = objective_of(series(layers.LSTM(2, return_sequences=True)))

    def trace(x, y):
        return bookkeeping.clipped_sum(objective, (x, y, None), [], 1.0)[0]

    specs = tf.TensorSpec((None, 4, 3)), tf.TensorSpec((None, 2))
    graph = tf.function(trace).get_concrete_function(*specs).graph
    types = collections.Counter(op.type for op in graph.get_operations())
    assert types["SigmoidGrad"] == 3 * 4
    assert types["BroadcastGradientArgs"] <= 1  # of the loss
    # What every example's weights and biases are multiplied with is joined once.
    joins = [op for op in graph.get_operations() if op.type == "ConcatV2"]
    cotangents = [op for op in joins if op.outputs[0].shape[1:] == (4, 8)]
    (order,) = {tuple(t.op.inputs[0].name for t in c.inputs[:4]) for c in cotangents}
    assert len(cotangents) == 2


@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE)
def test_layer_that_no_kernel_covers_runs_alone_and_the_plan_says_why(case):
    builder, reason = case
    model = private(builder())
    x, y = rows_for(model)
    model.train_on_batch(x, y)
    plan = model.privacy_plan()
    assert plan.engine == "bookkeeping"
    assert 0 < len(plan.alone) < len(host.sublayers(model))
    for layer, why in plan.alone:
        assert reason in why
        assert f"layer {layer.name!r} one example at a time" in str(plan)


def test_arrays_settle_the_sizes_that_a_model_leaves_open():
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(9, 2, mask_zero=True),
            layers.LSTM(2),
            layers.Dense(1),
        ]
    )
    model = compiled(model, loss="mse")
    x, y = np.arange(60).reshape(10, 6) % 9, np.ones((10, 1))
    for length, traces in ((6, 1), (4, 2), (4, 2)):
        model.fit(x[:, :length], y, batch_size=2, verbose=0)
        assert model.privacy_plan().engine == "bookkeeping"
        assert model._privacy.traces == traces


def test_longer_rows_come_in_smaller_chunks_and_a_callback_may_take_gradients(
    monkeypatch,
):
    monkeypatch.setattr(choose, "MEMORY_BUDGET", 2**14)
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            layers.Conv1D(4, 2),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model = compiled(model, loss="mse")
    sizes = []

    def take(batch, logs):
        del batch, logs
        x = np.ones((40, 9, 3), "float32")
        clipped = dp_train.clipped_gradients(model, x, x[:, 0, :1], l2_norm_clip=1.0)
        assert np.all(np.isfinite(clipped.gradients[0]))

    look = keras.callbacks.LambdaCallback(on_train_batch_end=take)
    for length in (20, 200, 20):
        x = np.ones((32, length, 3), "float32")
        model.fit(x, x[:, 0, :1], batch_size=16, verbose=0, callbacks=[look])
        model.fit(x, x[:, 0, :1], batch_size=16, verbose=0)
        sizes.append(model._privacy.microbatch)
    assert sizes[0] == sizes[2] > sizes[1]


def test_arrays_of_a_loader_settle_open_sizes_in_custom_loops_too():
    model = keras.Sequential([keras.Input((None, 3)), layers.LSTM(2), layers.Dense(1)])
    model = compiled(model, loss="mse")
    loader = dp_train.PoissonLoader(
        np.ones((8, 5, 3), "float32"), np.ones((8, 1), "float32"), batch_size=4
    )
    for batch in loader:
        clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
        model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    assert model.privacy_plan().engine == "bookkeeping"


def test_model_that_no_engine_step_can_mend_falls_back_and_the_plan_says_why():
    builder = lambda: series(layers.Dense(2, activity_regularizer="l2"))  # noqa: E731
    model = private(builder(), gradients="auto")
    x, y = rows_for(model)
    model.train_on_batch(x, y)
    plan = model.privacy_plan()
    assert plan.engine == "vectorized"
    assert "add_loss" in dict(plan.refused)["bookkeeping"]
    assert "add_loss" in str(plan)
    with pytest.raises(dp_train.NotPrivateError, match="Use gradients='auto'"):
        private(builder()).train_on_batch(x, y)


def test_plan_lists_every_variable_and_what_it_costs():
    model = compiled()
    with pytest.raises(ValueError, match="Call fit"):
        model.privacy_plan()
    model.fit(*data(), verbose=0)
    plan = model.privacy_plan()
    assert [row.variable for row in plan.rows] == [
        v.path for v in model.trainable_variables
    ]
    assert [row.rule for row in plan.rows] == ["outer product", "reduced"] * 2
    assert plan.numbers_per_row == 5 + 3
    assert "outer product" in str(plan)


def test_variable_that_the_loss_does_not_reach_has_a_line_in_the_plan():
    inputs = keras.Input((4,))
    used, unused = layers.Dense(3, name="used"), layers.Dense(2, name="unused")
    model = keras.Model(inputs, [used(inputs), unused(inputs)])
    model = compiled(
        model, loss=[keras.losses.SparseCategoricalCrossentropy(True), None]
    )
    x, y = data()
    before = unused.kernel.numpy()
    model.train_on_batch(x, [y, y])
    rules = {row.variable: row.rule for row in model.privacy_plan().rows}
    assert rules["unused/kernel"] == "left as it is"
    np.testing.assert_array_equal(unused.kernel.numpy(), before)


def test_dropout_draws_another_mask_for_every_example_and_step():
    model = keras.Sequential(
        [keras.Input((50,)), layers.Dropout(0.5), layers.Dense(1, use_bias=False)]
    )
    model = compiled(
        model,
        dp_train.DPSGD(0.0, l2_norm_clip=1e9, noise_multiplier=1e-12),
        gradients="bookkeeping",
        loss=lambda y, y_pred: y_pred,
    )
    x = np.ones((1, 50), "float32")
    masks = []
    for _ in range(2):
        clipped = dp_train.clipped_gradients(model, x, x[:, :1], l2_norm_clip=1e9)
        masks.append(clipped.gradients[0].numpy())
    assert not np.array_equal(*masks)
    two = np.ones((2, 50), "float32")
    clipped = dp_train.clipped_gradients(model, two, two[:, :1], l2_norm_clip=1e9)
    assert set(np.unique(clipped.gradients[0])) == {0.0, 2.0, 4.0}


class Head(layers.Layer):
    """Turns numbers into probabilities; its weight needs a rule that is not there."""

    def __init__(self, activation, is_alone):
        super().__init__()
        self.activation, self.is_alone = activation, is_alone

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        x = keras.ops.maximum(x, self.w) if self.is_alone else x * self.w
        return self.activation(x)


class Tagging(layers.Layer):
    """Hangs onto its output what the loss will look for."""

    def __init__(self, tag):
        super().__init__()
        self.tag, self.inner = tag, layers.Dense(2)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        y = self.inner(x)
        y.tag = self.tag(y)
        return y


@pytest.mark.parametrize("is_alone", [False, True], ids=["by rule", "alone"])
@pytest.mark.parametrize(
    ("activation", "loss", "scale"),
    [
        (keras.ops.softmax, "categorical_crossentropy", 300),
        (keras.ops.sigmoid, "binary_crossentropy", 300),
        # Without anything on the tensor, Keras looks at the op that made it.
        (tf.nn.softmax, "categorical_crossentropy", 300),
        (tf.nn.sigmoid, "binary_crossentropy", 300),
        # Of another kind than the loss expects: no logits then.
        (tf.nn.sigmoid, "categorical_crossentropy", 1),
    ],
)
def test_losses_see_the_logits_behind_probabilities(activation, loss, scale, is_alone):
    generator = np.random.default_rng(2)
    x = (scale * generator.standard_normal((5, 3))).astype("float32")
    y = np.eye(3, dtype="float32")[generator.integers(0, 3, 5)]
    sums = []
    for engine in ("bookkeeping", "loop"):
        keras.utils.set_random_seed(1)
        stack = [keras.Input((3,)), layers.Dense(3), Head(activation, is_alone)]
        model = compiled(keras.Sequential(stack), gradients=engine, loss=loss)
        clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
        sums.append(flattened(clipped.gradients))
    assert np.linalg.norm(sums[1]) > 0.1
    np.testing.assert_allclose(*sums, atol=1e-5)


def test_whatever_tensor_hangs_on_a_prediction_reaches_the_loss():
    model = compiled(
        keras.Sequential([keras.Input((3,)), Tagging(lambda y: 3.0 * y)]),
        gradients="bookkeeping",
        loss=lambda y, y_pred: getattr(y_pred, "tag", y_pred) - y,
    )
    x, y = np.ones((2, 3), "float32"), np.ones((2, 2), "float32")
    clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1e6)
    np.testing.assert_allclose(clipped.gradients[1], [3.0, 3.0], rtol=1e-6)


def test_engine_that_would_lose_what_hangs_on_a_prediction_is_not_used():
    model = compiled(keras.Sequential([keras.Input((3,)), Tagging(lambda y: "tag")]))
    model.train_on_batch(np.ones((4, 3)), np.zeros(4))
    ((engine, reason), *_) = model.privacy_plan().refused
    assert engine == "bookkeeping" and "predictions carry tag" in reason


def test_metrics_see_the_logits_as_in_plain_fit():
    generator = np.random.default_rng(2)
    x = (300 * generator.standard_normal((8, 3))).astype("float32")
    y = generator.integers(0, 2, (8, 1)).astype("float32")
    shown = []
    for is_private in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1, "sigmoid")])
        if is_private:
            model = dp_train.make_private(model)
        rate = {"l2_norm_clip": 1.0, "noise_multiplier": 1.0}
        model.compile(
            dp_train.DPSGD(0.0, **rate) if is_private else keras.optimizers.SGD(0.0),
            loss="binary_crossentropy",
            metrics=["binary_crossentropy"],
        )
        found = model.train_on_batch(x, y, return_dict=True)
        shown.append([float(found[k]) for k in ("loss", "binary_crossentropy")])
    assert shown[0][0] > 16  # beyond -log of Keras's epsilon
    np.testing.assert_allclose(*shown, rtol=1e-5)


# ------------------------------------------------------------------------- certificate


def objective_of(model):
    model = private(model, gradients="auto")
    host.symbolic_build(
        model, tf.TensorSpec((None, 4, 3)), tf.TensorSpec((None, 2)), None
    )
    return Objective(model, model.trainable_variables, [])


EXAMPLE = (np.zeros((5, 4, 3), "float32"), np.zeros((5, 2), "float32"), None)


def test_certificate_accepts_engines_that_agree_with_the_loop():
    objective = objective_of(series(layers.Dense(3, activation="tanh")))
    certificate.certify(bookkeeping.clipped_sum, objective, EXAMPLE)
    certificate.certify(vectorized.clipped_sum, objective, EXAMPLE)


def faulty(change):
    """An engine that gives the loop's sums, changed."""

    def clipped_sum(objective, rows, keys, l2_norm_clip, is_real):
        sums, outputs = loop.clipped_sum(objective, rows, keys, l2_norm_clip, is_real)
        return change(sums, l2_norm_clip), outputs

    return clipped_sum


FAULTS = {
    "norms 5 % too small": lambda s, c: [tf.where(c < 1, 1.05, 1.0) * t for t in s],
    "one variable twice": lambda s, c: [s[0], 2 * s[1], *s[2:]],
    "one variable lost": lambda s, c: [*s[:-1], 0 * s[-1]],
    "NaN": lambda s, c: [*s[:-1], s[-1] + np.nan],
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_certificate_names_the_variable_of_a_faulty_engine(fault):
    objective = objective_of(series(layers.Dense(3)))
    with pytest.raises(certificate.NotCertifiedError, match="dense"):
        certificate.certify(faulty(fault), objective, EXAMPLE)


@pytest.mark.parametrize("size", [1.0, 1e-5, 1e-9])
def test_certificate_compares_each_weight_with_its_own_size(size):
    model = series(layers.Dense(3), layers.Rescaling(size))
    objective = objective_of(model)
    certificate.certify(bookkeeping.clipped_sum, objective, EXAMPLE)
    fault = faulty(lambda s, c: [1.5 * s[0], *s[1:]])
    with pytest.raises(certificate.NotCertifiedError, match=r"kernel' are off by 0\.5"):
        certificate.certify(fault, objective, EXAMPLE)


def test_certificate_knows_a_gradient_that_is_nothing_but_rounding():
    inputs = keras.Input((4, 3))
    # A softmax does not change with its keys' bias: the gradient is 0 there.
    attended = layers.MultiHeadAttention(1, 2)(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(attended)))
    objective = objective_of(model)
    names = [v.path for v in objective.variables]
    (place,) = [i for i, name in enumerate(names) if "key/bias" in name]
    certificate.certify(bookkeeping.clipped_sum, objective, EXAMPLE)
    other = faulty(lambda s, c: [-t if i == place else t for i, t in enumerate(s)])
    certificate.certify(other, objective, EXAMPLE)


def _flips(is_flipped):
    """Sums that are 5 % off wherever is_flipped says so of the weights."""

    def change(sums, _):
        factor = tf.where(is_flipped(tf.reduce_sum(tf.abs(sums[0]))), 1.05, 1.0)
        return [factor * s for s in sums]

    return faulty(change)


def test_certificate_forgives_a_flip_and_nothing_that_stays():
    objective = objective_of(series(layers.Dense(3, activation="tanh")))
    seen = []

    def only_the_first_weights(norm):
        def is_first(norm):
            seen.append(float(norm))
            return len(seen) <= 2

        return tf.numpy_function(is_first, [norm], tf.bool)

    certificate.certify(_flips(only_the_first_weights), objective, EXAMPLE)
    assert len(seen) == 8
    with pytest.raises(certificate.NotCertifiedError, match="off by 0.05"):
        certificate.certify(_flips(lambda _: True), objective, EXAMPLE)


class TimeMajor(keras.layers.Layer):
    """Hands an inner layer rows ordered by time, then by example."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(3)

    def call(self, x):
        steps = x.shape[1]
        rows = keras.ops.reshape(keras.ops.transpose(x, (1, 0, 2)), (-1, 3))
        y = keras.ops.reshape(self.inner(rows), (steps, -1, 3))
        return keras.ops.transpose(y, (1, 0, 2))


@pytest.mark.parametrize("steps", [3, 4])
def test_time_major_rows_run_alone_also_where_time_equals_batch(steps):
    model = keras.Sequential(
        [keras.Input((steps, 3)), TimeMajor(), layers.Flatten(), layers.Dense(2)]
    )
    model = private(model, gradients="auto")
    x, y = np.ones((steps, steps, 3), "float32"), np.ones((steps, 2), "float32")
    model.train_on_batch(x, y)
    plan = model.privacy_plan()
    assert plan.engine == "bookkeeping"
    assert model.layers[0] in dict(plan.alone)


class Draws(keras.layers.Layer):
    """Draws in training, from a generator that it does not own."""

    def call(self, x, training=None):
        if not training:
            return x
        return x + 0.1 * keras.random.normal(keras.ops.shape(x))


@pytest.mark.parametrize("layer", [layers.Dropout(0.5), Draws()])
def test_the_certificate_sees_training_whatever_draws(layer):
    objective = objective_of(
        keras.Sequential(
            [keras.Input((4, 3)), layer, layers.Flatten(), layers.Dense(2)]
        )
    )
    seeds = host.seed_states(objective.model)
    objective = dataclasses.replace(objective, seed_states=seeds)

    def wrong_in_training(objective, rows, keys, l2_norm_clip, is_real):
        factor = 2.0 if objective.training else 1.0
        engine = faulty(lambda sums, _: [factor * s for s in sums])
        return engine(objective, rows, keys, l2_norm_clip, is_real)

    with pytest.raises(certificate.NotCertifiedError, match="off by 1 "):
        certificate.certify(wrong_in_training, objective, EXAMPLE)


class DrawsAlways(keras.layers.Layer):
    """The sampling of a variational autoencoder, which knows no `training`."""

    def __init__(self, draw):
        super().__init__()
        self.seed, self.draw = keras.random.SeedGenerator(1), draw

    def call(self, z):
        return z + keras.ops.exp(0.5 * z) * self.draw(keras.ops.shape(z), self.seed)


@pytest.mark.parametrize(
    "draw",
    [
        lambda shape, seed: keras.random.normal(shape, seed=seed),
        lambda shape, seed: keras.random.uniform(shape, -1.0, 1.0, seed=seed),
        lambda shape, seed: keras.random.truncated_normal(shape, seed=seed),
        lambda shape, seed: keras.random.normal(shape, 0.5, 2.0, seed=seed),
    ],
    ids=["normal", "uniform", "truncated", "moved"],
)
def test_layer_that_always_draws_trains_by_bookkeeping(draw):
    stack = [keras.Input((4,)), layers.Dense(3), DrawsAlways(draw), layers.Dense(3)]
    model = compiled(keras.Sequential(stack))
    model.fit(*data(), batch_size=10, verbose=0)
    assert model.privacy_plan().engine == "bookkeeping"


@pytest.mark.parametrize(
    "function", [lambda t: keras.ops.log(t + 1e-3), keras.ops.sqrt], ids=["log", "sqrt"]
)
def test_functions_of_positive_inputs_train_by_bookkeeping(function):
    stack = [keras.Input((4,)), layers.Lambda(function), layers.Dense(3)]
    model = compiled(keras.Sequential(stack))
    x, y = data()
    model.fit(np.abs(x), y, batch_size=10, verbose=0)
    assert model.privacy_plan().engine == "bookkeeping"


def test_certificate_does_not_vouch_for_what_it_could_not_compare():
    objective = objective_of(series(layers.Dense(3, kernel_initializer="zeros")))
    flat = faulty(lambda s, c: s)
    objective.model.loss = None
    model = compiled(series(layers.Dense(3)), loss=lambda y, y_pred: 0.0 * y_pred[:, 0])
    objective = Objective(model, model.trainable_variables, [])
    with pytest.raises(certificate.NotCertifiedError, match="no finite gradient"):
        certificate.certify(flat, objective, EXAMPLE)


# ------------------------------------------------------------------------------- norms


def test_crafted_inputs_cannot_make_a_norm_of_rows_vanish():
    # Cotangents that nearly cancel for a repeated id must not cancel its norm.
    ids = tf.constant([[1, 1, 0], [2, 2, 2]])
    g = np.float32([[[1e8], [-1e8 + 8], [1e-3]], [[1.0], [1.0], [1.0]]])
    norms = RowsRead(ids, tf.constant(g), 4).squared_norms(is_wide=False)
    np.testing.assert_allclose(norms, [8.0**2 + 1e-6, 9.0], rtol=1e-6)


def test_product_norm_survives_underflow_of_its_squares():
    # Every square of the inputs underflows in float32, and yet ||a|| ||g|| = 40.
    a = tf.fill([1, 1, 784], np.float32(0.9e-19))
    g = tf.fill([1, 1, 256], np.float32(1e18))
    true = np.sqrt(784.0 * 256.0) * 0.9e-1
    quick = float(Product(a, g, 1).squared_norms(is_wide=False)[0]) ** 0.5
    wide = float(Product(a, g, 1).squared_norms(is_wide=True)[0]) ** 0.5
    assert wide == pytest.approx(true, rel=1e-6)
    assert quick >= true


def test_huge_examples_are_clipped_not_dropped():
    model = compiled(
        sequential(),
        dp_train.DPSGD(1.0, l2_norm_clip=1.0, noise_multiplier=1e-12),
        gradients="bookkeeping",
        loss=lambda y, y_pred: y_pred[:, 0],
    )
    x = np.full((1, 4), 1e30, "float32")
    clipped = dp_train.clipped_gradients(model, x, np.zeros(1), l2_norm_clip=1.0)
    size = np.sqrt(sum(float(tf.reduce_sum(g**2)) for g in clipped.gradients))
    assert size == pytest.approx(1.0, rel=1e-5)


def test_unknown_uses_of_a_weight_are_named():
    class Exotic(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(3,), name="w")

        def call(self, x):
            return keras.ops.maximum(x, self.w)

    objective = objective_of(series(Exotic()))

    @tf.function(autograph=False)
    def trace():
        rows = (tf.zeros((3, 4, 3)), tf.zeros((3, 2)), None)
        return bookkeeping.clipped_sum(objective, rows, [], 1.0)[0]

    with pytest.raises(UnsupportedSiteError, match="Maximum"):
        trace()


def test_broadcast_matmul_of_many_examples_is_right_on_all_threads():
    # TensorFlow 2.21 with oneDNN reads beyond the buffer for this shape.
    generator = np.random.default_rng(0)
    x = generator.standard_normal((6, 1, 5, 4)).astype("float32")
    w = tf.constant(generator.standard_normal((4, 6)).astype("float32"))
    stacked = tf.constant(generator.standard_normal((6, 4, 6)).astype("float32"))

    @tf.function
    def mapped(x, stacked):
        def one(elements):
            x, own = elements
            with tf.GradientTape() as tape:
                tape.watch(w)
                y = tf.matmul(x, w)
                loss = tf.reduce_sum(y * y)
            return y, tape.gradient(loss, w), tf.matmul(x, own)

        return host.vectorized_map(one, [x, stacked])

    for _ in range(20):
        y, gradient, other = mapped(tf.constant(x), stacked)
        np.testing.assert_allclose(y, x @ w.numpy(), atol=1e-5)
        expected = np.einsum("nbti,nbto->nio", x, 2 * (x @ w.numpy()))
        np.testing.assert_allclose(gradient, expected, atol=1e-4)
        np.testing.assert_allclose(other, x @ stacked.numpy()[:, None], atol=1e-5)


def test_other_threads_do_not_see_what_is_replaced_while_tracing():
    """A dilated convolution predicts right while another model is traced."""
    other = images(layers.Conv2D(2, 2, dilation_rate=2))
    x = np.random.default_rng(0).standard_normal((3, 7, 6, 3)).astype("float32")
    expected = other(x).numpy()
    found, is_over = [], threading.Event()

    def predict():
        while not is_over.is_set():
            found.append(other(x).numpy())

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        model = private(COVERED["dilated convolution"]())
        model.train_on_batch(*rows_for(model))
    finally:
        is_over.set()
        thread.join()
    assert found
    np.testing.assert_allclose(np.stack(found) - expected, 0, atol=1e-5)


def test_two_threads_that_replace_a_function_at_once_agree_on_the_original():
    class Slow(types.ModuleType):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            time.sleep(0.2)

    module, found = Slow("slow"), []
    module.__dict__["function"] = original = abs

    def ask():
        found.append(host._ask_for_replacements(module, "function"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert found == [original, original]
    assert module.function(-1) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: tf.space_to_batch(x * w, [2], [[0, 0]]),
        lambda x, w: tf.map_fn(lambda row: row * w, x),
    ],
    ids=["space_to_batch", "map_fn"],
)
def test_what_cannot_be_mapped_is_left_to_another_engine(call):
    class Layer(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(3,), name="w")

        def call(self, x):
            rows = call(x, self.w)
            return keras.ops.reshape(rows, (-1, 4, 3)) if rows.shape[1] == 2 else rows

        def compute_output_shape(self, shape):
            return shape

    model = private(series(Layer()), "auto")
    x, y = rows_for(model, 3)
    try:
        model.train_on_batch(x, y)
    except dp_train.NotPrivateError as refusal:
        assert "mixes examples" in str(refusal)
    else:
        assert model.privacy_plan().engine != "bookkeeping"
