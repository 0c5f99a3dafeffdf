"""What would break the guarantee raises, and the message names the fix."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import CLASSES, FEATURES, compiled, data, loss, sequential

import dp_train


def dense_and(*layers):
    return keras.Sequential(
        [keras.Input((FEATURES,)), *layers, keras.layers.Dense(CLASSES)]
    )


def dp_sgd(**arguments):
    return dp_train.DPSGD(
        0.1, **{"l2_norm_clip": 1.0, "noise_multiplier": 1.0, **arguments}
    )


# ------------------------------------------------------------------ ways round clipping


def test_plain_model_with_a_dp_optimizer_raises_at_the_first_step():
    model = sequential()
    model.compile(dp_sgd(), loss=loss())
    with pytest.raises(dp_train.NotPrivateError, match="model = dp_train.make_private"):
        model.fit(*data(), verbose=0)


def test_apply_gradients_raises():
    optimizer = dp_sgd()
    variable = keras.Variable(np.zeros(3))
    with pytest.raises(dp_train.NotPrivateError, match="apply_clipped_sum"):
        optimizer.apply_gradients([(tf.ones(3), variable)])


def test_private_model_with_a_plain_optimizer_raises():
    model = dp_train.make_private(sequential())
    model.compile("adam", loss=loss())
    with pytest.raises(dp_train.NotPrivateError, match=r"dp_train\.DPAdam"):
        model.fit(*data(), verbose=0)


def test_step_outside_fit_is_never_uncharged():
    model = compiled()
    x, y = data()
    model.train_on_batch(x, y)
    before = model.get_weights()
    with pytest.raises(Exception, match="outside fit, train_on_batch"):
        model.train_function(iter([(x, y, None)]))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_model_with_its_own_train_step_is_refused():
    class Own(keras.Model):
        def train_step(self, data):
            return {}

    with pytest.raises(dp_train.NotPrivateError, match="compute_loss"):
        dp_train.make_private(Own())


def test_something_else_than_a_model_is_refused():
    with pytest.raises(TypeError, match=r"keras\.Sequential"):
        dp_train.make_private(keras.layers.Dense(1))


def test_model_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match=r"model\.compile"):
        dp_train.make_private(sequential()).fit(*data(), verbose=0)


# --------------------------------------------------------------------- layers and state


def test_batch_normalization_is_refused_by_name_with_the_replacement():
    model = compiled(dense_and(keras.layers.BatchNormalization(name="norm")))
    with pytest.raises(dp_train.NotPrivateError, match="'norm'.*GroupNormalization"):
        model.fit(*data(), verbose=0)
    assert model.privacy_ledger.total == 0


def test_batch_normalization_without_statistics_in_a_nested_model_is_refused():
    inner = keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization()])
    with pytest.raises(dp_train.NotPrivateError, match="BatchNormalization"):
        compiled(dense_and(inner)).fit(*data(), verbose=0)


def test_frozen_batch_normalization_trains():
    norm = keras.layers.BatchNormalization()
    norm.trainable = False
    model = compiled(dense_and(norm))
    model.fit(*data(), verbose=0)
    assert model.privacy_ledger.total == 2


class Center(keras.layers.Layer):
    """Subtracts the mean of the batch."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class SlightlyCenter(keras.layers.Layer):
    """Subtracts a thousandth of the mean of the batch."""

    def call(self, x):
        return x - 1e-3 * keras.ops.mean(x, axis=0, keepdims=True)


class BatchSoftmax(keras.layers.Layer):
    """A softmax over the batch axis."""

    def call(self, x):
        return keras.ops.softmax(x, axis=0)


