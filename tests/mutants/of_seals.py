"""Bugs by which a release is made of what others wrote."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any
from unittest import mock

from dp_train import account, clipped_sum, draws
from dp_train.optimizers import drop_in, subclasses
from tests.mutants.mutant import Mutant


class _Anything:
    def __contains__(self, item: Any) -> bool:
        return True


def sampling_of_any_type() -> Any:
    return mock.patch.object(account, "_KINDS", _Anything())


def draws_of_any_rows() -> Any:
    return mock.patch.object(draws, "_checked", lambda poisson, rows: poisson)


def clipped_sum_hands_out_its_memory() -> Any:
    return mock.patch.object(clipped_sum, "_copy", lambda value: value)


def clipped_sum_pays_twice() -> Any:
    stack = ExitStack()
    stack.enter_context(
        mock.patch.object(clipped_sum, "_unused", mock.Mock(spec=["add", "remove"]))
    )
    return stack


def optimizer_found_by_what_it_answers() -> Any:
    def found(model: Any, name: str, default: Any) -> Any:
        given = inspect.getattr_static(model, name, default)
        return getattr(given, "first", given)

    return mock.patch.object(drop_in, "inspect", mock.Mock(getattr_static=found))


def subclass_may_define_all() -> Any:
    return mock.patch.object(subclasses, "_may_define", lambda *given: True)


def subclass_seen_once() -> Any:
    return mock.patch.multiple(
        "dp_train.optimizers.dp_optimizer", check_optimizer=lambda *given: None
    )


MUTANTS = {
    "sampling of any type": Mutant(
        "A release is priced by whatever has the methods of a sampling.",
        sampling_of_any_type,
        "seals: sampling",
        "priced by another sampling",
    ),
    "draws of any rows": Mutant(
        "A sampling of more rows than there are prices their draws.",
        draws_of_any_rows,
        "seals: draws",
        "priced by another sampling",
    ),
    "clipped sum hands out its memory": Mutant(
        "The gradients that a clipped sum shows are those that it releases.",
        clipped_sum_hands_out_its_memory,
        "seals: clipped sum",
        "moved the weights by",
    ),
    "clipped sum pays twice": Mutant(
        "A clipped sum is not used up by its release.",
        clipped_sum_pays_twice,
        "seals: clipped sum again",
        "moved the weights by|two releases",
    ),
    "optimizer found by what it answers": Mutant(
        "An optimizer that answers for the DP optimizer is taken for it.",
        optimizer_found_by_what_it_answers,
        "seals: optimizer",
        "trained with an optimizer that is not its own",
    ),
    "subclass may define all": Mutant(
        "A subclass of a DP optimizer may define its clip as a property.",
        subclass_may_define_all,
        "seals: subclass",
        "trained with an optimizer that is not its own",
    ),
    "subclass seen once": Mutant(
        "What is set on a class or an optimizer after it was made is not seen.",
        subclass_seen_once,
        "seals: late method",
        "trained with an optimizer that is not its own",
    ),
}
