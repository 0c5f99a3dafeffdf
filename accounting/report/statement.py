"""The statement a user may publish: what was released, and what it does not cover."""

import dataclasses
import html
import json
import math
import textwrap
from collections.abc import Callable
from typing import Any

from accounting._version import __version__
from accounting.accountant import Accountant, Bounds
from accounting.budget import RenyiOdometer
from accounting.caveats import CAVEATS, UNIT, Caveat
from accounting.events import (
    Event,
    FixedSizeSampledEvent,
    Ledger,
    NeighboringRelation,
    PoissonSampledEvent,
    RandomAllocationEvent,
    Release,
    TruncatedPoissonSampledEvent,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
    checked_count,
)
from accounting.events.normal_form import without_sampling
from accounting.pld import DefaultAccountant
from accounting.promise import Promise
from accounting.rdp import RdpAccountant
from accounting.report.users import composed_for_users, seen_by_user, unit_of

SCHEMA_VERSION = 2


_NAMES = {
    "rdp": "by Renyi divergences",
    "no_amplification": "without amplification by sampling",
    "plan": "of the whole plan, if stopping was decided on results",
    "odometer": "wherever one stops, whatever is decided on results",
}
# What only a plan needs to say.
_OF_PLANS = ("no_tight_bound", "shuffling", "own_step", "plan_only")


@dataclasses.dataclass(frozen=True, slots=True)
class PrivacyReport(Promise):
    """What was released and what it says about one example.

    Where a number is asked for (`float`, `<`, `f"{report:.2f}"`, `round`), it is the
    epsilon that may be promised: the upper bound, infinite if the noise was not secret.

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
        max_examples_per_user: the most examples of the person who is protected.
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
    max_examples_per_user: int = 1

    @property
    def promised(self) -> float:
        """The epsilon that may be promised."""
        return self.epsilon.upper if self.is_private else math.inf

    @property
    def unit(self) -> str:
        """Whose data is protected, in words."""
        return unit_of(self.max_examples_per_user)

    @property
    def relation_meaning(self) -> str:
        """What is compared, in one sentence."""
        is_example = self.max_examples_per_user == 1
        return self.relation.describe(UNIT if is_example else "one user")

    def claim(self) -> str:
        """The figure in words."""
        claim = f"epsilon {self.epsilon} at delta {self.delta:g}"
        if self.is_private:
            return claim
        return f"NOT PRIVATE (insecure noise); with secret noise {claim}"

    def __str__(self) -> str:
        if not self.releases:
            lines = [
                "Privacy statement: this ledger holds no release. That says nothing of"
                " what was released before it began."
            ]
            for caveat in self.caveats:
                lines += _wrapped(f"[{caveat.id}] {caveat.text}", "    ")
            return "\n".join(lines)
        lines = [
            f"Privacy statement: {self.claim()}",
            f"  Unit: {self.unit}. Relation: {self.relation.value}.",
            *_wrapped(self.relation_meaning, "  ", hang=""),
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

    def _repr_html_(self) -> str:
        """The statement for notebooks."""
        rows = {
            "unit": self.unit,
            "relation": f"{self.relation.value}. {self.relation_meaning}",
            "sampling": "; ".join(self.sampling()),
            "released": "; ".join(
                f"{release.count} x {release.event.describe()}, clip norm"
                f" {release.l2_norm_clip:g}"
                for release in self.releases
            ),
            "accountant": f"{self.accountant}, accounting {self.version}",
        }
        cells = "".join(
            f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>"
            for name, text in rows.items()
        )
        caveats = "".join(f"<li>{html.escape(c.text)}</li>" for c in self.caveats)
        claim = html.escape(self.claim() if self.releases else "nothing was released")
        return (
            f"<p><b>Privacy statement: {claim}</b></p><table>{cells}</table>"
            f"<details><summary>Caveats</summary><ul>{caveats}</ul></details>"
        )

    def to_json(self) -> str:
        """The statement as one JSON object; infinity is the text "infinity"."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The same as a mapping that `json.dumps` takes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "accounting_version": self.version,
            "accountant": self.accountant,
            "unit": self.unit,
            "relation": self.relation.value,
            "relation_meaning": self.relation_meaning,
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


