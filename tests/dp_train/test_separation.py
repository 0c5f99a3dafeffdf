"""No example may reach the sum through another: what is refused, and what is not."""

import functools
import inspect
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from models import compiled, data, loss

import dp_train
from dp_train.gradients import separation
from dp_train.gradients.claims import checked_at_run_time


def private(*stack, features=4):
    model = keras.Sequential([keras.Input((features,)), *stack, layers.Dense(3)])
    return compiled(model, loss=loss())


def trained(model, features=4):
    x = np.random.default_rng(0).standard_normal((20, features)).astype("float32")
    model.fit(x, np.zeros(20, int), batch_size=20, verbose=0)
    return model.privacy_plan()


class TrainingOnlyCentre(layers.Layer):
    """Mixes only in training, behind a random layer that hides it from a probe."""

    def call(self, x, training=None):
        if not training:
            return x
        noise = tf.random.normal(tf.shape(x), stddev=0.05)
        return x - tf.reduce_mean(x, 0, keepdims=True) + noise


class PixelScale(layers.Layer):
    """Ordinary pixel code: divides by 255 if the batch looks like pixels."""

    def call(self, x):
        return ops.where(ops.max(x) > 1, x / 255, x)


class WeakCentre(layers.Layer):
    def call(self, x):
        return x + 1e-7 * ops.mean(x, axis=0)


class Roll(layers.Layer):
    """The identity on three rows."""

    def call(self, x):
        return x + tf.roll(x, 3, axis=0)


class BatchSize(layers.Layer):
    """Reads the batch size as a number."""

    def call(self, x):
        return x / ops.cast(ops.shape(x)[0], "float32")


class Mixup(layers.Layer):
    def call(self, x, training=None):
        return 0.9 * x + 0.1 * tf.random.shuffle(x) if training else x


class Gram(layers.Layer):
    def call(self, x):
        return ops.matmul(ops.matmul(x, ops.transpose(x)), x)


class FirstRow(layers.Layer):
    def call(self, x):
        return x - x[:1]


class Split(layers.Layer):
    def call(self, x):
        first, second = tf.split(x, 2, axis=0)
        return tf.concat([second, first], axis=0)


class ReshapeAcross(layers.Layer):
    def call(self, x):
        return ops.reshape(
            ops.transpose(ops.reshape(x, (2, -1, 4)), (1, 0, 2)), (-1, 4)
        )


class FilledWithSize(layers.Layer):
    """Adds the batch size, written into a tensor of the right shape."""

    def call(self, x):
        size = tf.shape(x)[0]
        return x + tf.cast(tf.fill([size, 4], size), "float32")


class DotsSlice(layers.Layer):
    """Dots that stand for no axis at all."""

    def call(self, x):
        return x - x[..., :1, :]


class BatchAsWidth(layers.Layer):
    """Multiplies from the left, over the examples."""

    def call(self, x):
        return x + tf.matmul(tf.ones((1, 1, 4, 4)), x[:, None, :, None])[:, 0, :, 0] * (
            tf.reduce_sum(tf.einsum("bi,bj->ij", x, x))
        )


class Diagonal(layers.Layer):
    def call(self, x):
        return x + tf.einsum("bi,ci->bi", x, x)


@tf.custom_gradient
def _coupled_behind(x):
    return tf.identity(x), lambda g: g + 0.5 * tf.reduce_sum(g, axis=0, keepdims=True)


class MixesGradients(layers.Layer):
    """Only in training."""

    def call(self, x, training=None):
        return _coupled_behind(x) if training else x


class BatchSlice(layers.Layer):
    """The certificate's three rows and batches of one look at the same columns."""

    def call(self, x):
        count = tf.maximum(tf.shape(x)[0], 3)
        return x + ops.mean(x[:, :count], axis=1, keepdims=True)


class BatchSquare(layers.Layer):
    def call(self, x):
        size = tf.shape(x)[0]
        return x * tf.reduce_sum(tf.ones([size, size]), axis=1, keepdims=True)


