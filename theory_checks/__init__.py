"""Closed-form predictions beside the simulation that they predict, one claim a file."""

import experiments  # noqa: F401  its word to JAX must come before JAX is imported
