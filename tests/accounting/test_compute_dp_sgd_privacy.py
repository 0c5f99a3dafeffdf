"""The command line: its answers, its refusals, and what it loads."""

import json
import math
import subprocess
import sys

import pytest

import accounting
from accounting.cli.plan import PROGRAM
from accounting.compute_dp_sgd_privacy import main
from accounting.events import (
    FixedSizeSampledEvent,
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    RandomAllocationEvent,
    TruncatedPoissonSampledEvent,
    event_from_dict,
    user_level,
)
from accounting.pld import DefaultAccountant, PldAccountant
from accounting.rdp import RdpAccountant
from accounting.report import privacy_report
from tests.accounting.battery import sampled

GOOD = {
    "N": "60000",
    "batch_size": "256",
    "noise_multiplier": "1.1",
    "epochs": "60",
    "delta": "1e-5",
}


def arguments(**changes: str | None) -> list[str]:
    options = GOOD | changes
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


def answer(capsys, *extra: str, **changes: str | None) -> dict:
    """The JSON answer to the good question with changes."""
    assert main([*arguments(**changes), *extra, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def ids(result: dict) -> set[str]:
    """Ids of the caveats."""
    return {caveat["id"] for caveat in result["caveats"]}


def assert_refused(capsys, argv: list[str], *parts: str) -> None:
    """Fails unless the command exits with 2 and one line that has all parts."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    for part in parts:
        assert part in captured.err


def test_assert_refused_fails_where_the_command_answers(capsys) -> None:
    with pytest.raises(AssertionError):
        assert_refused(capsys, arguments())


def test_text_says_what_the_figure_depends_on(capsys) -> None:
    assert main(arguments()) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "60000",
        "256",
        "0.00426667",
        "14063",
        "1.1",
        "add_or_remove_one",
        "so even the presence in the data",
        "Poisson",
        "must not borrow this figure",
        "between 2.381 and 2.382",
        "1e-05",
        f"pld, accounting {accounting.__version__}",
    ):
        assert part in text


def test_json_is_the_accountants_answer(capsys) -> None:
    result = answer(capsys)
    event = event_from_dict(result["event"])
    assert event == sampled(256 / 60000, 1.1)
    bounds = DefaultAccountant().compose(event, 14063).epsilon(1e-5)
    assert result["epsilon"] == bounds.to_dict()


@pytest.mark.parametrize("relation", list(NeighboringRelation), ids=lambda r: r.value)
def test_relation_is_used_and_explained(capsys, relation) -> None:
    result = answer(capsys, relation=relation.value)
    accountant = DefaultAccountant(relation)
    accountant.compose(sampled(256 / 60000, 1.1), 14063)
    assert result["epsilon"]["upper"] == accountant.epsilon(1e-5).upper
    assert result["relation_meaning"] == relation.description


@pytest.mark.parametrize(
    ("population", "batch_size", "epochs", "steps"),
    [
        ("60000", "256", "60", 14063),
        ("1000", "100", "3", 30),
        ("1000", "100", "0.3", 3),
        ("1000", "100", "0.31", 4),
        ("1000", "300", "1", 4),
        ("10", "10", "1e3", 1000),
        ("999999999999999999", "1", "1", 999999999999999999),
    ],
)
def test_epochs_mean_exactly_rounded_up_steps(
    capsys, population, batch_size, epochs, steps
) -> None:
    result = answer(capsys, N=population, batch_size=batch_size, epochs=epochs)
    assert result["steps"] == steps


def test_steps_replace_epochs(capsys) -> None:
    assert answer(capsys, epochs=None, steps="14063") == answer(capsys)


def test_target_epsilon_is_reached_by_the_noise_that_is_printed(capsys) -> None:
    wish = {"noise_multiplier": None, "target_epsilon": "3"}
    result = answer(capsys, **wish)
    assert result["epsilon"]["upper"] <= 3
    assert main(arguments(**wish)) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = next(line for line in lines if line.startswith("noise")).split()[2]
    assert answer(capsys, noise_multiplier=printed)["epsilon"]["upper"] <= 3
    assert float(printed) == pytest.approx(result["noise_multiplier"], abs=1e-4)


def test_no_noise_is_answered_with_infinity(capsys) -> None:
    result = answer(capsys, noise_multiplier="0")
    assert result["epsilon"]["upper"] == "infinity"
    assert "no_noise" in ids(result)


def test_large_delta_is_answered_with_a_caveat(capsys) -> None:
    assert "delta_too_large" in ids(answer(capsys, delta="0.001"))
    assert "delta_too_large" not in ids(answer(capsys))


def test_help_teaches_by_example(capsys) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--N=60000 --batch_size=256 --noise_multiplier=1.1 --epochs=60" in text
    typed = "steps target_epsilon relation sampling max_batch_size curve plot ledger"
    for name in (*GOOD, *typed.split(), "max_examples_per_user", "json"):
        assert f"--{name}" in text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"N": None}, ["--N is missing", "Type --N=60000"]),
        ({"N": "0"}, ["--N is 0, below 1", "Type --N=60000"]),
        ({"N": "6e-4"}, ["'6e-4', not a whole number", "--N=60000"]),
        ({"N": "1/3"}, ["'1/3', not a whole number", "--N=60000"]),
        ({"delta": "1/0"}, ["'1/0', not a number", "--delta=1e-6"]),
        ({"N": "1e300"}, ["'1e300', not a whole number", "--N=60000"]),
        ({"N": "60,000"}, ["'60,000', not a whole number", "Type it in digits"]),
        ({"N": "9" * 19}, ["not a whole number", "Type it in digits"]),
        ({"N": "100"}, ["larger than --N", "Type a --batch_size of at most 100"]),
        ({"batch_size": None}, ["--batch_size is missing", "--batch_size=256"]),
        ({"batch_size": "0"}, ["--batch_size is 0", "--batch_size=256"]),
        ({"batch_size": "-4"}, ["'-4', not a whole number", "--batch_size=256"]),
        ({"batch_size": "2.5"}, ["'2.5', not a whole number", "--batch_size=256"]),
        (
            {"noise_multiplier": None},
            ["--noise_multiplier is missing", "--target_epsilon=3 to solve for it"],
        ),
        ({"target_epsilon": "3"}, ["nothing is left to solve for", "Leave out"]),
        (
            {"target_epsilon": "3", "delta": None, "batch_size": None},
            ["--batch_size and --delta are missing", "Type all but one of them"],
        ),
        (
            {"batch_size": None, "epochs": "1e300"},
            ["1e300, or 1e+300 steps", "such as 60"],
        ),
        ({"l2_norm_clip": "0"}, ["not above 0", "such as 1.0"]),
        ({"max_batch_size": "9"}, ["goes with --sampling=truncated_poisson only"]),
        ({"max_examples_per_user": "2000"}, ["above 1000", "such as 4"]),
        (
            {"max_examples_per_user": "2", "sampling": "balls_in_bins"},
            ["has no bound with --sampling=balls_in_bins", "Type --sampling=poisson"],
        ),
        ({"sampling": "truncated_poisson"}, ["--max_batch_size is missing"]),
        (
            {"sampling": "balls_in_bins", "relation": "replace_one"},
            ["not a function of one sum", "Type --relation=add_or_remove_one"],
        ),
        ({"noise_multiplier": "-1"}, ["below 0", "Type a number such as 1.1"]),
        ({"noise_multiplier": "nan"}, ["'nan', not a number", "=1.1"]),
        ({"noise_multiplier": "1e999"}, ["too large", "--noise_multiplier=1.1"]),
        (
            {"noise_multiplier": None, "target_epsilon": "0"},
            ["not above 0", "Type a number such as 3"],
        ),
        (
            {"noise_multiplier": None, "target_epsilon": "x"},
            ["'x', not a number", "--target_epsilon=3"],
        ),
        (
            {
                "noise_multiplier": None,
                "target_epsilon": "1e-9",
                "delta": "1e-20",
                "N": "256",
                "epochs": "1e7",
            },
            ["No noise reaches such a target", "take fewer steps"],
        ),
        ({"epochs": None}, ["--epochs is missing", "or --steps=14063, or"]),
        ({"steps": "10"}, ["are both given", "Type only one of them"]),
        ({"epochs": "0"}, ["--epochs is 0", "Type a number such as 60"]),
        ({"epochs": "-2"}, ["--epochs is -2", "Type a number such as 60"]),
        ({"epochs": "1e999"}, ["--epochs is 1e999", "Type a number such as 60"]),
        ({"epochs": "1e9999999"}, ["not a number", "--epochs=60"]),
        ({"epochs": "1/3/5"}, ["'1/3/5', not a number", "--epochs=60"]),
        ({"epochs": None, "steps": "0"}, ["--steps is 0", "--steps=14063"]),
        ({"epochs": None, "steps": "ten"}, ["'ten'", "--steps=14063"]),
        ({"delta": None}, ["--delta is missing", "Type --delta=1e-6"]),
        ({"delta": "0"}, ["outside (0, 1)", "--delta=1e-6"]),
        ({"delta": "1"}, ["outside (0, 1)", "--delta=1e-6"]),
        ({"delta": "1e-999"}, ["outside (0, 1)", "--delta=1e-6"]),
        ({"delta": "tiny"}, ["'tiny', not a number", "--delta=1e-6"]),
        ({"relation": "both"}, ["'both', which is not known", "or zero_out"]),
        ({"microbatches": "1"}, ["--microbatches=1", "--help for the options"]),
        ({"noise": "1"}, ["--noise=1", "--help for the options"]),
        ({"json": "yes"}, ["json", "--help for the options"]),
    ],
    ids=str,
)
def test_bad_input_gets_one_line_that_says_what_to_type(capsys, changes, parts) -> None:
    assert_refused(capsys, arguments(**changes), *parts)


def test_option_without_a_value_is_refused(capsys) -> None:
    assert_refused(capsys, ["--N"], "--N", "expected one argument", "--help")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_module_runs_as_a_command() -> None:
    module = ("-m", "accounting.compute_dp_sgd_privacy")
    good = run(*module, *arguments())
    assert (good.returncode, good.stderr) == (0, "")
    assert "between 2.381 and 2.382" in good.stdout
    bad = run(*module, *arguments(delta="2"))
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
    assert "Traceback" not in bad.stderr


def test_import_loads_neither_tensorflow_nor_the_slow_parts_of_scipy() -> None:
    code = "import sys, accounting, accounting.compute_dp_sgd_privacy\n"
    code += "print(*sys.modules)"
    loaded = set(run("-c", code).stdout.split())
    assert "accounting.rdp" in loaded
    heavy = {"tensorflow", "keras", "absl", "scipy.stats", "scipy.optimize"}
    heavy |= {"scipy.signal", "dp_accounting", "mpmath"}
    assert loaded & heavy == set()


def test_accountant_is_the_one_that_was_asked_for(capsys) -> None:
    event = sampled(256 / 60000, 1.1)
    for name, make in (("rdp", RdpAccountant), ("pld", DefaultAccountant)):
        result = answer(capsys, accountant=name)
        bounds = make().compose(event, 14063).epsilon(1e-5)
        assert result["accountant"] == name
        assert result["epsilon"] == bounds.to_dict()
        renyi = RdpAccountant().compose(event, 14063).epsilon(1e-5).upper
        assert result["comparisons"]["rdp"] == renyi
        assert result["comparisons"]["every_example_in_every_step"] > 100


def test_text_of_the_law_of_the_loss_has_both_bounds(capsys) -> None:
    assert main(arguments(accountant="pld")) == 0
    # Steps are 14,063 here, one more than in the table of settings.
    assert "between 2.381 and 2.382" in capsys.readouterr().out


def test_target_is_reached_by_the_accountant_that_was_asked_for(capsys) -> None:
    wish = {"noise_multiplier": None, "target_epsilon": "3", "accountant": "pld"}
    result = answer(capsys, **wish)
    rounded = f"{result['noise_multiplier'] + 5e-5:.4f}"
    again = answer(capsys, noise_multiplier=rounded, accountant="pld")
    assert again["epsilon"]["upper"] <= 3
    # The best noise is 0.9684 for 14,062 steps.
    assert result["noise_multiplier"] == pytest.approx(0.9684, abs=2e-4)
    assert result["epsilon"]["upper"] <= 3


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_shuffled_batches_cost_one_release_a_pass_without_sampling(
    capsys, accountant
) -> None:
    zero_out = {"sampling": "shuffle", "relation": "zero_out", "accountant": accountant}
    result = answer(capsys, **zero_out)
    # 14,063 steps reach into a 61st pass of 234 full batches.
    assert result["event_count"] == 61
    make = {"rdp": RdpAccountant, "pld": PldAccountant}[accountant]
    relation = NeighboringRelation.ZERO_OUT
    bounds = make(relation).compose(GaussianEvent(1.1), 61).epsilon(1e-5)
    assert result["epsilon"]["upper"] == bounds.upper
    # 234 batches of 256 leave some of 60,000 examples out, which is safer for them.
    assert result["epsilon"]["lower"] == 0
    whole = answer(capsys, **zero_out, N="59904")["epsilon"]
    assert (whole["lower"] > 2) == (accountant == "pld")
    assert "no_tight_bound" in ids(result) and "shuffling" not in ids(result)
    replaced = answer(capsys, **zero_out | {"relation": "replace_one"})
    assert replaced["epsilon"]["upper"] > result["epsilon"]["upper"]


def test_no_sampling_counts_every_step_in_full(capsys) -> None:
    result = answer(
        capsys, sampling="none", relation="zero_out", steps="10", epochs=None
    )
    accountant = DefaultAccountant(NeighboringRelation.ZERO_OUT)
    bounds = accountant.compose(GaussianEvent(1.1), 10).epsilon(1e-5)
    assert result["epsilon"] == bounds.to_dict()


@pytest.mark.parametrize("sampling", ["shuffle", "none"])
def test_sampling_without_a_bound_under_add_or_remove_is_refused(
    capsys, sampling
) -> None:
    parts = ("shifts every later batch", "Type --relation=zero_out")
    assert_refused(capsys, arguments(sampling=sampling), *parts)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"accountant": "best"}, "Type pld or rdp"),
        ({"sampling": "fixed"}, "balls_in_bins or none"),
    ],
)
def test_unknown_name_is_refused(capsys, changes, part) -> None:
    assert_refused(capsys, arguments(**changes), "which is not known", part)


def test_curve_falls_with_delta(capsys) -> None:
    curve = answer(capsys, "--curve")["curve"]
    assert [point["delta"] for point in curve] == [10.0**-k for k in range(3, 13)]
    uppers = [point["epsilon"]["upper"] for point in curve]
    assert uppers == sorted(uppers)
    assert main([*arguments(), "--curve"]) == 0
    assert capsys.readouterr().out.count("\nat delta") == 10
    assert answer(capsys)["curve"] == answer(capsys)["tpr_at_fpr"] == []


@pytest.fixture
def ledger_file(tmp_path):
    ledger = Ledger()
    ledger.charge(
        sampled(0.01, 1.0), l2_norm_clip=1.0, noise_source="secure", count=1000
    )
    path = tmp_path / "ledger.json"
    path.write_text(ledger.to_json(), encoding="utf-8")
    return path


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_ledger_gives_the_epsilon_of_its_releases(
    capsys, ledger_file, accountant
) -> None:
    options = [f"--ledger={ledger_file}", "--delta=1e-5", f"--accountant={accountant}"]
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    make = {"rdp": RdpAccountant, "pld": DefaultAccountant}[accountant]
    bounds = make().compose(sampled(0.01, 1.0), 1000).epsilon(1e-5)
    assert result["epsilon"] == bounds.to_dict()
    assert main([*options, "--N=100"]) == 0
    text = capsys.readouterr().out
    assert "1000 x Gaussian noise" in text
    assert f"Accountant: {accountant}" in text


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (["--steps=5"], ["--steps and --ledger are both given", "Leave out --steps"]),
        (["--sampling=none"], ["has recorded how batches were formed"]),
        (["--curve"], ["Leave out the rest"]),
        (["--delta=2"], ["outside (0, 1)", "--delta=1e-6"]),
        (["--relation=both"], ["which is not known"]),
    ],
)
def test_ledger_with_a_plan_is_refused(capsys, ledger_file, extra, parts) -> None:
    delta = [] if extra[0].startswith("--delta") else ["--delta=1e-5"]
    assert_refused(capsys, [f"--ledger={ledger_file}", *delta, *extra], *parts)


def test_ledger_that_cannot_be_read_is_refused(capsys, tmp_path, ledger_file) -> None:
    missing = f"--ledger={tmp_path / 'none.json'}"
    assert_refused(capsys, [missing, "--delta=1e-5"], "cannot be read", "Type the path")
    ledger_file.write_text("not JSON", encoding="utf-8")
    damaged = [f"--ledger={ledger_file}", "--delta=1e-5"]
    assert_refused(capsys, damaged, "The ledger cannot be read", "not JSON")


def test_import_loads_nothing_of_scipy() -> None:
    code = "import sys, accounting, accounting.compute_dp_sgd_privacy\n"
    code += "print(*(name for name in sys.modules if name.startswith('scipy')))"
    assert run("-c", code).stdout.strip() == ""


def test_fixed_size_is_answered_by_the_law_of_the_loss_under_replace_one(
    capsys,
) -> None:
    options = {"sampling": "fixed_size", "accountant": "pld", "relation": "replace_one"}
    result = answer(capsys, **options, N="100", batch_size="1", steps="50", epochs=None)
    event = FixedSizeSampledEvent(100, 1, GaussianEvent(1.1))
    relation = NeighboringRelation.REPLACE_ONE
    bounds = DefaultAccountant(relation).compose(event, 50).epsilon(1e-5)
    assert result["epsilon"] == bounds.to_dict()
    assert event_from_dict(result["event"]) == event
    assert result["comparisons"]["rdp"] is None
    assert "two_pairs" in ids(result)
    changes = options | {"relation": "zero_out"}
    assert_refused(capsys, arguments(**changes), "Type --relation=replace_one")
    changes = options | {"accountant": "rdp"}
    assert_refused(capsys, arguments(**changes), "Type --accountant=pld")


@pytest.mark.parametrize(
    ("missing", "close"),
    [
        ("noise_multiplier", lambda value: value["noise_multiplier"] * 0.999),
        ("epochs", lambda value: value["steps"] + 3),
        ("batch_size", lambda value: value["batch_size"] + 2),
        ("delta", lambda value: value["delta"] * 0.98),
    ],
)
def test_target_solves_for_the_one_that_is_missing(capsys, missing, close) -> None:
    result = answer(capsys, **{missing: None, "target_epsilon": "2.5"})
    solved_for = "steps" if missing == "epochs" else missing
    assert result["solved_for"] == solved_for
    assert result["epsilon"]["upper"] <= 2.5
    changes = {
        missing: str(result[solved_for]),
        solved_for: str(result[solved_for]),
    }
    if missing == "epochs":
        changes["epochs"] = None
    assert answer(capsys, **changes)["epsilon"]["upper"] <= 2.5
    # A little more, and it is exceeded.
    changes[solved_for] = str(close(result))
    assert answer(capsys, **changes)["epsilon"]["upper"] > 2.5


def test_solved_values_are_printed_on_the_safe_side(capsys) -> None:
    wish = {"delta": None, "target_epsilon": "2.5"}
    assert main(arguments(**wish)) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = next(line for line in lines if line.startswith("delta")).split()[1]
    assert float(printed) >= answer(capsys, **wish)["delta"]
    assert "(for a target epsilon of 2.5)" in "\n".join(lines)


def test_target_that_nothing_reaches_is_one_line(capsys) -> None:
    weak = {"noise_multiplier": "0.3", "target_epsilon": "0.01"}
    steps = arguments(**weak, epochs=None)
    assert_refused(capsys, steps, "Not one step with noise multiplier 0.3")
    size = arguments(**weak, batch_size=None)
    assert_refused(capsys, size, "No batch size keeps epsilon within")
    delta = arguments(noise_multiplier="0", target_epsilon="1", delta=None)
    assert_refused(capsys, delta, "No delta below 0.5 keeps epsilon within")


def test_checklist_of_a_statement_is_complete(capsys) -> None:
    """Ponomareva et al. 2023, section 5.3, item by item."""
    result = answer(capsys, l2_norm_clip="0.7")
    assert {"central", "printed_metrics", "tuning", "plan_only"} <= ids(result)
    assert {"data_statistics", "floating_point", "shuffling"} <= ids(result)
    assert result["unit"] == "one example"
    assert "all intermediate models" in result["released"]
    for name in ("relation", "sampling", "noise_multiplier", "accountant", "version"):
        assert result[name]
    assert result["l2_norm_clip"] == 0.7
    assert set(result["comparisons"]) == {"rdp", "every_example_in_every_step"}
    assert main(arguments(l2_norm_clip="0.7")) == 0
    printed = capsys.readouterr().out
    assert all(f"[{id}]" in printed for id in ids(result))
    assert "clip norm             0.7" in printed


def test_users_cost_more_than_examples(capsys) -> None:
    options = {"sampling": "none", "relation": "zero_out", "steps": "10"}
    options |= {"epochs": None, "noise_multiplier": "20"}
    one = answer(capsys, **options)
    three = answer(capsys, **options, max_examples_per_user="3")
    assert three["unit"] == "one user with at most 3 examples"
    accountant = DefaultAccountant(NeighboringRelation.ZERO_OUT)
    bounds = accountant.compose(GaussianEvent(20 / 3), 10).epsilon(1e-5)
    assert three["epsilon"]["upper"] == bounds.upper > 2 * one["epsilon"]["upper"]


def test_curve_bounds_what_a_test_can_find_out(capsys) -> None:
    rates = answer(capsys, "--curve")["tpr_at_fpr"]
    assert [point["fpr"] for point in rates] == [10.0**-k for k in range(1, 7)]
    for point in rates:
        assert point["fpr"] < point["tpr"]["lower"] <= point["tpr"]["upper"] < 1
        # By the definition of (epsilon, delta).
        epsilon = answer(capsys)["epsilon"]["upper"]
        assert point["tpr"]["upper"] <= math.exp(epsilon) * point["fpr"] + 1.1e-5


def test_plot_writes_a_picture_or_says_why_not(capsys, tmp_path, ledger_file) -> None:
    picture = tmp_path / "picture.png"
    assert main([*arguments(noise_multiplier="2"), f"--plot={picture}"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    options = [f"--ledger={ledger_file}", "--delta=1e-5", f"--plot={picture}"]
    assert main(options) == 0
    assert picture.is_file()
    capsys.readouterr()
    missing = arguments(noise_multiplier="2") + [f"--plot={tmp_path}/no/picture.png"]
    assert_refused(capsys, missing, "cannot be written", "Type another path")
    unknown = arguments(noise_multiplier="2") + [f"--plot={tmp_path}/picture.doc"]
    assert_refused(capsys, unknown, "has no known format", "Let it end in .pdf")


def test_ledger_statement_compares_with_other_ways_to_count(
    capsys, ledger_file
) -> None:
    assert main([f"--ledger={ledger_file}", "--delta=1e-5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    renyi = RdpAccountant().compose(sampled(0.01, 1.0), 1000).epsilon(1e-5).upper
    assert result["comparisons"]["rdp"] == renyi
    assert result["comparisons"]["no_amplification"] > 100
    assert main([f"--ledger={ledger_file}", "--delta=1e-5"]) == 0
    assert "by Renyi divergences at most 2.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "event", "count"),
    [
        (
            {"sampling": "balls_in_bins"},
            RandomAllocationEvent(235, GaussianEvent(1.1)),
            60,
        ),
        (
            {"sampling": "truncated_poisson", "max_batch_size": "300"},
            TruncatedPoissonSampledEvent(256 / 60000, GaussianEvent(1.1), 60000, 300),
            14063,
        ),
        ({"max_examples_per_user": "3"}, user_level(256 / 60000, 1.1, 3), 14063),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_sampling_is_accounted_as_its_own_event(
    capsys, options, event, count
) -> None:
    result = answer(capsys, **options)
    assert (event_from_dict(result["event"]), result["event_count"]) == (event, count)
    bounds = DefaultAccountant().compose(event, count).epsilon(1e-5)
    assert result["epsilon"] == bounds.to_dict()


def test_shuffling_is_at_least_what_random_allocation_attains(capsys) -> None:
    options = {"sampling": "shuffle", "relation": "zero_out", "N": "59904"}
    epsilon = answer(capsys, **options)["epsilon"]
    # 60 whole passes of 234 steps, and a 61st that counts from above only.
    event = RandomAllocationEvent(234, GaussianEvent(1.1))
    accountant = PldAccountant(NeighboringRelation.ZERO_OUT).compose(event, 60)
    assert epsilon["lower"] == accountant.epsilon(1e-5).lower > 1
    assert epsilon["upper"] > 10 * epsilon["lower"]


def test_failure_of_an_accountant_is_one_line_without_a_figure(
    capsys, monkeypatch
) -> None:
    def fails(self, delta):
        raise FloatingPointError("overflow")

    monkeypatch.setattr(PldAccountant, "epsilon", fails)
    parts = ("FloatingPointError", "could be wrong", "Type --accountant=rdp")
    assert_refused(capsys, arguments(), *parts)


SPELLED = ["--N=60000", "--batch_size=256", "--noise_multiplier=1.1", "--delta=1/50000"]


def test_numbers_and_options_have_several_spellings(capsys) -> None:
    def answer(*options: str) -> dict:
        assert main([*options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    plain = answer(*SPELLED, "--steps=500", "--relation=zero_out")
    assert plain["delta"] == 2e-5
    spelled = ["--N", "6e4", "--batch-size=2.56e2", "--noise-multiplier", "11/10"]
    spelled += ["--delta=2e-5", "--steps=5e2", "--relation=zero-out"]
    assert answer(*spelled) == plain
    third = answer(*SPELLED, "--epochs=1/3")
    assert third["steps"] == math.ceil(60000 / 3 / 256)


@pytest.mark.parametrize("option", ["--delta=1e-6", "--delta=1/50000", "--N=5"])
def test_option_given_twice_is_refused(capsys, option) -> None:
    name = option.partition("=")[0]
    assert_refused(capsys, [*SPELLED, "--steps=5", option], f"{name} is given twice")


def test_flag_and_spelling_given_twice_are_refused(capsys) -> None:
    assert_refused(capsys, [*SPELLED, "--json", "--json"], "--json is given twice")
    options = [*SPELLED, "--batch-size", "256"]
    assert_refused(capsys, options, "--batch_size is given twice")


def test_version_is_that_of_the_package(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == [PROGRAM, accounting.__version__]


def test_reader_that_has_enough_sees_no_traceback() -> None:
    code = f"from accounting.compute_dp_sgd_privacy import main; main({SPELLED!r} + "
    for tail in ("['--steps=500', '--curve'])", "['--help'])"):
        writer = subprocess.Popen(
            [sys.executable, "-c", code + tail],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        writer.stdout.close()
        assert writer.stderr.read() == b""
        assert writer.wait() == 0
        writer.stderr.close()


def test_ledger_of_examples_is_read_for_users(capsys, ledger_file) -> None:
    options = [f"--ledger={ledger_file}", "--delta=1e-5", "--json"]
    assert main([*options, "--max-examples-per-user=3"]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = DefaultAccountant().compose(user_level(0.01, 1.0, 3), 1000)
    assert result["epsilon"] == expected.epsilon(1e-5).to_dict()
    assert result["unit"] == "one user with at most 3 examples"
    assert "one_person" not in [caveat["id"] for caveat in result["caveats"]]
    # Without any sampling three examples move the sum by three clip norms.
    whole = DefaultAccountant().compose(GaussianEvent(1 / 3), 1000).epsilon(1e-5)
    assert result["comparisons"]["no_amplification"] == whole.upper


def test_sampling_cut_to_a_size_costs_no_more_than_none_at_all(capsys) -> None:
    """An example that is added may push another out: twice the distance."""
    settings = {"N": "100", "batch_size": "100", "noise_multiplier": "2", "steps": "10"}
    cut = {"sampling": "truncated_poisson", "max_batch_size": "99", "epochs": None}
    result = answer(capsys, **settings, **cut)
    whole = result["comparisons"]["every_example_in_every_step"]
    assert result["epsilon"]["upper"] <= whole
    ledger = Ledger()
    event = TruncatedPoissonSampledEvent(1.0, GaussianEvent(2.0), 100, 99)
    ledger.charge(event, l2_norm_clip=1.0, noise_source="secure", count=10)
    report = privacy_report(ledger, 1e-5)
    comparisons = dict(report.comparisons)
    assert report.epsilon.upper <= comparisons["no_amplification"]
    halved = DefaultAccountant().compose(GaussianEvent(1.0), 10).epsilon(1e-5)
    assert comparisons["no_amplification"] == whole == halved.upper


def test_ledger_of_dependent_draws_is_refused_for_users(capsys, tmp_path) -> None:
    ledger = Ledger()
    event = FixedSizeSampledEvent(100, 10, GaussianEvent(1.0))
    ledger.charge(event, l2_norm_clip=1.0, noise_source="secure/x")
    path = tmp_path / "ledger.json"
    path.write_text(ledger.to_json(), encoding="utf-8")
    options = [f"--ledger={path}", "--delta=1e-5", "--max_examples_per_user=3"]
    assert_refused(capsys, options, "drawn dependently", "without max_examples")
