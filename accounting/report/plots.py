"""Pictures of what an accountant answers; the only room that loads matplotlib."""

import math
import os
from pathlib import Path
from typing import Any

from accounting.accountant import Accountant
from accounting.report import tradeoff

SUFFIXES = (".pdf", ".png", ".svg")
DELTAS = tuple(10.0**-k for k in range(3, 13))
RATES = tuple(10 ** (-k / 2) for k in range(12, 0, -1))


class PlotError(ValueError):
    """A picture cannot be made; the text says what to do."""


def draw(accountant: Accountant, file: str | os.PathLike[str], title: str = "") -> None:
    """Writes epsilon against delta, and TPR against FPR, as one picture.

    Both are upper bounds, with the band down to the lower bound where there is one.

    Args:
        accountant: what was composed; its epsilon must be finite.
        file: path that ends in .pdf, .png or .svg.
        title: what was composed, in words.

    Raises:
        PlotError: matplotlib is missing, the format unknown, or epsilon infinite.
        OSError: the file cannot be written.
    """
    path = Path(file)
    if path.suffix not in SUFFIXES:
        raise PlotError(
            f"The picture {str(path)!r} has no known format. Its name decides the"
            f" format. Let it end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )
    make_figure = _figure_type()
    curve = tradeoff.epsilon_curve(accountant, DELTAS)
    if any(bounds.upper == math.inf for _, bounds in curve):
        raise PlotError(
            "Epsilon is infinite, and there is nothing to draw. Without noise no test"
            " is ever wrong. Choose a noise multiplier above 0."
        )
    rates = tradeoff.true_positive_rate(accountant, RATES)
    figure = make_figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _band(left, curve)
    left.set_xscale("log")
    left.invert_xaxis()
    left.set_xlabel("delta")
    left.set_ylabel("epsilon")
    left.set_title("Epsilon against delta")
    _band(right, rates)
    right.plot(RATES, RATES, color="0.6", linestyle=":", label="guessing")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("false positive rate")
    right.set_ylabel("true positive rate")
    right.set_title("Best test for whether an example was in the data")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{title}{'; ' if title else ''}{accountant.relation.value}")
    figure.savefig(path, dpi=110)


def _band(axes: Any, points: Any) -> None:
    """The upper bound as a line, and what lies between the bounds."""
    x = [at for at, _ in points]
    upper = [bounds.upper for _, bounds in points]
    axes.plot(x, upper, color="C0", label="upper bound")
    axes.fill_between(x, [bounds.lower for _, bounds in points], upper, alpha=0.3)


def _figure_type() -> Any:
    """matplotlib's Figure, loaded when a picture is asked for."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PlotError(
            f"Pictures need matplotlib, which is not installed ({error}). Accounting"
            " itself does without it. Type: pip install 'dp-train[plot]'."
        ) from None
    return Figure
