"""Command line: epsilon of a planned DP-SGD training, or the noise for a target.

    compute_dp_sgd_privacy --N=60000 --batch_size=256 --noise_multiplier=1.1 \\
        --epochs=60 --delta=1e-5
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import NoReturn

from accounting.calibrate import MOST_STEPS, BudgetSpentError
from accounting.events import UnsupportedEventError
from accounting.ledger import Ledger
from accounting.plan import (
    ACCOUNTANTS,
    DEFAULT_ACCOUNTANT,
    PROGRAM,
    SAMPLINGS,
    Plan,
    answer,
    suggested_delta,
    text,
)
from accounting.relations import NeighboringRelation
from accounting.report import privacy_report
from accounting.typed import DECIMAL, UsageError, integer, number, parse

_DESCRIPTION = f"""\
How much a DP-SGD training reveals about any one example: epsilon at delta.

Give --noise_multiplier to learn epsilon, or --target_epsilon to learn the noise that
reaches it. Give the length of the training as --epochs or as --steps.

examples:
  {PROGRAM} --N=60000 --batch_size=256 --noise_multiplier=1.1 --epochs=60 --delta=1e-5
  {PROGRAM} --N=60000 --batch_size=256 --target_epsilon=3 --epochs=60 --delta=1e-5
  {PROGRAM} --ledger=ledger.json --delta=1e-5
