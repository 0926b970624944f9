"""A meta-training run: the outer loop, its checkpoints, its folder."""
