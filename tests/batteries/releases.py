"""Battery: the ledger never counts fewer releases than noised updates were made.

Noised updates are counted by what they do: every one changes the weights (equal noise
twice has probability zero), and the inner Keras optimizer counts its own updates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import dp_train
from accounting import (
    DefaultAccountant,
    PoissonSampledEvent,
    UnverifiedSamplingEvent,
)
from tests.batteries.training import private

EXAMPLES = 40
BATCH_SIZE = 4
STEPS = 25
DELTA = 1e-5


def rows() -> tuple[Any, Any]:
    """Fixed inputs and targets."""
    generator = np.random.default_rng(2)
    return tuple(
        generator.standard_normal((EXAMPLES, width)).astype("float32")
        for width in (3, 2)
    )


def small_model(**options: Any) -> Any:
    """A private model with noise multiplier 1."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    return private(model, **{"noise_multiplier": 1.0, **options})


class Updates(keras.callbacks.Callback):
    """Counts the batches after which the weights differ from before."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._last: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._last = self.model.get_weights()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        new = self.model.get_weights()
        self.count += any(np.any(a != b) for a, b in zip(self._last, new, strict=True))
        self._last = new


class RaiseAt(keras.callbacks.Callback):
    """Raises in the middle of training, behind a step that was made."""

    def __init__(self, error: BaseException, batch: int = 7) -> None:
        super().__init__()
        self.error = error
        self.batch = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch >= self.batch:
            raise self.error


class PlannedError(Exception):
    """Raised by the tests only."""


def fit(model: Any, *callbacks: Any, steps: int = STEPS, epochs: int = 1) -> None:
    x, y = rows()
    with warnings.catch_warnings():
        # A ledger that skips releases looks like a fit that ended early.
        warnings.filterwarnings("ignore", "A fit ended", dp_train.PrivacyWarning)
        model.fit(
            x,
            y,
            batch_size=BATCH_SIZE,
            steps_per_epoch=steps,
            epochs=epochs,
            callbacks=list(callbacks),
            verbose=0,
        )


def _interrupted_by(model: Any, error: BaseException) -> None:
    try:
        fit(model, RaiseAt(error))
    except type(error):
        return
    raise AssertionError(f"{type(error).__name__} did not leave fit.")


def plain_fit() -> Any:
    """25 steps; also counted by the weights."""
    model, updates = small_model(), Updates()
    fit(model, updates)
    assert updates.count == STEPS, f"{updates.count} of {STEPS} steps moved a weight."
    return model


def several_steps_per_execution() -> Any:
    """Two epochs of ten steps, four in one execution (the last one is shorter)."""
    model = small_model(steps_per_execution=4)
    fit(model, steps=10, epochs=2)
    return model


def error_in_a_callback() -> Any:
    """A callback raises after the eighth step."""
    model = small_model()
    _interrupted_by(model, PlannedError())
    return model


def keyboard_interrupt() -> Any:
    """Ctrl-C after the eighth step, and training goes on later."""
    model = small_model()
    _interrupted_by(model, KeyboardInterrupt())
    fit(model, steps=3)
    return model


def interrupted_execution() -> Any:
    """Ctrl-C between executions of four steps."""
    model = small_model(steps_per_execution=4)
    _interrupted_by(model, KeyboardInterrupt())
    return model


def ready_made_batches() -> Any:
    """train_on_batch, twelve times."""
    model = small_model()
    x, y = rows()
    for start in range(12):
        model.train_on_batch(x[start : start + 3], y[start : start + 3])
    return model


def custom_loop() -> Any:
    """clipped_gradients and apply_clipped_sum, on fifteen batches of a loader."""
    model = small_model()
    x, y = rows()
    loader = dp_train.PoissonLoader(x, y, batch_size=BATCH_SIZE, steps_per_epoch=15)
    for batch in loader:
        clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=0.7)
        model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    return model


def compiled_again() -> Any:
    """A second optimizer goes on in the ledger of the first."""
    model = small_model()
    fit(model, steps=12)
    first = _updates(model)
    model.compile(
        dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=2.0), loss="mse"
    )
    fit(model, steps=8)
    _assert_charged(model, first + _updates(model))
    return model


SCENARIOS: dict[str, Callable[[], Any]] = {
    "fit": plain_fit,
    "steps_per_execution": several_steps_per_execution,
    "error in a callback": error_in_a_callback,
    "keyboard interrupt": keyboard_interrupt,
    "interrupted execution": interrupted_execution,
    "train_on_batch": ready_made_batches,
    "custom loop": custom_loop,
    "compiled again": compiled_again,
}


def _updates(model: Any) -> int:
    """Updates that the inner Keras optimizer has counted."""
    return int(model.optimizer.iterations)


def _assert_charged(model: Any, updates: int) -> None:
    charged = model.privacy_ledger.total
    assert updates > 0, "Nothing was released, so nothing was tested."
    assert charged >= updates, (
        f"{updates} noised updates were made and {charged} releases charged."
    )


def assert_every_noised_update_is_charged(scenario: str) -> None:
    """The ledger holds at least one release for every noised update.

    Args:
        scenario: key of SCENARIOS.
    """
    model = SCENARIOS[scenario]()
    _assert_charged(model, _updates(model))


def assert_the_events_say_how_batches_were_drawn() -> None:
    """fit on arrays earns Poisson amplification; ready-made batches earn none."""
    model = small_model()
    fit(model, steps=2)
    (release,) = model.privacy_ledger.releases
    event = release.event
    assert isinstance(event, PoissonSampledEvent), f"fit was recorded as {event}."
    assert event.sampling_probability >= BATCH_SIZE / EXAMPLES, (
        f"The recorded sampling probability {event.sampling_probability} is too small."
    )
    _assert_noise_is_recorded(release, event.event)
    model = ready_made_batches()
    (release,) = model.privacy_ledger.releases
    assert isinstance(release.event, UnverifiedSamplingEvent), (
        f"Ready-made batches were recorded as {release.event}."
    )
    _assert_noise_is_recorded(release, release.event.event)


def _assert_noise_is_recorded(release: Any, gaussian: Any) -> None:
    assert gaussian.noise_multiplier <= 1.0, f"Recorded as {gaussian}: too much noise."
    assert release.l2_norm_clip == 1.0, (
        f"Recorded clip {release.l2_norm_clip}, not 1.0."
    )


def assert_the_budget_holds(steps_per_execution: int) -> None:
    """BudgetStop never lets the releases exceed the target, nor the weights move on."""
    model = small_model(steps_per_execution=steps_per_execution)
    target = 7.0
    fit(model, dp_train.BudgetStop(target, DELTA), steps=200)
    _assert_charged(model, _updates(model))
    accountant = DefaultAccountant(model.privacy_ledger.supported_relation())
    spent = accountant.compose_ledger(model.privacy_ledger).epsilon(DELTA).upper
    assert spent <= target, f"epsilon {spent:.3f} was spent of a target of {target}."
    assert model.privacy_ledger.total < 200, "The budget was never reached."


def assert_loading_an_older_checkpoint_keeps_what_was_spent(folder: Path) -> None:
    """Restoring weights and optimizer of step 5 at step 12 still counts 12 releases.

    Args:
        folder: an empty folder for the checkpoint.
    """
    model = small_model()
    fit(model, steps=5)
    path = str(folder / "older.weights.h5")
    model.save_weights(path)
    old = model.get_weights()
    fit(model, steps=7)
    model.load_weights(path)
    assert all(
        np.array_equal(a, b) for a, b in zip(old, model.get_weights(), strict=True)
    )
    _assert_charged(model, 12)
    store: dict[str, Any] = {}
    older = small_model()
    fit(older, steps=1)
    older.optimizer.save_own_variables(store)
    model.optimizer.load_own_variables(store)
    _assert_charged(model, 13)
    fit(model, steps=2)
    _assert_charged(model, 15)
