"""What a fit says in one line before it starts: sampling, noise, budget to be spent."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

from absl import logging

from accounting import DefaultAccountant, Event, Ledger


def delta_of(candidates: Iterable[Any], population: int | None) -> float:
    """The delta that a fit is told to read epsilon at, or a power of ten below 1 / N.

    Args:
        candidates: optimizer and callbacks; the first that has a delta is asked.
        population: N, or None where it is not known.
    """
    for candidate in candidates:
        for name in ("target_delta", "delta"):
            found = getattr(candidate, name, None)
            if isinstance(found, float):
                return found
    return 1e-5 if population is None else 10.0 ** -(1 + int(math.log10(population)))


_traced: weakref.WeakSet[Any] = weakref.WeakSet()


def is_first_trace(fit: dict[str, Any]) -> bool:
    """Whether no step of this fit of a plain model was traced before.

    Args:
        fit: its arguments; its callbacks are those of no other fit.
    """
    is_first = fit["callbacks"] not in _traced
    _traced.add(fit["callbacks"])
    return is_first


def steps_of(fit: dict[str, Any]) -> int | None:
    """Planned steps of a plain model's fit, from its arguments; None if unknown."""
    steps = fit["callbacks"].params.get("steps")
    return None if steps is None else steps * (fit["epochs"] - fit["initial_epoch"])


def announce(
    event: Event,
    steps: int | None,
    l2_norm_clip: float,
    ledger: Ledger,
    delta: float,
    *,
    target: float | None = None,
    is_shown: bool,
) -> None:
    """Logs the line, at level info; prints it, too, where a fit shows its progress.

    Args:
        event: of one step.
        steps: how many are planned, or None if that is not known.
        l2_norm_clip: C.
        ledger: what was spent before.
        delta: of the epsilons in the line.
        target: epsilon that is promised at that delta; then the figures are certified
            bounds, as those of targets and reports are. None: they are estimates.
        is_shown: whether fit is verbose.
    """
    accountant = DefaultAccountant(ledger.supported_relation(event))

    def figure() -> str:
        if target is None:
            return f"about {accountant.running_epsilon(delta):.4g}"
        # In as many digits as the target: rounded alike, it stays within.
        return f"at most {accountant.epsilon(delta).upper:g}"

    accountant.compose_ledger(ledger)
    spent = f"{figure()} is spent" if ledger.total else "nothing is spent"
    coming = "the number of steps is not known"
    if steps:
        accountant.compose(event, steps)
        coming = f"{figure()} will be at the end"
    aim = "" if target is None else f", of a target of {target:g}"
    line = (
        f"dp_train: {'?' if steps is None else steps} steps of {event.describe()}, "
        f"clip norm {l2_norm_clip:g}; of epsilon at delta {delta:g} {spent}, {coming}"
        f"{aim}."
    )
    logging.info(line)
    if is_shown:
        print(line, flush=True)
