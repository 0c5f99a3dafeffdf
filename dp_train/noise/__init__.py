"""Noise: keystream on the host (default) or Philox on the device, each named."""
