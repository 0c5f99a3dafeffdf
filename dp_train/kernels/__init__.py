"""Rules that read per-example gradients off one op of the traced forward pass."""