def privacy_report(
    ledger: Ledger,
    delta: float,
    *,
    relation: NeighboringRelation | None = None,
    population: int | None = None,
    accountant: Callable[[NeighboringRelation], Accountant] = DefaultAccountant,
    max_examples_per_user: int = 1,
) -> PrivacyReport:
    """States what a ledger's releases reveal about one example.

    Args:
        ledger: what was released.
        delta: in (0, 1), should be well below 1 / population.
        relation: None means the strongest that has a bound for the ledger.
        population: number of examples, if it may be published.
        accountant: relation -> accountant.
        max_examples_per_user: the most examples of one person, to protect persons.

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
    users = checked_count(
        max_examples_per_user, "max_examples_per_user", "what one user owns at most"
    )
    composed = composed_for_users(accountant(relation), ledger, users)
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
        "changed_elsewhere": any(
            remark.caveat == "changed_elsewhere" for remark in ledger.remarks
        ),
        "several_deltas": bool(_other_deltas(ledger, delta)),
        "one_person": users == 1 and ledger.total > 0,
    }
    two_pairs = any(isinstance(r.event, FixedSizeSampledEvent) for r in ledger)
    present |= dict.fromkeys(_OF_PLANS, False) | {"two_pairs": two_pairs}
    has_releases = ledger.total > 0
    present["ledger_scope"] = True
    return PrivacyReport(
        releases=ledger.releases,
        relation=relation,
        delta=delta,
        epsilon=epsilon,
        accountant=composed.name,
        version=package_version(),
        population=population,
        is_private=ledger.is_private,
        comparisons=_comparisons(ledger, delta, relation, accountant, users),
        max_examples_per_user=users,
        caveats=tuple(
            Caveat(id, _with_details(id, text, ledger, delta))
            for id, text in CAVEATS.items()
            if present.get(id, has_releases)
        ),
    )


def _other_deltas(ledger: Ledger, delta: float) -> list[str]:
    """Where another delta than this one was read or aimed at."""
    return [
        remark.detail
        for remark in ledger.remarks
        if remark.caveat == "several_deltas"
        and not remark.detail.endswith(f"at delta {delta:g}")
    ]


def _with_details(id: str, text: str, ledger: Ledger, delta: float) -> str:
    """A caveat with what was seen in this training."""
    details = [r.detail for r in ledger.remarks if r.caveat == id]
    if id == "several_deltas":
        details = _other_deltas(ledger, delta)
    seen = dict.fromkeys(details)
    return f"{text} Here: {'; '.join(seen)}." if seen else text


def _may_be_steered(ledger: Ledger) -> bool:
    """Whether what was released, or how often, may hang on earlier results.

    Releases of several kinds may be a plan; the ledger alone cannot tell.
    """
    return len({release.event for release in ledger}) > 1 or any(
        remark.caveat == "chosen_by_looking" for remark in ledger.remarks
    )


def _comparisons(
    ledger: Ledger,
    delta: float,
    relation: NeighboringRelation,
    accountant: Callable[[NeighboringRelation], Accountant],
    users: int,
) -> tuple[tuple[str, float | None], ...]:
    """What other ways to count the same releases would say."""

    def upper(
        make: Callable[[NeighboringRelation], Accountant],
        of: Callable[[Event], Event],
    ) -> float | None:
        composed = make(relation)
        try:
            for release in ledger:
                event = seen_by_user(of(release.event), users, relation)
                composed.compose(event, release.count)
        except UnsupportedEventError:
            return None
        return composed.epsilon(delta).upper

    found = [
        ("rdp", upper(RdpAccountant, lambda event: event)),
        (
            "no_amplification",
            upper(accountant, lambda e: without_sampling(e, relation)),
        ),
    ]
    foregone = [r.foregone for r in ledger.remarks if r.foregone is not None]
    if foregone:
        whole = composed_for_users(accountant(relation), ledger, users)
        for event, count in foregone:
            whole.compose(seen_by_user(event, users, relation), count)
        found.append(("plan", whole.epsilon(delta).upper))
    if _may_be_steered(ledger):
        found.append(("odometer", _odometer(ledger, delta, relation, users)))
    return tuple(found)


def _odometer(
    ledger: Ledger, delta: float, relation: NeighboringRelation, users: int
) -> float | None:
    """Epsilon that holds although results may have decided what came next."""
    odometer = RenyiOdometer(delta, relation=relation)
    try:
        for release in ledger:
            odometer.record(seen_by_user(release.event, users, relation), release.count)
    except UnsupportedEventError:
        return None
    return odometer.epsilon


def package_version() -> str:
    """Version of accounting."""
    return __version__


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
