"""Command line: epsilon of a planned DP-SGD training, or the noise for a target.

    compute_dp_sgd_privacy --N=60000 --batch_size=256 --noise_multiplier=1.1 \\
        --epochs=60 --delta=1e-5
"""

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NoReturn, TypeVar

from accounting.calibrate import MOST_STEPS, BudgetSpentError, noise_multiplier
from accounting.events import GaussianEvent, PoissonSampledEvent
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation
from accounting.report import package_version

PROGRAM = "compute_dp_sgd_privacy"
SCHEMA_VERSION = 1
_SAMPLING = (
    "Poisson: each example enters each batch by its own independent coin, with"
    " probability batch_size / N"
)
_SHUFFLING = (
    "Batches of a shuffled dataset are not Poisson-sampled and must not borrow this"
    " figure: their epsilon can be several times larger (Chua et al. 2024,"
    " arXiv:2403.17673)."
)
_DESCRIPTION = f"""\
How much a DP-SGD training reveals about any one example: epsilon at delta.

Give --noise_multiplier to learn epsilon, or --target_epsilon to learn the noise that
reaches it. Give the length of the training as --epochs or as --steps.

examples:
  {PROGRAM} --N=60000 --batch_size=256 --noise_multiplier=1.1 --epochs=60 --delta=1e-5
  {PROGRAM} --N=60000 --batch_size=256 --target_epsilon=3 --epochs=60 --delta=1e-5
"""
_EPILOG = """\
The sampling assumed is Poisson: each example enters each batch by its own independent
coin with probability batch_size / N, which is what dp_train does with arrays. Batches
of a shuffled dataset must not borrow this figure.
"""
_INTEGER = re.compile(r"[0-9]{1,18}")
_DECIMAL = re.compile(
    r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})(e[+-]?\d{1,3})?"
)


