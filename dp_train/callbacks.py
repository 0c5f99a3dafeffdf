"""Callbacks that read the ledger: epsilon while training, and a stop at the budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from accounting import (
    BudgetSpentError,
    DefaultAccountant,
    GaussianEvent,
    Ledger,
    calibrate,
)
from dp_train.errors import NotPrivateError
from dp_train.model import PrivateModel
from dp_train.model_checks import warn_of_large_delta
from dp_train.optimizers.dp_optimizer import DPOptimizer


class _PrivacyCallback(keras.callbacks.Callback):
    """A callback of a private model."""

    runs_first = True
    reads_only = False
    """Whether a plain model with a DP optimizer will do: its ledger is enough."""

    @property
    def ledger(self) -> Ledger:
        """Every release made so far."""
        if isinstance(self.model, PrivateModel):
            return self.model.privacy_ledger
        return self.model.optimizer._account.ledger

    def set_model(self, model: Any) -> None:
        """Refuses models without a ledger."""
        is_private = isinstance(model, PrivateModel) or (
            self.reads_only and isinstance(model.optimizer, DPOptimizer)
        )
        if not is_private:
            raise NotPrivateError(
                f"{type(self).__name__} was given to a plain Keras model. It reads the "
                "ledger of private training, and this model has none. Call "
                "model = dp_train.make_private(model) first."
            )
        super().set_model(model)


class EpsilonLogger(_PrivacyCallback):
    """Shows the epsilon spent so far: progress bar, History and TensorBoard.

    Sets logs["epsilon"] after every epoch to the certified upper bound for the releases
    that were executed, `epsilon()`: the figure of the report, of targets and of
    BudgetStop, so that a fit that keeps within a target shows no more than that. With
    `log_dir`, writes the scalar "privacy/epsilon" against the number of releases;
    TensorBoard need not be installed for that.

    After a batch it is an estimate, computed whenever the releases have grown by a
    hundredth, or by a tenth where that takes long, and where a new kind of release
    came. Batches in between continue the curve, which errs upward while releases stay
    alike.

    Args:
        delta: in (0, 1), well below 1 / examples.
        log_dir: directory for TensorBoard event files, or None.
        update_freq: "epoch", or the number of releases between two scalars.

    Raises:
        ValueError: delta is outside (0, 1), or update_freq is neither.
    """

    reads_only = True

    def __init__(
        self, delta: float, log_dir: Any = None, update_freq: str | int = "epoch"
    ) -> None:
        super().__init__()
        self.delta = _checked_delta(delta)
        if update_freq != "epoch" and not (
            isinstance(update_freq, int) and update_freq >= 1
        ):
            raise ValueError(
                f"update_freq must be 'epoch' or a positive integer. Received: "
                f"update_freq={update_freq!r}. It says how often a scalar is written. "
                "Use 'epoch'."
            )
        self.update_freq = update_freq
        self.log_dir = log_dir
        self._writer: Any = None
        self._written = 0
        self._reading = _Reading(self.delta)

    def epsilon(self) -> float:
        """Certified upper bound on epsilon at `delta` for the releases so far."""
        ledger = self.ledger
        accountant = DefaultAccountant(ledger.supported_relation())
        return accountant.compose_ledger(ledger).epsilon(self.delta).upper

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the event file."""
        if isinstance(self.model, PrivateModel):
            population = self.model._privacy.population
        else:
            sampling = self.model.optimizer._account.sampling
            population = getattr(sampling, "population", None)
        warn_of_large_delta(self.delta, population)
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        self._written = self.ledger.total
        self._reading = _Reading(self.delta)
        _note_delta(self)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Sets logs["epsilon"]."""
        epsilon = self._reading.cheap(self.ledger)
        if logs is not None:
            logs["epsilon"] = epsilon
        every = self.update_freq
        if isinstance(every, int) and self.ledger.total - self._written >= every:
            self._write(epsilon)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Sets logs["epsilon"] and writes the scalar."""
        epsilon = self.epsilon()
        if logs is not None:
            logs["epsilon"] = epsilon
        self._write(epsilon)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, epsilon: float) -> None:
        """One scalar; tf.summary.scalar would need TensorBoard installed."""
        if self._writer is None:
            return
        self._written = self.ledger.total
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = "scalars"
        metadata.data_class = 1  # DATA_CLASS_SCALAR
        with self._writer.as_default():
            tf.summary.write(
                "privacy/epsilon",
                tf.constant(epsilon, tf.float32),
                step=self._written,
                metadata=metadata,
            )


