"""What a privacy statement must say beside its figure, with ids that stay the same.

The list is that of Ponomareva et al. 2023 (arXiv:2303.00654), section 5.3: the setting,
the unit and relation, the mechanism with its sampling, noise and clip norm, how it was
accounted, which models are covered, and what else touched the data.
"""

import dataclasses
import types
from collections.abc import Mapping

UNIT = "one example"


@dataclasses.dataclass(frozen=True, slots=True)
class Caveat:
    """A limit of the statement: an id that stays the same, and its text."""

    id: str
    text: str


CAVEATS: Mapping[str, str] = types.MappingProxyType(
    {
        "insecure_noise": (
            "Part of the noise came from a source meant for tests. Whoever knows its"
            " seed can remove it, so this is no privacy guarantee at all."
        ),
        "no_noise": (
            "Part of the releases carried no noise. Epsilon is infinite, which is no"
            " privacy guarantee."
        ),
        "delta_too_large": (
            "Delta is not below 1 / number of examples. A method that publishes one"
            " example at random could meet it; choose a delta well below that."
        ),
        "unverified_sampling": (
            "Part of the batches was ready-made. The library did not draw them, so no"
            " amplification by sampling is counted, and the statement holds only if"
            " each example occupies at most one place of a batch."
        ),
        "no_tight_bound": (
            "No tight bound is known for shuffled batches. The upper one is what one"
            " release for each pass over the data costs without any sampling; the lower"
            " one is that of examples that choose their step by themselves."
        ),
        "shuffling": (
            "Batches of a shuffled dataset are not Poisson-sampled and must not borrow"
            " this figure: their epsilon can be several times larger (Chua et al. 2024,"
            " arXiv:2403.17673)."
        ),
        "two_pairs": (
            "For batches of a fixed size the bounds are 2 to 20 % apart by nature: the"
            " lower one is attained, the upper one covers data chosen anew for each"
            " step."
        ),
        "own_step": (
            "Each example must choose its step by itself, anew in every pass, so that"
            " batches vary in size. Cutting a shuffled dataset into equal batches is"
            " something else."
        ),
        "plan_only": (
            "This is a plan. What a training has released is in its ledger; ask again"
            " with --ledger when it is done."
        ),
        "chosen_by_looking": (
            "Epsilon is that of releases fixed in advance. If it depended on earlier"
            " results when training stopped, or how much noise was added, it is too"
            " small: then the epsilon of the whole plan holds, or the odometer's, if"
            " the rest was fixed (Rogers et al. 2016, arXiv:1605.08294)."
        ),
        "central": (
            "The setting is central: whoever trains sees the data and is trusted. The"
            " statement protects against those who see the models."
        ),
        "one_person": (
            "The unit is one example. A person who owns several of them, or is told of"
            " in several, is protected less: by the statement for so many examples of"
            " one user (max_examples_per_user), which needs that number bounded."
        ),
        "several_deltas": (
            "An epsilon means something at its own delta only, and other deltas than"
            " that of this statement were used."
        ),
        "printed_metrics": (
            "Training losses and metrics shown during training are computed from the"
            " data without noise. The statement does not cover them, nor what was"
            " decided by looking at them."
        ),
        "data_statistics": (
            "Statistics of the data that entered by another way, such as means for"
            " normalization, a vocabulary or a clip norm chosen on the data, are not"
            " covered."
        ),
        "tuning": (
            "Earlier trainings on the same data, such as a search for hyper-parameters,"
            " are not counted."
        ),
        "ledger_scope": (
            "The ledger counts from where it started. Weights that came without one,"
            " by set_weights, from a file that carries none or restored before"
            " make_private, start a new ledger, and what they had spent is not in it."
        ),
        "changed_elsewhere": (
            "The weights were changed by something that is not in the ledger: training"
            " without noise, values set by hand, or a file that carries no ledger. What"
            " they learned there is not covered."
        ),
        "floating_point": (
            "The mechanism is analysed on real numbers. Low-order bits of rounded"
            " numbers may tell more to whoever is given all of them."
        ),
        "all_checkpoints": (
            "The statement covers the final model together with all intermediate"
            " models."
        ),
    }
)


def caveats(*present: str) -> tuple[Caveat, ...]:
    """The caveats with these ids, in the order of the list."""
    return tuple(Caveat(id, text) for id, text in CAVEATS.items() if id in present)
