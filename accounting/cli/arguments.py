"""What was typed, as a plan; everything that is wrong is refused in one line."""

import argparse
import dataclasses
from fractions import Fraction

from accounting.budget.calibrate import MOST_STEPS
from accounting.cli.numbers import UsageError, exact, integer, number
from accounting.cli.plan import ACCOUNTANTS, Plan
from accounting.cli.sampling_schemes import SAMPLINGS, Scheme
from accounting.events import NeighboringRelation

_MOST_EXAMPLES_PER_USER = 1000
_WITH_USERS = ("poisson", "shuffle", "none")
_RECORDED = (
    "batch_size",
    "noise_multiplier",
    "target_epsilon",
    "epochs",
    "steps",
    "max_batch_size",
    "l2_norm_clip",
)


def plan_of(options: argparse.Namespace) -> Plan:
    """Validates every value, in the order in which --help lists them."""
    population = integer("N", options.N, "the number of training examples", "60000")
    target = _target(options)
    batch_size = _batch_size(options, population)
    noise = _noise(options)
    steps = _steps(options, population, batch_size)
    delta = None if options.delta is None else delta_of(options, population)
    _check_one_is_sought(options, population, target)
    relation = relation_of(options) or NeighboringRelation.ADD_OR_REMOVE_ONE
    sampling = _one_of("sampling", options.sampling or "poisson", list(SAMPLINGS))
    accountant = _one_of("accountant", options.accountant, list(ACCOUNTANTS))
    scheme = Scheme(
        sampling, population, _users(options, sampling), _cut(options, sampling)
    )
    _check_combination(sampling, relation, accountant)
    clip = None
    if options.l2_norm_clip is not None:
        clip = number("l2_norm_clip", options.l2_norm_clip, "the clip norm", "1.0")
        if clip <= 0:
            raise UsageError(
                f"--l2_norm_clip is {options.l2_norm_clip}, not above 0. The noise is"
                " measured in it. Type the clip norm of the training, such as 1.0."
            )
    return Plan(
        scheme,
        batch_size,
        steps,
        noise,
        delta,
        target,
        relation,
        accountant,
        clip,
        options.curve,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """What was typed beside --ledger.

    Attributes:
        accountant: a key of ACCOUNTANTS.
        delta: probability with which epsilon may fail.
        population: number of examples, if it was typed.
        max_examples_per_user: the most examples of one unit of privacy.
        relation: the neighboring relation, if it was typed.
    """

    accountant: str
    delta: float
    population: int | None
    max_examples_per_user: int
    relation: NeighboringRelation | None


def statement_of(options: argparse.Namespace) -> Statement:
    """Validates what goes with --ledger."""
    for name in _RECORDED:
        if getattr(options, name) is not None:
            raise UsageError(
                f"--{name} and --ledger are both given. The ledger has recorded what"
                f" was released. Leave out --{name}."
            )
    if options.sampling is not None or options.curve:
        raise UsageError(
            "--ledger goes with --delta, --relation, --accountant, --N,"
            " --max_examples_per_user, --plot and --json only. The ledger has recorded"
            " how batches were formed. Leave out the rest."
        )
    population = None
    if options.N is not None:
        population = integer("N", options.N, "the number of training examples", "60000")
    name = _one_of("accountant", options.accountant, list(ACCOUNTANTS))
    delta, users = delta_of(options, population), _users(options, "poisson")
    return Statement(name, delta, population, users, relation_of(options))


def relation_of(options: argparse.Namespace) -> NeighboringRelation | None:
    """The relation that was typed, if any."""
    if options.relation is None:
        return None
    try:
        return NeighboringRelation(options.relation.replace("-", "_"))
    except ValueError:
        raise UsageError(
            f"--relation is {options.relation!r}, which is not known. An epsilon means"
            " nothing without the datasets it compares. Type add_or_remove_one,"
            " replace_one or zero_out."
        ) from None


def delta_of(options: argparse.Namespace, population: int | None) -> float:
    """The delta that was typed."""
    delta = number("delta", options.delta, "how likely epsilon may fail", "1e-6")
    if not 0 < delta < 1:
        example = "1e-6" if population is None else suggested_delta(population)
        raise UsageError(
            f"--delta is {options.delta}, outside (0, 1). It is the probability with"
            " which epsilon may fail. Type a number well below 1 / N, such as"
            f" --delta={example}."
        )
    return delta


def suggested_delta(population: int) -> str:
    """A power of ten at least ten times below 1 / population."""
    return f"1e-{len(str(population)) + 1}"


def _target(options: argparse.Namespace) -> float | None:
    if options.target_epsilon is None:
        return None
    text = options.target_epsilon
    value = number("target_epsilon", text, "the epsilon to reach", "3")
    if value <= 0:
        raise UsageError(
            f"--target_epsilon is {text}, not above 0. Only infinite noise reaches 0."
            " Type a number such as 3."
        )
    return value


def _batch_size(options: argparse.Namespace, population: int) -> int | None:
    if options.batch_size is None:
        return None
    size = integer("batch_size", options.batch_size, "the expected batch size", "256")
    if size > population:
        raise UsageError(
            f"--batch_size is {size}, larger than --N, which is {population}."
            " Each example enters a batch with probability batch_size / N, which cannot"
            f" exceed 1. Type a --batch_size of at most {population}."
        )
    return size


def _noise(options: argparse.Namespace) -> float | None:
    if options.noise_multiplier is None:
        return None
    text = options.noise_multiplier
    value = number("noise_multiplier", text, "the noise / clip norm", "1.1")
    if value < 0:
        raise UsageError(
            f"--noise_multiplier is {text}, below 0. It is the standard deviation"
            " of the noise divided by the clip norm. Type a number such as 1.1."
        )
    return value


def _steps(
    options: argparse.Namespace, population: int, batch_size: int | None
) -> int | Fraction | None:
    """At most one of --epochs and --steps; epochs as a fraction."""
    epochs, steps = options.epochs, options.steps
    if epochs is not None and steps is not None:
        raise UsageError(
            f"--epochs={epochs} and --steps={steps} are both given. They may disagree"
            " about the length of the training. Type only one of them."
        )
    if steps is not None:
        return integer("steps", steps, "the number of noised steps", "14063")
    if epochs is None:
        return None
    count = exact("epochs", epochs, "passes over the data", "60")
    most = count * population / (batch_size or 1)
    if not 0 < most <= MOST_STEPS:
        raise UsageError(
            f"--epochs is {epochs}, or {float(min(most, Fraction(10**300))):.6g} steps."
            " A training has from 1 to 2**62 of them. Type a number such as 60."
        )
    return count


def _check_one_is_sought(
    options: argparse.Namespace, population: int, target: float | None
) -> None:
    """Without a target nothing may be missing, with one exactly one value."""
    needed = {
        "batch_size": ("the expected batch size", "256"),
        "noise_multiplier": ("the noise / clip norm", "1.1"),
        "epochs": ("the length of the training", "60"),
        "delta": ("how likely epsilon may fail", suggested_delta(population)),
    }
    missing = [name for name in needed if getattr(options, name) is None]
    if options.steps is not None:
        missing.remove("epochs")
    if target is None and missing:
        name = missing[0]
        meaning, example = needed[name]
        other = ", or --steps=14063" if name == "epochs" else ""
        raise UsageError(
            f"--{name} is missing. It is {meaning}, on which epsilon depends. Type"
            f" --{name}={example}{other}, or --target_epsilon=3 to solve for it."
        )
    if target is not None and not missing:
        raise UsageError(
            f"--target_epsilon={options.target_epsilon} is given and nothing is left"
            " to solve for. All that decides epsilon is given too. Leave out"
            " --target_epsilon, or one of --noise_multiplier, --epochs, --batch_size"
            " and --delta."
        )
    if target is not None and len(missing) > 1:
        raise UsageError(
            f"--{' and --'.join(missing)} are missing. A target decides one value, and"
            f" the others must be known. Type all but one of them, such as"
            f" --{missing[0]}={needed[missing[0]][1]}."
        )


def _users(options: argparse.Namespace, sampling: str) -> int:
    """The most examples of one user, 1 for single examples."""
    text = options.max_examples_per_user
    if text is None:
        return 1
    value = integer("max_examples_per_user", text, "what one user owns at most", "4")
    if value > _MOST_EXAMPLES_PER_USER:
        raise UsageError(
            f"--max_examples_per_user is {value}, above {_MOST_EXAMPLES_PER_USER}. So"
            " many examples of one user leave hardly any protection. Bound them before"
            " training, and type a number such as 4."
        )
    if value > 1 and sampling not in _WITH_USERS:
        raise UsageError(
            f"--max_examples_per_user={value} has no bound with --sampling={sampling}."
            " Several examples of one user are drawn dependently there. Type"
            f" --sampling={', '.join(_WITH_USERS[:-1])} or {_WITH_USERS[-1]}."
        )
    return value


def _cut(options: argparse.Namespace, sampling: str) -> int | None:
    """The largest batch of truncated Poisson sampling."""
    text = options.max_batch_size
    if sampling != "truncated_poisson":
        if text is None:
            return None
        raise UsageError(
            f"--max_batch_size={text} goes with --sampling=truncated_poisson only. No"
            f" batch is cut with --sampling={sampling}. Leave it out, or type that"
            " sampling."
        )
    return integer("max_batch_size", text, "the size to which batches are cut", "300")


def _check_combination(
    sampling: str, relation: NeighboringRelation, accountant: str
) -> None:
    """Refuses what has no bound."""
    is_add = relation is NeighboringRelation.ADD_OR_REMOVE_ONE
    if sampling == "fixed_size":
        if relation is not NeighboringRelation.REPLACE_ONE:
            raise UsageError(
                f"--sampling=fixed_size has no bound under --relation={relation.value}."
                " A batch of fixed size has no neighbor with one example more or less."
                " Type --relation=replace_one."
            )
        if accountant != "pld":
            raise UsageError(
                f"--sampling=fixed_size has no bound by --accountant={accountant}. Its"
                " Renyi divergences have no formula near the truth. Type"
                " --accountant=pld."
            )
    elif sampling in ("shuffle", "none") and is_add:
        raise UsageError(
            f"--sampling={sampling} has no bound under --relation={relation.value}."
            " Adding or removing an example shifts every later batch, and nothing is"
            " known about that. Type --relation=zero_out or --relation=replace_one."
        )
    elif sampling == "balls_in_bins" and relation is NeighboringRelation.REPLACE_ONE:
        raise UsageError(
            "--sampling=balls_in_bins has no bound under --relation=replace_one. The"
            " worst pair is not a function of one sum there. Type"
            " --relation=add_or_remove_one or --relation=zero_out."
        )


def _one_of(name: str, value: str, known: list[str]) -> str:
    """The typed name, if it is known; hyphens are as good as underscores."""
    value = value.replace("-", "_")
    if value not in known:
        raise UsageError(
            f"--{name} is {value!r}, which is not known. Epsilon depends on it. Type"
            f" {', '.join(known[:-1])} or {known[-1]}."
        )
    return value
