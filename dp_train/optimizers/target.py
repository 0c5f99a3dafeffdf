"""A target (epsilon, delta): the steps that share it, and the noise that keeps it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from accounting import (
    BudgetSpentError,
    DefaultAccountant,
    Event,
    GaussianEvent,
    Ledger,
    PoissonSampledEvent,
    calibrate,
)
from dp_train.errors import PrivacyWarning

_SPENT = 1e-3
"""A target of which less than this share is left counts as spent."""


@dataclass(frozen=True)
class Target:
    """What all releases together must stay within.

    Attributes:
        epsilon: finite, > 0.
        delta: in (0, 1).
        steps: how many steps of all fits share it; None: each fit spends what is left.
    """

    epsilon: float
    delta: float
    steps: int | None = None

    def covered_steps(self, planned: int, made: int) -> int:
        """Steps that the noise is calibrated for: of this fit, or of all to come.

        Args:
            planned: steps of the coming fit.
            made: steps that were made for this target.

        Raises:
            BudgetSpentError: all steps that share the target are made.
            ValueError: fewer are left than the fit plans.
        """
        if self.steps is None:
            return planned
        left = self.steps - made
        if left <= 0:
            raise BudgetSpentError(
                f"All of target_steps={self.steps} are made. The noise was calibrated "
                f"for so many, and they spent the target epsilon of {self.epsilon:g}. "
                "Raise target_epsilon, in a new optimizer; or train on other data."
            )
        if planned > left:
            raise ValueError(
                f"fit plans {planned} steps, and of target_steps={self.steps} there "
                f"are {left} left after {made}. More would exceed the target epsilon "
                f"of {self.epsilon:g}. Pass fewer epochs or steps_per_epoch; or begin "
                "with an optimizer of more target_steps."
            )
        return left

    def noise_multiplier(
        self,
        ledger: Ledger,
        event: Callable[[float], Event],
        steps: int,
        known: float | None = None,
    ) -> float:
        """The noise with which so many more steps stay within the target.

        Args:
            ledger: what was spent.
            event: noise multiplier -> event of one step.
            steps: how many.
            known: noise that was calibrated before. It stays where several fits share
                the target, as long as it keeps it; else the least is found.

        Raises:
            BudgetSpentError: next to nothing is left, or no noise is enough.
        """
        relation = ledger.supported_relation(event(1.0))
        spent = DefaultAccountant(relation).compose_ledger(ledger)
        epsilon = spent.epsilon(self.delta).upper
        if epsilon > self.epsilon * (1 - _SPENT):
            raise BudgetSpentError(
                f"The target epsilon of {self.epsilon:g} is spent: {ledger.total} "
                f"releases cost {epsilon:.6g} at delta {self.delta:g}. What is left "
                "would need so much noise that nothing is learned; without "
                "target_steps each fit spends the whole target on its own steps. Raise "
                "target_epsilon, in a new optimizer; or train on other data; or begin "
                "with target_steps, the steps of all fits together, and try out on "
                "made-up data."
            )
        if self.steps is not None and known is not None:
            same = event(known)
            if same in {release.event for release in ledger}:
                whole = spent.compose(same, steps).epsilon(self.delta).upper
                if whole <= self.epsilon:
                    return known
        return calibrate.noise_multiplier(
            self.epsilon,
            self.delta,
            1.0,
            steps,
            relation=relation,
            spent=ledger,
            make_event=event,
        )

    def warn_of_ready_made_batches(
        self, ledger: Ledger, noise_multiplier: float, steps_per_epoch: int, steps: int
    ) -> None:
        """Warns of the noise that a target takes on batches that somebody else made.

        Args:
            ledger: what was spent.
            noise_multiplier: what they take.
            steps_per_epoch: batches that hold each example once.
            steps: how many steps share the target from now on.
        """

        def drawn(noise: float) -> Event:
            return PoissonSampledEvent(1 / steps_per_epoch, GaussianEvent(noise))

        less = self.noise_multiplier(ledger, drawn, steps)
        warnings.warn(
            f"target_epsilon={self.epsilon:g} takes a noise_multiplier of "
            f"{noise_multiplier:.4g} on batches that somebody else made: no "
            f"amplification by sampling is proved for them. {less:.4g} would do if the "
            "batches were drawn here. Pass arrays to fit, or a PoissonLoader.",
            PrivacyWarning,
            stacklevel=4,
        )
