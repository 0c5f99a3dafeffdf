"""All planted bugs, and quick forms of the batteries that must catch them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.batteries import (
    augmented,
    cancellation,
    draws,
    effects,
    gradient,
    noise,
    owed,
    padding,
    random_layers,
    refused,
    releases,
    sampler,
    sealed,
    sensitivity,
    steering,
    threads,
    transform,
    weights,
)
from tests.mutants import (
    of_augmentation,
    of_gradients,
    of_looking,
    of_noise,
    of_owed_noise,
    of_records,
    of_seals,
    of_weights,
)
from tests.mutants.mutant import Mutant


def _older_checkpoint() -> None:
    with tempfile.TemporaryDirectory() as folder:
        releases.assert_loading_an_older_checkpoint_keeps_what_was_spent(Path(folder))


def _followed_by_the_ledger(way: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights.assert_the_ledger_follows_the_weights(way, Path(folder))


BATTERIES: dict[str, Callable[[], None]] = {
    "gradient in microbatches": lambda: gradient.assert_clipped_sum_equals_the_loop(
        "dense", "vectorized", 1, subsets=(7,)
    ),
    "gradient with regularizers": lambda: gradient.assert_clipped_sum_equals_the_loop(
        "regularizers", "vectorized", subsets=(7,)
    ),
    "training with regularizers": lambda: (
        gradient.assert_training_applies_the_clipped_sum("regularizers", "vectorized")
    ),
    "random layers": lambda: gradient.assert_random_layers_draw_per_example_and_step(
        "vectorized"
    ),
    "random layers: seed": lambda: random_layers.assert_no_seed_decides_a_mask(
        "bookkeeping"
    ),
    "random layers: rows": lambda: (
        random_layers.assert_a_row_more_moves_no_mask_of_others("bookkeeping")
    ),
    "draws: steps": lambda: draws.assert_rows_that_were_not_drawn_make_no_step(
        "train_function"
    ),
    "draws: rows": lambda: draws.assert_rows_that_were_not_drawn_make_no_step(
        "repeated rows"
    ),
    "draws: order": lambda: draws.assert_no_batch_is_left_out("plain fit"),
    "draws: signs": draws.assert_signs_are_seen,
    "draws: sizes": lambda: draws.assert_copies_of_a_batch_do_not_pay_again("trimmed"),
    "draws: batches": lambda: draws.assert_copies_of_a_batch_do_not_pay_again("copied"),
    "draws: rows of a batch": lambda: draws.assert_copies_of_a_batch_do_not_pay_again(
        "multiplied"
    ),
    "threads": threads.assert_one_model_trains_once_at_a_time,
    "augmentation: sensitivity": lambda: (
        augmented.assert_one_example_moves_the_sum_by_at_most_the_clip("bookkeeping")
    ),
    "augmentation: seeds": augmented.assert_no_seed_decides_what_examples_become,
    "effects: state": lambda: effects.assert_no_state_is_kept_on_the_side(
        "fit", "py_function"
    ),
    "effects: rows": lambda: effects.assert_rows_steer_nothing_behind_the_clip(
        "fit", "regularizer"
    ),
    "effects: metrics": lambda: effects.assert_metrics_steer_nothing("fit", "loss"),
    "effects: metrics of a plain model": lambda: effects.assert_metrics_steer_nothing(
        "plain fit", "schedule"
    ),
    "sensitivity": lambda: sensitivity.assert_neighbours_differ_by_at_most_the_clip(
        0.1, "auto"
    ),
    "sensitivity of auto": lambda: (
        sensitivity.assert_neighbours_differ_by_at_most_the_clip(0.1, engine="auto")
    ),
    "sensitivity with microbatches": lambda: (
        sensitivity.assert_neighbours_differ_by_at_most_the_clip(0.1, 4)
    ),
    "cancellation": lambda: cancellation.assert_cancelling_rows_are_clipped(
        "Gram", "float64"
    ),
    "noise: standard deviation": lambda: noise.assert_stddev_of_the_weight_change(
        9, 8, 2, engine="vectorized"
    ),
    "noise: empty batch": lambda: noise.assert_stddev_of_the_weight_change(0, 4),
    "noise: batch of NaN": noise.assert_noise_of_a_batch_of_nan_is_finite_and_full,
    "noise: independence": noise.assert_noise_is_independent,
    "noise: distribution": noise.assert_noise_is_normal,
    "noise: random seed": noise.assert_noise_ignores_the_random_seed,
    "noise: fork": noise.assert_a_fork_draws_other_noise,
    "extreme bits: keystream": lambda: (
        transform.assert_extreme_bits_reach_nine_standard_deviations("keystream")
    ),
    "extreme bits: device": lambda: (
        transform.assert_extreme_bits_reach_nine_standard_deviations("device")
    ),
    "monotone radius: keystream": lambda: (
        transform.assert_radius_is_monotone_and_not_clamped("keystream")
    ),
    "quantiles: device": lambda: transform.assert_transform_matches_quantiles("device"),
    "sampler": sampler.assert_poisson,
    "sampler: neighbours": sampler.assert_consecutive_draws_are_independent,
    "sampler: random seed": sampler.assert_draws_ignore_the_random_seed,
    "owed: every row": lambda: owed.assert_all_rows_have_the_noise_of_every_step(1),
    "owed: callbacks": lambda: owed.assert_whoever_looks_sees_settled_rows("batches"),
    "owed: readers": lambda: owed.assert_whoever_looks_sees_settled_rows("Python"),
    "owed: once": owed.assert_a_row_is_settled_once_when_it_is_read,
    "padding": lambda: padding.assert_a_long_example_moves_no_other("private fit"),
    "steering: decisions": lambda: steering.assert_what_steers_is_reported(
        "TerminateOnNaN"
    ),
    "steering: stops": steering.assert_a_stop_is_offered_the_plan,
    "ledger": lambda: releases.assert_every_noised_update_is_charged("fit"),
    "ledger: keyboard interrupt": lambda: (
        releases.assert_every_noised_update_is_charged("keyboard interrupt")
    ),
    "ledger: older checkpoint": _older_checkpoint,
    "ledger: file of weights": lambda: _followed_by_the_ledger(
        "weights before compile"
    ),
    "ledger: checkpoint of TensorFlow": lambda: _followed_by_the_ledger("checkpoint"),
    "ledger: shared weights": lambda: (
        weights.assert_models_that_share_a_weight_have_one_ledger("layer")
    ),
    "ledger: changes elsewhere": lambda: (
        weights.assert_changes_elsewhere_are_in_the_report("plain fit")
    ),
    "ledger: changes in a fit": lambda: (
        weights.assert_changes_elsewhere_are_in_the_report("on_train_batch_begin")
    ),
    "ledger: assigned optimizer": (
        weights.assert_an_assigned_optimizer_adds_its_own_noise
    ),
    "one optimizer": lambda: (
        refused.assert_no_weight_is_trained_beside_the_dp_optimizer("the first layer")
    ),
    "seals: sampling": lambda: sealed.assert_releases_are_charged_by_own_samplings_only(
        "sampling of the optimizer"
    ),
    "seals: draws": lambda: sealed.assert_releases_are_charged_by_own_samplings_only(
        "draws of more rows"
    ),
    "seals: clipped sum": lambda: sealed.assert_a_clipped_sum_cannot_be_changed(
        "memory"
    ),
    "seals: clipped sum again": lambda: sealed.assert_a_clipped_sum_cannot_be_changed(
        "used again"
    ),
    "seals: optimizer": lambda: sealed.assert_gradients_meet_only_own_methods(
        "delegating"
    ),
    "seals: subclass": lambda: sealed.assert_gradients_meet_only_own_methods(
        "clip as a property"
    ),
    "seals: late method": lambda: sealed.assert_gradients_meet_only_own_methods(
        "method of the class"
    ),
    "complex weights": lambda: refused.assert_complex_weights_are_refused("vectorized"),
    "ledger: budget": lambda: releases.assert_the_budget_holds(4),
    "ledger: events": releases.assert_the_events_say_how_batches_were_drawn,
}

MUTANTS: dict[str, Mutant] = {
    **of_augmentation.MUTANTS,
    **of_gradients.MUTANTS,
    **of_looking.MUTANTS,
    **of_noise.MUTANTS,
    **of_owed_noise.MUTANTS,
    **of_records.MUTANTS,
    **of_seals.MUTANTS,
    **of_weights.MUTANTS,
}
