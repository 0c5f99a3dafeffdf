"""A plain Keras model, a DP optimizer and fit: private without make_private."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import dp_train
from accounting import PoissonSampledEvent, UnverifiedSamplingEvent
from tests.batteries import training

ROWS = 12
LARGE = keras.initializers.RandomNormal(stddev=200.0, seed=0)


def dense(**kwargs):
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, activation="tanh", **kwargs),
            layers.Dense(3),
        ]
    )


def convolutional():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.GroupNormalization(3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = layers.Dense(4, activation="gelu"), layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x)) + self.head(self.hidden(x * 0.5))


def tokens():
    inputs = keras.Input((4,), dtype="int32")
    table = layers.Embedding(7, 5)
    attended = layers.MultiHeadAttention(2, 2)(table(inputs), table(inputs))
    hidden = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(attended))
    return keras.Model(inputs, layers.Dense(3)(hidden))


def several_outputs():
    inputs = keras.Input((5,))
    hidden = layers.Dense(4, activation="tanh")(inputs)
    return keras.Model(inputs, [layers.Dense(3)(hidden), layers.Dense(1)(hidden)])


class Folded(layers.Layer):
    """Scales positions that are folded into the batch axis."""

    def build(self, shape):
        self.w = self.add_weight(shape=(5,), name="w")

    def call(self, x):
        many = keras.ops.reshape(keras.ops.stack([x] * 4, axis=1), (-1, 5))
        return keras.ops.mean(keras.ops.reshape(many * self.w, (-1, 4, 5)), axis=1)


def probabilities():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, activation="tanh"),
            # Where a probability rounds to 0, only its logit has a gradient.
            layers.Dense(3, "softmax", kernel_initializer=LARGE),
        ]
    )


class Made(layers.Layer):
    """Multiplies by what is made of a weight that is read twice."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3), name="w")

    def call(self, x):
        return x @ self.make(self.w, self.w)


def made(make):
    return lambda: keras.Sequential([keras.Input((5,)), Made(make), layers.Dense(3)])


LOGITS = keras.losses.SparseCategoricalCrossentropy
CASES = {
    "unreduced loss": (dense, (5,), LOGITS(from_logits=True, reduction="none")),
    "mean": (dense, (5,), LOGITS(from_logits=True)),
    "sum": (dense, (5,), LOGITS(from_logits=True, reduction="sum")),
    "string": (dense, (5,), "mse"),
    "regularised": (
        lambda: dense(kernel_regularizer="l2"),
        (5,),
        LOGITS(from_logits=True),
    ),
    "convolution": (convolutional, (6, 6, 1), LOGITS(from_logits=True)),
    "subclassed, layers called twice": (Subclassed, (5,), LOGITS(from_logits=True)),
    "attention over an embedding": (tokens, (4,), LOGITS(from_logits=True)),
    "positions folded into the batch": (
        lambda: keras.Sequential([keras.Input((5,)), Folded(), layers.Dense(3)]),
        (5,),
        LOGITS(from_logits=True),
    ),
    "normed weight": (
        made(lambda v, w: v / keras.ops.norm(w, axis=0, keepdims=True)),
        (5,),
        LOGITS(from_logits=True),
    ),
    "straight-through weight": (
        made(lambda v, w: v + keras.ops.stop_gradient(keras.ops.sign(w) - w)),
        (5,),
        LOGITS(from_logits=True),
    ),
    "stop at one of two reads": (
        made(lambda v, w: v * keras.ops.stop_gradient(w)),
        (5,),
        LOGITS(from_logits=True),
    ),
    "probabilities": (probabilities, (5,), LOGITS()),
    "several outputs": (
        several_outputs,
        (5,),
        [LOGITS(from_logits=True), keras.losses.MeanAbsoluteError()],
    ),
}


