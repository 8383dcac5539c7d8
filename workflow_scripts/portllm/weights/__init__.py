"""Checkpoints, adapters and dtypes, read from safetensors headers."""
