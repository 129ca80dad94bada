"""How the curvature of the loss moves while a network trains."""