"""
_EPILOG = """\
The sampling assumed is Poisson: each example enters each batch by its own independent
coin with probability batch_size / N, which is what dp_train does with arrays. Batches
of a shuffled dataset must not borrow this figure; --sampling=shuffle gives theirs.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(
            f"{message[:1].upper()}{message[1:]}. An option that is not understood may"
            f" change the answer. Type {PROGRAM} --help for the options."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints the answer or one line on stderr.

    Args:
        argv: arguments without the program name; None takes them from sys.argv.

    Returns:
        Exit code: 0, or 2 if something typed is wrong.
    """
    try:
        options = _parser().parse_args(argv)
        if options.ledger is not None:
            print(_statement(options))
            return 0
        result = answer(_plan(options))
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except (UsageError, BudgetSpentError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2) if options.json else text(result))
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
        help="what is compared: add_or_remove_one (default), replace_one or zero_out",
    )
    add(
        "--sampling",
        metavar="NAME",
        help="how batches are formed: poisson (default), fixed_size, shuffle or none",
    )
    add(
        "--accountant",
        metavar="NAME",
        default=DEFAULT_ACCOUNTANT,
        help=f"pld (bounds from both sides) or rdp; {DEFAULT_ACCOUNTANT} if not given",
    )
    add("--curve", action="store_true", help="epsilon at ten values of delta as well")
    add(
        "--ledger",
        metavar="FILE",
        help="instead of a plan: the statement for what a training has recorded",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    """Validates every value, in the order in which --help lists them."""
    population = integer("N", options.N, "the number of training examples", "60000")
    batch_size = integer(
        "batch_size", options.batch_size, "the expected batch size", "256"
    )
    if batch_size > population:
        raise UsageError(
            f"--batch_size is {batch_size}, larger than --N, which is {population}."
            " Each example enters a batch with probability batch_size / N, which cannot"
            f" exceed 1. Type a --batch_size of at most {population}."
        )
    noise, target = _noise_or_target(options)
    delta = _delta(options, population)
    relation = _relation(options) or NeighboringRelation.ADD_OR_REMOVE_ONE
    sampling = _one_of("sampling", options.sampling or "poisson", list(SAMPLINGS))
    accountant = _one_of("accountant", options.accountant, list(ACCOUNTANTS))
    _check_combination(sampling, relation, accountant)
    steps = _steps(options, population, batch_size)
    return Plan(
        population,
        batch_size,
        steps,
        delta,
        relation,
        noise,
        target,
        sampling,
        accountant,
        options.curve,
    )


def _check_combination(
    sampling: str, relation: NeighboringRelation, accountant: str
) -> None:
    """Refuses what has no bound."""
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
    elif sampling != "poisson" and relation is NeighboringRelation.ADD_OR_REMOVE_ONE:
        raise UsageError(
            f"--sampling={sampling} has no bound under --relation={relation.value}."
            " Adding or removing an example shifts every later batch, and nothing is"
            " known about that. Type --relation=zero_out or --relation=replace_one."
        )


def _relation(options: argparse.Namespace) -> NeighboringRelation | None:
    """The relation that was typed, if any."""
    if options.relation is None:
        return None
    try:
        return NeighboringRelation(options.relation)
    except ValueError:
        raise UsageError(
            f"--relation is {options.relation!r}, which is not known. An epsilon means"
            " nothing without the datasets it compares. Type add_or_remove_one,"
            " replace_one or zero_out."
        ) from None


def _one_of(name: str, value: str, known: list[str]) -> str:
    """The typed name, if it is known."""
    if value not in known:
        raise UsageError(
            f"--{name} is {value!r}, which is not known. Epsilon depends on it. Type"
            f" {', '.join(known[:-1])} or {known[-1]}."
        )
    return value


def _delta(options: argparse.Namespace, population: int | None) -> float:
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


def _noise_or_target(options: argparse.Namespace) -> tuple[float | None, float | None]:
    """Exactly one of --noise_multiplier and --target_epsilon."""
    noise, target = options.noise_multiplier, options.target_epsilon
    if noise is None and target is None:
        raise UsageError(
            "--noise_multiplier is missing. It decides epsilon. Type"
            " --noise_multiplier=1.1, or --target_epsilon=3 to solve for the noise."
        )
    if noise is not None and target is not None:
        raise UsageError(
            f"--noise_multiplier={noise} and --target_epsilon={target} are both given."
            " One decides the other. Type only one of them."
        )
    if noise is not None:
        value = number("noise_multiplier", noise, "the noise / clip norm", "1.1")
        if value < 0:
            raise UsageError(
                f"--noise_multiplier is {noise}, below 0. It is the standard deviation"
                " of the noise divided by the clip norm. Type a number such as 1.1."
            )
        return value, None
    value = number("target_epsilon", target, "the epsilon to reach", "3")
    if value <= 0:
        raise UsageError(
            f"--target_epsilon is {target}, not above 0. Only infinite noise reaches 0."
            " Type a number such as 3."
        )
    return None, value


def _steps(options: argparse.Namespace, population: int, batch_size: int) -> int:
    """Exactly one of --epochs and --steps, as a number of steps."""
    epochs, steps = options.epochs, options.steps
    if epochs is not None and steps is not None:
        raise UsageError(
            f"--epochs={epochs} and --steps={steps} are both given. They may disagree"
            " about the length of the training. Type only one of them."
        )
    if steps is not None:
        return integer("steps", steps, "the number of noised steps", "14063")
    if epochs is None:
        raise UsageError(
            "--epochs is missing. Epsilon grows with the length of the training. Type"
            " --epochs=60, or --steps=14063."
        )
    count = parse("epochs", epochs, DECIMAL, Fraction, "passes over the data", "60")
    result = math.ceil(count * population / batch_size)
    if not 1 <= result <= MOST_STEPS:
        raise UsageError(
            f"--epochs is {epochs}, or {float(min(result, 10**300)):.6g} steps."
            " A training has from 1 to 2**62 of them. Type a number such as 60."
        )
    return result


def _statement(options: argparse.Namespace) -> str:
    """The privacy statement for a ledger, as text or JSON."""
    for name in ("batch_size", "noise_multiplier", "target_epsilon", "epochs", "steps"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"--{name} and --ledger are both given. The ledger has recorded what"
                f" was released. Leave out --{name}."
            )
    if options.sampling is not None or options.curve:
        raise UsageError(
            "--ledger goes with --delta, --relation, --accountant, --N and --json only."
            " The ledger has recorded how batches were formed. Leave out the rest."
        )
    population = None
    if options.N is not None:
        population = integer("N", options.N, "the number of training examples", "60000")
    name = _one_of("accountant", options.accountant, list(ACCOUNTANTS))
    try:
        with open(options.ledger, encoding="utf-8") as file:
            ledger = Ledger.from_json(file.read())
        report = privacy_report(
            ledger,
            _delta(options, population),
            relation=_relation(options),
            population=population,
            accountant=ACCOUNTANTS[name],
        )
    except OSError as error:
        raise UsageError(
            f"--ledger {options.ledger!r} cannot be read: {error.strerror}. It holds"
            " what was released. Type the path of a file that Ledger.to_json wrote."
        ) from None
    except (UnicodeDecodeError, UnsupportedEventError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    return report.to_json() if options.json else str(report)


if __name__ == "__main__":
    sys.exit(main())