class RunningMean(keras.layers.Layer):
    """Keeps statistics of the data."""

    def build(self, shape):
        self.mean = self.add_weight(
            shape=shape[1:], initializer="zeros", trainable=False, name="mean"
        )

    def call(self, x, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        return x - self.mean


@pytest.mark.parametrize("layer", [Center, SlightlyCenter, BatchSoftmax])
def test_layer_that_mixes_examples_is_refused_by_name(layer):
    model = compiled(dense_and(layer(name="mixer"), keras.layers.Dense(4)))
    with pytest.raises(dp_train.NotPrivateError, match="'mixer'.*mixes examples"):
        model.fit(*data(), verbose=0)


def test_layer_that_mixes_examples_behind_dropout_is_refused():
    model = compiled(dense_and(keras.layers.Dropout(0.5), Center(name="mixer")))
    with pytest.raises(dp_train.NotPrivateError, match="'mixer'.*mixes examples"):
        model.fit(*data(), verbose=0)


def test_layer_that_keeps_statistics_of_the_data_is_refused_by_name():
    model = compiled(dense_and(RunningMean(name="running")))
    with pytest.raises(
        dp_train.NotPrivateError, match="'running'.*released without noise"
    ):
        model.fit(*data(), verbose=0)


def test_stateful_recurrent_layer_is_refused():
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(20, 3, FEATURES)),
            keras.layers.LSTM(CLASSES, stateful=True),
        ]
    )
    x = np.zeros((20, 3, FEATURES), "float32")
    with pytest.raises(dp_train.NotPrivateError, match="stateful=False"):
        compiled(model).fit(x, np.zeros(20, int), batch_size=20, verbose=0)


def test_string_inputs_are_refused():
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="string"),
            keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot"),
            keras.layers.Dense(CLASSES),
        ]
    )
    dataset = tf.data.Dataset.from_tensors((tf.constant([["a"], ["b"]]), [0, 1]))
    with pytest.raises(dp_train.NotPrivateError, match="out of the model"):
        compiled(model).fit(dataset, verbose=0)


def test_trainable_changed_after_compile_is_refused_until_compiled_again():
    model = compiled()
    model.fit(*data(), verbose=0)
    model.layers[0].trainable = False
    with pytest.raises(dp_train.NotPrivateError, match=r"model\.compile again"):
        model.fit(*data(), verbose=0)
    model.compile(dp_sgd(), loss=loss())
    model.fit(*data(), verbose=0)


def test_weights_added_after_the_first_fit_are_refused():
    model = compiled()
    model.fit(*data(), verbose=0)
    model.layers[0].enable_lora(2)
    with pytest.raises(dp_train.NotPrivateError, match=r"compile again"):
        model.fit(*data(), verbose=0)


# ------------------------------------------------------------------ precision, strategy


def test_mixed_float16_is_refused_and_bfloat16_named():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dp_train.make_private(sequential())
        with pytest.raises(dp_train.NotPrivateError, match="mixed_bfloat16"):
            model.compile(dp_sgd(), loss=loss())
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("is_inner", [True, False])
def test_loss_scale_optimizer_is_refused(is_inner):
    model = dp_train.make_private(sequential())
    with pytest.raises((dp_train.NotPrivateError, ValueError), match="mixed_bfloat16"):
        if is_inner:
            dp_train.DPOptimizer(
                keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
                l2_norm_clip=1.0,
                noise_multiplier=1.0,
            )
        else:
            model.compile(keras.optimizers.LossScaleOptimizer(dp_sgd()), loss=loss())


def test_several_replicas_are_refused():
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        strategy = _two_replicas()
    with strategy.scope():
        model = compiled(sequential())
    with pytest.raises(dp_train.NotPrivateError, match="default strategy"):
        model.fit(*data(), verbose=0)


def _two_replicas():
    class Two(tf.distribute.Strategy):
        num_replicas_in_sync = 2

    return Two(tf.distribute.OneDeviceStrategy("cpu:0").extended)


def test_loss_that_divides_by_the_batch_weights_is_refused():
    with pytest.raises(dp_train.NotPrivateError, match="sum_over_batch_size"):
        compiled(
            loss=keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            )
        )


# ---------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "argument",
    [
        {"gradient_accumulation_steps": 4},
        {"clipnorm": 1.0},
        {"clipvalue": 1.0},
        {"global_clipnorm": 1.0},
        {"loss_scale_factor": 8.0},
    ],
    ids=lambda a: next(iter(a)),
)
def test_inner_optimizer_that_clips_accumulates_or_scales_is_refused(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"Remove {name}"):
        dp_train.DPOptimizer(
            keras.optimizers.SGD(0.1, **argument),
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
        )
    with pytest.raises(ValueError, match=f"Remove {name}"):
        dp_sgd(**argument)


def by_weight(part):
    """All that MultiOptimizer is told: this optimizer for one layer, SGD else."""
    return keras.optimizers.OptimizerMap(
        keras.optimizers.SGD(0.1), {".*first/.*": part}
    )


def by_function(part):
    """The same, as a function: its parts are known when it is built."""
    return lambda variable: part


