"""The statement a user may publish: what was released, and what it does not cover."""

import dataclasses
import importlib
import json
import math
import textwrap
from collections.abc import Callable, Collection
from typing import Any

from accounting.accountant import Accountant, Bounds
from accounting.checklist import CAVEATS, UNIT, Caveat
from accounting.default import DefaultAccountant
from accounting.events import (
    Event,
    FixedSizeSampledEvent,
    PoissonSampledEvent,
    RandomAllocationEvent,
    TruncatedPoissonSampledEvent,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
)
from accounting.filters import RenyiOdometer
from accounting.ledger import Ledger, Release, Remark
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation

SCHEMA_VERSION = 2


_NAMES = {
    "rdp": "by Renyi divergences",
    "no_amplification": "without amplification by sampling",
    "plan": "of the whole plan, if stopping was decided on results",
    "odometer": "wherever one stops, whatever is decided on results",
}
# What a ledger does not show, and whoever asks for a report may know.
_NOT_IN_LEDGERS = ("changed_elsewhere",)
# What only a plan needs to say.
_OF_PLANS = ("no_tight_bound", "shuffling", "own_step", "plan_only")


@dataclasses.dataclass(frozen=True, slots=True)
class PrivacyReport:
    """What was released and what it says about one example.

    Attributes:
        releases: kinds of releases with their counts, as recorded.
        relation: the neighboring relation of the statement.
        delta: probability with which epsilon may fail.
        epsilon: bounds on epsilon at delta.
        accountant: name of the method that computed the bounds.
        version: version of the accounting package.
        population: number of examples if known.
        is_private: False if the noise was not secret.
        comparisons: upper epsilon by Renyi divergences ("rdp") and without counting any
            sampling ("no_amplification"); where training may have been steered by
            results, with the releases that were planned and not made ("plan"), and at
            any stop ("odometer"). None where no bound is known.
        caveats: what the statement does not cover.
    """

    releases: tuple[Release, ...]
    relation: NeighboringRelation
    delta: float
    epsilon: Bounds
    accountant: str
    version: str
    population: int | None
    is_private: bool
    comparisons: tuple[tuple[str, float | None], ...]
    caveats: tuple[Caveat, ...]

    def __str__(self) -> str:
        if not self.releases:
            lines = [
                "Privacy statement: this ledger holds no release. That says nothing of"
                " what was released before it began."
            ]
            for caveat in self.caveats:
                lines += _wrapped(f"[{caveat.id}] {caveat.text}", "    ")
            return "\n".join(lines)
        claim = f"epsilon {self.epsilon} at delta {self.delta:g}"
        if not self.is_private:
            claim = f"NOT PRIVATE (insecure noise); with secret noise {claim}"
        lines = [
            f"Privacy statement: {claim}",
            f"  Unit: {UNIT}. Relation: {self.relation.value}.",
            *_wrapped(self.relation.description, "  ", hang=""),
            f"  Sampling: {'; '.join(self.sampling())}.",
            "  Released:",
        ]
        for release in self.releases:
            lines.append(f"    {release.count} x {release.event.describe()},")
            lines.append(
                f"        clip norm {release.l2_norm_clip:g},"
                f" noise from {release.noise_source}"
            )
        lines.append(f"  Accountant: {self.accountant}, accounting {self.version}.")
        known = [
            f"{_NAMES[name]} {Bounds(0.0, value, value, True)}"
            for name, value in self.comparisons
            if value is not None
        ]
        lines += _wrapped(f"For comparison, epsilon {'; '.join(known)}.", "  ")
        lines.append("  Caveats:")
        for caveat in self.caveats:
            lines += _wrapped(f"[{caveat.id}] {caveat.text}", "    ")
        return "\n".join(lines)

    def sampling(self) -> tuple[str, ...]:
        """Each way in which batches were formed, in words."""
        return tuple(dict.fromkeys(_sampling(r.event) for r in self.releases))

    def to_json(self) -> str:
        """The statement as one JSON object; infinity is the text "infinity"."""
        content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "accounting_version": self.version,
            "accountant": self.accountant,
            "unit": UNIT,
            "relation": self.relation.value,
            "relation_meaning": self.relation.description,
            "delta": self.delta,
            "epsilon": self.epsilon.to_dict(),
            "is_private": self.is_private,
            "population": self.population,
            "comparisons": {
                name: "infinity" if value == math.inf else value
                for name, value in self.comparisons
            },
            "sampling": list(self.sampling()),
            "releases": [
                {
                    "event": release.event.to_dict(),
                    "count": release.count,
                    "l2_norm_clip": release.l2_norm_clip,
                    "noise_source": release.noise_source,
                }
                for release in self.releases
            ],
            "caveats": [dataclasses.asdict(caveat) for caveat in self.caveats],
        }
        return json.dumps(content, indent=2, allow_nan=False)


