"""Run one job: lease its devices, supervise it, pass signals on."""