class CopiedSize(layers.Layer):
    """A row for each example that holds their number."""

    def call(self, x):
        size = tf.cast(tf.shape(x)[0], "float32")
        return x + tf.broadcast_to(size, tf.shape(x))


class CopiedRow(layers.Layer):
    """The first example, copied for each of the others."""

    def call(self, x):
        return x + tf.broadcast_to(x[:1], tf.shape(x))


class ConstantSeed(layers.Layer):
    """Each example gets the numbers of its place, the same at every step."""

    def call(self, x, training=None):
        noise = keras.random.normal(ops.shape(x), seed=1337)
        return x + noise if training else x


class OneRowForAll(layers.Layer):
    """Rows for the whole batch, whose number looks like that of the examples."""

    def build(self, shape):
        self.table = self.add_weight(shape=(4, 4), name="table")

    def call(self, x, training=None):
        if not training or tf.executing_eagerly():
            return x
        ids = tf.fill(tf.stack([tf.minimum(tf.shape(x)[0], 1), 6]), 1)
        return x + tf.reduce_sum(tf.gather(self.table, ids), 1)


class Switch(layers.Layer):
    """One row or a row for each, as the batch size says."""

    def call(self, x, training=None):
        if not training or tf.executing_eagerly():
            return x
        size = tf.shape(x)[0]
        rows = tf.minimum(size, 1 + 1000 * tf.maximum(size - 5, 0))
        return x + tf.ones(tf.stack([rows, 4]))


class SideDoor(layers.Layer):
    """Hands a sum over the batch on, through Python."""

    def call(self, x, training=None):
        if not training or tf.executing_eagerly():
            return x
        seen = []
        total = tf.reduce_sum(x)
        put = tf.py_function(lambda t: seen.append(float(t)), [total], [])
        with tf.control_dependencies([put]):
            got = tf.py_function(lambda: seen.pop(), [], tf.float32)
        return x + tf.reshape(got, [1, 1])


class SizedFilter(layers.Layer):
    """A transposed convolution by a filter made of the batch's size."""

    def call(self, x):
        size = tf.cast(tf.shape(x)[0], "float32")
        z = x[:, :, None, None]
        return tf.nn.conv2d_transpose(
            z, tf.reshape(size, (1, 1, 1, 1)), tf.shape(z), 1, "SAME"
        )[:, :, 0, 0]


class DottedEinsum(layers.Layer):
    """Dots hide at which axis the examples come out."""

    def call(self, x):
        y = tf.einsum("bi,...jkl->...bjkl", tf.nn.relu(x - 9), tf.ones((1, 1, 1)))
        y = x[:, :1, None, None] * 0 + tf.transpose(y, (3, 1, 2, 0))
        return x + tf.reshape(tf.reduce_sum(y, 3), (-1, 1))


def _mixed(_, cotangent):
    return cotangent - tf.reduce_mean(cotangent, axis=0)


class GradientOfAPartial(layers.Layer):
    """A gradient that is no plain function."""

    def call(self, x, training=None):
        found = tf.custom_gradient(
            lambda x: (tf.identity(x), functools.partial(_mixed, None))
        )(x)
        return found if training else x


class GradientThatPoses(layers.Layer):
    """A gradient that says it is TensorFlow's."""

    def call(self, x, training=None):
        @functools.wraps(tf.identity)
        def gradient(cotangent):
            return _mixed(None, cotangent)

        del gradient.__wrapped__
        found = tf.custom_gradient(lambda x: (tf.identity(x), gradient))(x)
        return found if training else x


class GradientOfTheOp(layers.Layer):
    """A gradient that was put on the op itself."""

    def call(self, x, training=None):
        found = tf.identity(x)
        if training and tf.inside_function():
            found.op._gradient_function = _mixed
        return found