@pytest.mark.parametrize("choose", [by_weight, by_function])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dp_sgd, "holds a DPSGD.*DPOptimizer the MultiOptimizer"),
        (lambda: keras.optimizers.SGD(0.1, clipnorm=1.0), "Remove clipnorm"),
    ],
    ids=["noised", "clipping"],
)
def test_parts_of_a_multi_optimizer_are_refused_for_their_own_reason(
    choose, make, reason
):
    inner = keras.optimizers.MultiOptimizer(choose(make()))
    with pytest.raises(ValueError, match=reason):
        optimizer = dp_train.DPOptimizer(inner, l2_norm_clip=1.0, noise_multiplier=1.0)
        optimizer.build([keras.Variable(np.zeros(3, "float32"))])


class WithWholeNumbers(keras.layers.Layer):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def build(self, shape):
        self.whole = self.add_weight(
            shape=(FEATURES,), dtype=self.kind, initializer="zeros", name="whole"
        )

    def call(self, x):
        return x + keras.ops.cast(self.whole, x.dtype)


@pytest.mark.parametrize("is_plain", [False, True], ids=["private", "plain"])
@pytest.mark.parametrize("kind", ["bool", "int32"])
def test_weight_of_whole_numbers_is_refused_for_what_it_is(kind, is_plain):
    model = dense_and(WithWholeNumbers(kind))
    if is_plain:
        model.compile(dp_sgd(expected_batch_size=10), loss=loss())
    else:
        model = compiled(model)
    with pytest.raises(
        dp_train.NotPrivateError, match=f"whole' is {kind}. Such a weight has no grad"
    ):
        model.fit(*data(), batch_size=10, verbose=0)
    assert model.optimizer.ledger.total == 0


@pytest.mark.parametrize("clip", [0.0, -1.0, np.inf, np.nan, "big"])
def test_clip_must_be_positive_and_finite(clip):
    with pytest.raises(ValueError, match=r"Start from 1\.0"):
        dp_sgd(l2_norm_clip=clip)


@pytest.mark.parametrize("noise", [-0.1, np.inf, np.nan])
def test_noise_multiplier_must_be_finite_and_not_negative(noise):
    with pytest.raises(ValueError, match=r"calibrate\.noise_multiplier"):
        dp_sgd(noise_multiplier=noise)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, 2.0, np.nan])
def test_delta_must_be_inside_0_1(delta):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        dp_train.EpsilonLogger(delta)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        dp_train.BudgetStop(1.0, delta)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        dp_sgd(noise_multiplier=None, target_epsilon=1.0, target_delta=delta)
    with pytest.raises(ValueError, match="delta"):
        compiled().privacy_report(delta)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, np.inf])
def test_target_epsilon_must_be_positive_and_finite(epsilon):
    with pytest.raises(ValueError, match="0.5 to 10"):
        dp_train.BudgetStop(epsilon, 1e-5)
    with pytest.raises(ValueError, match="0.5 to 10"):
        dp_sgd(noise_multiplier=None, target_epsilon=epsilon, target_delta=1e-5)


def test_either_noise_or_target_must_be_given():
    with pytest.raises(ValueError, match="Give either"):
        dp_sgd(target_epsilon=1.0, target_delta=1e-5)
    with pytest.raises(ValueError, match="Give either"):
        dp_sgd(noise_multiplier=None)
    with pytest.raises(ValueError, match="Remove target_delta"):
        dp_sgd(target_delta=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("l2_norm_clip", 2.0),
        ("expected_batch_size", 8),
        ("noise_source", "philox"),
        ("target_epsilon", 3.0),
        ("target_delta", 1e-6),
    ],
)
def test_what_a_compiled_step_would_not_notice_cannot_be_set(name, value):
    optimizer = dp_sgd()
    before = optimizer.get_config()
    with pytest.raises(AttributeError, match=f"{name} cannot.*{value!r} and compile"):
        setattr(optimizer, name, value)
    assert optimizer.get_config() == before


