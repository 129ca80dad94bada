"""Flax models, their parameterisations, and adapters for other frameworks."""
