"""Run one job: its devices, its supervision, its signals."""
