"""Estimate memory, time and disk before anything runs."""
