"""Poisson sampling includes each example by its own fresh coin, and says so."""

from __future__ import annotations

import math
import random
from unittest import mock

import numpy as np
import pytest

from accounting import GaussianEvent, PoissonSampledEvent, UnverifiedSamplingEvent
from dp_train import sampling
from dp_train.sampling import PoissonSampling, UnverifiedSampling
from tests.batteries import sampler


@pytest.mark.parametrize("way", sampler.WAYS)
def test_loader_draws_poisson_batches(way):
    sampler.assert_poisson(way=way)


@pytest.mark.parametrize("way", sampler.WAYS)
def test_neighbouring_steps_are_independent(way):
    sampler.assert_consecutive_draws_are_independent(way=way)


@pytest.mark.parametrize("way", sampler.WAYS)
def test_draws_ignore_the_random_seed(way):
    sampler.assert_draws_ignore_the_random_seed(way=way)


def test_reading_a_batch_twice_draws_twice():
    loader = sampler.poisson_loader(1000, 500, 3)
    assert not np.array_equal(loader[0][0], loader[0][0])


def test_states_of_other_generators_are_left_alone():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    PoissonSampling(100, 10).indices()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_every_draw_takes_256_bits_of_the_operating_system():
    asked = []

    def randbits(count):
        asked.append(count)
        return 7

    with mock.patch.object(sampling.secrets, "randbits", randbits):
        draws = [PoissonSampling(1000, 100).indices() for _ in range(2)]
    assert asked == [256, 256]
    assert np.array_equal(*draws)


def test_probability_one_takes_everyone_once():
    assert sorted(PoissonSampling(50, 50).indices()) == list(range(50))


def test_a_tiny_probability_gives_empty_batches():
    # The chance of any example in 100 draws is below 1e-6.
    sizes = [len(PoissonSampling(10, 1e-9).indices()) for _ in range(100)]
    assert sizes == [0] * 100


def test_expected_batch_size_may_be_a_fraction():
    fraction = PoissonSampling(1000, 2.5)
    assert fraction.sampling_probability == 0.0025
    assert fraction.expected_batch_size == 2.5


def test_indices_are_integers_in_range_without_repeats():
    indices = PoissonSampling(300, 150).indices()
    assert indices.dtype == np.int64
    assert len(set(indices.tolist())) == len(indices)
    assert indices.min() >= 0 and indices.max() < 300


def test_poisson_event_holds_the_probability_that_was_used():
    event = PoissonSampling(1000, 50).event(GaussianEvent(1.1))
    assert event == PoissonSampledEvent(0.05, GaussianEvent(1.1))


def test_ready_made_batches_claim_no_amplification():
    event = UnverifiedSampling(64).event(GaussianEvent(1.1))
    assert event == UnverifiedSamplingEvent(GaussianEvent(1.1))


@pytest.mark.parametrize("batch_size", [0, -1, 101, math.nan, math.inf])
def test_batch_size_outside_the_population_is_refused(batch_size):
    with pytest.raises(ValueError, match="at most 100.*smaller"):
        PoissonSampling(100, batch_size)


@pytest.mark.parametrize("population", [0, -3])
def test_empty_population_is_refused(population):
    with pytest.raises(ValueError, match="at least one example"):
        PoissonSampling(population, 1)


@pytest.mark.parametrize("batch_size", [0, -1.0, math.inf, math.nan])
def test_unverified_divisor_must_be_positive(batch_size):
    with pytest.raises(ValueError, match="expected_batch_size must be positive"):
        UnverifiedSampling(batch_size)