def privacy_report(
    ledger: Ledger,
    delta: float,
    *,
    relation: NeighboringRelation | None = None,
    population: int | None = None,
    accountant: Callable[[NeighboringRelation], Accountant] = DefaultAccountant,
    further_caveats: Collection[str] = (),
) -> PrivacyReport:
    """States what a ledger's releases reveal about one example.

    Args:
        ledger: what was released.
        delta: in (0, 1), should be well below 1 / population.
        relation: None means the strongest that has a bound for the ledger.
        population: number of examples, if it may be published.
        accountant: relation -> accountant.
        further_caveats: ids of limits that a ledger does not show.

    Returns:
        The report; print it, or take `to_json()`.

    Raises:
        ValueError: delta or population out of range.
        UnsupportedEventError: the relation asked for has no bound for an event.
    """
    if population is not None and not population >= 1:
        raise ValueError(
            f"population is {population!r}, not a number of examples. Delta is compared"
            " with 1 / population. Pass the number of examples, or None."
        )
    # One copy, so that a step charged meanwhile is in all lines or in none.
    ledger = Ledger.from_json(ledger.to_json())
    if relation is None:
        relation = ledger.supported_relation()
    composed = accountant(relation).compose_ledger(ledger)
    epsilon = composed.epsilon(delta)
    is_unverified = any(
        isinstance(release.event, UnverifiedSamplingEvent) for release in ledger
    )
    present = {
        "insecure_noise": not ledger.is_private,
        "no_noise": epsilon.upper == float("inf"),
        "delta_too_large": population is not None and delta >= 1 / population,
        "unverified_sampling": is_unverified,
        "chosen_by_looking": _may_be_steered(ledger),
    }
    two_pairs = any(isinstance(r.event, FixedSizeSampledEvent) for r in ledger)
    present |= dict.fromkeys(_OF_PLANS, False) | {"two_pairs": two_pairs}
    has_releases = ledger.total > 0
    present["ledger_scope"] = True
    present |= {id: id in further_caveats for id in _NOT_IN_LEDGERS}
    return PrivacyReport(
        releases=ledger.releases,
        relation=relation,
        delta=delta,
        epsilon=epsilon,
        accountant=composed.name,
        version=package_version(),
        population=population,
        is_private=ledger.is_private,
        comparisons=_comparisons(ledger, delta, relation, accountant),
        caveats=tuple(
            Caveat(id, _with_details(id, text, ledger.remarks))
            for id, text in CAVEATS.items()
            if present.get(id, has_releases)
        ),
    )


def _with_details(id: str, text: str, remarks: tuple[Remark, ...]) -> str:
    """A caveat with what was seen in this training."""
    seen = dict.fromkeys(r.detail for r in remarks if r.caveat == id)
    return f"{text} Here: {'; '.join(seen)}." if seen else text


def _may_be_steered(ledger: Ledger) -> bool:
    """Whether what was released, or how often, may hang on earlier results."""
    noises = {getattr(e, "noise_multiplier", None) for e in map(_inner, ledger)}
    return len(noises) > 1 or any(
        remark.caveat == "chosen_by_looking" for remark in ledger.remarks
    )


def _inner(release: Release) -> Event:
    """The release without its sampling."""
    return getattr(release.event, "event", release.event)


def _comparisons(
    ledger: Ledger,
    delta: float,
    relation: NeighboringRelation,
    accountant: Callable[[NeighboringRelation], Accountant],
) -> tuple[tuple[str, float | None], ...]:
    """What other ways to count the same releases would say."""

    def upper(
        make: Callable[[NeighboringRelation], Accountant],
        of: Callable[[Event], Event],
    ) -> float | None:
        composed = make(relation)
        try:
            for release in ledger:
                composed.compose(of(release.event), release.count)
        except UnsupportedEventError:
            return None
        return composed.epsilon(delta).upper

    found = [
        ("rdp", upper(RdpAccountant, lambda event: event)),
        ("no_amplification", upper(accountant, _unsampled)),
    ]
    foregone = [r.foregone for r in ledger.remarks if r.foregone is not None]
    if foregone:
        whole = accountant(relation).compose_ledger(ledger)
        for event, count in foregone:
            whole.compose(event, count)
        found.append(("plan", whole.epsilon(delta).upper))
    if _may_be_steered(ledger):
        found.append(("odometer", _odometer(ledger, delta, relation)))
    return tuple(found)


def _odometer(
    ledger: Ledger, delta: float, relation: NeighboringRelation
) -> float | None:
    """Epsilon that holds although results may have decided what came next."""
    odometer = RenyiOdometer(delta, relation=relation)
    try:
        for release in ledger:
            odometer.record(release.event, release.count)
    except UnsupportedEventError:
        return None
    return odometer.epsilon


def _unsampled(event: Event) -> Event:
    """The release as if every example took part in it."""
    match event:
        case (
            PoissonSampledEvent(event=inner)
            | FixedSizeSampledEvent(event=inner)
            | TruncatedPoissonSampledEvent(event=inner)
            | RandomAllocationEvent(event=inner)
        ):
            return inner
    return event


def package_version() -> str:
    """Version of accounting; looked up late, for the package imports this module."""
    return str(importlib.import_module("accounting").__version__)


def _sampling(event: Event) -> str:
    """How batches were formed for one kind of release."""
    match event:
        case PoissonSampledEvent(probability, _):
            return f"Poisson, each example with probability {probability:.6g} per step"
        case FixedSizeSampledEvent(population, size, _):
            return f"fixed size, {size} of {population} without replacement per step"
        case TruncatedPoissonSampledEvent(probability, _, _, most):
            return (
                f"Poisson, each example with probability {probability:.6g} per step,"
                f" at most {most} kept"
            )
        case RandomAllocationEvent(bins, _):
            return f"each example in one of {bins} steps of every pass, at random"
        case UnverifiedSamplingEvent():
            return "ready-made batches, no amplification counted"
    return "none, every example in every step"


def _wrapped(text: str, indent: str, hang: str = "  ") -> list[str]:
    return textwrap.wrap(
        text,
        79,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_on_hyphens=False,
    )
