"""The configuration of a study and the cells that follow from it."""
