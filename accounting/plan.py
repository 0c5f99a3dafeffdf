"""A planned DP-SGD training and its answer: epsilon, or the noise for a target."""

import dataclasses
import math
from typing import Any

from accounting.accountant import Bounds
from accounting.calibrate import noise_multiplier
from accounting.crossing import MakeAccountant
from accounting.default import DefaultAccountant
from accounting.events import (
    Event,
    FixedSizeSampledEvent,
    GaussianEvent,
    PoissonSampledEvent,
    UnverifiedSamplingEvent,
)
from accounting.pld import PldAccountant
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation
from accounting.report import package_version

PROGRAM = "compute_dp_sgd_privacy"
SCHEMA_VERSION = 1
DEFAULT_ACCOUNTANT = PldAccountant.name
ACCOUNTANTS: dict[str, MakeAccountant] = {
    "pld": DefaultAccountant,
    "rdp": RdpAccountant,
}
SAMPLINGS = {
    "poisson": (
        "Poisson: each example enters each batch by its own independent coin, with"
        " probability batch_size / N"
    ),
    "fixed_size": (
        "fixed size: batch_size examples drawn anew without replacement for each step"
    ),
    "shuffle": (
        "batches of a fixed size from a shuffled dataset, each example once in a pass"
    ),
    "none": "none: each example may be in every batch",
}
_NO_TIGHT_BOUND = (
    "No tight bound is known for shuffled batches. This is what one release for each"
    " pass over the data would cost without any sampling, a valid upper bound; nothing"
    " is known from below."
)
_TWO_PAIRS = (
    "For batches of a fixed size the bounds are 2 to 20 % apart by nature: the lower"
    " one is attained, the upper one covers data chosen anew for each step."
)
_SHUFFLING = (
    "Batches of a shuffled dataset are not Poisson-sampled and must not borrow this"
    " figure: their epsilon can be several times larger (Chua et al. 2024,"
    " arXiv:2403.17673)."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The validated question."""

    population: int
    batch_size: int
    steps: int
    delta: float
    relation: NeighboringRelation
    noise_multiplier: float | None
    target_epsilon: float | None
    sampling: str
    accountant: str
    curve: bool

    @property
    def sampling_probability(self) -> float:
        return self.batch_size / self.population

    @property
    def count(self) -> int:
        """Releases that an example takes part in, at most."""
        if self.sampling != "shuffle":
            return self.steps
        return -(-self.steps // (self.population // self.batch_size))

    @property
    def make_accountant(self) -> MakeAccountant:
        """Relation -> the accountant that was asked for."""
        return ACCOUNTANTS[self.accountant]

    def event(self, noise: float) -> Event:
        """One release that an example takes part in."""
        gaussian = GaussianEvent(noise)
        if self.sampling == "poisson":
            return PoissonSampledEvent(self.sampling_probability, gaussian)
        if self.sampling == "fixed_size":
            return FixedSizeSampledEvent(self.population, self.batch_size, gaussian)
        return UnverifiedSamplingEvent(gaussian)


def suggested_delta(population: int) -> str:
    """A power of ten at least ten times below 1 / population."""
    return f"1e-{len(str(population)) + 1}"


def _bounds(plan: Plan, event: Event, delta: float) -> Bounds:
    """Epsilon of the plan at a delta."""
    accountant = plan.make_accountant(plan.relation).compose(event, plan.count)
    bounds = accountant.epsilon(delta)
    if plan.sampling != "shuffle":
        return bounds
    # The releases counted are more than what was done: nothing follows from below.
    return Bounds(0.0, bounds.upper, bounds.upper, bounds.converged)


def answer(plan: Plan) -> dict[str, Any]:
    """The plan with its epsilon, JSON-safe."""
    noise = plan.noise_multiplier
    if noise is None:
        noise = noise_multiplier(
            plan.target_epsilon or 0.0,
            plan.delta,
            plan.sampling_probability,
            plan.count,
            relation=plan.relation,
            make_event=plan.event,
            accountant=plan.make_accountant,
        )
    event = plan.event(noise)
    bounds = _bounds(plan, event, plan.delta)
    renyi: float | str | None = None
    if plan.sampling != "fixed_size":
        composed = RdpAccountant(plan.relation).compose(event, plan.count)
        renyi = composed.epsilon(plan.delta).to_dict()["upper"]
    whole = plan.make_accountant(plan.relation).compose(
        GaussianEvent(noise), plan.steps
    )
    curve = [
        {"delta": delta, "epsilon": _bounds(plan, event, delta).to_dict()}
        for delta in (10.0**-k for k in range(3, 13))
        if plan.curve
    ]
    caveats = [_NO_TIGHT_BOUND if plan.sampling == "shuffle" else _SHUFFLING]
    if plan.sampling == "fixed_size":
        caveats.append(_TWO_PAIRS)
    if plan.delta >= 1 / plan.population:
        caveats.append(
            f"Delta is not below 1 / N = {1 / plan.population:.3g}; such a promise may"
            " give away whole examples. Choose"
            f" --delta={suggested_delta(plan.population)} or less."
        )
    if bounds.upper == math.inf:
        caveats.append("Without noise there is no privacy guarantee.")
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": PROGRAM,
        "version": package_version(),
        "N": plan.population,
        "batch_size": plan.batch_size,
        "sampling_probability": plan.sampling_probability,
        "steps": plan.steps,
        "noise_multiplier": noise,
        "target_epsilon": plan.target_epsilon,
        "delta": plan.delta,
        "relation": plan.relation.value,
        "relation_meaning": plan.relation.description,
        "sampling": SAMPLINGS[plan.sampling],
        "accountant": plan.accountant,
        "epsilon": bounds.to_dict(),
        "epsilon_text": str(bounds),
        "comparisons": {
            "rdp": renyi,
            "every_example_in_every_step": whole.epsilon(plan.delta).to_dict()["upper"],
        },
        "curve": curve,
        "event": event.to_dict(),
        "event_count": plan.count,
        "caveats": caveats,
    }


def text(result: dict[str, Any]) -> str:
    """The answer in lines of name and value."""
    noise = f"{result['noise_multiplier']:.6g}"
    if result["target_epsilon"] is not None:
        # Rounded up, so that what is read off the screen still reaches the target.
        noise = f"{math.ceil(result['noise_multiplier'] * 1e4) / 1e4:.4f}"
        noise += f" (for a target epsilon of {result['target_epsilon']:g})"
    lines = [
        f"examples N            {result['N']}",
        f"expected batch size   {result['batch_size']}",
        f"sampling probability  {result['sampling_probability']:.6g}",
        f"steps                 {result['steps']}",
        f"noise multiplier      {noise}",
        f"relation              {result['relation']}",
        f"                      {result['relation_meaning']}",
        f"sampling assumed      {result['sampling']}.",
        f"epsilon               {result['epsilon_text']}",
        f"delta                 {result['delta']:g}",
        f"accountant            {result['accountant']}, accounting {result['version']}",
        *(
            f"at delta {point['delta']:g}        at most {_shown(point)}"
            for point in result["curve"]
        ),
        *(f"caveat                {caveat}" for caveat in result["caveats"]),
    ]
    return "\n".join(lines)


def _shown(point: dict[str, Any]) -> str:
    """The upper epsilon of a point of the curve, rounded up."""
    upper = point["epsilon"]["upper"]
    return upper if isinstance(upper, str) else f"{math.ceil(upper * 1e4) / 1e4:.4f}"
