"""Training: one update, one trajectory loop, gradient flow, checkpoints."""
