"""Turn a patch into a port, and merge ports into full checkpoints."""
