"""Train patches, evolve and pretrain models, save checkpoints and resume from them."""