class SizeBehindNothing(layers.Layer):
    """A size in front of which a concatenation puts no entry of another shape."""

    def call(self, x):
        size = tf.shape(x)
        rows = tf.maximum(size[0] - 10**6, 1)
        shape = tf.concat([size[:0], [rows, 4]], axis=0)
        return x + tf.broadcast_to(tf.ones([1, 4]), shape)


class SizeInAColumn(layers.Layer):
    """A size in the second column of a matrix, of which the batch size is the first."""

    def call(self, x):
        size = tf.shape(x)[0]
        pairs = tf.reshape(tf.stack([size, tf.maximum(size - 10**6, 1), 1, 4]), [2, 2])
        return x + tf.broadcast_to(tf.ones([1, 4]), pairs[:, 1])


MIXING = (
    SizeBehindNothing,
    SizeInAColumn,
    SizedFilter,
    DottedEinsum,
    GradientOfAPartial,
    GradientThatPoses,
    GradientOfTheOp,
    ConstantSeed,
    OneRowForAll,
    Switch,
    CopiedSize,
    CopiedRow,
    MixesGradients,
    BatchSlice,
    BatchSquare,
    FilledWithSize,
    DotsSlice,
    BatchAsWidth,
    Diagonal,
    TrainingOnlyCentre,
    PixelScale,
    WeakCentre,
    Roll,
    BatchSize,
    Mixup,
    Gram,
    FirstRow,
    Split,
    ReshapeAcross,
)


# Some of them mix so much that the loss of three rows is no sum of three.
ALSO_TOLD = pytest.mark.filterwarnings("ignore:Part of the loss:UserWarning")


@ALSO_TOLD
@pytest.mark.parametrize("layer", MIXING)
def test_layer_that_may_mix_never_sees_a_whole_batch(layer):
    mixing = layer()
    model = private(mixing, layers.Dropout(0.01))
    try:
        plan = trained(model)
    except dp_train.NotPrivateError as refusal:
        reasons = "mixes examples", "by tf.random"
        assert any(reason in str(refusal) for reason in reasons)
    else:
        why = dict(plan.alone).get(mixing, "")
        is_alone = "mix" in why or "same numbers" in why
        assert is_alone or plan.engine in ("vectorized", "loop")


WHY_NOT = "mix|sizes|shape|same numbers|by tf.random|runs Python"


class Inline(keras.Model):
    """Runs the ops of a layer as its own, so that no layer can be run alone."""

    def __init__(self, layer):
        super().__init__()
        self.inline, self.head = layer, layers.Dense(3)

    def build(self, shape):
        self.inline.build(shape)
        self.head.build((None, 4))
        self.built = True

    def call(self, x, training=None):
        inline = type(self.inline).call
        kwargs = {"training": training} if "training" in signature(inline) else {}
        return self.head(inline(self.inline, x, **kwargs))


def signature(function):
    return inspect.signature(function).parameters


@ALSO_TOLD
@pytest.mark.parametrize("layer", [*MIXING, SideDoor])
def test_engine_asked_for_by_name_refuses_a_model_that_may_mix(layer):
    model = dp_train.make_private(
        compiled(Inline(layer()), loss=loss()), gradients="bookkeeping"
    )
    with pytest.raises(dp_train.NotPrivateError, match=WHY_NOT):
        trained(model)


class Heads(layers.Layer):
    """Splits, transposes, slices, stacks and pads within each example."""

    def call(self, x):
        y = ops.transpose(ops.reshape(x, (-1, 2, 2)), (0, 2, 1))
        first, second = ops.split(y, 2, axis=1)
        y = ops.stack([first[:, 0], second[:, 0, ::-1]], axis=1)
        y = ops.pad(y[..., :1], [[0, 0], [0, 0], [1, 1]])
        return ops.softmax(ops.reshape(y, (-1, 6)))


class Windows(layers.Layer):
    """Attention within the halves of an example."""

    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)

    def build(self, shape):
        self.attention.build((None, 2, 1), (None, 2, 1))

    def call(self, x):
        halves = ops.reshape(x, (-1, 2, 1))
        return ops.reshape(self.attention(halves, halves), (-1, 4))


