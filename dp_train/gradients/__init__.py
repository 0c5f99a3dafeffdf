"""Clipped sums of per-example gradients, by engines of different speed."""