def test_noise_multiplier_that_is_set_is_checked():
    optimizer = dp_sgd()
    with pytest.raises(ValueError, match="finite and at least 0"):
        optimizer.noise_multiplier = -1.0
    with pytest.raises(ValueError, match="Set a number"):
        optimizer.noise_multiplier = None
    aimed = dp_sgd(noise_multiplier=None, target_epsilon=1.0, target_delta=1e-5)
    with pytest.raises(AttributeError, match="follows from target_epsilon=1"):
        aimed.noise_multiplier = 2.0
    assert (optimizer.noise_multiplier, aimed.noise_multiplier) == (1.0, None)


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="Leave it out"):
        dp_sgd(noise_source="mt19937")
    with pytest.raises(ValueError, match="usual number of rows"):
        dp_sgd(expected_batch_size=0)
    with pytest.raises(TypeError, match=r"l2_norm_clip=1\.0"):
        dp_train.DPAdam(0.1, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="plain Keras optimizer"):
        dp_train.DPOptimizer(dp_sgd(), l2_norm_clip=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="Use 'auto'"):
        dp_train.make_private(sequential(), gradients="fast")
    with pytest.raises(ValueError, match="Use 'auto'"):
        dp_train.make_private(sequential(), microbatch_size=0)


@pytest.mark.parametrize("batch_size", [61, 0, -3])
def test_batch_size_must_lie_between_0_and_the_number_of_examples(batch_size):
    with pytest.raises(ValueError, match="batch_size must be above 0 and at most 60"):
        compiled().fit(*data(), batch_size=batch_size, verbose=0)


def test_data_that_cannot_be_sampled_by_row_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="equal first axes"):
        compiled().fit(x, y[:-1], verbose=0)
    with pytest.raises(ValueError, match="to_tensor|NumPy array of numbers"):
        compiled().fit(tf.ragged.constant([[1.0], [1.0, 2.0]]), np.zeros(2), verbose=0)
    with pytest.raises(ValueError, match="Multiply them"):
        compiled().fit(x, y, class_weight={0: 1.0}, sample_weight=np.ones(60))
    loader = dp_train.PoissonLoader(x, y, batch_size=6)
    with pytest.raises(ValueError, match="Pass them to PoissonLoader"):
        compiled().fit(loader, batch_size=6, verbose=0)
    with pytest.raises(ValueError, match="pass validation_data"):
        compiled().fit(loader, validation_split=0.5, verbose=0)


# ----------------------------------------------------------------------- spent budgets


