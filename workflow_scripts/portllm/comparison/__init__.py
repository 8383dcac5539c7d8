"""Compare scores: of arms, over updates, with imported and published ones."""
