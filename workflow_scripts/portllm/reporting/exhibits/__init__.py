"""The kinds of tables and figures, one file for each kind or pair of kinds."""
