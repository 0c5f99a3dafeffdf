"""The command answers every plan or explains in one line, in bounded memory."""

import math
import subprocess
import sys

import numpy as np
import pytest

from accounting.compute_dp_sgd_privacy import main

CORNERS = [
    # Nearly an atom, one step, ten million steps, delta near 0, epsilon near both ends.
    "--noise_multiplier=0.2 --batch_size=1000000 --steps=10000000 --delta=1e-20",
    "--noise_multiplier=0.2 --batch_size=1 --steps=10000000 --delta=1e-20",
    "--noise_multiplier=1000 --batch_size=1 --steps=1 --delta=1e-20",
    "--noise_multiplier=1000 --batch_size=1000000 --steps=10000000 --delta=1e-20",
    "--noise_multiplier=0.2 --batch_size=500000 --steps=1 --delta=1e-20",
    "--target_epsilon=0.001 --batch_size=1000000 --steps=10000000 --delta=1e-20",
    "--target_epsilon=1000 --batch_size=1000 --steps=1000 --delta=1e-20",
    "--target_epsilon=0.001 --noise_multiplier=0.2 --steps=10000000 --delta=1e-20",
    "--target_epsilon=0.094 --noise_multiplier=107.6 --steps=9448681"
    " --batch_size=464293",
    "--target_epsilon=0.03 --noise_multiplier=21 --steps=4451864 --batch_size=1",
    "--target_epsilon=1000 --noise_multiplier=1000 --batch_size=1000000 --delta=0.1",
]


def random_plans(seed: int, count: int) -> list[str]:
    """Plans over the whole range, each with one value sought."""
    generator = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return math.exp(generator.uniform(math.log(low), math.log(high)))

    plans = []
    for _ in range(count):
        options = {
            "batch_size": str(max(1, round(between(1e-6, 1) * 10**6))),
            "noise_multiplier": f"{between(0.2, 1000):.6f}",
            "steps": str(int(between(1, 1e7))),
            "delta": f"{between(1e-20, 1e-3):.6e}",
        }
        relation = ["add_or_remove_one", "replace_one", "zero_out"]
        sought = generator.choice([*options, "epsilon"])
        if sought != "epsilon":
            del options[str(sought)]
            options["target_epsilon"] = f"{between(1e-3, 1e3):.6f}"
        options["relation"] = str(generator.choice(relation))
        plans.append(" ".join(f"--{name}={value}" for name, value in options.items()))
    return plans


@pytest.mark.parametrize("plan", [*CORNERS, *random_plans(3, 25)])
def test_every_plan_is_answered_or_explained_in_one_line(plan, capsys) -> None:
    code = main(["--N=1000000", *plan.split()])
    captured = capsys.readouterr()
    assert "nan" not in captured.out
    if code == 0:
        assert captured.err == ""
        line = next(x for x in captured.out.splitlines() if x.startswith("epsilon "))
        assert any(words in line for words in ("between", "at most", "epsilon  "))
    else:
        assert (code, captured.out, captured.err.count("\n")) == (2, "", 1)


def test_memory_stays_bounded() -> None:
    """Peak of a process that answers the corners: 170 MB were measured."""
    code = (
        "import re, sys\n"
        "from accounting.compute_dp_sgd_privacy import main\n"
        "for plan in sys.argv[1:]: main(['--N=1000000', *plan.split()])\n"
        "status = open('/proc/self/status').read()\n"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])\n"
    )
    plans = [*CORNERS[:5], *random_plans(4, 3)]
    done = subprocess.run(
        [sys.executable, "-c", code, *plans], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) * 1024 < 200e6
