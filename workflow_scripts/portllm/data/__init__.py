"""Models, datasets, corpora and tasks, from the hub or from local files."""