class _Reading:
    """Estimates of epsilon during one fit, in a small share of its time.

    Args:
        delta: the delta.
        clock: seconds.
    """

    # Seconds that reading may take: at once, and as a share of the time that passed.
    AT_ONCE = 0.1
    SHARE = 0.003
    # How much the releases grow before the next reading, and where one is slow, which
    # takes so many seconds.
    GROWTH = 1.01
    SLOW = 1e-3
    SLOW_GROWTH = 1.1
    POWER = 0.65

    def __init__(
        self, delta: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._delta, self._clock = delta, clock
        self._start, self._taken, self._latest = clock(), 0.0, 0.0
        self._kinds = 0
        # (releases, epsilon) of the last reading, and of two earlier ones: a slope
        # between neighbors would be that of the estimate's error.
        self._last = self._earlier = self._earliest = (0, 0.0)

    def exact(self, ledger: Ledger) -> float:
        """The estimate for everything in the ledger."""
        begin = self._clock()
        total = ledger.total
        accountant = DefaultAccountant(ledger.supported_relation())
        epsilon = accountant.compose_ledger(ledger).running_epsilon(self._delta)
        self._last, self._kinds = (total, epsilon), len(ledger)
        if total > 1.05 * self._earlier[0]:
            self._earliest, self._earlier = self._earlier, self._last
        self._latest = self._clock() - begin
        self._taken += self._latest
        return epsilon

    def cheap(self, ledger: Ledger) -> float:
        """The estimate, or a continuation upward while reading takes too long."""
        total, passed = ledger.total, self._clock() - self._start
        growth = self.GROWTH if self._latest < self.SLOW else self.SLOW_GROWTH
        is_due = total >= growth * self._last[0] or len(ledger) != self._kinds
        if is_due and self._taken <= self.AT_ONCE + self.SHARE * passed:
            return self.exact(ledger)
        (x, y), (x_last, y_last) = self._earliest, self._last
        slope = (y_last - y) / max(x_last - x, 1)
        straight = y_last + max(slope, 0.0) * (total - x_last)
        # Epsilon grows like the root of the releases, and somewhat faster later on.
        power = y_last * (total / max(x_last, 1)) ** self.POWER
        return min(straight, power)


class BudgetStop(_PrivacyCallback):
    """Stops training before it would exceed (target_epsilon, target_delta).

    At the start of a fit it finds the largest number of steps whose certified upper
    bound is within the budget, with everything spent before. A guard inside the
    compiled step enforces it, also in the middle of `steps_per_execution`. A step with
    less noise than there was at the start is refused; more noise costs steps.

    Args:
        target_epsilon: > 0.
        target_delta: in (0, 1).

    Raises:
        BudgetSpentError: when fit starts and not one step is left.
    """

    def __init__(self, target_epsilon: float, target_delta: float) -> None:
        super().__init__()
        if not 0 < target_epsilon < float("inf"):
            raise ValueError(
                f"target_epsilon must be positive and finite. Received: "
                f"target_epsilon={target_epsilon!r}. Training stops before exceeding "
                "it. Values from 0.5 to 10 are usual."
            )
        self.target_epsilon = target_epsilon
        self.target_delta = _checked_delta(target_delta)
        self._is_armed = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Waits for the first batch: other callbacks may restore a checkpoint."""
        self._is_armed = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Finds the number of steps before the first, and arms the guard."""
        if not self._is_armed:
            self._arm()
            self._is_armed = True

    def _arm(self) -> None:
        state = self.model._privacy
        ledger = self.ledger
        noise_multiplier = self.model.optimizer.noise_multiplier
        event = state.account.sampling.event(GaussianEvent(noise_multiplier))
        steps = calibrate.steps(
            self.target_epsilon,
            self.target_delta,
            event,
            relation=ledger.supported_relation(event),
            spent=ledger,
        )
        if steps == 0:
            raise BudgetSpentError(
                f"Not one more step stays within epsilon={self.target_epsilon} at "
                f"delta={self.target_delta}, after {ledger.total} releases. A further "
                "step would exceed the budget. Raise the budget, or the noise, or stop "
                "here."
            )
        _note_delta(self)
        state.restrict(steps)
        state.account.least_noise_multiplier = noise_multiplier

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Ends fit once the guard holds the steps back."""
        if self.model._privacy.is_exhausted:
            self.model.stop_training = True


def _note_delta(callback: Any) -> None:
    """Lets the report name a delta that is not its own."""
    delta = getattr(callback, "target_delta", None) or callback.delta
    name = type(callback).__name__
    callback.ledger.remark("several_deltas", f"{name} at delta {delta:g}")


def _checked_delta(delta: float) -> float:
    if not 0 < float(delta) < 1:
        raise ValueError(
            f"delta must be strictly between 0 and 1. Received: delta={delta!r}. It is "
            "the probability by which the guarantee may fail. Choose it well below "
            "1 / examples, for instance 1e-5."
        )
    return float(delta)
