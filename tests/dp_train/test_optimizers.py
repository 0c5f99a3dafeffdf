"""A DP optimizer is its inner optimizer behind noised, clipped sums."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data, loss, sequential

import dp_train
from accounting import UnverifiedSamplingEvent
from dp_train.optimizers import dp_optimizer

PAIRS = {
    dp_train.DPSGD: keras.optimizers.SGD,
    dp_train.DPAdam: keras.optimizers.Adam,
    dp_train.DPAdamW: keras.optimizers.AdamW,
    dp_train.DPAdagrad: keras.optimizers.Adagrad,
    dp_train.DPRMSprop: keras.optimizers.RMSprop,
}


@pytest.mark.parametrize(("ours", "inner"), PAIRS.items(), ids=lambda c: c.__name__)
def test_without_noise_and_clipping_training_equals_plain_keras(ours, inner):
    x, y = data()
    results = []
    for make in (
        lambda: dp_train.make_private(sequential()),
        sequential,
    ):
        keras.utils.set_random_seed(0)
        model = make()
        if isinstance(model, dp_train.model.PrivateModel):
            model.compile(ours(0.01, l2_norm_clip=1e6, noise_multiplier=1e-12), loss())
        else:
            model.compile(inner(0.01), loss())
        for _ in range(4):
            model.train_on_batch(x, y)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("ours", "inner"), PAIRS.items(), ids=lambda c: c.__name__)
def test_signature_shows_the_arguments_of_both(ours, inner):
    shown = inspect.signature(ours).parameters
    keras_arguments = inspect.signature(inner.__init__).parameters
    assert {"learning_rate", "l2_norm_clip", "target_epsilon"} <= set(shown)
    assert "clipnorm" not in shown
    assert shown["learning_rate"].default == keras_arguments["learning_rate"].default


def test_inner_optimizer_may_be_a_name_or_an_instance():
    for inner in ("adam", keras.optimizers.Adam(0.5)):
        optimizer = dp_train.DPOptimizer(inner, l2_norm_clip=1.0, noise_multiplier=1.0)
        assert isinstance(optimizer.inner_optimizer, keras.optimizers.Adam)


def test_learning_rate_iterations_and_weight_decay_are_the_inner_ones():
    optimizer = dp_train.DPAdamW(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    optimizer.learning_rate = 0.25
    assert float(optimizer.inner_optimizer.learning_rate) == 0.25
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = compiled(optimizer=optimizer)
    model.fit(*data(), batch_size=20, verbose=0)
    assert int(optimizer.iterations) == int(optimizer.inner_optimizer.iterations) == 3
    assert not optimizer.inner_optimizer._use_weight_decay(model.layers[0].bias)


def test_swap_ema_weights_sees_the_averages():
    optimizer = dp_train.DPSGD(
        0.1, use_ema=True, ema_momentum=0.5, l2_norm_clip=1.0, noise_multiplier=1.0
    )
    model = compiled(optimizer=optimizer)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model.fit(*data(), batch_size=20, verbose=0, callbacks=[swap])
    averages = optimizer.inner_optimizer._model_variables_moving_average
    for average, weight in zip(averages, model.get_weights(), strict=True):
        np.testing.assert_array_equal(average.numpy(), weight)


def test_every_value_of_the_update_carries_noise():
    model = compiled(
        optimizer=dp_train.DPSGD(1.0, l2_norm_clip=1.0, noise_multiplier=1.0)
    )
    before = model.get_weights()
    model.fit(*data(), batch_size=1, steps_per_epoch=1, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        assert np.all(a != b)


# ------------------------------------------------------------------------ custom loops


def test_custom_loop_over_a_poisson_loader_is_charged_as_poisson():
    x, y = data()
    model = dp_train.make_private(sequential())
    model.compile(loss=loss())
    optimizer = dp_train.DPAdam(0.01, l2_norm_clip=1.0, noise_multiplier=1.0)
    before = model.get_weights()
    for batch in dp_train.PoissonLoader(x, y, batch_size=6):
        clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=0.5)
        optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    (release,) = model.privacy_ledger.releases
    assert (release.count, release.l2_norm_clip) == (10, 0.5)
    assert release.event.sampling_probability == 0.1
    assert not np.array_equal(before[0], model.get_weights()[0])


def test_batch_pays_for_one_release_only():
    x, y = data()
    model = dp_train.make_private(sequential())
    model.compile(loss=loss())
    batch = next(iter(dp_train.PoissonLoader(x, y, batch_size=6)))
    dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
    with pytest.raises(dp_train.NotPrivateError, match="next batch"):
        dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)


def test_clipped_sum_pays_for_one_release_only():
    model = compiled()
    clipped = dp_train.clipped_gradients(model, *data(), l2_norm_clip=1.0)
    model.optimizer.apply_clipped_sum(clipped)
    with pytest.raises(dp_train.NotPrivateError, match="next batch"):
        model.optimizer.apply_clipped_sum(clipped)
    assert model.privacy_ledger.total == 1


def test_custom_loop_over_chosen_batches_is_unverified():
    x, y = data()
    model = compiled()
    clipped = dp_train.clipped_gradients(model, x[:8], y[:8], l2_norm_clip=1.0)
    model.optimizer.apply_clipped_sum(clipped)
    (release,) = model.privacy_ledger.releases
    assert isinstance(release.event, UnverifiedSamplingEvent)


def test_custom_loop_errors_name_the_fix():
    x, y = data()
    with pytest.raises(dp_train.NotPrivateError, match="make_private"):
        dp_train.clipped_gradients(sequential(), x, y, l2_norm_clip=1.0)
    model = dp_train.make_private(sequential())
    model.compile(loss=loss())
    with pytest.raises(ValueError, match=r"Start from 1\.0"):
        dp_train.clipped_gradients(model, x, y, l2_norm_clip=-1.0)
    clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"model\.trainable_variables"):
        optimizer.apply_clipped_sum(clipped)
    optimizer.build(model.trainable_variables[:1])
    with pytest.raises(dp_train.NotPrivateError, match="other weights"):
        optimizer.apply_clipped_sum(clipped)
    target = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, target_epsilon=1.0, target_delta=1e-5
    )
    with pytest.raises(ValueError, match=r"calibrate\.noise_multiplier"):
        target.apply_clipped_sum(clipped, model.trainable_variables)
    assert isinstance(clipped, dp_train.ClippedSum)
    assert model.privacy_ledger.total == 0


def poisson_batch():
    return next(iter(dp_train.PoissonLoader(*data(), batch_size=6)))


def test_batch_cannot_be_kept_in_a_traced_function():
    model = compiled()
    batch = poisson_batch()

    @tf.function
    def step():
        dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)

    with pytest.raises(dp_train.NotPrivateError, match=r"outside of tf\.function"):
        step()


def test_clipped_sum_cannot_be_released_again_by_a_traced_function_or_loop():
    model = compiled()
    clipped = dp_train.clipped_gradients(model, poisson_batch(), l2_norm_clip=1.0)

    @tf.function
    def step():
        model.optimizer.apply_clipped_sum(clipped)

    with pytest.raises(dp_train.NotPrivateError, match="side by side"):
        step()

    @tf.function
    def loop(x, y):
        clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
        for _ in tf.range(3):
            model.optimizer.apply_clipped_sum(clipped)

    with pytest.raises(dp_train.NotPrivateError, match="side by side"):
        loop(tf.zeros((4, 4)), tf.zeros(4, tf.int64))
    assert model.privacy_ledger.total == 0


def test_custom_loop_inside_a_tf_function_charges_every_execution():
    x, y = data()
    model = compiled()

    @tf.function
    def step(x, y):
        clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
        model.optimizer.apply_clipped_sum(clipped)

    for _ in range(3):
        step(tf.constant(x[:8]), tf.constant(y[:8]))
    assert model.privacy_ledger.total == 3


def test_clipped_sum_of_another_model_is_refused():
    first, second = compiled(), compiled()
    clipped = dp_train.clipped_gradients(first, *data(), l2_norm_clip=1.0)
    second.fit(*data(), verbose=0)
    before = second.get_weights()
    with pytest.raises(dp_train.NotPrivateError, match="charged to one model"):
        second.optimizer.apply_clipped_sum(clipped)
    for a, b in zip(before, second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_calibrated_optimizer_is_not_for_custom_loops():
    model = compiled(
        optimizer=dp_train.DPAdam(
            0.01, l2_norm_clip=1.0, target_epsilon=1.0, target_delta=1e-5
        )
    )
    model.fit(*data(), batch_size=6, verbose=0)
    clipped = dp_train.clipped_gradients(model, poisson_batch(), l2_norm_clip=1.0)
    with pytest.raises(ValueError, match="only fit can"):
        model.optimizer.apply_clipped_sum(clipped)


@pytest.mark.parametrize("noise_source", ["aes256-ctr", "philox"])
def test_noise_of_float64_weights_is_not_on_the_grid_of_float32(noise_source):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        model = compiled(
            sequential(),
            dp_train.DPSGD(
                1.0,
                l2_norm_clip=1.0,
                noise_multiplier=1000.0,
                noise_source=noise_source,
            ),
        )
        x, y = data()
        before = model.get_weights()[0]
        model.train_on_batch(x[:8], y[:8])
        released = (before - model.get_weights()[0]) * 8
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    assert np.mean(released == released.astype("float32")) < 0.1


def test_batch_does_not_print_its_examples():
    batch = dp_train.Batch(np.full(2, 12345.0), None, None, sampling=None, number=1)
    assert "12345" not in repr(batch)


@pytest.mark.parametrize("ours", [dp_train.DPSGD, dp_train.DPAdamW])
def test_update_of_large_weights_is_compiled_and_stays_what_it_is(ours, monkeypatch):
    x, y = data()
    results, counts = [], []
    for least in (0, 1 << 40):
        monkeypatch.setattr(dp_optimizer, "_FUSED_FROM", least)
        keras.utils.set_random_seed(0)
        rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
        model = compiled(
            optimizer=ours(rate, l2_norm_clip=1.0, noise_multiplier=1.0, use_ema=True)
        )
        with dp_train.testing.insecure_noise(seed=3):
            model.fit(x, y, batch_size=len(x), epochs=3, verbose=0)
        results.append([v.numpy() for v in model.optimizer.variables])
        results[-1] += model.get_weights()
        counts.append(model.privacy_ledger.total)
    assert counts == [3, 3]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["apply", "release", "apply_gradients"])
def test_no_subclass_gets_gradients_without_noise(name):
    with pytest.raises(TypeError, match=f"overrides {name}.*DPOptimizer.inner"):
        type("Curious", (dp_train.DPSGD,), {name: lambda self, *args: None})
    type("Named", (dp_train.DPSGD,), {})