def test_fit_on_a_spent_budget_is_refused():
    model = compiled(
        optimizer=dp_train.DPAdam(
            0.01, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=1e-5
        )
    )
    model.fit(*data(), batch_size=20, verbose=0)
    before = model.get_weights()
    with pytest.raises(dp_train.BudgetSpentError, match="Raise target_epsilon"):
        model.fit(*data(), batch_size=20, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_target_epsilon_without_a_number_of_steps_is_refused():
    model = compiled(
        optimizer=dp_train.DPAdam(
            0.01, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=1e-5
        )
    )
    x, y = data()
    with pytest.raises(ValueError, match="steps_per_epoch"):
        model.fit(iter([(x, y)]), verbose=0)
    with pytest.raises(ValueError, match="number of steps"):
        model.train_on_batch(x, y)


# ---------------------------------------------------------------------------- warnings


def test_no_noise_warns_and_makes_epsilon_infinite():
    model = compiled(optimizer=dp_sgd(noise_multiplier=0))
    with pytest.warns(dp_train.PrivacyWarning, match="epsilon is infinity"):
        model.fit(*data(), verbose=0)
    report = model.privacy_report(1e-5)
    assert report.epsilon.upper == np.inf
    assert "no_noise" in {caveat.id for caveat in report.caveats}


def test_delta_above_one_over_examples_warns_and_is_a_caveat():
    model = compiled()
    model.fit(*data(), verbose=0)
    with pytest.warns(dp_train.PrivacyWarning, match="well below"):
        caveats = {caveat.id for caveat in model.privacy_report(1 / 60).caveats}
    assert "delta_too_large" in caveats
    with pytest.warns(dp_train.PrivacyWarning, match="well below"):
        model.fit(*data(), callbacks=[dp_train.EpsilonLogger(0.1)], verbose=0)
    caveats = {caveat.id for caveat in model.privacy_report(1 / 61).caveats}
    assert "delta_too_large" not in caveats


def test_callbacks_that_decide_on_private_figures_warn():
    stop = keras.callbacks.EarlyStopping(monitor="loss")
    with pytest.warns(dp_train.PrivacyWarning, match="public validation data"):
        compiled().fit(*data(), callbacks=[stop], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stop = keras.callbacks.EarlyStopping(monitor="val_loss")
        compiled().fit(*data(), validation_data=data(), callbacks=[stop], verbose=0)


# ------------------------------------------------------------------ true reasons


def test_complex_inputs_are_told_how_to_become_real():
    inputs = keras.Input((4,), dtype="complex64")
    outputs = keras.layers.Dense(3)(keras.layers.Lambda(keras.ops.real)(inputs))
    model = compiled(keras.Model(inputs, outputs))
    x, y = data()
    with pytest.raises(
        dp_train.NotPrivateError, match=r"complex inputs: .*complex64.*two real inputs"
    ):
        model.fit(x.astype("complex64"), y, verbose=0)


_noise = keras.random.SeedGenerator(3)


def _noisy_loss(y_true, y_pred):
    noise = keras.random.normal(keras.ops.shape(y_pred), seed=_noise)
    return keras.ops.mean(keras.ops.square(y_pred + noise), -1)


@pytest.mark.parametrize("gradients", ["bookkeeping", "vectorized", "loop"])
def test_a_seed_generator_that_is_nobodys_attribute_is_a_seed(gradients):
    def sums():
        keras.utils.set_random_seed(1)
        _noise.state.assign([1, 2])
        model = dp_train.make_private(sequential(), gradients=gradients)
        model.compile(loss=_noisy_loss)
        x, y = (np.repeat(a[:1], 4, 0) for a in data())
        singles = [
            dp_train.clipped_gradients(model, x[:n], y[:n], l2_norm_clip=1e6)
            for n in (1, 4)
        ]
        return [c.gradients[-1].numpy() for c in singles]

    one, four = sums()
    assert not np.allclose(4 * one, four)  # each example has noise of its own
    assert not np.allclose(one, sums()[0])  # which no seed decides


def test_a_plain_model_says_where_a_seed_generator_belongs():
    model, optimizer = sequential(), dp_sgd()
    model.compile(optimizer, loss=_noisy_loss)
    batches = dp_train.PoissonLoader(*data(), batch_size=20).dataset_for(optimizer)
    with pytest.raises(dp_train.NotPrivateError, match="SeedGenerator that is an att"):
        model.fit(batches, shuffle=False, verbose=0)


def test_a_loss_scale_around_a_dp_optimizer_is_refused_for_what_it_does():
    model, optimizer = sequential(), dp_sgd()
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer), loss="mse")
    with pytest.raises(
        dp_train.NotPrivateError,
        match=r"LossScaleOptimizer, which skips.*Compile with the DP.*mixed_bfloat16",
    ):
        model.fit(*data(), verbose=0)


class StepWithNext(keras.Sequential):
    """Takes the batch from its iterator where the step is made."""

    def make_train_function(self, force=False):
        @tf.function(autograph=False)
        def step(iterator):
            return self.train_step(next(iterator))

        self.train_function = step
        return step


@pytest.mark.parametrize("is_private", [False, True])
def test_a_step_that_takes_its_batch_itself_is_told_of_it(is_private):
    layers = [keras.Input((4,)), keras.layers.Dense(3)]
    model, optimizer = StepWithNext(layers), dp_sgd()
    if is_private:
        model = dp_train.make_private(model)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    loader = dp_train.PoissonLoader(*data(), batch_size=20)
    with pytest.raises(
        dp_train.NotPrivateError,
        match=r"taken from its iterator inside.*tf\.function\(step\)\(next\(iterator",
    ):
        batches = loader if is_private else loader.dataset_for(optimizer)
        model.fit(batches, shuffle=False, verbose=0)


class TracedMethod(keras.layers.Layer):
    """Has a method that is traced once."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4))

    @tf.function
    def product(self, x):
        return x @ self.kernel

    def call(self, x):
        return self.product(x)


def test_a_method_that_is_traced_by_itself_is_named_as_such():
    layers = [keras.Input((4,)), TracedMethod(), keras.layers.Dense(3)]
    model = compiled(keras.Sequential(layers))
    with pytest.raises(
        dp_train.NotPrivateError, match=r"traced_method/.*tf\.function.*Call it without"
    ):
        model.fit(*data(), verbose=0)
    plain, optimizer = keras.Sequential(layers), dp_sgd()
    plain.compile(optimizer, "sparse_categorical_crossentropy")
    batches = dp_train.PoissonLoader(*data(), batch_size=20).dataset_for(optimizer)
    with pytest.raises(dp_train.NotPrivateError, match=r"functions under tf\.function"):
        plain.fit(batches, shuffle=False, verbose=0)
