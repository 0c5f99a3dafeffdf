"""Every planted bug is caught by the battery named for it, and by its own symptom."""

from __future__ import annotations

import pytest

from dp_train import NotPrivateError
from tests.mutants import (
    of_augmentation,
    of_gradients,
    of_looking,
    of_noise,
    of_owed_noise,
    of_records,
    of_seals,
    of_weights,
)
from tests.mutants.registry import BATTERIES, MUTANTS

# Python 3.12 warns of any fork; the child here uses nothing but the keystream.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


@pytest.mark.parametrize("battery", BATTERIES)
def test_battery_passes_on_clean_code(battery):
    BATTERIES[battery]()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_battery(name):
    mutant = MUTANTS[name]
    refusal = (AssertionError, NotPrivateError)
    with mutant.plant(), pytest.raises(refusal, match=mutant.caught_as):
        BATTERIES[mutant.caught_by]()


def test_every_battery_is_named_by_a_mutant():
    assert {mutant.caught_by for mutant in MUTANTS.values()} == set(BATTERIES)


def test_names_are_unique_and_sentences_are_whole():
    modules = [
        of_augmentation,
        of_gradients,
        of_looking,
        of_noise,
        of_owed_noise,
        of_records,
        of_seals,
        of_weights,
    ]
    parts = [module.MUTANTS for module in modules]
    assert sum(map(len, parts)) == len(MUTANTS) >= 18
    assert all(mutant.sentence.endswith(".") for mutant in MUTANTS.values())