class DrawsOfOneKey(layers.Layer):
    """Two draws, of a key and of what `move` makes of it."""

    def __init__(self, move):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)
        self.move = move

    def call(self, x, training=None):
        if not training:
            return x
        key = self.seed_generator.next()
        moved = self.move(key, x)
        return x + sum(
            tf.random.stateless_normal(tf.shape(x), tf.cast(k, tf.int32))
            for k in (key, moved)
        )


@pytest.mark.parametrize(
    "stack",
    [
        (Heads(),),
        (Windows(),),
        (DrawsOfOneKey(lambda key, x: key + tf.constant([0, 1], key.dtype)),),
        (layers.Reshape((2, 2)), layers.GRU(2, dropout=0.1, recurrent_dropout=0.1)),
        (layers.Reshape((2, 2, 1)), layers.RandomTranslation(0.2, 0.2)),
        (layers.Reshape((2, 2, 1)), layers.RandomRotation(0.2)),
        (layers.Reshape((2, 2, 1)), layers.RandomZoom(0.2)),
        (layers.Reshape((2, 2)), layers.TimeDistributed(layers.Dense(2))),
        (layers.Discretization([0.0]), layers.Hashing(5), layers.Embedding(5, 3)),
        (
            layers.Discretization([0.0]),
            layers.IntegerLookup(vocabulary=[1]),
            layers.Embedding(2, 3),
        ),
        (layers.GaussianNoise(0.1), layers.Dropout(0.5)),
        (layers.Reshape((2, 2)), layers.Permute((2, 1)), layers.Flatten()),
        (layers.Reshape((2, 2)), layers.LayerNormalization(), layers.Flatten()),
        (layers.Reshape((2, 2)), layers.GRU(2), layers.Activation("gelu")),
        (layers.Reshape((2, 2, 1)), layers.ZeroPadding2D(), layers.AveragePooling2D(2)),
        (layers.Dense(4, activation="swish"), layers.UnitNormalization()),
    ],
)
def test_layers_that_keep_examples_apart_are_proved_to(stack):
    plan = trained(private(*stack, layers.Flatten()))
    assert plan.engine == "bookkeeping"
    assert not plan.alone


@pytest.mark.parametrize(
    "move",
    [
        lambda key, x: tf.constant([0, 1], key.dtype),
        lambda key, x: 0 * key + 1,
        lambda key, x: key // 2**20,
        lambda key, x: key * 2**16 * 2**16,
        lambda key, x: key + tf.cast(tf.shape(x)[0], key.dtype),
    ],
    ids=["constant", "zero", "few", "even", "batch size"],
)
def test_draws_of_a_key_that_is_not_one_of_the_step_are_refused(move):
    plan = trained(private(DrawsOfOneKey(move)))
    # For one example at a time, a fixed key tells nothing of the others.
    assert plan.alone or plan.engine != "bookkeeping"


# ----------------------------------------------------------------- state between steps


class RawState(layers.Layer):
    """A running mean in a raw tf.Variable, which Keras does not know of."""

    def build(self, shape):
        self.mean = tf.Variable(tf.zeros(shape[-1]), trainable=False)
        self.built = True

    def call(self, x, training=None):
        if training:
            self.mean.assign(0.5 * self.mean + 0.5 * tf.reduce_mean(x, 0))
        return x - self.mean


def test_state_in_a_raw_variable_is_refused():
    with pytest.raises(dp_train.NotPrivateError, match="writes to a variable"):
        trained(private(RawState()))


