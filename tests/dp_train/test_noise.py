"""The noise has the promised size and shape, is fresh, and is charged first."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import dp_train
from dp_train.noise import ahead, device, draw
from tests import statistics
from tests.batteries import noise, transform
from tests.batteries.noise import L2_NORM_CLIP, NOISE_MULTIPLIER

SOURCES = draw.NOISE_SOURCES
COUNT = 1_000_000


def samples(source, count=COUNT):
    """Standard normal samples straight from a source."""
    if source == device.NAME:
        key = tf.constant(ahead.KEYSTREAM.words(2))
        return device.standard_normal([count], key).numpy()
    return ahead.KEYSTREAM.normals(count, 1.0)


# ------------------------------------------------------------------- through fit


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("rows", "batch_size", "microbatch_size"),
    [(0, 1, "auto"), (0, 16, "auto"), (16, 4, "auto"), (3, 32, "auto"), (9, 8, 2)],
)
def test_stddev_is_noise_multiplier_times_clip_over_batch_size(
    rows, batch_size, microbatch_size, source
):
    noise.assert_stddev_of_the_weight_change(rows, batch_size, microbatch_size, source)


def test_examples_that_are_nan_leave_the_noise_of_an_empty_batch():
    noise.assert_noise_of_a_batch_of_nan_is_finite_and_full()


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_independent_across_variables_steps_and_fits(source):
    noise.assert_noise_is_independent(source)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_normal_to_its_tails(source):
    noise.assert_noise_is_normal(source)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_ignores_the_random_seed(source):
    noise.assert_noise_ignores_the_random_seed(source)


def test_processes_with_equal_seeds_draw_other_noise():
    noise.assert_processes_draw_other_noise()


# Python 3.12 warns of any fork; the child here uses nothing but the keystream.
@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
def test_a_fork_draws_other_noise():
    noise.assert_a_fork_draws_other_noise()


# ----------------------------------------------------------- transform and source


@pytest.mark.parametrize("name", transform.TRANSFORMS)
def test_extreme_bits_reach_nine_standard_deviations(name):
    transform.assert_extreme_bits_reach_nine_standard_deviations(name)


@pytest.mark.parametrize("name", transform.TRANSFORMS)
def test_radius_is_monotone_and_not_clamped(name):
    transform.assert_radius_is_monotone_and_not_clamped(name)


@pytest.mark.parametrize("name", transform.TRANSFORMS)
def test_largest_uniform_is_harmless(name):
    transform.assert_largest_uniform_is_harmless(name)


@pytest.mark.parametrize("name", transform.TRANSFORMS)
def test_transform_matches_quantiles(name):
    transform.assert_transform_matches_quantiles(name)


@pytest.mark.parametrize("source", SOURCES)
def test_distribution_agrees_with_tensorflow_probability(source):
    # tensorflow_probability finds Keras 2 only after tf_keras.
    importlib.import_module("tf_keras")
    normal = importlib.import_module("tensorflow_probability").distributions.Normal(
        np.float64(0.0), np.float64(1.0)
    )
    statistics.assert_distribution(samples(source), lambda z: normal.cdf(z).numpy())


@pytest.mark.parametrize("source", SOURCES)
def test_source_has_unit_stddev_and_normal_tails(source):
    drawn = samples(source, 10 * COUNT)
    statistics.assert_stddev(drawn, 1.0)
    statistics.assert_zero_mean(drawn, 1.0)
    statistics.assert_normal_tails(drawn, 1.0)
    statistics.assert_binomial(
        int(np.count_nonzero(np.abs(drawn) > 4.5)), drawn.size, 2 * stats.norm.sf(4.5)
    )


@pytest.mark.parametrize("count", [0, 1, 2, 3, 65_536, 65_537, 131_073])
def test_any_count_is_filled_over_the_edges_of_blocks(count):
    drawn = ahead.KEYSTREAM.normals(count, 1.0)
    assert drawn.shape == (count,) and drawn.dtype == np.float32
    # Equal samples next to each other would be a block written twice.
    assert np.count_nonzero(drawn[1:] == drawn[:-1]) <= 2
    assert np.count_nonzero(drawn == 0) <= 2


def test_large_draws_are_handed_over_uncopied_and_never_written_again():
    first = ahead.KEYSTREAM.normals(70_000, 1.0, np.float64)
    kept = first.copy()
    others = [ahead.KEYSTREAM.normals(70_000, 1.0, np.float64) for _ in range(4)]
    assert first.ctypes.data % 64 == 0
    np.testing.assert_array_equal(first, kept)
    for other in others:
        # 1,000 x 70,000 float64 pairs agree somewhere with probability below 1e-6.
        assert not np.any(np.isin(first[:1000], other))


def test_memory_of_large_draws_is_used_again_once_nobody_refers_to_it():
    source, addresses = ahead.DrawnAhead(), set()
    for _ in range(20):
        addresses.add(source.normals(70_000, 1.0).ctypes.data)
    assert len(addresses) <= ahead._BUFFERS


@pytest.mark.parametrize("is_graph", [False, True])
def test_memory_that_somebody_still_has_is_not_used_again(is_graph):
    source = ahead.DrawnAhead()
    weight = tf.Variable(tf.zeros([70_000]))

    def step():
        noise = tf.numpy_function(
            lambda: source.normals(70_000, 1.0), [], tf.float32, stateful=True
        )
        # TensorFlow makes the array itself the weight, without a copy.
        weight.assign(tf.ensure_shape(noise, [70_000]))

    step = tf.function(step, autograph=False) if is_graph else step
    step()
    part = source.normals(70_000, 1.0)[500:600]
    kept = weight.numpy(), part.copy()
    for _ in range(20):
        source.normals(70_000, 1.0)
    np.testing.assert_array_equal(weight, kept[0])
    np.testing.assert_array_equal(part, kept[1])


def test_a_draw_that_was_made_ahead_is_dropped_when_other_noise_is_asked_for():
    count = 200_000
    for stddev, dtype in [(1.0, np.float32), (5.0, np.float32), (5.0, np.float64)]:
        drawn = ahead.KEYSTREAM.normals(count, stddev, dtype)
        assert drawn.dtype == dtype and drawn.shape == (count,)
        statistics.assert_stddev(drawn.astype(np.float64), stddev)
    assert ahead.KEYSTREAM.normals(count - 1, 5.0, np.float64).shape == (count - 1,)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 2)])
def test_device_noise_fills_any_shape(shape):
    key = tf.constant(ahead.KEYSTREAM.words(2))
    drawn = device.standard_normal(shape, key)
    assert drawn.shape == shape and drawn.dtype == tf.float32


def test_words_use_all_64_bits():
    words = ahead.KEYSTREAM.words(10_000)
    for bit in range(64):
        ones = int(np.count_nonzero((words >> bit) & 1))
        statistics.assert_binomial(ones, words.size, 0.5, what=f"ones in bit {bit}")


# ---------------------------------------------------------------- charge, then draw


class Charges:
    """Records charges, and can refuse one."""

    def __init__(self, error=None):
        self.names = []
        self.error = error

    def __call__(self, name):
        if self.error is not None:
            raise self.error
        self.names.append(name)
        return 2.0


@pytest.mark.parametrize("source", SOURCES)
def test_a_draw_is_charged_once_by_name(source):
    charges = Charges()
    drawn, stddev = draw.draw_noise(source, [(3, 4), (5,), ()], tf.float32, charges)
    assert charges.names == [source]
    assert stddev == 2.0
    assert [tuple(z.shape) for z in drawn] == [(3, 4), (5,), ()]


@pytest.mark.parametrize("source", SOURCES)
def test_a_charge_that_fails_leaves_no_noise(source):
    class RefusedError(Exception):
        pass

    with pytest.raises(RefusedError):
        draw.draw_noise(source, [(3,)], tf.float32, Charges(RefusedError()))


@pytest.mark.parametrize("source", SOURCES)
def test_a_traced_draw_charges_and_draws_at_every_call(source):
    charges = Charges()
    step = tf.function(
        lambda: draw.draw_noise(source, [(40_000,)], tf.float32, charges)[0][0]
    )
    first, second = step().numpy(), step().numpy()
    assert len(charges.names) == 2
    statistics.assert_stddev(first, 2.0)
    statistics.assert_uncorrelated(first, second)


def test_no_noise_is_exactly_zero():
    def free(name):
        return 0.0

    for source in SOURCES:
        (drawn,), _ = draw.draw_noise(source, [(100,)], tf.float32, free)
        assert np.all(drawn.numpy() == 0)


# ---------------------------------------------------------------- insecure, marked


def test_insecure_noise_repeats_and_marks_the_ledger():
    runs = []
    for _ in range(2):
        model = noise.silent_model()
        with dp_train.testing.insecure_noise(4):
            runs.append(noise.changes_of_fit(model, np.arange(1), 2, steps=1))
        assert not model.privacy_ledger.is_private
    assert np.array_equal(*runs)
    statistics.assert_stddev(runs[0], NOISE_MULTIPLIER * L2_NORM_CLIP / 2)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_after_the_insecure_block_is_fresh_and_private(source):
    with dp_train.testing.insecure_noise(4):
        pass
    model = noise.silent_model(noise_source=source)
    noise.changes_of_fit(model, np.arange(1), 2, steps=1)
    assert model.privacy_ledger.is_private
    (release,) = model.privacy_ledger.releases
    assert release.noise_source == source


def test_a_model_traced_inside_the_insecure_block_is_private_outside():
    model = noise.silent_model()
    with dp_train.testing.insecure_noise(4):
        noise.changes_of_fit(model, np.arange(1), 2, steps=1)
    first = noise.changes_of_fit(model, np.arange(1), 2, steps=1)
    second = noise.changes_of_fit(model, np.arange(1), 2, steps=1)
    statistics.assert_uncorrelated(first, second)
    assert {r.noise_source for r in model.privacy_ledger.releases} == {
        "insecure-seeded",
        "aes256-ctr",
    }


def test_unknown_noise_source_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="noise_source must be one of.*'mersenne'"):
        dp_train.DPSGD(
            1.0, l2_norm_clip=1.0, noise_multiplier=1.0, noise_source="mersenne"
        )


def test_noise_multiplier_zero_warns_that_epsilon_is_infinity():
    model = noise.silent_model()
    model.optimizer.noise_multiplier = 0.0
    with pytest.warns(dp_train.PrivacyWarning, match="epsilon is infinity"):
        changes = noise.changes_of_fit(model, np.arange(2), 2, steps=1)
    assert np.all(changes == 0)
    with pytest.warns(dp_train.PrivacyWarning, match="set to 1 after"):
        model.optimizer.noise_multiplier = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Training goes on", dp_train.PrivacyWarning)
        noise.changes_of_fit(model, np.arange(2), 2, steps=1)
