"""Train patches, evolve and pretrain models, checkpoint and resume."""