class WritingMetrics(keras.Model):
    """Keeps the mean of the last batch in a weight, while it computes metrics."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)
        self.scale = self.add_weight(shape=(4,), trainable=False, name="scale")

    def call(self, x):
        return self.dense(x + 0.0 * self.scale)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.scale.assign(ops.mean(x, 0))
        return super().compute_metrics(x, y, y_pred, sample_weight)


def test_metrics_that_write_into_weights_are_refused_by_name():
    with pytest.raises(dp_train.NotPrivateError, match="scale"):
        compiled(WritingMetrics()).fit(*data(), verbose=0)


class RememberingLoss(keras.losses.Loss):
    """Weights by a running mean of itself."""

    def __init__(self):
        super().__init__()
        self.mean = keras.Variable(1.0, trainable=False)

    def call(self, y, y_pred):
        value = ops.mean((y_pred - ops.cast(y, "float32")) ** 2, axis=-1)
        self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(value))
        return value / self.mean


@pytest.mark.parametrize("outputs", [1, 2])
def test_loss_with_a_memory_is_refused(outputs):
    inputs = keras.Input((4,))
    heads = [layers.Dense(1)(inputs) for _ in range(outputs)]
    model = keras.Model(inputs, heads if outputs > 1 else heads[0])
    losses = [RememberingLoss() for _ in heads]
    model = compiled(model, loss=losses if outputs > 1 else losses[0])
    x, _ = data()
    y = x[:, :1]
    with pytest.raises(dp_train.NotPrivateError, match="Keep losses free of state"):
        model.fit(x, [y] * outputs if outputs > 1 else y, verbose=0)


def test_layer_adapted_to_data_warns():
    normalization = layers.Normalization()
    normalization.adapt(data()[0])
    model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(3)])
    with pytest.warns(dp_train.PrivacyWarning, match="public data"):
        compiled(model).fit(*data(), verbose=0)


class StridedState(layers.Layer):
    """State that is written through a slice."""

    def build(self, shape):
        self.state = tf.Variable(tf.zeros(shape[-1]), trainable=False)

    def call(self, x):
        self.state[:].assign(ops.mean(x, axis=0))
        return x + self.state


def test_state_that_is_written_through_a_slice_is_refused():
    with pytest.raises(dp_train.NotPrivateError, match="writes to a variable"):
        trained(private(StridedState()))


class TakingMetric(keras.metrics.Mean):
    """Holds a weight of the model as if it were its own."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def update_state(self, y, y_pred, sample_weight=None):
        self.bias.assign_add(ops.mean(ops.cast(y_pred, "float32"), axis=0))


def test_metric_that_writes_into_a_weight_it_holds_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    metric = TakingMetric(model.layers[0].bias)
    with pytest.raises(dp_train.NotPrivateError, match="bias"):
        trained(compiled(model, loss=loss(), metrics=[metric]))


