"""Fetch models and datasets, from the hub or local files; build corpora and task data."""
