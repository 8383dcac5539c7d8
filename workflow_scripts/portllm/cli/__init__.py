"""The `portllm` command: check, port, merge and unmerge patches, and plan a study."""
