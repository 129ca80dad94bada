"""Learning within the forward pass: what attention does with the examples in its context."""
