"""A planned DP-SGD training and its answer: epsilon, or what a target leaves open."""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from accounting.accountant import Accountant, Bounds
from accounting.budget import calibrate
from accounting.budget.target_search import MakeAccountant
from accounting.caveats import UNIT, caveats
from accounting.cli.sampling_schemes import SAMPLINGS, Scheme
from accounting.events import Event, NeighboringRelation, UnsupportedEventError
from accounting.pld import DefaultAccountant, PldAccountant
from accounting.rdp import RdpAccountant
from accounting.report import tradeoff
from accounting.report.statement import package_version

PROGRAM = "compute_dp_sgd_privacy"
SCHEMA_VERSION = 2
DEFAULT_ACCOUNTANT = PldAccountant.name
ACCOUNTANTS: dict[str, MakeAccountant] = {
    "pld": DefaultAccountant,
    "rdp": RdpAccountant,
}
_LEAST_DELTA, _MOST_DELTA = 1e-290, 0.5
CURVE_DELTAS = tuple(10.0**-k for k in range(3, 13))
CURVE_RATES = tuple(10.0**-k for k in range(1, 7))


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The validated question; with a target, one of the values is None and sought.

    Attributes:
        scheme: how batches are formed.
        batch_size: expected batch size.
        steps: number of noised steps, or what it is for a batch size.
        noise_multiplier: standard deviation of the noise / clip norm.
        delta: probability with which epsilon may fail.
        target_epsilon: the epsilon to reach; None if epsilon is asked for.
        relation: the neighboring relation.
        accountant: a key of ACCOUNTANTS.
        l2_norm_clip: what is printed with the noise; epsilon does not depend on it.
        has_curve: whether curves are wanted.
    """

    scheme: Scheme
    batch_size: int | None
    steps: int | Fraction | None
    noise_multiplier: float | None
    delta: float | None
    target_epsilon: float | None
    relation: NeighboringRelation
    accountant: str
    l2_norm_clip: float | None
    has_curve: bool

    @property
    def make_accountant(self) -> MakeAccountant:
        """Relation -> the accountant that was asked for."""
        return ACCOUNTANTS[self.accountant]

    def steps_for(self, batch_size: int) -> int:
        """Steps; a fraction is a number of passes, and epochs * N / B is rounded up."""
        if isinstance(self.steps, Fraction):
            return math.ceil(self.steps * self.scheme.population / batch_size)
        return self.steps or 0


@dataclasses.dataclass(frozen=True, slots=True)
class Solved:
    """A plan without gaps."""

    plan: Plan
    batch_size: int
    steps: int
    noise: float
    delta: float

    @property
    def event(self) -> Event:
        return self.plan.scheme.event(self.noise, self.batch_size)

    @property
    def count(self) -> int:
        return self.plan.scheme.count(self.batch_size, self.steps)

    def accountant(self, make: MakeAccountant | None = None) -> Accountant:
        """What the plan would release, composed."""
        composed = (make or self.plan.make_accountant)(self.plan.relation)
        return composed.compose(self.event, self.count)

    def bounds(self, delta: float) -> Bounds:
        """Epsilon at a delta."""
        bounds = self.accountant().epsilon(delta)
        if self.plan.scheme.name != "shuffle":
            return bounds
        lower = min(self._lower(delta), bounds.upper)
        return Bounds(lower, bounds.upper, bounds.upper, bounds.converged)

    def _lower(self, delta: float) -> float:
        """Epsilon that shuffling attains at least; 0 where nothing is known."""
        scheme = self.plan.scheme
        attained = scheme.attained(self.noise, self.batch_size, self.steps)
        if attained is None or self.plan.accountant != PldAccountant.name:
            return 0.0
        # What zeroing an example attains, replacing it by a zero gradient does too.
        composed = PldAccountant(NeighboringRelation.ZERO_OUT)
        try:
            return composed.compose(*attained).epsilon(delta).lower
        except (UnsupportedEventError, ArithmeticError, IndexError):
            # The upper bound does not need it; 0 claims nothing.
            return 0.0


def solve(plan: Plan) -> Solved:
    """Finds the value that the target leaves open, on the safe side.

    Raises:
        BudgetSpentError: no value reaches the target.
        UnsupportedEventError: no bound is known for the sampling and relation.
    """
    scheme, target = plan.scheme, plan.target_epsilon
    size, noise, delta = plan.batch_size, plan.noise_multiplier, plan.delta
    options: dict[str, Any] = {
        "relation": plan.relation,
        "accountant": plan.make_accountant,
    }
    if target is not None and size is None and noise is not None and delta is not None:
        known = noise

        def event_of(value: int) -> Event:
            return scheme.event(known, value)

        def count_of(value: int) -> int:
            return scheme.count(value, plan.steps_for(value))

        size = calibrate.batch_size(
            target, delta, noise, scheme.population, count_of, make_event=event_of,
            **options,
        )  # fmt: skip
    if size is None:
        raise ValueError("batch_size is None without a target that would decide it.")
    steps = plan.steps_for(size)
    if target is not None and plan.steps is None and noise and delta:
        steps = _steps(plan, size, noise, delta, target)
    count = scheme.count(size, steps)
    if target is not None and noise is None and delta is not None:
        fixed = size
        noise = calibrate.noise_multiplier(
            target, delta, 1.0, count, make_event=lambda s: scheme.event(s, fixed),
            **options,
        )  # fmt: skip
    if noise is None:
        raise ValueError("noise_multiplier is None without a target to decide it.")
    if target is not None and delta is None:
        make = plan.make_accountant
        composed = make(plan.relation).compose(scheme.event(noise, size), count)
        delta = _smallest_delta(composed, target)
    if delta is None:
        raise ValueError("delta is None without a target to decide it.")
    return Solved(plan, size, steps, noise, delta)


def _steps(plan: Plan, size: int, noise: float, delta: float, target: float) -> int:
    """The most steps within the target."""
    count = calibrate.steps(
        target,
        delta,
        plan.scheme.event(noise, size),
        relation=plan.relation,
        accountant=plan.make_accountant,
    )
    if count == 0:
        raise calibrate.BudgetSpentError(
            f"Not one step with noise multiplier {noise:g} and batch size {size} stays"
            f" within epsilon {target:g} at delta {delta:g}. One release is the least"
            " that trains anything. Raise the noise or the target, or take smaller"
            " batches."
        )
    return plan.scheme.steps(size, count)


def _smallest_delta(composed: Accountant, target: float) -> float:
    """Delta at which the upper epsilon is within the target."""
    if composed.epsilon(_MOST_DELTA).upper > target:
        raise calibrate.BudgetSpentError(
            f"No delta below {_MOST_DELTA:g} keeps epsilon within {target:g}. A promise"
            " that fails as often as not is none. Raise the noise or the target."
        )
    delta = max(composed.delta(target).upper, _LEAST_DELTA)
    factor = 1.0005
    while composed.epsilon(delta).upper > target:
        factor *= factor
        delta = min(delta * factor, _MOST_DELTA)
    return delta


def answer(plan: Plan) -> dict[str, Any]:
    """The plan with its epsilon, JSON-safe.

    Raises:
        BudgetSpentError: no value reaches the target.
        UnsupportedEventError: no bound is known for the sampling and relation.
    """
    return described(solve(plan))


def described(solved: Solved) -> dict[str, Any]:
    """Everything a statement about the plan needs, JSON-safe."""
    plan, scheme = solved.plan, solved.plan.scheme
    bounds = solved.bounds(solved.delta)
    whole = plan.make_accountant(plan.relation).compose(
        scheme.unsampled(solved.noise, solved.batch_size, plan.relation), solved.steps
    )
    users = scheme.max_examples_per_user
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": PROGRAM,
        "version": package_version(),
        "N": scheme.population,
        "batch_size": solved.batch_size,
        "sampling_probability": solved.batch_size / scheme.population,
        "max_batch_size": scheme.max_batch_size,
        "steps": solved.steps,
        "epochs": solved.steps * solved.batch_size / scheme.population,
        "noise_multiplier": solved.noise,
        "l2_norm_clip": plan.l2_norm_clip,
        "target_epsilon": plan.target_epsilon,
        "solved_for": _sought(plan),
        "delta": solved.delta,
        "unit": UNIT if users == 1 else f"one user with at most {users} examples",
        "relation": plan.relation.value,
        "relation_meaning": plan.relation.describe(UNIT if users == 1 else "one user"),
        "sampling": SAMPLINGS[scheme.name],
        "released": (
            "the noised sum of clipped gradients of every step, and with it all"
            " intermediate models and the final one"
        ),
        "accountant": plan.accountant,
        "epsilon": bounds.to_dict(),
        "epsilon_text": str(bounds),
        "comparisons": {
            "rdp": _upper(lambda: solved.accountant(RdpAccountant), solved.delta),
            "every_example_in_every_step": _upper(lambda: whole, solved.delta),
        },
        "curve": _curve(solved) if plan.has_curve else [],
        "tpr_at_fpr": _rates(solved) if plan.has_curve else [],
        "event": solved.event.to_dict(),
        "event_count": solved.count,
        "caveats": [
            dataclasses.asdict(caveat) for caveat in caveats(*_present(solved, bounds))
        ],
    }


def _sought(plan: Plan) -> str | None:
    """Name of the value that the target decided."""
    names = ("noise_multiplier", "steps", "batch_size", "delta")
    return next((name for name in names if getattr(plan, name) is None), None)


def _present(solved: Solved, bounds: Bounds) -> list[str]:
    """Ids of the caveats that apply."""
    by_scheme = {
        "shuffle": ["no_tight_bound"],
        "fixed_size": ["two_pairs", "shuffling"],
        "balls_in_bins": ["own_step"],
        "none": ["unverified_sampling"],
    }
    present = by_scheme.get(solved.plan.scheme.name, ["shuffling"])
    if solved.delta >= 1 / solved.plan.scheme.population:
        present.append("delta_too_large")
    if bounds.upper == math.inf:
        present.append("no_noise")
    if solved.plan.scheme.max_examples_per_user == 1:
        present.append("one_person")
    always = ["central", "printed_metrics", "data_statistics", "tuning", "plan_only"]
    return [*present, *always, "floating_point"]


def _upper(composed: Callable[[], Accountant], delta: float) -> float | str | None:
    """An upper epsilon for comparison; None where there is no bound."""
    try:
        upper: float | str = composed().epsilon(delta).to_dict()["upper"]
    except UnsupportedEventError:
        return None
    return upper


def _curve(solved: Solved) -> list[dict[str, Any]]:
    return [
        {"delta": delta, "epsilon": solved.bounds(delta).to_dict()}
        for delta in CURVE_DELTAS
    ]


def _rates(solved: Solved) -> list[dict[str, Any]]:
    """What the best test reaches; for shuffling the upper bound only."""
    points = tradeoff.true_positive_rate(solved.accountant(), CURVE_RATES)
    if solved.plan.scheme.name == "shuffle":
        points = tuple(
            (rate, Bounds(rate, b.upper, b.upper, b.converged)) for rate, b in points
        )
    return [{"fpr": rate, "tpr": bounds.to_dict()} for rate, bounds in points]
