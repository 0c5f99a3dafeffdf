"""The command compute_dp_sgd_privacy: its options, the plan they mean, the answer."""