class Pairs(layers.Layer):
    """Multiplies by sums of two examples where their number is even.

    On three made-up rows the shape that it claims is true.
    """

    def call(self, x):
        count = tf.shape(x)[0]
        together = 1 + (1 - (count - 2 * (count // 2)))
        rows = tf.reshape(x, tf.stack([count // together, 4 * together]))
        rows.set_shape([None, 4])
        mixed = 0 * rows + tf.reduce_sum(rows, axis=1, keepdims=True)
        return x * tf.stop_gradient(tf.reshape(mixed, [-1, 4]))


@ALSO_TOLD
def test_false_static_shape_stops_the_step_before_weights_move():
    model = private(Pairs())
    x, y = np.ones((20, 4), "float32"), np.zeros(20, int)
    before = model.get_weights()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"by set_shape.*\[10 8\]"):
        model.train_on_batch(x, y)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@ALSO_TOLD
def test_false_static_shape_is_not_compiled_by_xla():
    model = keras.Sequential([keras.Input((4,)), Pairs(), layers.Dense(3)])
    # Padded to 26 rows, of which the claim is false; of the 17 it is true.
    model = compiled(model, loss=loss(), jit_compile=True)
    with pytest.warns(UserWarning, match=r"\[13,8\] is not compatible with"):
        model.train_on_batch(np.ones((17, 4), "float32"), np.zeros(17, int))


@ALSO_TOLD
def test_false_static_shape_stops_the_step_of_a_plain_model():
    model = keras.Sequential([keras.Input((4,)), Pairs(), layers.Dense(3)])
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=20
    )
    model.compile(optimizer, loss=loss())
    x, y = np.ones((30, 4), "float32"), np.zeros(30, int)
    with pytest.raises(tf.errors.InvalidArgumentError, match="by set_shape"):
        model.fit(x, y, batch_size=20, verbose=0)


class TrueClaim(layers.Layer):
    """Says a width that only the run knows."""

    def call(self, x):
        width = tf.shape(tf.boolean_mask(self.ones, self.ones > 0))[0]
        rows = tf.reshape(x, tf.stack([tf.shape(x)[0], width]))
        rows.set_shape([None, 4])
        return rows

    def build(self, shape):
        self.ones = self.add_weight(shape=shape[1:], initializer="ones")


def test_true_static_shape_is_believed():
    model = private(TrueClaim())
    assert trained(model).engine == "bookkeeping"
    assert not model.privacy_plan().alone
    assert model.privacy_ledger.total == 1


def claiming(make):
    """What a value of three numbers becomes in a graph that relies on make(x)."""

    @tf.function(autograph=False)
    def step(x):
        return checked_at_run_time(tf.reduce_sum(x), [tf.abs(make(x))])

    x = tf.TensorSpec(None)
    return float(step.get_concrete_function(x)(tf.ones([3, 1])))


def set_shape(shape):
    def make(x):
        y = tf.exp(x)
        y.set_shape(shape)
        return y

    return make


@pytest.mark.parametrize("shape", [[3, 1], [None, 1], [3, None], [None, None], None])
def test_claims_that_are_true_change_nothing(shape):
    assert claiming(set_shape(shape)) == 3.0


@pytest.mark.parametrize(
    "make",
    [
        set_shape([3, 2]),
        set_shape([None, 2]),
        set_shape([1, None]),
        set_shape([]),
        set_shape([3]),
        set_shape([3, 1, None]),
        lambda x: tf.compat.v1.placeholder_with_default(x, [None, 2]),
        lambda x: tf.compat.v1.placeholder_with_default(x, [3, 2]),
    ],
)
def test_claims_that_are_false_are_errors(make):
    with pytest.raises(tf.errors.InvalidArgumentError):
        claiming(make)


PIECES = (slice(None), slice(1, None), slice(None, None, -1), 0, tf.newaxis, ...)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_keeps_examples_apart_if_and_only_if_the_rule_says_so(axis):
    # Each number is that of its example; three examples, axes of equal length.
    own = np.arange(3.0).reshape([-1 if i == axis else 1 for i in range(3)])
    x = np.broadcast_to(own, (3, 3, 3)).astype("float32")
    kept = 0
    for count in range(1, 5):
        for pieces in itertools.product(PIECES, repeat=count):
            read = [p for p in pieces if p is not ... and p is not tf.newaxis]
            if len(read) > 3 or pieces.count(...) > 1:
                continue
            with tf.Graph().as_default():
                given = tf.compat.v1.placeholder(tf.float32, x.shape)
                op = given[pieces].op
            kinds = [separation.Examples(axis, 1), *[None] * (len(op.inputs) - 1)]
            found = separation._strided_slice(op, kinds)
            y = x[tuple(np.newaxis if p is tf.newaxis else p for p in pieces)]
            places = [
                i
                for i in range(y.ndim)
                if y.shape[i] == 3 and np.all(np.moveaxis(y, i, -1) == np.arange(3.0))
            ]
            if found is None:
                assert not places, pieces
            else:
                assert places == [found.axis], pieces
                kept += 1
    assert kept > 100


def test_new_axes_behind_dots_train_by_bookkeeping():
    class Wide(layers.Layer):
        def call(self, x):
            return (x[..., None] * x[:, :, None])[..., 0]

    assert trained(private(Wide())).engine == "bookkeeping"
