"""Bugs in who is drawn and in what is written down."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from accounting import GaussianEvent, Ledger, PoissonSampledEvent
from dp_train import digests, sampling, values
from dp_train.batches import UsedDraw
from dp_train.draws import Draws
from dp_train.model import PrivateModel
from dp_train.optimizers.dp_optimizer import DPOptimizer
from dp_train.private_state import PrivacyState
from dp_train.sampling import PoissonSampling, UnverifiedSampling
from tests.batteries import sampler
from tests.mutants.mutant import Mutant

_charge = Ledger.charge


def _indices_by(function: Any) -> Any:
    return mock.patch.object(PoissonSampling, "indices", function)


def shuffled() -> Any:
    remaining: dict[int, Any] = {}

    def chunk(self: PoissonSampling) -> Any:
        size = int(self.expected_batch_size)
        left = remaining.get(id(self), ())
        if len(left) < size:
            left = np.random.default_rng().permutation(self.population)
        remaining[id(self)] = left[size:]
        return left[:size]

    return _indices_by(chunk)


def disjoint_in_an_epoch() -> Any:
    remaining: dict[int, Any] = {}

    def chunk(self: PoissonSampling) -> Any:
        generator = np.random.default_rng()
        size = generator.binomial(self.population, self.sampling_probability)
        left = remaining.get(id(self), ())
        if len(left) < size:
            left = generator.permutation(self.population)
        remaining[id(self)] = left[size:]
        return left[:size]

    return _indices_by(chunk)


def reseeded_per_epoch() -> Any:
    calls = itertools.count()

    def generator() -> Any:
        return np.random.default_rng(next(calls) % sampler.STEPS)

    return mock.patch.object(sampling, "_fresh_generator", generator)


def drawn_from_the_random_seed() -> Any:
    def generator() -> Any:
        return np.random.default_rng(np.random.randint(2**31))

    return mock.patch.object(sampling, "_fresh_generator", generator)


def truncated() -> Any:
    indices = PoissonSampling.indices

    def first(self: PoissonSampling) -> Any:
        return indices(self)[: int(self.expected_batch_size)]

    return _indices_by(first)


def skips_every_tenth() -> Any:
    calls = itertools.count(1)

    def charge(self: Ledger, event: Any, **details: Any) -> None:
        if next(calls) % 10:
            _charge(self, event, **details)

    return mock.patch.object(Ledger, "charge", charge)


def written_in_blocks() -> Any:
    waiting: list[Any] = []

    def charge(self: Ledger, event: Any, **details: Any) -> None:
        waiting.append((event, details))
        if len(waiting) == 4:
            for one, about in waiting:
                _charge(self, one, **about)
            waiting.clear()

    return mock.patch.object(Ledger, "charge", charge)


@contextmanager
def lowered_by_a_checkpoint() -> Iterator[None]:
    load = DPOptimizer.load_own_variables

    def lowering(self: Any, store: Any) -> None:
        text = bytes(np.asarray(store["ledger"])).decode()
        load(self, store)
        self.ledger.__setstate__(Ledger.from_json(text).__getstate__())

    with mock.patch.object(DPOptimizer, "load_own_variables", lowering):
        yield


def budget_not_guarded() -> Any:
    return mock.patch.object(PrivacyState, "restrict", lambda self, steps: None)


def ready_made_as_poisson() -> Any:
    def event(self: UnverifiedSampling, release: Any) -> Any:
        return PoissonSampledEvent(0.01, release)

    return mock.patch.object(UnverifiedSampling, "event", event)


def probability_halved() -> Any:
    def event(self: PoissonSampling, release: Any) -> Any:
        return PoissonSampledEvent(self.sampling_probability / 2, release)

    return mock.patch.object(PoissonSampling, "event", event)


def more_noise_recorded() -> Any:
    event = PoissonSampling.event

    def louder(self: PoissonSampling, release: GaussianEvent) -> Any:
        return event(self, GaussianEvent(2 * release.noise_multiplier))

    return mock.patch.object(PoissonSampling, "event", louder)


def draw_pays_again() -> Any:
    """Draws are remembered, and not crossed off."""

    def pay(self: Draws, digest: int | None) -> None:
        if all(draw.digest != digest for draw in self._unused):
            refuse(self, None)

    refuse = Draws.pay
    return mock.patch.object(Draws, "pay", pay)


def draws_only_counted() -> Any:
    """A release needs a draw, and nobody asks on which rows."""

    def pay(self: Draws, digest: int | None) -> None:
        del digest
        refuse(self, self._unused[0].digest if self._unused else None)

    refuse = Draws.pay
    return mock.patch.object(Draws, "pay", pay)


def draw_left_out() -> Any:
    """Any draw that is unused pays, also before its turn."""

    def pay(self: Draws, digest: int | None) -> None:
        for i, draw in enumerate(self._unused):
            if draw.digest == digest:
                del self._unused[i]
                return
        refuse(self, None)

    refuse = Draws.pay
    return mock.patch.object(Draws, "pay", pay)


def digests_of_32_bits() -> Any:
    multipliers = digests._known_multipliers

    def short(stream: int, words: int) -> Any:
        return multipliers(stream, words) << 32

    return mock.patch.object(digests, "_known_multipliers", short)


def digests_without_sizes() -> Any:
    def kind(stream: int, dtype: Any, sizes: Any) -> Any:
        return np.zeros(2, np.int64)

    return mock.patch.object(digests, "_known_kind", kind)


def batches_not_numbered() -> Any:
    def take(number: int, rows: Any) -> UsedDraw:
        del number, rows
        return UsedDraw(PoissonSampling(200, 20), 0)

    return mock.patch.object(values, "take_batch", take)


def two_fits_at_once() -> Any:
    fit: Any = PrivateModel.fit
    return mock.patch.object(PrivateModel, "fit", fit.__wrapped__)


MUTANTS = {
    "two fits at once": Mutant(
        "A second thread may begin a fit of a model that is being trained.",
        two_fits_at_once,
        "threads",
        "Two fits of one model ran at once",
    ),
    "draw pays again": Mutant(
        "A draw pays for every step on its rows.",
        draw_pays_again,
        "draws: steps",
        "steps were taken on rows that were not drawn",
    ),
    "draws only counted": Mutant(
        "A release needs an unused draw, whatever its rows.",
        draws_only_counted,
        "draws: rows",
        "steps were taken on rows that were not drawn",
    ),
    "a draw left out": Mutant(
        "A draw pays whatever became of older ones, so that batches can be selected.",
        draw_left_out,
        "draws: order",
        "Batches were selected",
    ),
    "digests of 32 bits": Mutant(
        "The upper half of products of 32-bit numbers is dropped, so that half of the "
        "multipliers do not see a sign.",
        digests_of_32_bits,
        "draws: signs",
        "is not seen",
    ),
    "digests without sizes": Mutant(
        "A digest does not know how long a row is, and zeros at its end add nothing.",
        digests_without_sizes,
        "draws: sizes",
        "trimmed paid again, or for copies",
    ),
    "copies of a batch pay": Mutant(
        "A copy of a batch is taken for another batch.",
        batches_not_numbered,
        "draws: batches",
        "copied paid again",
    ),
    "rows of a batch not counted": Mutant(
        "A batch may have more rows than were drawn.",
        batches_not_numbered,
        "draws: rows of a batch",
        "multiplied paid again",
    ),
    "shuffle accounted as Poisson": Mutant(
        "Fixed-size batches of a shuffled epoch claim Poisson amplification.",
        shuffled,
        "sampler",
        "scatter 0.000",
    ),
    "shuffle with sizes of Poisson": Mutant(
        "Batches have random sizes and are still cut from one shuffled epoch.",
        disjoint_in_an_epoch,
        "sampler: neighbours",
        "shared by neighbouring steps",
    ),
    "sampler reseeded per epoch": Mutant(
        "The sampler starts every epoch from one fixed seed.",
        reseeded_per_epoch,
        "sampler",
        "draws of one example",
    ),
    "draws from the random seed": Mutant(
        "keras.utils.set_random_seed decides who is drawn.",
        drawn_from_the_random_seed,
        "sampler: random seed",
        "not independent",
    ),
    "batch truncated": Mutant(
        "A Poisson batch is cut to its expected size.",
        truncated,
        "sampler",
        "draws altogether|scatter",
    ),
    "ledger skips": Mutant(
        "Every tenth release is not charged.",
        skips_every_tenth,
        "ledger",
        "25 noised updates were made and 23 releases",
    ),
    "ledger written in blocks": Mutant(
        "Charges are written four at a time, and an interrupt loses the last ones.",
        written_in_blocks,
        "ledger: keyboard interrupt",
        "11 noised updates were made and 8 releases",
    ),
    "ledger lowered by a checkpoint": Mutant(
        "Loading an older checkpoint forgets what was spent since.",
        lowered_by_a_checkpoint,
        "ledger: older checkpoint",
        "releases charged",
    ),
    "budget not guarded": Mutant(
        "Nothing holds the steps back once the budget is spent.",
        budget_not_guarded,
        "ledger: budget",
        "was spent of a target",
    ),
    "ready-made batch as Poisson": Mutant(
        "A batch that the user made is recorded as a Poisson sample.",
        ready_made_as_poisson,
        "ledger: events",
        "Ready-made batches were recorded",
    ),
    "sampling probability halved": Mutant(
        "The recorded sampling probability is half of the one that was used.",
        probability_halved,
        "ledger: events",
        "sampling probability 0.05 is too small",
    ),
    "more noise recorded than added": Mutant(
        "The ledger records twice the noise that was added.",
        more_noise_recorded,
        "ledger: events",
        "too much noise",
    ),
}
