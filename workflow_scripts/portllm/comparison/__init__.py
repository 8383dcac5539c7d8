"""Compare scores between arms, over updates, and with imported and published results."""