def data(shape, loss):
    generator = np.random.default_rng(3)
    if shape == (4,):
        x = generator.integers(0, 7, (ROWS, *shape)).astype("int32")
    else:
        x = (3 * generator.standard_normal((ROWS, *shape))).astype("float32")
    y = generator.integers(0, 3, ROWS)
    if loss == "mse":
        y = np.eye(3, dtype="float32")[y]
    if isinstance(loss, list):
        y = (y, generator.standard_normal(ROWS).astype("float32"))
    return x, y, generator.random(ROWS).astype("float32")


def sgd(**kwargs):
    settings = {"l2_norm_clip": 0.3, "noise_multiplier": 1e-9}
    return dp_train.DPSGD(1.0, **settings | kwargs)


def change(model, step):
    before = model.get_weights()
    step()
    return [b - a for a, b in zip(before, model.get_weights(), strict=True)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("is_fixed", [False, True], ids=["any size", "fixed size"])
def test_plain_fit_takes_the_same_step_as_a_private_model(case, is_fixed):
    build, shape, loss = case
    x, y, weight = data(shape, loss)
    plain, private = build(), build()
    for model in (plain, private):
        model(x[:2])
    private.set_weights(plain.get_weights())
    private = dp_train.make_private(private, gradients="loop")
    private.compile(sgd(), loss)
    plain.compile(sgd(expected_batch_size=ROWS), loss, metrics=None)
    expected = change(private, lambda: private.train_on_batch(x, y, weight))
    batches = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(
        ROWS, drop_remainder=is_fixed
    )
    actual = change(plain, lambda: plain.fit(batches, shuffle=False, verbose=0))
    scale = max(np.abs(e).max() for e in expected)
    assert scale > 1e-3
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * max(scale, 1))


def test_ready_made_batches_are_recorded_as_unverified():
    x, y, _ = data((5,), None)
    model = dense()
    model.compile(sgd(expected_batch_size=4), CASES["mean"][2], metrics=["accuracy"])
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert "accuracy" in history.history
    (release,) = model.optimizer.ledger.releases
    assert release.count == 6
    assert isinstance(release.event, UnverifiedSamplingEvent)


def test_batches_of_a_loader_are_recorded_as_poisson_sampled():
    x, y, _ = data((5,), None)
    loader = dp_train.PoissonLoader(x, y, batch_size=3)
    optimizer = sgd()
    model = dense()
    model.compile(optimizer, CASES["mean"][2])
    logger = dp_train.EpsilonLogger(delta=1e-2)
    history = model.fit(
        loader.dataset_for(optimizer),
        epochs=5,
        shuffle=False,
        verbose=0,
        callbacks=[logger],
    )
    (release,) = optimizer.ledger.releases
    assert release.count == 5 * len(loader) == 20
    assert release.event.sampling_probability == 3 / ROWS
    assert isinstance(release.event, PoissonSampledEvent)
    assert optimizer.expected_batch_size == 3
    assert history.history["epsilon"][-1] > history.history["epsilon"][0] > 0
    # Loss and weights of empty batches, of which 1 in 32 is one, are numbers.
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_one_example_moves_the_weights_by_at_most_the_clip():
    x, y, _ = data((5,), None)
    x[0] *= 1e4
    steps = []
    for rows in (slice(0, ROWS), slice(1, ROWS)):
        keras.utils.set_random_seed(0)
        model = dense()
        model.compile(sgd(expected_batch_size=1), CASES["mean"][2])
        steps.append(
            change(model, lambda: model.fit(x[rows], y[rows], ROWS, verbose=0))  # noqa: B023
        )
    distance = sum(np.sum((a - b) ** 2) for a, b in zip(*steps, strict=True)) ** 0.5
    assert 0.29 < distance <= 0.3 * (1 + 1e-5)


