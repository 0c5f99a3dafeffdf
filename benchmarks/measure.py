"""What the benchmarks share: clocks, processes with a time limit, the table.

Imports no framework, so that every peer can use it in its own environment.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Times = tuple[float, float]
"""(wall, CPU of all threads) milliseconds a step."""


class Clock:
    """Wall time, and CPU time of all threads of the process."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def milliseconds(self, steps: int) -> Times:
        """Since the start, a step."""
        wall, cpu = self._start
        return (
            1e3 * (time.perf_counter() - wall) / steps,
            1e3 * (time.process_time() - cpu) / steps,
        )


Block = Callable[[int], Times]
"""Runs so many steps and says how long one of them took."""

SLOW_BLOCK = 0.5
"""Seconds after which a block ends early."""
BUDGET = 90.0
"""Seconds after which no further round begins, once there were three."""


def race(
    blocks: Mapping[str, Block], plain: Sequence[str], steps: int, rounds: int
) -> dict[str, Any]:
    """Private training against the fastest plain variant, in this process.

    Prints what is known of the plain variants first, so that a private one that does
    not end still has its row.

    Args:
        blocks: the plain variants, then the private one, by name.
        plain: names of the plain ones.
        steps: in a block of a fast variant.
        rounds: blocks of each.
    """
    counts: dict[str, int] = {}
    private = [name for name in blocks if name not in plain][0]
    for name, block in blocks.items():
        if name == private:
            times = {key: [blocks[key](counts[key])] for key in plain}
            print(json.dumps(medians(times, plain)), flush=True)
        block(1)
        counts[name] = 1
        for _ in range(2):
            # Twice: the end of a block costs something too, which one step alone pays.
            fitting = int(1e3 * SLOW_BLOCK / block(counts[name])[0])
            counts[name] = max(1, min(steps, fitting))
    runs = {
        name: lambda name=name, block=block: block(counts[name])
        for name, block in blocks.items()
    }
    return compared(interleaved(runs, rounds, plain[1:]), plain, private)


def interleaved(
    runs: Mapping[str, Callable[[], Times]], rounds: int, optional: Sequence[str] = ()
) -> dict[str, list[Times]]:
    """Runs blocks in turn, so that whatever disturbs one disturbs all alike.

    Args:
        runs: name -> what runs a block and says how long a step took.
        rounds: how often each of them runs.
        optional: alternatives to the first, left out once they are clearly slower.
    """
    times: dict[str, list[Times]] = {name: [] for name in runs}
    first = next(iter(runs))
    start = time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - start > BUDGET:
            break
        for name, run in runs.items():
            is_slower = i >= 2 and _wall(times[name]) > 1.5 * _wall(times[first])
            if not (name in optional and is_slower):
                times[name].append(run())
    return times


def _wall(times: Sequence[Times]) -> float:
    """Median wall time."""
    return statistics.median(wall for wall, _ in times)


def medians(
    times: Mapping[str, Sequence[Times]], plain: Sequence[str]
) -> dict[str, Any]:
    """The fastest plain variant and its wall time."""
    best = min(plain, key=lambda name: _wall(times[name]))
    return {"plain": best, "plain_ms": _wall(times[best])}


def compared(
    times: Mapping[str, Sequence[Times]], plain: Sequence[str], private: str
) -> dict[str, Any]:
    """Medians, and the ratios of private to the fastest plain variant, pair by pair."""
    found = medians(times, plain)
    pairs = list(zip(times[private], times[found["plain"]], strict=True))
    return {
        **found,
        "private_ms": _wall(times[private]),
        "wall": statistics.median(p[0] / q[0] for p, q in pairs),
        "cpu": statistics.median(p[1] / q[1] for p, q in pairs),
    }


def in_process(
    python: str,
    script: Path,
    arguments: Iterable[str],
    seconds: float,
    gibibytes: float = 12,
) -> dict[str, Any]:
    """What a measurement prints as JSON on its last line, run in its own process.

    Returns:
        That dictionary; where the process took too long, took too much memory or broke
        down, with {"failed": reason} added to what it had printed by then.
    """
    process = subprocess.Popen(
        [python, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"},
    )
    failed = ""
    end = time.monotonic() + seconds
    while True:
        try:
            output, errors = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                failed = f"> {seconds:g} s"
            elif _status(process.pid, "VmRSS") > 1024 * gibibytes:
                failed = f"> {gibibytes:g} GiB"
            if failed:
                os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if not failed and (process.returncode != 0 or not lines):
        failed = _reason(errors, process.returncode)
    return {**result, "failed": failed} if failed else result


def _status(process: int | str, key: str) -> float:
    """A size in MiB out of Linux's status of a process; 0 where there is none."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def _reason(errors: str, returncode: int) -> str:
    """The line that names the exception, or how the process ended."""
    if returncode < 0:
        return f"ended by {signal.Signals(-returncode).name}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    # TensorFlow repeats the name of an exception, indented, before what it says.
    named = [line for line in lines if re.match(r"[\w.]*Error: (?!in user code)", line)]
    return (named or lines or [f"exit code {returncode}"])[-1]


def peak_mib() -> float:
    """Most memory that this process ever held, MiB.

    Linux's VmHWM belongs to the program that runs; ru_maxrss, the fallback, starts
    from that of the process which started it.
    """
    own = _status("self", "VmHWM")
    return own or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """The processor that the figures belong to."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [
            v.strip()
            for k, _, v in (n.partition(":") for n in lines)
            if k.strip() == "model name"
        ]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {name}, {platform.system()}"


def load() -> str:
    """How busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f}"


class Table:
    """A Markdown table, printed row by row as it is measured."""

    def __init__(self, *columns: str) -> None:
        self._width = len(columns)
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * self._width, flush=True)

    def row(self, *cells: str) -> None:
        """Prints one row; missing cells stay empty."""
        texts = [cell.replace("|", r"\|") for cell in cells]
        padded = [*texts, *[""] * (self._width - len(cells))]
        print("| " + " | ".join(padded) + " |", flush=True)


def figure(value: float) -> str:
    """Three significant digits, without an exponent from 0.01 up."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def speed_cells(found: Mapping[str, Any], suffix: str = "XLA") -> list[str]:
    """Milliseconds and ratios; where they are missing, why.

    Args:
        found: of `race`.
        suffix: marks the plain variant of that name.
    """
    cells = ["", found.get("failed", ""), "", ""]
    if "plain_ms" in found:
        is_marked = suffix in found["plain"]
        cells[0] = figure(found["plain_ms"]) + f" ({suffix})" * is_marked
    if "failed" not in found:
        cells[1:] = (figure(found[key]) for key in ("private_ms", "wall", "cpu"))
    return cells