class _UsageError(Exception):
    """Something typed is wrong; the text is one line of three sentences."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(
            f"{message[:1].upper()}{message[1:]}. An option that is not understood may"
            f" change the answer. Type {PROGRAM} --help for the options."
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """The validated question."""

    population: int
    batch_size: int
    steps: int
    delta: float
    relation: NeighboringRelation
    noise_multiplier: float | None
    target_epsilon: float | None

    @property
    def sampling_probability(self) -> float:
        return self.batch_size / self.population


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints the answer or one line on stderr.

    Args:
        argv: arguments without the program name; None takes them from sys.argv.

    Returns:
        Exit code: 0, or 2 if something typed is wrong.
    """
    try:
        options = _parser().parse_args(argv)
        result = _answer(_plan(options))
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except (_UsageError, BudgetSpentError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2) if options.json else _text(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--N", metavar="COUNT", help="number of training examples, e.g. 60000")
    add("--batch_size", metavar="COUNT", help="expected batch size, e.g. 256")
    add(
        "--noise_multiplier",
        metavar="NUMBER",
        help="standard deviation of the noise / clip norm, e.g. 1.1",
    )
    add(
        "--target_epsilon",
        metavar="NUMBER",
        help="instead of --noise_multiplier: solve for the noise that reaches it",
    )
    add(
        "--epochs",
        metavar="NUMBER",
        help="passes over the data: ceil(epochs * N / batch_size) steps, e.g. 60",
    )
    add("--steps", metavar="COUNT", help="instead of --epochs: number of noised steps")
    add(
        "--delta",
        metavar="NUMBER",
        help="probability with which epsilon may fail; well below 1 / N, e.g. 1e-6",
    )
    add(
        "--relation",
        metavar="NAME",
        default=NeighboringRelation.ADD_OR_REMOVE_ONE.value,
        help="what is compared: add_or_remove_one (default), replace_one or zero_out",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _plan(options: argparse.Namespace) -> _Plan:
    """Validates every value, in the order in which --help lists them."""
    population = _integer("N", options.N, "the number of training examples", "60000")
    batch_size = _integer(
        "batch_size", options.batch_size, "the expected batch size", "256"
    )
    if batch_size > population:
        raise _UsageError(
            f"--batch_size is {batch_size}, larger than --N, which is {population}."
            " Each example enters a batch with probability batch_size / N, which cannot"
            f" exceed 1. Type a --batch_size of at most {population}."
        )
    noise, target = _noise_or_target(options)
    delta = _number("delta", options.delta, "how likely epsilon may fail", "1e-6")
    if not 0 < delta < 1:
        raise _UsageError(
            f"--delta is {options.delta}, outside (0, 1). It is the probability with"
            " which epsilon may fail. Type a number well below 1 / N, such as"
            f" --delta={_suggested_delta(population)}."
        )
    try:
        relation = NeighboringRelation(options.relation)
    except ValueError:
        raise _UsageError(
            f"--relation is {options.relation!r}, which is not known. An epsilon means"
            " nothing without the datasets it compares. Type add_or_remove_one,"
            " replace_one or zero_out."
        ) from None
    steps = _steps(options, population, batch_size)
    return _Plan(population, batch_size, steps, delta, relation, noise, target)


def _noise_or_target(options: argparse.Namespace) -> tuple[float | None, float | None]:
    """Exactly one of --noise_multiplier and --target_epsilon."""
    noise, target = options.noise_multiplier, options.target_epsilon
    if noise is None and target is None:
        raise _UsageError(
            "--noise_multiplier is missing. It decides epsilon. Type"
            " --noise_multiplier=1.1, or --target_epsilon=3 to solve for the noise."
        )
    if noise is not None and target is not None:
        raise _UsageError(
            f"--noise_multiplier={noise} and --target_epsilon={target} are both given."
            " One decides the other. Type only one of them."
        )
    if noise is not None:
        value = _number("noise_multiplier", noise, "the noise / clip norm", "1.1")
        if value < 0:
            raise _UsageError(
                f"--noise_multiplier is {noise}, below 0. It is the standard deviation"
                " of the noise divided by the clip norm. Type a number such as 1.1."
            )
        return value, None
    value = _number("target_epsilon", target, "the epsilon to reach", "3")
    if value <= 0:
        raise _UsageError(
            f"--target_epsilon is {target}, not above 0. Only infinite noise reaches 0."
            " Type a number such as 3."
        )
    return None, value


def _steps(options: argparse.Namespace, population: int, batch_size: int) -> int:
    """Exactly one of --epochs and --steps, as a number of steps."""
    epochs, steps = options.epochs, options.steps
    if epochs is not None and steps is not None:
        raise _UsageError(
            f"--epochs={epochs} and --steps={steps} are both given. They may disagree"
            " about the length of the training. Type only one of them."
        )
    if steps is not None:
        return _integer("steps", steps, "the number of noised steps", "14063")
    if epochs is None:
        raise _UsageError(
            "--epochs is missing. Epsilon grows with the length of the training. Type"
            " --epochs=60, or --steps=14063."
        )
    count = _parse("epochs", epochs, _DECIMAL, Fraction, "passes over the data", "60")
    result = math.ceil(count * population / batch_size)
    if not 1 <= result <= MOST_STEPS:
        raise _UsageError(
            f"--epochs is {epochs}, or {float(min(result, 10**300)):.6g} steps."
            " A training has from 1 to 2**62 of them. Type a number such as 60."
        )
    return result


Value = TypeVar("Value")


def _parse(
    name: str,
    text: str | None,
    pattern: re.Pattern[str],
    convert: Callable[[str], Value],
    meaning: str,
    example: str,
) -> Value:
    """The typed text as a value, or an error that says what to type."""
    if text is None:
        raise _UsageError(
            f"--{name} is missing. It is {meaning}, on which epsilon depends. Type"
            f" --{name}={example}."
        )
    if not pattern.fullmatch(text.lower()):
        kind = "whole number" if pattern is _INTEGER else "number"
        raise _UsageError(
            f"--{name} is {text!r}, not a {kind}. It is {meaning}, on which epsilon"
            f" depends. Type it in digits, such as --{name}={example}."
        )
    return convert(text)


def _integer(name: str, text: str | None, meaning: str, example: str) -> int:
    value = _parse(name, text, _INTEGER, int, meaning, example)
    if value < 1:
        raise _UsageError(
            f"--{name} is {value}, below 1. It is {meaning}, and there is nothing to"
            f" account for without it. Type --{name}={example}."
        )
    return value


def _number(name: str, text: str | None, meaning: str, example: str) -> float:
    value = _parse(name, text, _DECIMAL, float, meaning, example)
    if not math.isfinite(value):
        raise _UsageError(
            f"--{name} is {text}, too large for a number. It is {meaning}, on which"
            f" epsilon depends. Type --{name}={example}."
        )
    return value


def _suggested_delta(population: int) -> str:
    """A power of ten at least ten times below 1 / population."""
    return f"1e-{len(str(population)) + 1}"


def _answer(plan: _Plan) -> dict[str, Any]:
    """The plan with its epsilon, JSON-safe."""
    noise = plan.noise_multiplier
    if noise is None:
        noise = noise_multiplier(
            plan.target_epsilon or 0.0,
            plan.delta,
            plan.sampling_probability,
            plan.steps,
            relation=plan.relation,
        )
    event = PoissonSampledEvent(plan.sampling_probability, GaussianEvent(noise))
    accountant = RdpAccountant(plan.relation).compose(event, plan.steps)
    bounds = accountant.epsilon(plan.delta)
    caveats = [_SHUFFLING]
    if plan.delta >= 1 / plan.population:
        caveats.append(
            f"Delta is not below 1 / N = {1 / plan.population:.3g}; such a promise may"
            " give away whole examples. Choose"
            f" --delta={_suggested_delta(plan.population)} or less."
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
        "sampling": _SAMPLING,
        "accountant": accountant.name,
        "epsilon": bounds.to_dict(),
        "epsilon_text": str(bounds),
        "event": event.to_dict(),
        "caveats": caveats,
    }


def _text(result: dict[str, Any]) -> str:
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
        *(f"caveat                {caveat}" for caveat in result["caveats"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
