"""Measure weights and losses: movement, norms, geometry, loss slices."""