def test_a_second_loader_or_fit_is_accounted_as_itself():
    x, y, _ = data((5,), None)
    optimizer = sgd()
    model = dense()
    model.compile(optimizer, CASES["mean"][2])
    for population in (ROWS, ROWS, 6):
        loader = dp_train.PoissonLoader(x[:population], y[:population], batch_size=3)
        model.fit(loader.dataset_for(optimizer), shuffle=False, verbose=0)
    counts = {r.event.sampling_probability: r.count for r in optimizer.ledger.releases}
    assert counts == {0.25: 8, 0.5: 2}


def test_rows_that_fill_up_a_small_batch_are_no_examples():
    x, y, _ = data((5,), None)
    model = dense()
    # This loss does not look at the weights.
    model.compile(sgd(expected_batch_size=1), CASES["mean"][2])
    model.compute_loss = lambda x, y, y_pred, *_, **__: keras.ops.mean(y_pred**2)
    weights = np.zeros(ROWS, "float32")
    batches = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(ROWS)
    moved = change(model, lambda: model.fit(batches, shuffle=False, verbose=0))
    assert max(np.abs(m).max() for m in moved) < 1e-6


def test_noise_multiplier_zero_warns_in_plain_fit_too():
    x, y, _ = data((5,), None)
    model = dense()
    model.compile(sgd(expected_batch_size=4, noise_multiplier=0.0), CASES["mean"][2])
    with pytest.warns(dp_train.errors.PrivacyWarning, match="no noise"):
        model.fit(x, y, batch_size=4, verbose=0)


def test_training_on_other_data_than_the_loaders_is_noticed():
    x, y, _ = data((5,), None)
    optimizer = sgd()
    model = dense()
    model.compile(optimizer, CASES["mean"][2])
    dp_train.PoissonLoader(x, y, batch_size=4).dataset_for(optimizer)
    with pytest.raises(tf.errors.UnknownError, match="no unused draw"):
        model.fit(x, y, batch_size=4, verbose=0)


def test_loader_and_optimizer_must_agree_on_the_batch_size():
    x, y, _ = data((5,), None)
    with pytest.raises(ValueError, match="draws 4 .* expected_batch_size=5"):
        dp_train.PoissonLoader(x, y, batch_size=4).dataset_for(
            sgd(expected_batch_size=5)
        )


class Running(layers.Layer):
    """Keeps a mean of what it saw."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), trainable=False, name="mean")

    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        return x


class Centred(layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class TimeMajorProduct(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 2), name="w")

    def call(self, x):
        # Time is as long as the batch, so that no shape tells them apart.
        y = keras.ops.transpose(keras.ops.stack([x] * 4, axis=1), (1, 0, 2))
        return keras.ops.mean(tf.matmul(y, self.w), axis=0)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


@tf.custom_gradient
def coupled_behind(x):
    return tf.identity(x), lambda g: g + 0.5 * tf.reduce_sum(g, axis=0, keepdims=True)


class CoupledBehind(layers.Layer):
    """Keeps examples apart forward, and mixes their gradients."""

    def call(self, x):
        return coupled_behind(x)


class Remembering(keras.Sequential):
    """A loss that reads the whole batch by the way of an attribute."""

    def call(self, x, training=None):
        self.z = super().call(x)
        return self.z

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return keras.ops.mean(y_pred * keras.ops.sum(self.z, axis=0))


class Penalising(keras.Sequential):
    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        weight = self.layers[-1].kernel
        return keras.ops.mean(y_pred**2) + keras.ops.sum(weight**2)


class Mixup(keras.Sequential):
    def train_step(self, data):
        x, y = data
        return super().train_step((x + x[::-1], y))


class Hoarding(layers.Layer):
    """State in a metric."""

    def __init__(self):
        super().__init__()
        self.seen = keras.metrics.Mean()

    def call(self, x):
        self.seen.update_state(x)
        return x + self.seen.result()


class LookingUp(layers.Layer):
    """Reads rows of a variable without reading its value."""

    def build(self, shape):
        self.table = self.add_weight(shape=(2, 3), name="table")

    def call(self, x):
        rows = tf.gather(self.table.value, tf.cast(x > 0, tf.int32))
        return keras.ops.mean(rows, axis=1)


class Recomputed(layers.Dense):
    def call(self, x):
        return keras.remat(super().call)(x)


class Scaled(layers.Layer):
    """A weight behind what `mix` does to whole batches, in a graph only."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def build(self, shape):
        self.w = self.add_weight(shape=(5,), name="w")

    def call(self, x):
        x = (x * self.w)[:, :4]
        return self.mix(x) if tf.inside_function() else x

    def compute_output_shape(self, shape):
        return (shape[0], 4)


