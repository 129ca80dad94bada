"""The curvature of a loss: its inverse, its flat directions, and what step sizes it allows."""
