"""Phenomena measured in trained networks, one claim a file."""
