"""Phenomena measured in trained networks, one claim a file."""

import os

# The one thing done on import, since it must come before JAX's own: each compiled program that the
# CPU loads from the cache is otherwise announced as an error, with a page of machine features.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")
