"""Closed-form predictions beside the simulation that they predict, one claim a file."""
