"""Extend the Snakemake process that runs the workflow."""
