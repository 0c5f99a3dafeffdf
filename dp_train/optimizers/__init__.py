"""DP-SGD as Keras optimizers."""
