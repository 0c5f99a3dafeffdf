"""Command line: epsilon of a planned DP-SGD training, or what a target leaves open.

    compute_dp_sgd_privacy --N=60000 --batch_size=256 --noise_multiplier=1.1 \\
        --epochs=60 --delta=1e-5

Options may be spelled with hyphens, and numbers as 6e4 or 1/50000.
"""

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import NoReturn

from accounting.budget import BudgetSpentError
from accounting.cli.arguments import plan_of, statement_of
from accounting.cli.ledger_files import read_ledger
from accounting.cli.numbers import UsageError
from accounting.cli.plan import (
    ACCOUNTANTS,
    DEFAULT_ACCOUNTANT,
    PROGRAM,
    described,
    solve,
)
from accounting.cli.sampling_schemes import SAMPLINGS
from accounting.cli.text import text
from accounting.events import Ledger, UnsupportedEventError
from accounting.report import privacy_report
from accounting.report.plots import PlotError, draw
from accounting.report.statement import package_version
from accounting.report.users import composed_for_users

_DESCRIPTION = f"""\
How much a DP-SGD training reveals about any one example: epsilon at delta.

Epsilon bounds how much likelier any outcome becomes by one example (e^epsilon times),
delta is the probability with which that may fail. Smaller is more private: epsilon 1
is strong, 10 is weak. It grows with the batch size and with the number of steps, and
falls with the noise.

Give four of --batch_size, --noise_multiplier, --epochs or --steps, and --delta to learn
epsilon. Give --target_epsilon instead of one of them to learn that one: the least
noise, the most steps, the largest batches or the smallest delta.

examples:
  {PROGRAM} --N=60000 --batch_size=256 --noise_multiplier=1.1 --epochs=60 --delta=1e-6
  {PROGRAM} --N=60000 --batch_size=256 --target_epsilon=3 --epochs=60 --delta=1e-6
  {PROGRAM} --ledger=model.keras --delta=1e-6
"""
_EPILOG = f"""\
Sampling decides. The default, Poisson, is what dp_train does with arrays: each example
enters each batch by its own coin. Batches cut from a shuffled dataset must not borrow
its figure; --sampling=shuffle gives theirs. The samplings:

{chr(10).join(f"  {name:<18} {meaning}" for name, meaning in SAMPLINGS.items())}

Numbers may be typed as 60000, 6e4 or 1/50000, and options with hyphens.

Microbatches change nothing and are no option: each example is clipped by itself.
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
        Exit code: 0, or 2 if something typed is wrong or has no answer.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads, such as head, has what it wanted. What is still to be written
        # when the process ends goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(argv: Sequence[str]) -> int:
    """Prints the answer or one line on stderr."""
    try:
        options = _parser().parse_args(_spelled(argv))
        run = _plan if options.ledger is None else _statement
        print(run(options))
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except (UsageError, BudgetSpentError, UnsupportedEventError, PlotError) as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (ArithmeticError, IndexError, MemoryError) as error:
        print(
            f"{PROGRAM}: The accountant failed at this plan"
            f" ({type(error).__name__}: {error}). No figure is printed, since it could"
            " be wrong. Type --accountant=rdp, and report what you typed.",
            file=sys.stderr,
        )
        return 2
    return 0


def _spelled(argv: Sequence[str]) -> list[str]:
    """The arguments with underscores for hyphens; no option but --ledger twice."""
    result, seen = [], set()
    for argument in argv:
        if argument.startswith("--"):
            name, *value = argument[2:].split("=", 1)
            name = name.replace("-", "_")
            if name in seen and name != "ledger":
                raise UsageError(
                    f"--{name} is given twice. Which of the two is meant decides the"
                    f" answer. Type --{name} once."
                )
            seen.add(name)
            argument = "=".join([f"--{name}", *value])
        result.append(argument)
    return result


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
        "--target_epsilon",
        metavar="NUMBER",
        help="instead of one of the above: solve for that one",
    )
    add(
        "--relation",
        metavar="NAME",
        help="what is compared: add_or_remove_one (default), replace_one or zero_out",
    )
    add(
        "--sampling",
        metavar="NAME",
        help=f"how batches are formed: {', '.join(SAMPLINGS)}; poisson if not given",
    )
    add(
        "--max_batch_size",
        metavar="COUNT",
        help="with --sampling=truncated_poisson: larger batches are cut to it",
    )
    add(
        "--max_examples_per_user",
        metavar="COUNT",
        help="protect users who own up to so many examples, not single examples",
    )
    add(
        "--l2_norm_clip",
        metavar="NUMBER",
        help="the clip norm, to be printed; epsilon does not depend on it",
    )
    add(
        "--accountant",
        metavar="NAME",
        default=DEFAULT_ACCOUNTANT,
        help="pld (bounds from both sides, the default) or rdp (Renyi, upper only)",
    )
    add(
        "--curve",
        action="store_true",
        help="epsilon at ten deltas as well, and the best test's TPR at six FPRs",
    )
    add(
        "--plot",
        metavar="FILE",
        help="draw both curves into FILE (.pdf, .png or .svg); needs matplotlib",
    )
    add(
        "--ledger",
        metavar="FILE",
        action="append",
        help="instead of a plan: the statement for what a training has recorded, from"
        " a .ledger.json, .keras (also a folder) or HDF5 file; several are added up",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    version = f"{PROGRAM} {package_version()}"
    add("--version", action="version", version=version, help="print the version")
    return parser


def _plan(options: argparse.Namespace) -> str:
    """The answer to a plan, as text or JSON."""
    solved = solve(plan_of(options))
    result = described(solved)
    if options.plot is not None:
        title = f"{result['steps']} steps, {result['sampling'].split(':')[0]}"
        _written(lambda: draw(solved.accountant(), options.plot, title))
    return json.dumps(result, indent=2) if options.json else text(result)


def _statement(options: argparse.Namespace) -> str:
    """The privacy statement for one or more ledgers, as text or JSON."""
    asked = statement_of(options)
    ledger = Ledger()
    for path in options.ledger:
        ledger.merge(_ledger(path))
    try:
        report = privacy_report(
            ledger,
            asked.delta,
            relation=asked.relation,
            population=_population(ledger, asked.population),
            accountant=ACCOUNTANTS[asked.accountant],
            max_examples_per_user=asked.max_examples_per_user,
        )
    except UnsupportedEventError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.plot is not None:
        title = f"{ledger.total} recorded releases"
        composed = composed_for_users(
            ACCOUNTANTS[asked.accountant](report.relation),
            ledger,
            asked.max_examples_per_user,
        )
        _written(lambda: draw(composed, options.plot, title))
    return report.to_json() if options.json else str(report)


def _population(ledger: Ledger, typed: int | None) -> int | None:
    """The number of examples: typed, or what the file says."""
    said = ledger.about.get("examples")
    if not isinstance(said, int) or said < 1:
        return typed
    if typed is not None and typed != said:
        raise UsageError(
            f"--N is {typed}, and the ledger says that there were {said} examples."
            " Delta is compared with 1 / N. Leave out --N, or correct it."
        )
    return said


def _ledger(path: str) -> Ledger:
    """The ledger in a file, or why there is none."""
    try:
        return read_ledger(path)
    except OSError as error:
        raise UsageError(
            f"--ledger {path!r} cannot be read: {error.strerror}. It holds what was"
            " released. Type the path of a file that Ledger.to_json wrote, or of a"
            " saved model."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--ledger {path!r} is not text ({error.reason}). It holds what was"
            " released. Type the path of a file that Ledger.to_json wrote, or of a"
            " saved model."
        ) from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise UsageError(str(error)) from None


def _written(write: Callable[[], None]) -> None:
    """Writes the picture, or says why it cannot be written."""
    try:
        write()
    except OSError as error:
        raise UsageError(
            f"--plot {error.filename!r} cannot be written: {error.strerror}. The"
            " picture needs a folder that exists. Type another path."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
