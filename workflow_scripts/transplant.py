"""Transplant patches onto another version of their model: as an adapter, merged, or both."""

from portllm.cli import transplant

if __name__ == "__main__":
    transplant.main(__doc__)
