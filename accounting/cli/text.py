"""The answer to a plan in lines of name and value, each on its safe side."""

import decimal
import math
import textwrap
from typing import Any

_WIDTH = 22


def text(result: dict[str, Any]) -> str:
    """The answer as text; bounds and solved values are rounded to the safe side."""
    sought = result["solved_for"]
    goal = f" (for a target epsilon of {result['target_epsilon'] or 0:g})"

    def shown(name: str, value: str) -> str:
        return value + (goal if name == sought else "")

    noise = f"{result['noise_multiplier']:.6g}"
    if sought == "noise_multiplier":
        # What is read off the screen still reaches the target.
        noise = f"{math.ceil(result['noise_multiplier'] * 1e4) / 1e4:.4f}"
    delta = f"{result['delta']:g}"
    if sought == "delta":
        delta = _up(result["delta"])
    clip = result["l2_norm_clip"]
    size = str(result["batch_size"])
    if result["max_batch_size"] is not None:
        size += f", cut at {result['max_batch_size']}"
    rows = [
        ("examples N", str(result["N"])),
        ("expected batch size", shown("batch_size", size)),
        ("sampling probability", f"{result['sampling_probability']:.6g}"),
        ("steps", shown("steps", f"{result['steps']} ({result['epochs']:.6g} epochs)")),
        ("noise multiplier", shown("noise_multiplier", noise)),
        ("clip norm", "any; the noise is in units of it" if clip is None else clip),
        ("unit", result["unit"]),
        ("relation", f"{result['relation']}. {result['relation_meaning']}"),
        ("sampling assumed", f"{result['sampling']}."),
        ("released", f"{result['released']}."),
        ("epsilon", result["epsilon_text"]),
        ("delta", shown("delta", delta)),
        ("accountant", f"{result['accountant']}, accounting {result['version']}"),
        ("by Renyi divergences", _compared(result["comparisons"]["rdp"])),
        (
            "without amplification",
            _compared(result["comparisons"]["every_example_in_every_step"]),
        ),
        *(
            (f"at delta {point['delta']:g}", f"at most {_up(point['epsilon'])}")
            for point in result["curve"]
        ),
        *(
            (f"at FPR {point['fpr']:g}", f"TPR at most {_up(point['tpr'])}")
            for point in result["tpr_at_fpr"]
        ),
        *(("caveat", f"[{c['id']}] {c['text']}") for c in result["caveats"]),
    ]
    return "\n".join(_row(name, str(value)) for name, value in rows)


def _row(name: str, value: str) -> str:
    """A name, and its value broken into lines under one another."""
    return textwrap.fill(
        value,
        100,
        initial_indent=f"{name:<{_WIDTH}}",
        subsequent_indent=" " * _WIDTH,
        break_on_hyphens=False,
    )


def _compared(upper: float | str | None) -> str:
    return "no bound is known" if upper is None else f"epsilon at most {_up(upper)}"


def _up(value: Any) -> str:
    """Four digits of a number, or of the upper of two bounds, rounded up."""
    if isinstance(value, dict):
        value = value["upper"]
    if isinstance(value, str):
        return value
    context = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)
    return f"{float(context.create_decimal(value)):.4g}"