def flat_transposed(x):
    size = tf.shape(x)[0]
    flat = tf.reshape(x, tf.stack([size, 0 * size + 4]))
    return tf.matmul(flat, tf.ones((4, 4)), transpose_a=True)


def rows_selected(x):
    flipped = tf.transpose(x)
    return tf.transpose(tf.compat.v1.where(x[:, 0] < 0, -flipped, flipped))


def bias_of_examples(x):
    channels = tf.expand_dims(tf.expand_dims(tf.transpose(x), 0), 2)
    found = tf.nn.bias_add(channels, tf.nn.relu(-x[:, 0]), data_format="NCHW")
    return tf.transpose(tf.squeeze(found, (0, 2)))


@tf.custom_gradient
def reversed_gradient(x):
    return tf.identity(x), lambda g: -g


def loss_with_its_own_gradient(y, y_pred):
    return keras.losses.sparse_categorical_crossentropy(
        y, reversed_gradient(y_pred), from_logits=True
    )


def stacked(*extra, kind=keras.Sequential):
    return kind([keras.Input((5,)), *extra, layers.Dense(3)])


REFUSED = {
    "batch normalization": (
        lambda: stacked(layers.BatchNormalization()),
        {},
        "writes to a variable .*batch_norm|may mix examples",
    ),
    "running statistics": (lambda: stacked(Running()), {}, "writes to a variable"),
    "mixing layer": (lambda: stacked(Centred()), {}, "may mix examples"),
    "examples along another axis": (
        lambda: stacked(TimeMajorProduct()),
        {},
        "another axis",
    ),
    "gradients that mix": (lambda: stacked(CoupledBehind()), {}, "gradient of its own"),
    "product over a flat batch": (
        lambda: stacked(Scaled(flat_transposed)),
        {},
        "MatMul .* may mix examples",
    ),
    "rows selected": (
        lambda: stacked(Scaled(rows_selected)),
        {},
        "Select .* may mix examples",
    ),
    "bias of examples": (
        lambda: stacked(Scaled(bias_of_examples)),
        {},
        "BiasAdd .* may mix examples",
    ),
    "loss with a gradient of its own": (
        lambda: stacked(),
        {"loss": loss_with_its_own_gradient},
        "the loss has a gradient of its own",
    ),
    "loss with a side door": (lambda: stacked(kind=Remembering), {}, "loss reads what"),
    "loss that reads a weight": (lambda: stacked(kind=Penalising), {}, "reads a varia"),
    "mixup before train_step": (lambda: stacked(kind=Mixup), {}, "train_step of Keras"),
    "metric in a layer": (
        lambda: stacked(Hoarding()),
        {},
        "reads a variable that a metric",
    ),
    "recurrent loop": (
        lambda: stacked(layers.Reshape((5, 1)), layers.LSTM(2)),
        {},
        "While .* is handed the variable .*kernel",
    ),
    "added loss": (
        lambda: stacked(layers.Dense(2, activity_regularizer="l2")),
        {},
        "add_loss",
    ),
    "look-up that no tensor shows": (
        lambda: stacked(LookingUp()),
        {},
        "ResourceGather .* is handed the variable",
    ),
    "rematerialization": (
        lambda: stacked(Recomputed(2)),
        {},
        "IdentityN",
    ),
    "own train_step": (lambda: stacked(kind=OwnStep), {}, "train_step of Keras"),
    "XLA": (lambda: stacked(), {"jit_compile": True}, "jit_compile=False"),
    "eager": (lambda: stacked(), {"run_eagerly": True}, "eager"),
    "coupled loss": (
        lambda: stacked(),
        {"loss": LOGITS(from_logits=True, reduction="mean_with_sample_weight")},
        "mean_with_sample_weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_the_graph_does_not_show_is_refused(case):
    build, arguments, reason = case
    x, y, _ = data((5,), None)
    model = build()
    model.compile(
        sgd(expected_batch_size=4),
        **{"loss": LOGITS(from_logits=True), "jit_compile": False} | arguments,
    )
    before = model.get_weights()
    with pytest.raises(dp_train.NotPrivateError, match=reason) as refusal:
        model.fit(x, y, batch_size=4, verbose=0)
    if "coupled" not in str(refusal.value) and "couples" not in str(refusal.value):
        both = "make_private(model)", "clipped_gradients"
        is_told = all(way in str(refusal.value) for way in both)
        # For what no other way of training would allow either.
        others = "Use layers without", "Read metrics in callbacks"
        assert is_told or any(way in str(refusal.value) for way in others)
    assert model.optimizer.ledger.total == 0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_divisor_or_a_loader_must_be_given():
    x, y, _ = data((5,), None)
    model = dense()
    model.compile(sgd(), CASES["mean"][2])
    with pytest.raises(dp_train.NotPrivateError, match="dataset_for"):
        model.fit(x, y, batch_size=4, verbose=0)


class Leaking(keras.metrics.Metric):
    """Puts a mean of the predictions where the next release will show it."""

    def __init__(self, into):
        super().__init__()
        self.into = [into] if isinstance(into, tf.Variable) else into

    def update_state(self, y_true, y_pred, sample_weight=None):
        target = self.into[0] if isinstance(self.into, list) else self.into.bias
        target.assign(tf.reduce_mean(y_pred, axis=0))

    def result(self):
        return tf.constant(0.0)


@pytest.mark.parametrize("into", ["weight", "tf.Variable"])
def test_metric_that_writes_outside_of_itself_is_refused(into):
    x, y, _ = data((5,), None)
    model = dense()
    head = tf.Variable(tf.zeros(3)) if into == "tf.Variable" else model.layers[-1]
    model.compile(sgd(expected_batch_size=4), CASES["mean"][2], metrics=[Leaking(head)])
    before = model.get_weights()
    with pytest.raises(dp_train.NotPrivateError, match="metric writes to .*own"):
        model.fit(x, y, batch_size=4, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_metrics_of_a_plain_model_are_those_of_keras():
    x, y, _ = data((5,), None)
    model = dense()
    names = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")]
    # So little is learned that the figures of the epoch are those of its end.
    optimizer = dp_train.DPSGD(
        1e-9, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=4
    )
    model.compile(optimizer, CASES["mean"][2], metrics=names)
    history = model.fit(x, y, batch_size=4, verbose=0).history
    expected = model.evaluate(x, y, return_dict=True, verbose=0)
    assert {k: v[0] for k, v in history.items()} == pytest.approx(expected, rel=1e-5)


def test_class_weights_are_given_to_the_loader():
    x, y, _ = data((5,), None)
    weights = {0: 0.0, 1: 0.5, 2: 2.0}
    loader = dp_train.PoissonLoader(x, y, batch_size=ROWS, class_weight=weights)
    np.testing.assert_array_equal(loader.arrays[2], [weights[c] for c in y])
    with pytest.raises(ValueError, match="Multiply them into sample_weight"):
        dp_train.PoissonLoader(x, y, y, batch_size=4, class_weight=weights)


def test_large_delta_warns_in_plain_fit_too():
    x, y, _ = data((5,), None)
    optimizer, model = sgd(), dense()
    model.compile(optimizer, CASES["mean"][2])
    batches = dp_train.PoissonLoader(x, y, batch_size=4).dataset_for(optimizer)
    logger = dp_train.EpsilonLogger(delta=0.1)
    with pytest.warns(dp_train.PrivacyWarning, match="not below 1 / 12"):
        model.fit(batches, shuffle=False, verbose=0, callbacks=[logger])


def test_target_that_was_calibrated_elsewhere_is_refused_for_a_plain_model():
    x, y, _ = data((5,), None)
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, target_epsilon=1.0, target_delta=1e-2
    )
    private = dp_train.make_private(dense())
    private.compile(optimizer, CASES["mean"][2])
    private.fit(x, y, batch_size=4, verbose=0)
    assert optimizer.noise_multiplier is not None
    plain = dense()
    plain.compile(dp_train.DPSGD.from_config(optimizer.get_config()), LOGITS())
    with pytest.raises(ValueError, match="how many steps.*make_private"):
        plain.fit(x, y, batch_size=4, verbose=0)


def test_a_budget_needs_a_private_model():
    x, y, _ = data((5,), None)
    model = dense()
    optimizer = dp_train.DPSGD(
        0.1,
        l2_norm_clip=1.0,
        target_epsilon=1.0,
        target_delta=1e-2,
        expected_batch_size=4,
    )
    model.compile(optimizer, CASES["mean"][2])
    with pytest.raises(ValueError, match="noise_multiplier="):
        model.fit(x, y, batch_size=4, verbose=0)
    model.compile(sgd(expected_batch_size=4), CASES["mean"][2])
    stop = dp_train.BudgetStop(1.0, 1e-2)
    with pytest.raises(dp_train.NotPrivateError, match="make_private"):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[stop])


def per_token():
    return keras.Sequential([keras.Input((4, 5)), layers.Dense(3)])


def two_heads():
    inputs = keras.Input((4, 5))
    whole = layers.Dense(3, name="whole")(layers.Flatten()(inputs))
    return keras.Model(
        inputs, {"each": layers.Dense(3, name="each")(inputs), "whole": whole}
    )


OF_SEVERAL_VALUES = {
    "tokens": (
        per_token,
        LOGITS(from_logits=True),
        lambda g: g.integers(0, 3, (ROWS, 4)),
    ),
    "vectors": (per_token, "mse", lambda g: g.standard_normal((ROWS, 4, 3))),
    "tokens in a column": (
        per_token,
        LOGITS(from_logits=True),
        lambda g: g.integers(0, 3, (ROWS, 4, 1)),
    ),
    "outputs of two ranks": (
        two_heads,
        {"each": LOGITS(from_logits=True), "whole": LOGITS(from_logits=True)},
        lambda g: {
            "each": g.integers(0, 3, (ROWS, 4)),
            "whole": g.integers(0, 3, ROWS),
        },
    ),
}


@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("build", "loss", "labels"), OF_SEVERAL_VALUES.values(), ids=OF_SEVERAL_VALUES
)
def test_labels_of_several_values_an_example_train_as_in_the_loop(
    build, loss, labels, is_weighted
):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, 4, 5)).astype("float32")
    y = labels(generator)
    weight = generator.random(ROWS).astype("float32") if is_weighted else None
    plain, private = build(), build()
    private.set_weights(plain.get_weights())
    private = dp_train.make_private(private, gradients="loop")
    optimizers = [sgd(noise_multiplier=0.0) for _ in range(2)]
    changes = []
    with training.without_noise(), training.drawing(range(ROWS)):
        for model, optimizer in zip((plain, private), optimizers, strict=True):
            model.compile(optimizer, loss)
            loader = dp_train.PoissonLoader(x, y, weight, batch_size=ROWS)
            data = loader.dataset_for(optimizer) if model is plain else loader
            changes.append(
                change(
                    model, lambda m=model, d=data: m.fit(d, shuffle=False, verbose=0)
                )
            )
    scale = max(np.abs(c).max() for c in changes[1])
    assert scale > 1e-3
    for a, e in zip(*changes, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * scale)
