"""The training loop, its checkpoints and what it leaves behind."""
